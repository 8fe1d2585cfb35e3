// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The only source of chance in a run. The same seed gives the same run on every machine.

/// SplitMix64 (Steele, Lea, Flood 2014): small, fast, and good enough to choose faults with.
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

/// The finalizer of SplitMix64: spreads every bit of `value` over the whole word.
pub(crate) const fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

impl Rng {
    /// A generator; nearby seeds give unrelated sequences.
    pub(crate) fn new(seed: u64) -> Self {
        Rng(mix(seed.wrapping_add(0x5851_f42d_4c95_7f2d)))
    }

    /// Any 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`, which must not be zero.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        // The bias is below 2^-40 for the bounds in use, and every run has the same one.
        self.next() % bound
    }

    /// A number from `low` to `high`, both included.
    pub(crate) fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// An index below `len`, which must not be zero.
    pub(crate) fn index(&mut self, len: usize) -> usize {
        self.below(len as u64) as usize
    }

    /// True in `n` of a thousand cases.
    pub(crate) fn permille(&mut self, n: u64) -> bool {
        self.below(1000) < n
    }

    /// One of `choices`, which must not be empty.
    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.index(choices.len())]
    }

    /// A duration between `low` and `high`, now and then (1 in 50) up to thirty times longer.
    pub(crate) fn delay_us(&mut self, (low, high): (u64, u64)) -> u64 {
        let delay = self.range(low, high);
        if self.permille(20) {
            delay * self.range(2, 30)
        } else {
            delay
        }
    }
}
