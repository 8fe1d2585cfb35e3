// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What the blocks hold: every block of every write is different in every byte group, so that a
//! lost, stale, torn or misplaced byte shows by itself.

use crate::rng::mix;

/// The logical block size of the simulated volume.
pub(crate) const BLOCK_BYTES: usize = 512;

/// One block.
pub(crate) type Block = [u8; BLOCK_BYTES];

/// A block of zeroes: what a fresh, discarded or zeroed block holds.
pub(crate) const ZEROES: Block = [0; BLOCK_BYTES];

/// Which write the content of a block comes from. Zero: none, the block is zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version(pub(crate) u64);

/// The content that is `version` of block number `block`.
pub(crate) fn content(version: Version, block: u64) -> Block {
    let mut bytes = ZEROES;
    for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
        let value = match i {
            0 => version.0,
            1 => block,
            _ => mix(version.0 ^ mix(block ^ ((i as u64) << 32))),
        };
        word.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// The version that `bytes` are of block number `block`, or what is wrong with them.
pub(crate) fn identify(bytes: &[u8], block: u64) -> Result<Version, String> {
    if bytes == ZEROES {
        return Ok(Version(0));
    }
    let word = |i: usize| {
        let mut word = [0; 8];
        for (to, from) in word.iter_mut().zip(bytes.iter().skip(i * 8)) {
            *to = *from;
        }
        u64::from_le_bytes(word)
    };
    let (version, home) = (Version(word(0)), word(1));
    if bytes == content(version, block) {
        Ok(version)
    } else if bytes == content(version, home) {
        Err(format!(
            "block {block} holds what was written to block {home} (version {})",
            version.0
        ))
    } else {
        Err(format!(
            "block {block} is torn: it begins like version {} of block {home}, and goes on otherwise",
            version.0
        ))
    }
}
