// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Random numbers that a seed repeats.

/// A generator whose whole state is one number (splitmix64, Steele, Lea and Flood 2014).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Any seed will do; the same seed gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which must not be zero.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.number() % limit as u64) as usize
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.number().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }

    /// Changes `bytes` a little: flips, sets to telling values, cuts, repeats, swaps.
    pub fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let len = bytes.len();
            if len == 0 {
                bytes.push(self.number() as u8);
                continue;
            }
            let at = self.below(len);
            match self.below(8) {
                0 => bytes[at] ^= 1 << self.below(8),
                1 => bytes[at] = self.number() as u8,
                2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                3 => {
                    // A whole field of a header.
                    let values = [0u32, 1, 511, 512, 4096, 1 << 20, 1 << 31, u32::MAX];
                    let value = values[self.below(values.len())].to_le_bytes();
                    for (to, from) in bytes[at..].iter_mut().zip(value) {
                        *to = from;
                    }
                }
                4 => bytes.truncate(at),
                5 => {
                    let end = (at + 1 + self.below(40)).min(len);
                    bytes.drain(at..end);
                }
                6 => {
                    let end = (at + 1 + self.below(64)).min(len);
                    let piece = bytes[at..end].to_vec();
                    let to = self.below(len);
                    bytes.splice(to..to, piece);
                }
                _ => {
                    let other = self.below(len);
                    bytes.swap(at, other);
                }
            }
        }
        bytes.truncate(4096);
    }
}
