// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Counters that reading costs nothing.

use crate::sync::{AtomicU64, Ordering};

/// A counter that one thread at a time adds to, and that any thread reads without a lock.
///
/// Adding is a load and a store, not one indivisible operation: as cheap as a plain number. So two
/// threads must not add at once, or counts are lost; the caller holds what keeps others out.
#[derive(Debug)]
pub struct Tally(AtomicU64);

impl Tally {
    /// Zero.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Tally(AtomicU64::new(0))
    }

    /// Zero.
    #[cfg(loom)]
    pub fn new() -> Self {
        Tally(AtomicU64::new(0))
    }

    /// Adds `n`. No other thread may be adding.
    #[inline]
    pub fn add(&self, n: u64) {
        let sum = self.0.load(Ordering::Relaxed).wrapping_add(n);
        self.0.store(sum, Ordering::Relaxed);
    }

    /// The sum so far. Counters that belong together may be read a moment apart.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Default for Tally {
    fn default() -> Self {
        Tally::new()
    }
}
