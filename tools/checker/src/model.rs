// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What every block may hold: the rules, without disk, threads or clock.
//!
//! A version is the number of a write, and one block is written by one write at a time, so the
//! versions of a block grow in the order in which they were issued. Three of them matter:
//!
//! ```text
//!   durable ≤ acked ≤ issued
//!   durable   the last version that nothing may take away
//!   acked     the last version that was acknowledged: a read gives it, or a later one
//!   issued    the last version that was sent; a failed write is issued for ever
//! ```
//!
//! A write-through disk has `durable == acked`. On a disk with a volatile cache `durable` follows
//! with a successful flush (as far as `acked` was when that flush began; of flushes that overlap the
//! last one counts) or a write with FUA. If such a disk lost its cache, a read may give anything
//! from `durable` on. That is no violation if a flush fails for it: the first flush that begins
//! after the loss was seen must not succeed. Once a flush has failed, `acked` falls back to
//! `durable` everywhere.
//!
//! A block that is read while it is written may be found torn: no block layer promises more of
//! requests that are in flight together. It is counted and forgotten; if it stays so, the next read
//! finds it.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::block::Content;

/// What an acknowledgement of the disk means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// What was acknowledged stays.
    WriteThrough,
    /// What was flushed stays, and a loss is reported by a failed flush.
    Volatile,
}

/// How a disk broke its promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Broken {
    /// An older version than it must hold.
    Stale,
    /// Zeroes in a block that was written.
    Lost,
    /// Parts of different versions in one logical block.
    Torn,
    /// What belongs to another block.
    Misdirected,
    /// A version that was never written to this block.
    NeverIssued,
    /// Bytes that nobody wrote, or that another run wrote.
    Damaged,
    /// Acknowledged data was lost, and the next flush succeeded.
    LossNotReported,
}

/// A broken promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// How.
    pub broken: Broken,
    /// Where.
    pub block: u64,
    /// What was there.
    pub found: Content,
    /// The oldest version that would have been right.
    pub at_least: u64,
    /// The last version that was issued.
    pub at_most: u64,
}

#[derive(Debug, Default)]
struct Block {
    acked: u64,
    durable: u64,
    /// Versions that were issued and may still be found, in order. Zero is not among them.
    issued: Vec<u64>,
    /// Acknowledged and not yet durable: version, and how many acknowledgements there were before.
    unflushed: Vec<(u64, u64)>,
    /// Reads under way: until they end, nothing is forgotten.
    readers: u32,
    being_written: bool,
}

impl Block {
    fn last_issued(&self) -> u64 {
        self.issued.last().copied().unwrap_or(0).max(self.acked)
    }

