// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Writers and readers.
//!
//! One lock holds the model, the log and the report, so that the log has everything in the order in
//! which the model learned it. It is never held while the disk is asked.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::block::{fill, Stamp};
use crate::disk::{Buffer, Disk};
use crate::log::{Log, Record, Start};
use crate::model::Model;
use crate::report::Report;
use crate::service::Service;
use crate::verify::contents;

/// What is done.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Threads that write.
    pub writers: u16,
    /// Threads that read.
    pub readers: u16,
    /// Longest request.
    pub max_extent_bytes: u32,
    /// Of a hundred requests of a writer, how many are flushes.
    pub flush_percent: u8,
    /// Of a hundred writes, how many have FUA.
    pub fua_percent: u8,
    /// Of a hundred requests, how many go to the few blocks that are written again and again.
    pub hot_percent: u8,
    /// Pause of each thread between two requests.
    pub pause: Duration,
}

/// Size of the part that is written again and again.
const HOT_BYTES: u64 = 128 * 1024;

/// Pause of a thread after an error.
const AFTER_ERROR: Duration = Duration::from_millis(20);

/// What the lock holds.
struct Books {
    model: Model,
    log: Log,
    report: Report,
    /// The log cannot be written any more: nothing is known from here on.
    log_error: Option<io::Error>,
}

struct Shared {
    disk: Arc<dyn Disk>,
    start: Start,
    plan: Plan,
    books: Mutex<Books>,
    service: Service,
    stop: Arc<AtomicBool>,
}

/// A run under way.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Load {
    /// Starts the threads. They run until `stop` is set; each ends what it began.
    ///
    /// # Errors
    ///
    /// The system has no thread left.
    pub fn start(
        disk: Arc<dyn Disk>,
        (log, start, model): (Log, Start, Model),
        plan: Plan,
        stop: Arc<AtomicBool>,
    ) -> io::Result<Self> {
        let report = Report {
            seed: start.seed,
            block_bytes: start.block_bytes,
            blocks: start.blocks,
            ..Report::default()
        };
        let shared = Arc::new(Shared {
            disk,
            start,
            plan,
            books: Mutex::new(Books {
                model,
                log,
                report,
                log_error: None,
            }),
            service: Service::start(),
            stop,
        });
        let mut threads = Vec::new();
        for index in 0..plan.writers + plan.readers {
            let shared = Arc::clone(&shared);
            let name = if index < plan.writers {
                format!("writer-{index}")
            } else {
                format!("reader-{index}")
            };
            threads.push(thread::Builder::new().name(name).spawn(move || {
                let mut worker = Worker::new(&shared, index);
                while !shared.stop.load(Ordering::Relaxed) {
                    let went_well = if index < shared.plan.writers {
                        worker.write_or_flush()
                    } else {
                        worker.read()
                    };
                    let pause = if went_well {
                        shared.plan.pause
                    } else {
                        AFTER_ERROR
                    };
                    if !pause.is_zero() {
                        thread::sleep(pause);
                    }
                }
            })?);
        }
        Ok(Load { shared, threads })
    }

    /// Waits for the threads' end, which `stop` asks for, and says what they saw.
    ///
    /// # Errors
    ///
    /// The log could not be written, or a thread panicked.
    pub fn finish(self) -> io::Result<(Model, Report)> {
        for thread in self.threads {
            thread
                .join()
                .map_err(|_| io::Error::other("a thread panicked"))?;
        }
        let shared =
            Arc::into_inner(self.shared).ok_or_else(|| io::Error::other("a thread lives"))?;
        let books = shared
            .books
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = books.log_error {
            return Err(error);
        }
        let mut report = books.report;
        report.unreported_losses = books.model.unreported_losses();
        report.torn_by_overlap = books.model.torn_by_overlap();
        report.service = shared.service.summary();
        Ok((books.model, report))
    }
}

impl Shared {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what is done. Without a log nothing more may be done.
    fn note(&self, books: &mut Books, record: Record) -> bool {
        match books.log.append(record) {
            Ok(()) => true,
            Err(error) => {
                eprintln!("neonsan-checker: the log cannot be written: {error}");
                books.log_error.get_or_insert(error);
                self.stop.store(true, Ordering::Relaxed);
                false
            }
        }
    }
}

struct Worker<'a> {
    shared: &'a Shared,
    index: u16,
    random: Random,
    buffer: Buffer,
}

