// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What a host asks of its device: requests of all kinds on few blocks, many at once.

use crate::content::{content, Version, BLOCK_BYTES};
use crate::env::Env;
use crate::model::{FlushId, Tick, WriteId};
use neonsan_proto::{Kind, RequestFlags};
use neonsan_session::client::{FlushMark, Request};

/// The model's side of a request.
#[derive(Clone, Copy, Debug)]
pub(super) enum Expectation {
    Read(Tick),
    Write(WriteId),
    Flush(FlushId),
}

/// One request of the block layer: what it asks, its pages, and what must come of it.
#[derive(Debug)]
pub(super) struct Io {
    pub(super) request: Request,
    pub(super) data: Vec<u8>,
    pub(super) expectation: Expectation,
    pub(super) flush_mark: Option<FlushMark>,
    /// CRC-32C of the payload that has arrived.
    pub(super) crc: u32,
}

impl Io {
    pub(super) fn first_block(&self) -> u64 {
        self.request.offset / BLOCK_BYTES as u64
    }

    fn is_fua(&self) -> bool {
        self.request.flags.contains(RequestFlags::FUA)
    }

    /// The device says that the request ended well, on a connection to the node in its `boot`.
    pub(super) fn succeed(self, env: &mut Env, boot: u64) {
        env.counts.requests += 1;
        match self.expectation {
            Expectation::Read(begin) => {
                let first = self.first_block();
                if let Err(fault) = env.model.end_read(begin, first, &self.data) {
                    env.core.fail(fault);
                }
            }
            Expectation::Write(id) => env.model.acknowledge(id, self.is_fua(), boot),
            Expectation::Flush(id) => env.model.end_flush(id),
        }
    }

    /// The device says that the request failed.
    pub(super) fn fail(self, env: &mut Env) {
        env.counts.errors += 1;
        match self.expectation {
            Expectation::Read(begin) => env.model.abandon_read(begin),
            Expectation::Write(id) => env.model.abandon(id),
            Expectation::Flush(_) => {
                env.model.fail_flush();
            }
        }
    }
}

/// The next request of a workload on a device of `blocks` blocks.
pub(super) fn next_io(
    env: &mut Env,
    host: usize,
    blocks: u64,
    version: Version,
    read_only: bool,
) -> Io {
    let rng = &mut env.core.rng;
    let count = rng.range(1, 6).min(blocks);
    let first = rng.below(blocks - count + 1);
    let fua = if rng.permille(150) {
        RequestFlags::FUA
    } else {
        RequestFlags::NONE
    };
    let dice = if read_only { 0 } else { rng.below(100) };
    let (kind, flags) = match dice {
        0..=37 => (Kind::Read, RequestFlags::NONE),
        38..=79 => (Kind::Write, fua),
        80..=87 => (Kind::Flush, RequestFlags::NONE),
        88..=93 => (Kind::Discard, RequestFlags::NONE),
        _ => (Kind::WriteZeroes, fua),
    };
    let mut data = Vec::new();
    let expectation = match kind {
        Kind::Read => {
            // Poison: a byte that nobody fills in is seen.
            data = vec![0xa5; count as usize * BLOCK_BYTES];
            Expectation::Read(env.model.begin_read())
        }
        Kind::Flush => Expectation::Flush(env.model.begin_flush()),
        Kind::Write => {
            for block in first..first + count {
                data.extend_from_slice(&content(version, block));
            }
            Expectation::Write(env.model.begin_write(host, first, count, version))
        }
        _ => Expectation::Write(env.model.begin_write(host, first, count, Version(0))),
    };
    let request = if kind == Kind::Flush {
        Request {
            kind,
            flags,
            offset: 0,
            length: 0,
        }
    } else {
        Request {
            kind,
            flags,
            offset: first * BLOCK_BYTES as u64,
            length: (count * BLOCK_BYTES as u64) as u32,
        }
    };
    Io {
        request,
        data,
        expectation,
        flush_mark: None,
        crc: 0,
    }
}