    fn forget(&mut self) {
        if self.readers == 0 {
            let durable = self.durable;
            self.issued.retain(|version| *version >= durable);
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Write {
    first: u64,
    count: u32,
    fua: bool,
    /// How many flushes had failed when it was issued.
    failed_flushes: u64,
}

/// What was known of a block when a read of it began.
#[derive(Clone, Copy, Debug)]
struct Floor {
    acked: u64,
    durable: u64,
    last_issued: u64,
    being_written: bool,
}

/// A read under way: what it may find.
#[derive(Debug)]
pub struct Read {
    /// The first block.
    pub first: u64,
    /// What was known of each block when it began.
    floors: Vec<Floor>,
    /// How many flushes had failed when it began.
    failed_flushes: u64,
}

/// A loss that was seen and must yet be reported by a flush.
#[derive(Debug)]
struct Suspect {
    violation: Violation,
    /// How many flushes had begun when it was seen.
    flushes_begun: u64,
}

/// What all blocks may hold.
#[derive(Debug)]
pub struct Model {
    cache: Cache,
    blocks: Vec<Block>,
    last_version: u64,
    acks: u64,
    /// Writes under way, by version.
    writes: BTreeMap<u64, Write>,
    /// Blocks with an acknowledged write that is not durable.
    dirty: BTreeSet<u64>,
    /// Flushes under way: number, and `acks` when it began.
    flushes: BTreeMap<u64, u64>,
    flushes_begun: u64,
    failed_flushes: u64,
    suspects: Vec<Suspect>,
    torn_by_overlap: u64,
}

impl Model {
    /// A disk of that many blocks, all zeroes.
    pub fn new(cache: Cache, blocks: u64) -> Self {
        Model {
            cache,
            blocks: (0..blocks).map(|_| Block::default()).collect(),
            last_version: 0,
            acks: 0,
            writes: BTreeMap::new(),
            dirty: BTreeSet::new(),
            flushes: BTreeMap::new(),
            flushes_begun: 0,
            failed_flushes: 0,
            suspects: Vec::new(),
            torn_by_overlap: 0,
        }
    }

    /// How many blocks there are.
    pub fn blocks(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// The version of the last write that was issued.
    pub fn last_version(&self) -> u64 {
        self.last_version
    }

    /// Blocks that were found torn while they were written.
    pub fn torn_by_overlap(&self) -> u64 {
        self.torn_by_overlap
    }

    /// Losses that were seen and that no flush has reported yet.
    pub fn unreported_losses(&self) -> usize {
        self.suspects.len()
    }

    fn range(&self, first: u64, count: u32) -> std::ops::Range<usize> {
        let first = usize::try_from(first)
            .unwrap_or(usize::MAX)
            .min(self.blocks.len());
        first..first.saturating_add(count as usize).min(self.blocks.len())
    }

    /// A write is about to be sent: its version; `None` if another one is under way there, or the
    /// range is not within the disk.
    pub fn issue(&mut self, first: u64, count: u32, fua: bool) -> Option<u64> {
        let version = self.last_version + 1;
        self.issue_as(version, first, count, fua).then_some(version)
    }

    /// The same with a version that is known, from a log. Says whether it is possible.
    pub fn issue_as(&mut self, version: u64, first: u64, count: u32, fua: bool) -> bool {
        let range = self.range(first, count);
        if range.len() != count as usize || version <= self.last_version {
            return false;
        }
        if self.blocks[range.clone()].iter().any(|b| b.being_written) {
            return false;
        }
        for block in &mut self.blocks[range] {
            block.being_written = true;
            block.issued.push(version);
        }
        self.last_version = version;
        let failed_flushes = self.failed_flushes;
        let write = Write {
            first,
            count,
            fua,
            failed_flushes,
        };
        self.writes.insert(version, write);
        true
    }

    /// A write ended. Returns whether it was known.
    pub fn on_written(&mut self, version: u64, ok: bool) -> bool {
        let Some(write) = self.writes.remove(&version) else {
            return false;
        };
        self.acks += 1;
        let durable = self.cache == Cache::WriteThrough || write.fua;
        // It may have been acknowledged before the loss that a flush reported meanwhile.
        let counts = ok && (durable || write.failed_flushes == self.failed_flushes);
        for number in write.first..write.first + u64::from(write.count) {
            let Some(block) = self.blocks.get_mut(number as usize) else {
                continue;
            };
            block.being_written = false;
            if !counts {
                continue;
            }
            block.acked = version;
            if durable {
                block.durable = version;
                block.unflushed.clear();
                self.dirty.remove(&number);
            } else {
                block.unflushed.push((version, self.acks));
                self.dirty.insert(number);
            }
            block.forget();
        }
        if !ok && write.fua {
            // On a disk without FUA it was a write and a flush.
            self.on_cache_lost();
        }
        true
    }

    /// Whoever wrote is gone: what was under way stays issued for ever, and its blocks are free.
    pub fn abandon_writes(&mut self) {
        let versions: Vec<u64> = self.writes.keys().copied().collect();
        for version in versions {
            if let Some(write) = self.writes.remove(&version) {
                let range = self.range(write.first, write.count);
                for block in &mut self.blocks[range] {
                    block.being_written = false;
                }
            }
        }
        self.flushes.clear();
    }

    /// A flush is about to be sent: its number.
    pub fn begin_flush(&mut self) -> u64 {
        self.flushes_begun += 1;
        self.flushes.insert(self.flushes_begun, self.acks);
        self.flushes_begun
    }

    /// A flush ended. What it should have reported and did not is returned.
    pub fn on_flushed(&mut self, number: u64, ok: bool) -> Vec<Violation> {
        let Some(acks) = self.flushes.remove(&number) else {
            return Vec::new();
        };
        if !ok {
            self.on_cache_lost();
            return Vec::new();
        }
        // Another flush that is under way may have reported a loss already, though we were not told
        // yet: of flushes that overlap only the last one counts.
        if !self.flushes.is_empty() {
            return Vec::new();
        }
        let mut clean = Vec::new();
        for number in &self.dirty {
            let Some(block) = self.blocks.get_mut(*number as usize) else {
                continue;
            };
            let covered = block.unflushed.iter().rev().find(|(_, at)| *at <= acks);
            if let Some((version, _)) = covered.copied() {
                block.durable = block.durable.max(version);
                block.unflushed.retain(|(_, at)| *at > acks);
            }
            if block.unflushed.is_empty() {
                clean.push(*number);
            }
            block.forget();
        }
        for number in clean {
            self.dirty.remove(&number);
        }
        // A flush that began before the loss was seen may have been answered before it happened.
        let (silent, open) = std::mem::take(&mut self.suspects)
            .into_iter()
            .partition(|s: &Suspect| s.flushes_begun < number);
        self.suspects = open;
        silent.into_iter().map(|s| s.violation).collect()
    }

    /// The disk said that acknowledged data may be gone.
    fn on_cache_lost(&mut self) {
        self.failed_flushes += 1;
        self.suspects.clear();
        for number in std::mem::take(&mut self.dirty) {
            if let Some(block) = self.blocks.get_mut(number as usize) {
                block.acked = block.durable;
                block.unflushed.clear();
            }
        }
    }

    /// A read is about to be sent.
    pub fn begin_read(&mut self, first: u64, count: u32) -> Read {
        let range = self.range(first, count);
        let floors = self.blocks[range]
            .iter_mut()
            .map(|block| {
                block.readers += 1;
                Floor {
                    acked: block.acked,
                    durable: block.durable,
                    last_issued: block.last_issued(),
                    being_written: block.being_written,
                }
            })
            .collect();
        Read {
            first,
            floors,
            failed_flushes: self.failed_flushes,
        }
    }

    /// A read ended; `contents` is what it found, empty if it failed.
    pub fn on_read(&mut self, read: Read, contents: &[Content]) -> Vec<Violation> {
        let mut violations = Vec::new();
        for (at, floors) in read.floors.iter().enumerate() {
            let number = read.first + at as u64;
            if let Some(content) = contents.get(at) {
                let flush_failed = read.failed_flushes != self.failed_flushes;
                if let Some(v) = self.judge(number, *floors, *content, flush_failed) {
                    violations.push(v);
                }
            }
            if let Some(block) = self.blocks.get_mut(number as usize) {
                block.readers -= 1;
                block.forget();
            }
        }
        violations
    }

    fn judge(
        &mut self,
        number: u64,
        floor: Floor,
        found: Content,
        flush_failed: bool,
    ) -> Option<Violation> {
        let Floor { acked, durable, .. } = floor;
        let block = self.blocks.get(number as usize)?;
        let written_meanwhile = floor.being_written || floor.last_issued != block.last_issued();
        let mut violation = Violation {
            broken: Broken::Stale,
            block: number,
            found,
            at_least: acked,
            at_most: block.last_issued(),
        };
        let version = match found {
            Content::Zeroes => 0,
            Content::Version { version } => version,
            Content::Torn { .. } | Content::Damaged { .. } if written_meanwhile => {
                self.torn_by_overlap += 1;
                return None;
            }
            Content::Torn { .. } => {
                violation.broken = Broken::Torn;
                return Some(violation);
            }
            Content::Misdirected { .. } => {
                violation.broken = Broken::Misdirected;
                return Some(violation);
            }
            Content::Foreign { .. } | Content::Damaged { .. } => {
                violation.broken = Broken::Damaged;
                return Some(violation);
            }
        };
        if version < durable || (version < acked && self.cache == Cache::WriteThrough) {
            // Whether it was issued to this block at all may be forgotten: it is wrong anyhow.
            violation.broken = match version {
                0 => Broken::Lost,
                _ => Broken::Stale,
            };
            return Some(violation);
        }
        if version != 0 && !block.issued.contains(&version) {
            violation.broken = Broken::NeverIssued;
            return Some(violation);
        }
        if version < acked && !flush_failed {
            violation.broken = Broken::LossNotReported;
            self.suspects.push(Suspect {
                violation,
                flushes_begun: self.flushes_begun,
            });
        }
        None
    }
}