impl<'a> Worker<'a> {
    fn new(shared: &'a Shared, index: u16) -> Self {
        Worker {
            shared,
            index,
            // The place in the log, so that a run that goes on does other things than before.
            random: Random(
                shared.start.seed
                    ^ u64::from(index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
                    ^ shared.books().model.last_version().rotate_left(40),
            ),
            buffer: Buffer::new(shared.plan.max_extent_bytes as usize),
        }
    }

    /// A random place: first block and number of blocks.
    fn extent(&mut self) -> (u64, u32) {
        let start = &self.shared.start;
        let plan = &self.shared.plan;
        let block_bytes = u64::from(start.block_bytes);
        let hot_blocks = (HOT_BYTES / block_bytes).clamp(1, start.blocks);
        let within = if self.random.percent(plan.hot_percent) {
            hot_blocks
        } else {
            start.blocks
        };
        let longest = (u64::from(plan.max_extent_bytes) / block_bytes).clamp(1, within);
        // Small ones are as frequent as large ones: a power of two bounds each.
        let bound = 1u64 << self.random.below(u64::from(longest.ilog2()) + 1);
        let count = 1 + self.random.below(bound);
        let first = self.random.below(within - count + 1);
        (first, count as u32)
    }

    fn write_or_flush(&mut self) -> bool {
        if self.random.percent(self.shared.plan.flush_percent) {
            return self.flush();
        }
        let shared = self.shared;
        let (first, count) = self.extent();
        let fua = self.random.percent(shared.plan.fua_percent);
        let version = {
            let mut books = shared.books();
            // Somebody else may be writing there: then elsewhere, the next time.
            let Some(version) = books.model.issue(first, count, fua) else {
                return true;
            };
            let issue = Record::Issue {
                version,
                first,
                count,
                fua,
            };
            if !shared.note(&mut books, issue) {
                return false;
            }
            version
        };
        let block_bytes = shared.start.block_bytes as usize;
        let data = self.buffer.first(count as usize * block_bytes);
        let stamp = Stamp {
            seed: shared.start.seed,
            version,
            writer: self.index,
        };
        fill(data, block_bytes, first, &stamp);
        let sent = Instant::now();
        let result = shared.disk.write(first * block_bytes as u64, data, fua);
        if result.is_ok() {
            shared.service.on_answer(sent);
        }
        let mut books = shared.books();
        let ok = result.is_ok();
        // The log first: what is acknowledged in the model is acknowledged in the log.
        shared.note(&mut books, Record::Written { version, ok });
        books.model.on_written(version, ok);
        let report = &mut books.report;
        let counts = match &result {
            Ok(()) => &mut report.done,
            Err(_) => &mut report.failed,
        };
        counts.writes += 1;
        counts.fua_writes += u64::from(fua);
        if let Err(error) = result {
            report.add_error("write", &error);
        }
        ok
    }

    fn flush(&mut self) -> bool {
        let shared = self.shared;
        let number = {
            let mut books = shared.books();
            let number = books.model.begin_flush();
            if !shared.note(&mut books, Record::BeginFlush { number }) {
                return false;
            }
            number
        };
        let sent = Instant::now();
        let result = shared.disk.flush();
        if result.is_ok() {
            shared.service.on_answer(sent);
        }
        let mut books = shared.books();
        let ok = result.is_ok();
        shared.note(&mut books, Record::Flushed { number, ok });
        let violations = books.model.on_flushed(number, ok);
        books.report.add(violations);
        match result {
            Ok(()) => books.report.done.flushes += 1,
            Err(error) => {
                books.report.failed.flushes += 1;
                books.report.add_error("flush", &error);
            }
        }
        ok
    }

    fn read(&mut self) -> bool {
        let shared = self.shared;
        let (first, count) = self.extent();
        let block_bytes = shared.start.block_bytes as usize;
        let read = shared.books().model.begin_read(first, count);
        let data = self.buffer.first(count as usize * block_bytes);
        let sent = Instant::now();
        let result = shared.disk.read(first * block_bytes as u64, data);
        let found = match &result {
            Ok(()) => {
                shared.service.on_answer(sent);
                contents(data, block_bytes, first, shared.start.seed)
            }
            Err(_) => Vec::new(),
        };
        let mut books = shared.books();
        let violations = books.model.on_read(read, &found);
        books.report.add(violations);
        match &result {
            Ok(()) => books.report.done.reads += 1,
            Err(error) => {
                books.report.failed.reads += 1;
                books.report.add_error("read", error);
            }
        }
        result.is_ok()
    }
}

/// Numbers that look random and follow from the seed (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        let mut x = self.0.max(1);
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.0 = x;
        x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    /// From 0 to `bound` - 1.
    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    fn percent(&mut self, percent: u8) -> bool {
        self.below(100) < u64::from(percent)
    }
}
