// SPDX-License-Identifier: GPL-2.0 OR MIT

//! How many bytes a node's power could take, and has taken: for people.
//!
//! [`Durability`](super::Durability) decides whether a FLUSH may succeed; this counts beside it. The
//! caller keeps one running sum of the bytes that answered writes have changed (FUA left out), in as
//! many parts as it has queues, so that nothing here is touched for a write.

use crate::sync::{AtomicU64, Ordering};

/// Bytes of answered writes that a lost cache may have taken.
///
/// # Invariants
///
/// `cleared <= lost`, and both only grow.
#[derive(Debug)]
pub struct AtRisk {
    /// The running sum up to which everything is durable. Written when a FLUSH is answered.
    durable: AtomicU64,
    /// Bytes that may be gone. Written by the recovering side, while no request is under way.
    lost: AtomicU64,
    /// How many of them a person has taken note of. Written when that person says so.
    cleared: AtomicU64,
}

impl AtRisk {
    /// Nothing was written yet.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        AtRisk {
            durable: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            cleared: AtomicU64::new(0),
        }
    }

    /// Nothing was written yet.
    #[cfg(loom)]
    pub fn new() -> Self {
        AtRisk {
            durable: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            cleared: AtomicU64::new(0),
        }
    }

    /// A FLUSH succeeded before which the running sum was `answered_bytes`.
    pub fn on_flushed(&self, answered_bytes: u64) {
        self.durable.fetch_max(answered_bytes, Ordering::Relaxed);
    }

    /// Bytes that were answered and not flushed, with the running sum of now.
    pub fn unflushed_bytes(&self, answered_bytes: u64) -> u64 {
        answered_bytes.saturating_sub(self.durable.load(Ordering::Relaxed))
    }

    /// The volatile state of the node is gone, and the running sum is `answered_bytes`. Returns how
    /// many bytes may be gone with it. Call it while every connection rests.
    pub fn on_cache_lost(&self, answered_bytes: u64) -> u64 {
        let bytes = self.unflushed_bytes(answered_bytes);
        self.durable.fetch_max(answered_bytes, Ordering::Relaxed);
        self.lost.fetch_add(bytes, Ordering::Relaxed);
        bytes
    }

    /// All bytes that may have been lost so far.
    pub fn lost_bytes(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Those of them that nobody has taken note of.
    pub fn open_bytes(&self) -> u64 {
        let cleared = self.cleared.load(Ordering::Relaxed);
        self.lost_bytes().saturating_sub(cleared)
    }

    /// A person has taken note of all that was lost so far.
    pub fn clear(&self) {
        self.cleared.fetch_max(self.lost_bytes(), Ordering::Relaxed);
    }
}

impl Default for AtRisk {
    fn default() -> Self {
        AtRisk::new()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_was_flushed_is_not_at_risk() {
        let risk = AtRisk::new();
        risk.on_flushed(1000);
        assert_eq!(risk.unflushed_bytes(1500), 500);
        assert_eq!(risk.on_cache_lost(1500), 500);
        assert_eq!(risk.lost_bytes(), 500);
        // What is gone is gone: it is not lost again.
        assert_eq!(risk.on_cache_lost(1500), 0);
    }

    #[test]
    fn an_older_flush_that_ends_later_takes_nothing_back() {
        let risk = AtRisk::new();
        risk.on_flushed(900);
        risk.on_flushed(300);
        assert_eq!(risk.unflushed_bytes(1000), 100);
    }

    #[test]
    fn it_stays_until_somebody_took_note() {
        let risk = AtRisk::new();
        risk.on_cache_lost(10);
        assert_eq!(risk.open_bytes(), 10);
        risk.clear();
        assert_eq!((risk.open_bytes(), risk.lost_bytes()), (0, 10));
        risk.on_cache_lost(25);
        assert_eq!((risk.open_bytes(), risk.lost_bytes()), (15, 25));
    }
}
