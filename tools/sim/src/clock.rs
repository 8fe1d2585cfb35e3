// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Virtual time: what happens next, and the record of what happened.

use crate::net::{ConnId, Side};
use crate::rng::Rng;
use neonsan_session::Instant;
use std::cmp::Ordering;
use std::collections::{BinaryHeap, VecDeque};

/// Something that happens at a point of virtual time.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Event {
    /// Bytes (or an end) that travel to one side of a connection may have arrived.
    Arrive { conn: ConnId, to: Side },
    /// One side of a connection looks at its socket.
    Wake { conn: ConnId, side: Side },
    /// A node's listening socket has a new connection.
    Accept { conn: ConnId },
    /// A host's connect call returns; `conn` is none if it was refused.
    Dialled {
        host: usize,
        link: u16,
        attempt: u64,
        conn: Option<ConnId>,
    },
    /// A host's delayed work runs.
    HostTimer { host: usize },
    /// Both sides of a link have stopped.
    HostDrained {
        host: usize,
        link: u16,
        attempt: u64,
    },
    /// The workload of a host issues its next request.
    HostSubmit { host: usize },
    /// Requests that were answered Busy are queued again.
    HostRequeue { host: usize, link: u16 },
    /// A node's timer runs.
    NodeTimer { node: usize, boot: u64 },
    /// An operation of the engine makes its next step.
    Engine { op: u64 },
    /// A host begins to attach the volume.
    Attach { index: usize },
    /// A device is detached by force.
    Yank { host: usize },
    /// A node's process is started.
    Start { node: usize },
    /// A fault of the scenario begins.
    Fault { index: usize },
    /// A fault of the scenario ends that befell a node in that life of its process.
    Repair {
        index: usize,
        node: usize,
        boot: u64,
    },
    /// The storage gives the volume to a node that asked for it in that life of its process.
    Owned { node: usize, boot: u64 },
    /// A node hears that the volume is not its own any more since the end of a term.
    Disowned { node: usize, term: u64 },
    /// What a node's gate remembers is saved, or could not be.
    Saved { node: usize, boot: u64, number: u64 },
    /// The time of faults is over.
    Calm,
}

#[derive(Debug)]
struct Scheduled {
    at_us: u64,
    /// Breaks ties in the order of scheduling.
    sequence: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    /// The heap gives its greatest first: that is the earliest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at_us, other.sequence).cmp(&(self.at_us, self.sequence))
    }
}

/// What to do with the record of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tracing {
    /// Nothing: the fastest. A failure is run again to see its events.
    Off,
    /// Keep the last so many.
    Keep(usize),
    /// Print each as it happens.
    Print,
}

/// Time, chance, the queue of events, and the first failure. Every part of the world gets it.
#[derive(Debug)]
pub(crate) struct Core {
    /// Virtual time in microseconds.
    pub(crate) now_us: u64,
    /// Chance.
    pub(crate) rng: Rng,
    /// The time of faults is over.
    pub(crate) calm: bool,
    queue: BinaryHeap<Scheduled>,
    sequence: u64,
    tracing: Tracing,
    kept: VecDeque<String>,
    failure: Option<String>,
}

impl Core {
    /// Time zero.
    pub(crate) fn new(seed: u64, tracing: Tracing) -> Self {
        Core {
            now_us: 0,
            rng: Rng::new(seed),
            calm: false,
            queue: BinaryHeap::new(),
            sequence: 0,
            tracing,
            kept: VecDeque::new(),
            failure: None,
        }
    }

    /// Virtual time as the machines take it.
    pub(crate) fn now(&self) -> Instant {
        Instant(self.now_us / 1000)
    }

    /// Lets `event` happen `delay_us` from now.
    pub(crate) fn after(&mut self, delay_us: u64, event: Event) {
        self.at(self.now_us + delay_us, event);
    }

    /// Lets `event` happen at a time, at the earliest now.
    pub(crate) fn at(&mut self, at_us: u64, event: Event) {
        self.sequence += 1;
        self.queue.push(Scheduled {
            at_us: at_us.max(self.now_us),
            sequence: self.sequence,
            event,
        });
    }

    /// Moves time to the next event.
    pub(crate) fn next(&mut self) -> Option<Event> {
        let scheduled = self.queue.pop()?;
        self.now_us = scheduled.at_us;
        Some(scheduled.event)
    }

    /// Records what happens, if anybody wants to know.
    pub(crate) fn trace(&mut self, text: impl FnOnce() -> String) {
        match self.tracing {
            Tracing::Off => {}
            Tracing::Print => println!("{}", stamped(self.now_us, &text())),
            Tracing::Keep(limit) => {
                if self.kept.len() >= limit {
                    self.kept.pop_front();
                }
                self.kept.push_back(stamped(self.now_us, &text()));
            }
        }
    }

    /// A promise was broken. The first one counts; the run ends after the current event.
    pub(crate) fn fail(&mut self, text: String) {
        self.trace(|| format!("FAILURE: {text}"));
        if self.failure.is_none() {
            self.failure = Some(text);
        }
    }

    /// The first broken promise.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.as_deref()
    }

    /// The events that were kept, the oldest first.
    pub(crate) fn into_kept(self) -> Vec<String> {
        self.kept.into()
    }
}

fn stamped(now_us: u64, text: &str) -> String {
    format!("{:>6}.{:06} {text}", now_us / 1_000_000, now_us % 1_000_000)
}
