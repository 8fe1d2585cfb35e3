// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Blocks that say what they are.
//!
//! A block consists of cells of 64 bytes. Each cell names the block, the version, the writer, the
//! run (by its seed) and its own place in the block, and has a checksum. So a block that is made of
//! parts of two versions, that belongs elsewhere, or that nobody wrote, is told apart.
//!
//! ```text
//!   0        4        8                16               24
//!   ┌────────┬────────┬────────────────┬────────────────┐
//!   │ magic  │ crc32c │ block          │ version        │
//!   ├────────┴────────┼─────┬─────┬────┴────┬───────────┤
//!   │ seed            │ wri │ idx │ zero    │ 3 words   │
//!   └─────────────────┴─────┴─────┴─────────┴───────────┘
//! ```

use serde::Serialize;

/// Size of a cell. Every logical block size is a multiple of it.
pub const CELL_BYTES: usize = 64;

const MAGIC: u32 = u32::from_le_bytes(*b"NSck");

/// What a block is written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The run's identity.
    pub seed: u64,
    /// The version: the number of the write.
    pub version: u64,
    /// Who wrote it.
    pub writer: u16,
}

/// What a block was found to hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "holds")]
pub enum Content {
    /// Zeroes: it was never written.
    Zeroes,
    /// One version, whole.
    Version {
        /// Which.
        version: u64,
    },
    /// Parts of different versions (0: zeroes).
    Torn {
        /// The oldest part.
        oldest: u64,
        /// The newest part.
        newest: u64,
    },
    /// What was written to another block.
    Misdirected {
        /// Which block it was written to.
        block: u64,
        /// Its version.
        version: u64,
    },
    /// What another run wrote.
    Foreign {
        /// The seed of that run.
        seed: u64,
    },
    /// Nothing that was ever written.
    Damaged {
        /// The first byte of the block that makes no sense.
        at_byte: u64,
    },
}

/// One good cell.
struct Cell {
    block: u64,
    version: u64,
    seed: u64,
    index: u16,
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .and_then(|b| b.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

fn half(bytes: &[u8], at: usize) -> u32 {
    (word(bytes, at) & 0xffff_ffff) as u32
}

/// Bytes that look like no other cell's, so that a checksum that fits by accident is no accident.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

fn fill_cell(cell: &mut [u8], block: u64, stamp: &Stamp, index: u16) {
    cell.fill(0);
    cell[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    cell[8..16].copy_from_slice(&block.to_le_bytes());
    cell[16..24].copy_from_slice(&stamp.version.to_le_bytes());
    cell[24..32].copy_from_slice(&stamp.seed.to_le_bytes());
    cell[32..34].copy_from_slice(&stamp.writer.to_le_bytes());
    cell[34..36].copy_from_slice(&index.to_le_bytes());
    let start = stamp.seed ^ mix(stamp.version) ^ mix(block.rotate_left(32)) ^ u64::from(index);
    for k in 0..3u64 {
        let at = 40 + 8 * k as usize;
        cell[at..at + 8].copy_from_slice(&mix(start.wrapping_add(k)).to_le_bytes());
    }
    let crc = crc32c::crc32c(&cell[8..]);
    cell[4..8].copy_from_slice(&crc.to_le_bytes());
}

/// Fills `data`, whole blocks of `block_bytes` from `first` on.
pub fn fill(data: &mut [u8], block_bytes: usize, first: u64, stamp: &Stamp) {
    for (number, block) in (first..).zip(data.chunks_exact_mut(block_bytes)) {
        for (index, cell) in (0..).zip(block.chunks_exact_mut(CELL_BYTES)) {
            fill_cell(cell, number, stamp, index);
        }
    }
}

fn read_cell(cell: &[u8]) -> Option<Cell> {
    if half(cell, 0) != MAGIC || half(cell, 4) != crc32c::crc32c(cell.get(8..)?) {
        return None;
    }
    Some(Cell {
        block: word(cell, 8),
        version: word(cell, 16),
        seed: word(cell, 24),
        index: (word(cell, 32) >> 16) as u16,
    })
}

/// Says what `data`, read from the block `number` by the run `seed`, holds.
pub fn examine(data: &[u8], number: u64, seed: u64) -> Content {
    let mut oldest = u64::MAX;
    let mut newest = 0;
    for (index, bytes) in (0u16..).zip(data.chunks_exact(CELL_BYTES)) {
        let version = if bytes.iter().all(|b| *b == 0) {
            0
        } else {
            let damaged = Content::Damaged {
                at_byte: u64::from(index) * CELL_BYTES as u64,
            };
            let Some(cell) = read_cell(bytes) else {
                return damaged;
            };
            if cell.seed != seed {
                return Content::Foreign { seed: cell.seed };
            }
            if cell.block != number {
                return Content::Misdirected {
                    block: cell.block,
                    version: cell.version,
                };
            }
            if cell.index != index {
                return damaged;
            }
            cell.version
        };
        oldest = oldest.min(version);
        newest = newest.max(version);
    }
    match (oldest, newest) {
        (0, 0) => Content::Zeroes,
        (oldest, newest) if oldest == newest => Content::Version { version: newest },
        (oldest, newest) => Content::Torn { oldest, newest },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(version: u64) -> Vec<u8> {
        let mut data = vec![0; 1024];
        let stamp = Stamp {
            seed: 7,
            version,
            writer: 3,
        };
        fill(&mut data, 512, 10, &stamp);
        data
    }

    #[test]
    fn a_block_is_what_was_written() {
        let data = written(5);
        assert_eq!(
            examine(&data[..512], 10, 7),
            Content::Version { version: 5 }
        );
        assert_eq!(
            examine(&data[512..], 11, 7),
            Content::Version { version: 5 }
        );
        assert_eq!(examine(&[0; 512], 10, 7), Content::Zeroes);
    }

    #[test]
    fn a_misplaced_block_names_its_place() {
        let data = written(5);
        let found = examine(&data[512..], 10, 7);
        assert_eq!(
            found,
            Content::Misdirected {
                block: 11,
                version: 5
            }
        );
        assert_eq!(examine(&data[..512], 10, 8), Content::Foreign { seed: 7 });
    }

    #[test]
    fn parts_of_two_versions_are_torn_wherever_the_seam_is() {
        let (old, new) = (written(5), written(6));
        for seam in (CELL_BYTES..512).step_by(CELL_BYTES) {
            let mut block = new[..512].to_vec();
            block[seam..].copy_from_slice(&old[seam..512]);
            let torn = Content::Torn {
                oldest: 5,
                newest: 6,
            };
            assert_eq!(examine(&block, 10, 7), torn);
            block[seam..].fill(0);
            let torn = Content::Torn {
                oldest: 0,
                newest: 6,
            };
            assert_eq!(examine(&block, 10, 7), torn);
        }
    }

    #[test]
    fn every_damaged_bit_is_seen() {
        let good = written(5);
        for bit in 0..512 * 8 {
            let mut block = good[..512].to_vec();
            block[bit / 8] ^= 1 << (bit % 8);
            let at_byte = (bit / 8 / CELL_BYTES * CELL_BYTES) as u64;
            assert_eq!(examine(&block, 10, 7), Content::Damaged { at_byte });
        }
        // Cells of the same block that changed places.
        let mut block = good[..512].to_vec();
        block.copy_within(64..128, 0);
        assert_eq!(examine(&block, 10, 7), Content::Damaged { at_byte: 0 });
    }
}
