// SPDX-License-Identifier: GPL-2.0 OR MIT

//! An obviously right disk: for each block, every write there ever was, and when.
//!
//! A read may return the content of a write unless a newer write certainly took its place before
//! the read began: one that was acknowledged, and that began after the older one could not take
//! effect any more. A write that failed may take effect late, but never over one that its host
//! issued after it was told; a write whose host lost the volume, never over one of the next host.
//!
//! After a loss of the write cache an acknowledged write takes the place of nothing unless it was
//! made durable: by FUA, or by a FLUSH that began after it was acknowledged and succeeded. A FLUSH
//! that failed has told the host that such writes may be gone.

use crate::content::{identify, Version, BLOCK_BYTES};
use std::collections::{BTreeMap, BTreeSet};

/// A point of the model's own time: every call is later than the one before.
pub(crate) type Tick = u64;

/// What a write changes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WriteId(u64);

#[derive(Clone, Copy, Debug)]
struct Write {
    id: u64,
    /// In order of attaching.
    host: usize,
    /// What a block reads as afterwards.
    version: Version,
    begin: Tick,
    /// After this it cannot take the place of a newer write any more.
    end: Option<Tick>,
    acknowledged: bool,
    durable: bool,
    /// The cache was lost after it was acknowledged and before it was made durable.
    at_risk: bool,
    /// A FLUSH failed since: the host knows.
    reported: bool,
}

impl Write {
    /// Whether this write has certainly taken the place of `other` for a read begun at `at`.
    fn replaced(&self, other: &Write, at: Tick) -> bool {
        self.acknowledged
            && !self.at_risk
            && self.end.is_some_and(|end| end < at)
            && other.end.is_some_and(|end| end < self.begin)
    }
}

/// A flush that is under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlushId(Tick);

/// The disk.
#[derive(Debug)]
pub(crate) struct Model {
    tick: Tick,
    blocks: Vec<Vec<Write>>,
    /// Begin of every read under way, and how many began then.
    reads: BTreeMap<Tick, u32>,
    volatile_cache: bool,
    /// The last boot of the node that ended with a loss of its cache.
    lost_boot: u64,
    /// Hosts that do not have the volume any more: nobody answers for what they did not flush.
    departed: BTreeSet<usize>,
}

impl Model {
    /// A disk of zeroes.
    pub(crate) fn new(blocks: u64, volatile_cache: bool) -> Self {
        let mut model = Model {
            tick: 1,
            blocks: Vec::new(),
            reads: BTreeMap::new(),
            volatile_cache,
            lost_boot: 0,
            departed: BTreeSet::new(),
        };
        model.grow(blocks);
        model
    }

    /// The disk has a new size; what is new reads as zeroes.
    pub(crate) fn grow(&mut self, blocks: u64) {
        let fresh = Write {
            id: 0,
            host: usize::MAX,
            version: Version(0),
            begin: 0,
            end: Some(0),
            acknowledged: true,
            durable: true,
            at_risk: false,
            reported: false,
        };
        while (self.blocks.len() as u64) < blocks {
            self.blocks.push(vec![fresh]);
        }
    }

    fn now(&mut self) -> Tick {
        self.tick += 1;
        self.tick
    }

    fn writes_mut(&mut self) -> impl Iterator<Item = &mut Write> {
        self.blocks.iter_mut().flatten()
    }

    /// A host issues a write; `version` zero stands for zeroes.
    pub(crate) fn begin_write(
        &mut self,
        host: usize,
        first: u64,
        count: u64,
        version: Version,
    ) -> WriteId {
        let begin = self.now();
        for block in first..first + count {
            self.prune(block);
            self.blocks[block as usize].push(Write {
                id: begin,
                host,
                version,
                begin,
                end: None,
                acknowledged: false,
                durable: false,
                at_risk: false,
                reported: false,
            });
        }
        WriteId(begin)
    }

    /// A write was acknowledged by the node in its `boot`. `fua`: as durable.
    pub(crate) fn acknowledge(&mut self, write: WriteId, fua: bool, boot: u64) {
        let now = self.now();
        let durable = fua || !self.volatile_cache;
        // The answer may have been on its way when the cache was lost.
        let lost = boot <= self.lost_boot;
        let departed = &self.departed;
        let writes = self.blocks.iter_mut().flatten();
        for w in writes.filter(|w| w.id == write.0) {
            w.end.get_or_insert(now);
            w.acknowledged = true;
            w.durable = durable;
            w.at_risk = lost && !durable;
            w.reported = w.at_risk && departed.contains(&w.host);
        }
    }

