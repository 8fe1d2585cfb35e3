// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Reads every block and compares it with what it may hold.

use std::time::Instant;

use crate::block::{examine, Content};
use crate::disk::{Buffer, Disk};
use crate::log::Start;
use crate::model::Model;
use crate::report::Report;
use crate::service::Service;

/// Bytes read at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// What `data`, read from the block `first` on, holds, block by block.
pub fn contents(data: &[u8], block_bytes: usize, first: u64, seed: u64) -> Vec<Content> {
    (first..)
        .zip(data.chunks_exact(block_bytes))
        .map(|(number, block)| examine(block, number, seed))
        .collect()
}

/// Reads every block. With `flush` a flush goes first: on a disk with a volatile cache it reports
/// a loss, or nothing is lost.
pub fn verify(disk: &dyn Disk, start: &Start, model: &mut Model, flush: bool) -> Report {
    let mut report = Report {
        seed: start.seed,
        block_bytes: start.block_bytes,
        blocks: start.blocks,
        ..Report::default()
    };
    let service = Service::start();
    if flush {
        let number = model.begin_flush();
        let sent = Instant::now();
        let result = disk.flush();
        match &result {
            Ok(()) => {
                service.on_answer(sent);
                report.done.flushes += 1;
            }
            Err(error) => {
                report.failed.flushes += 1;
                report.add_error("flush", error);
            }
        }
        report.add(model.on_flushed(number, result.is_ok()));
    }
    let block_bytes = start.block_bytes as usize;
    let mut buffer = Buffer::new(CHUNK_BYTES);
    let per_chunk = (CHUNK_BYTES / block_bytes) as u64;
    let mut first = 0;
    while first < start.blocks {
        let count = per_chunk.min(start.blocks - first) as u32;
        let data = buffer.first(count as usize * block_bytes);
        let read = model.begin_read(first, count);
        let sent = Instant::now();
        match disk.read(first * u64::from(start.block_bytes), data) {
            Ok(()) => {
                service.on_answer(sent);
                report.done.reads += 1;
                let found = contents(data, block_bytes, first, start.seed);
                report.add(model.on_read(read, &found));
            }
            Err(error) => {
                report.failed.reads += 1;
                report.add_error("read", &error);
                report.add(model.on_read(read, &[]));
            }
        }
        first += u64::from(count);
    }
    report.unreported_losses = model.unreported_losses();
    report.torn_by_overlap = model.torn_by_overlap();
    report.service = service.summary();
    report
}
