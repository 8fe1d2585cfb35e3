// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The result of a run or of a verification.

use std::collections::BTreeMap;
use std::fmt;
use std::io;

use serde::Serialize;

use crate::model::Violation;
use crate::service::Summary;

/// How many violations are kept; the others are counted.
const MAX_KEPT: usize = 20;

/// Requests that ended, by what they were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Reads.
    pub reads: u64,
    /// Writes, those with FUA too.
    pub writes: u64,
    /// Writes with FUA.
    pub fua_writes: u64,
    /// Flushes.
    pub flushes: u64,
}

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// The run's identity.
    pub seed: u64,
    /// Logical block size.
    pub block_bytes: u32,
    /// How many blocks are used.
    pub blocks: u64,
    /// Requests that were answered well.
    pub done: Counts,
    /// Requests that ended with an error.
    pub failed: Counts,
    /// The errors, as the system names them, and how often each came.
    pub errors: BTreeMap<String, u64>,
    /// How often the disk broke its promise.
    pub broken: u64,
    /// The first of these.
    pub violations: Vec<Violation>,
    /// Losses that were seen, and no flush has come since to report them.
    pub unreported_losses: usize,
    /// Blocks that were found torn while they were written, which no disk promises not to be.
    pub torn_by_overlap: u64,
    /// Times without service.
    pub service: Summary,
}

impl Report {
    /// Takes violations, and says each on standard error as it is found.
    pub fn add(&mut self, violations: Vec<Violation>) {
        for violation in violations {
            self.broken += 1;
            if self.violations.len() < MAX_KEPT {
                eprintln!("neonsan-checker: {violation}");
                self.violations.push(violation);
            }
        }
    }

    /// Counts an error.
    pub fn add_error(&mut self, what: &str, error: &io::Error) {
        let name = format!("{what}: {error}");
        if self.errors.len() < MAX_KEPT || self.errors.contains_key(&name) {
            *self.errors.entry(name).or_default() += 1;
        }
    }

    /// How many requests failed.
    pub fn failures(&self) -> u64 {
        self.failed.reads + self.failed.writes + self.failed.flushes
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "block {}: {:?}: found {:?}, and it was to be a version from {} to {}",
            self.block, self.broken, self.found, self.at_least, self.at_most
        )
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} blocks of {} bytes; {} reads, {} writes ({} with FUA), {} flushes",
            self.blocks,
            self.block_bytes,
            self.done.reads,
            self.done.writes,
            self.done.fua_writes,
            self.done.flushes
        )?;
        writeln!(
            f,
            "longest time without an answer: {} ms; slowest request: {} ms",
            self.service.longest_gap_ms, self.service.slowest_ms
        )?;
        for (error, count) in &self.errors {
            writeln!(f, "{count} times: {error}")?;
        }
        if self.broken == 0 {
            write!(f, "every block holds what it must")
        } else {
            write!(f, "{} broken promises", self.broken)
        }
    }
}