    /// The host was told that a write failed. It may still take effect, but not over a write that
    /// begins from now on.
    pub(crate) fn abandon(&mut self, write: WriteId) {
        let now = self.now();
        for w in self.writes_mut().filter(|w| w.id == write.0) {
            w.end.get_or_insert(now);
        }
    }

    /// Nothing of a host can take effect any more: another one was let in.
    pub(crate) fn settle_host(&mut self, host: usize) {
        let now = self.now();
        self.departed.insert(host);
        for w in self.writes_mut().filter(|w| w.host == host) {
            w.end.get_or_insert(now);
            w.reported |= w.at_risk;
        }
    }

    /// A host issues a flush.
    pub(crate) fn begin_flush(&mut self) -> FlushId {
        FlushId(self.now())
    }

    /// A flush was acknowledged.
    pub(crate) fn end_flush(&mut self, flush: FlushId) {
        for w in self.writes_mut() {
            if w.acknowledged && !w.reported && w.end.is_some_and(|end| end < flush.0) {
                w.durable = true;
                w.at_risk = false;
            }
        }
    }

    /// A flush failed: the host knows that what was not durable may be gone. Returns whether there
    /// was anything to report.
    pub(crate) fn fail_flush(&mut self) -> bool {
        let mut anything = false;
        for w in self.writes_mut().filter(|w| w.at_risk) {
            w.reported = true;
            anything = true;
        }
        anything
    }

    /// The node lost its write cache at the end of its `boot`.
    pub(crate) fn lose_cache(&mut self, boot: u64) {
        self.lost_boot = boot;
        for w in self.blocks.iter_mut().flatten() {
            w.at_risk |= w.acknowledged && !w.durable;
            w.reported |= w.at_risk && self.departed.contains(&w.host);
        }
    }

    /// A host issues a read.
    pub(crate) fn begin_read(&mut self) -> Tick {
        let begin = self.now();
        *self.reads.entry(begin).or_insert(0) += 1;
        begin
    }

    /// A read that began at `begin` ended without content.
    pub(crate) fn abandon_read(&mut self, begin: Tick) {
        self.reads.remove(&begin);
    }

    /// A read that began at `begin` returned `bytes`. Says what is wrong with them.
    pub(crate) fn end_read(&mut self, begin: Tick, first: u64, bytes: &[u8]) -> Result<(), String> {
        self.reads.remove(&begin);
        for (block, bytes) in (first..).zip(bytes.chunks(BLOCK_BYTES)) {
            self.check(begin, block, bytes)?;
        }
        Ok(())
    }

    /// Compares what a block is found to hold now with what it may hold.
    pub(crate) fn check_now(&mut self, block: u64, bytes: &[u8]) -> Result<(), String> {
        let now = self.now();
        self.check(now, block, bytes)
    }

    fn check(&self, begin: Tick, block: u64, bytes: &[u8]) -> Result<(), String> {
        let version = identify(bytes, block)?;
        let writes = self
            .blocks
            .get(block as usize)
            .map_or(&[][..], Vec::as_slice);
        let allowed = |w: &Write| !writes.iter().any(|newer| newer.replaced(w, begin));
        if writes.iter().any(|w| w.version == version && allowed(w)) {
            return Ok(());
        }
        let expected: Vec<String> = writes
            .iter()
            .filter(|w| allowed(w))
            .map(|w| w.version.0.to_string())
            .collect();
        let fault = if writes.iter().any(|w| w.version == version) {
            "stale: a newer write was acknowledged before the read began"
        } else {
            "long replaced, or was never written"
        };
        Err(format!(
            "block {block} reads as version {}, which is {fault}; allowed: {}",
            version.0,
            expected.join(", ")
        ))
    }

    /// Forgets writes of a block that no read can return any more.
    fn prune(&mut self, block: u64) {
        let horizon = self
            .reads
            .keys()
            .next()
            .copied()
            .unwrap_or(self.tick)
            .min(self.tick);
        let writes = &mut self.blocks[block as usize];
        let replaced: Vec<bool> = writes
            .iter()
            .map(|w| {
                writes
                    .iter()
                    .any(|newer| newer.durable && newer.replaced(w, horizon))
            })
            .collect();
        let mut replaced = replaced.iter();
        writes.retain(|_| !replaced.next().copied().unwrap_or(false));
    }
}
