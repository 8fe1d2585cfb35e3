// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What a node's power could take: writes that were answered and not yet made durable.
//!
//! A volume with a write cache answers writes before they are on stable storage. If the node comes
//! back with another boot id, such writes may be gone, and nobody but the client can know that
//! there were any. The client must not let a later FLUSH succeed as if nothing had happened: every
//! FLUSH that was under way, and the next one if there was none, fails. Whoever relies on FLUSH (a
//! file system's journal, a database) then knows.
//!
//! ```text
//!   1 Clean ──── a write is answered ────► 2 Dirty ──── another boot id ────► 3 Lost
//!     ▲  ▲                                  │                                  │
//!     │  └── a FLUSH begun later is answered┘         a FLUSH was failed for it │
//!     └────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! All methods take `&self` and none blocks. The words here are read on every answered write but
//! written only once per FLUSH, so queues do not fight for their cache line.

use crate::sync::{AtomicU64, Ordering};

/// The write cache of one volume, as its client sees it. Used for volumes with
/// [`Capabilities::VOLATILE_CACHE`](neonsan_proto::Capabilities) only.
///
/// # Invariants
///
/// A write was answered and is not known to be durable if and only if `dirty >= durable`.
#[derive(Debug)]
pub struct Durability {
    /// How many FLUSHes were begun, plus one. Written by whoever begins a FLUSH.
    flushes: AtomicU64,
    /// The value of `flushes` when the latest write was answered.
    dirty: AtomicU64,
    /// Every write that was answered while `flushes` was below this is durable.
    durable: AtomicU64,
    /// How often answered writes were lost. Written by the recovering side, while no request is
    /// under way.
    losses: AtomicU64,
    /// How many of these losses a FLUSH was failed for.
    reported: AtomicU64,
}

/// Belongs to one FLUSH, from when it is first submitted until it is completed; sending it again
/// does not change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlushMark {
    number: u64,
    losses: u64,
}

impl FlushMark {
    /// The mark as words, for a place that is made of atomics.
    pub const fn to_words(self) -> [u64; 2] {
        [self.number, self.losses]
    }

    /// The mark that was turned into these words.
    pub const fn from_words([number, losses]: [u64; 2]) -> Self {
        FlushMark { number, losses }
    }
}

/// Writes that were answered before may be gone: the FLUSH must fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WritesLost;

impl Durability {
    /// A clean cache.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        // INVARIANT: dirty < durable: there is no write.
        Durability {
            flushes: AtomicU64::new(1),
            dirty: AtomicU64::new(0),
            durable: AtomicU64::new(1),
            losses: AtomicU64::new(0),
            reported: AtomicU64::new(0),
        }
    }

    /// A clean cache.
    #[cfg(loom)]
    pub fn new() -> Self {
        Durability {
            flushes: AtomicU64::new(1),
            dirty: AtomicU64::new(0),
            durable: AtomicU64::new(1),
            losses: AtomicU64::new(0),
            reported: AtomicU64::new(0),
        }
    }

    /// A WRITE, DISCARD or WRITE_ZEROES was answered with `Ok`, and did not ask for FUA. Call it
    /// before the request is completed, so that a FLUSH which its issuer sends next comes later.
    pub fn on_answered(&self) {
        // A FLUSH begun meanwhile need not cover this write; an older number says that it does.
        // That is right too: the write was answered before that FLUSH was sent.
        let now = self.flushes.load(Ordering::SeqCst);
        if self.dirty.load(Ordering::SeqCst) < now {
            self.dirty.fetch_max(now, Ordering::SeqCst);
        }
    }

    /// A FLUSH is submitted for the first time. Call it before the FLUSH is sent.
    pub fn begin_flush(&self) -> FlushMark {
        FlushMark {
            losses: self.reported.load(Ordering::SeqCst),
            number: self.flushes.fetch_add(1, Ordering::SeqCst) + 1,
        }
    }

    /// A FLUSH was answered with `Ok`. On an error it must be completed as failed.
    pub fn end_flush(&self, mark: FlushMark) -> Result<(), WritesLost> {
        let losses = self.losses.load(Ordering::SeqCst);
        if losses != mark.losses {
            self.reported.fetch_max(losses, Ordering::SeqCst);
            return Err(WritesLost);
        }
        self.durable.fetch_max(mark.number, Ordering::SeqCst);
        Ok(())
    }

    /// Whether answered writes may not be durable yet.
    pub fn is_dirty(&self) -> bool {
        self.dirty.load(Ordering::SeqCst) >= self.durable.load(Ordering::SeqCst)
    }

    /// The volume was opened again, and the node's boot id is not the one that it was. Call it
    /// while every connection rests: before the first request is sent again. Returns whether
    /// answered writes may be lost, which people want to know.
    pub fn on_boot_changed(&self) -> bool {
        let lost = self.is_dirty();
        if lost {
            // What is gone is gone: only later writes can be lost by a later change.
            let next = self.flushes.fetch_add(1, Ordering::SeqCst) + 1;
            self.durable.fetch_max(next, Ordering::SeqCst);
            self.losses.fetch_add(1, Ordering::SeqCst);
        }
        lost
    }
}

impl Default for Durability {
    fn default() -> Self {
        Durability::new()
    }
}
