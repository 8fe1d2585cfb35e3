// SPDX-License-Identifier: GPL-2.0 OR MIT

//! One function per parser or machine: arbitrary bytes in, and what must hold whatever they are.
//!
//! A target panics only if a promise is broken. It returns a [`Trace`] of what happened, by which
//! the corpus tool tells inputs that do something new from those that do not.

mod client;
mod oracle;
mod pair;
mod parse;
mod server;

use crate::conversation::{crc32c, FEATURE_SETS};
use neonsan_proto::{Crc32c, Features};

/// What happened in one run.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Trace(pub Vec<String>);

impl Trace {
    fn note(&mut self, what: impl Into<String>) {
        // Long runs of the same are no news.
        let what = what.into();
        if self.0.last() != Some(&what) && self.0.len() < 12 {
            self.0.push(what);
        }
    }
}

/// One target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its directory in `tools/fuzz/corpus`.
    pub name: &'static str,
    /// Runs it once.
    pub run: fn(&[u8]) -> Trace,
    /// Inputs to begin with, made from correct messages.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "client-receiver",
        run: client::receiver,
        seeds: client::receiver_seeds,
    },
    Target {
        name: "client-handshake",
        run: client::handshake,
        seeds: client::handshake_seeds,
    },
    Target {
        name: "server-receiver",
        run: server::receiver,
        seeds: server::receiver_seeds,
    },
    Target {
        name: "server-handshake",
        run: server::handshake,
        seeds: server::handshake_seeds,
    },
    Target {
        name: "parse",
        run: parse::run,
        seeds: parse::seeds,
    },
    Target {
        name: "pair",
        run: pair::run,
        seeds: pair::seeds,
    },
];

impl Target {
    /// The one with this name.
    pub fn find(name: &str) -> Option<&'static Target> {
        TARGETS.iter().find(|t| t.name == name)
    }
}

/// The first byte of an input: features, whether checksums are real, the size of the pieces.
#[derive(Clone, Copy, Debug)]
struct Setup {
    features: Features,
    crc32c: Crc32c,
    /// Features that messages are made with: with [`no_checksum`] every checksum is zero, as if
    /// there were none.
    sealed: Features,
    piece: usize,
}

/// A checksum that every message has, so that changed messages are not all refused for it.
fn no_checksum(_: &[u8]) -> u32 {
    0
}

impl Setup {
    const CRC: u8 = 1 << 2;

    fn of(byte: u8) -> Self {
        let features = FEATURE_SETS[usize::from(byte & 3) % FEATURE_SETS.len()];
        let real = byte & Setup::CRC != 0;
        Setup {
            features,
            sealed: if real { features } else { Features::NONE },
            crc32c: if real { crc32c } else { no_checksum },
            piece: [1, 7, 64, usize::MAX][usize::from(byte >> 6)],
        }
    }
}

/// An input made of its first byte and messages: with real checksums only if they are asked for,
/// since [`no_checksum`] is zero.
fn input(setup: u8, messages: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = vec![setup];
    messages.iter().for_each(|m| bytes.extend_from_slice(m));
    bytes
}

/// The features that messages for this first byte are made with.
fn features_of(setup: u8) -> Features {
    Setup::of(setup).sealed
}

/// First bytes for seeds: all features, real checksums or none.
const SETUPS: [u8; 5] = [0xc0, 0xc1, 0x46, 0x82, 0xc6];
