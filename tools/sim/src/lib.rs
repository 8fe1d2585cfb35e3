// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Seeded simulation of whole NeonSAN sessions under virtual time.
//!
//! Both halves of `neonsan-session` run as the driver and the node run them, over a network that
//! delays, cuts, stalls and lies, on a node that pauses, restarts and loses its write cache, and
//! several hosts that take the volume from each other. All that the hosts see is compared with an
//! obviously right model of a disk. One number, the seed, decides everything: a failure is found
//! again by its seed.
//!
//! What is checked:
//!
//! - no lost, stale, torn or misplaced byte, in reads and on the disk in the end, with the promises
//!   of FLUSH and FUA across losses of the write cache;
//! - no request is completed twice, none fails without a reason;
//! - an exclusive volume has one holder, nothing displaced touches the engine, and without force
//!   nobody is displaced before its time;
//! - neither end finds the other breaking the protocol (unless bits are turned over);
//! - the machines and their sockets agree, and no machine asks to be woken for nothing;
//! - once faults end, every request ends within a bound of virtual time.

#![forbid(unsafe_code)]

mod claims;
mod clock;
mod content;
mod engine;
mod env;
mod host;
mod model;
mod net;
mod node;
mod rng;
mod setup;
mod world;

pub use clock::Tracing;
pub use env::Counts;
pub use setup::{Planted, Setup};

/// How many of the last events a failure shows.
pub const KEPT_EVENTS: usize = 60;

/// A broken promise.
#[derive(Debug)]
pub struct Failure {
    /// The seed that finds it again.
    pub seed: u64,
    /// The world that the seed stands for.
    pub setup: Setup,
    /// What was broken.
    pub what: String,
    /// The last events before it.
    pub events: Vec<String>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "seed {}: {}", self.seed, self.what)?;
        writeln!(f, "world: {:?}", self.setup)?;
        writeln!(f, "last events:")?;
        for event in &self.events {
            writeln!(f, "{event}")?;
        }
        writeln!(f, "replay: neonsan-sim --seed {} --trace", self.seed)
    }
}

/// Runs one seed. A failure is run again to record its last events.
pub fn run(seed: u64, planted: Planted) -> Result<Counts, Box<Failure>> {
    match world::run(Setup::new(seed, planted), Tracing::Off).result {
        Ok(counts) => Ok(counts),
        Err(_) => match run_traced(seed, planted, Tracing::Keep(KEPT_EVENTS)) {
            Err(failure) => Err(failure),
            Ok(_) => unreachable!("a run depends on nothing but its seed"),
        },
    }
}

/// Runs one seed and records or prints its events.
pub fn run_traced(seed: u64, planted: Planted, tracing: Tracing) -> Result<Counts, Box<Failure>> {
    let setup = Setup::new(seed, planted);
    let outcome = world::run(setup.clone(), tracing);
    outcome.result.map_err(|what| {
        Box::new(Failure {
            seed,
            setup,
            what,
            events: outcome.events,
        })
    })
}
