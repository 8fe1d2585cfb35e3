// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The whole checker, with its threads and its log, against disks that lie in each way that there
//! is: every lie must be found, and no honest disk accused.
#![allow(clippy::unwrap_used)]

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use neonsan_checker::disk::Disk;
use neonsan_checker::load::{Load, Plan};
use neonsan_checker::log::{Log, Start};
use neonsan_checker::model::{Broken, Cache, Model};
use neonsan_checker::report::Report;
use neonsan_checker::verify::verify;

const BLOCK: usize = 512;
const BLOCKS: usize = 512;

/// What the disk does once in a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    Nothing,
    /// A write is acknowledged and not done.
    Forgets,
    /// A write that it acknowledged is done again later, over newer data.
    WritesTwice,
    /// Half a block of a write is done.
    Tears,
    /// A write goes to the next block.
    Misplaces,
    /// A bit changes.
    FlipsBit,
    /// Unflushed data goes, and the next flush fails.
    LosesCache,
    /// Unflushed data goes, and nobody is told.
    LosesCacheSilently,
    /// Requests fail; what was acknowledged is there.
    Fails,
}

struct State {
    data: Vec<u8>,
    stable: Vec<u8>,
    /// A write to do again.
    late: Option<(usize, Vec<u8>)>,
    flush_fails: bool,
}

struct LyingDisk {
    lie: Lie,
    state: Mutex<State>,
    requests: AtomicU64,
    lies: AtomicU64,
}

impl LyingDisk {
    fn new(lie: Lie) -> Arc<Self> {
        let zeroes = vec![0; BLOCK * BLOCKS];
        Arc::new(LyingDisk {
            lie,
            state: Mutex::new(State {
                data: zeroes.clone(),
                stable: zeroes,
                late: None,
                flush_fails: false,
            }),
            requests: AtomicU64::new(0),
            lies: AtomicU64::new(0),
        })
    }

    /// Whether it is time for a lie.
    fn lies_now(&self) -> bool {
        let now = self.requests.fetch_add(1, Ordering::Relaxed) % 97 == 96;
        self.lies.fetch_add(u64::from(now), Ordering::Relaxed);
        now
    }
}

impl Disk for LyingDisk {
    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let state = self.state.lock().unwrap();
        let from = offset as usize;
        data.copy_from_slice(&state.data[from..from + data.len()]);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> io::Result<()> {
        let lie = if self.lies_now() {
            self.lie
        } else {
            Lie::Nothing
        };
        let mut state = self.state.lock().unwrap();
        let at = offset as usize;
        let mut range = at..at + data.len();
        let mut data = data.to_vec();
        match lie {
            Lie::Nothing => {}
            Lie::Forgets => return Ok(()),
            Lie::Fails => return Err(io::ErrorKind::Other.into()),
            Lie::WritesTwice => {
                if let Some((at, old)) = state.late.replace((at, data.clone())) {
                    state.data[at..at + old.len()].copy_from_slice(&old);
                }
            }
            Lie::Tears => range.end = at + BLOCK / 2,
            Lie::Misplaces if range.end < BLOCK * BLOCKS => {
                range = at + BLOCK..range.end + BLOCK;
            }
            Lie::Misplaces => return Ok(()),
            Lie::FlipsBit => data[17] ^= 4,
            Lie::LosesCache | Lie::LosesCacheSilently => {
                state.data = state.stable.clone();
                state.flush_fails = lie == Lie::LosesCache;
            }
        }
        state.data[range.clone()].copy_from_slice(&data[..range.len()]);
        if fua {
            state.stable[range.clone()].copy_from_slice(&data[..range.len()]);
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        if std::mem::take(&mut state.flush_fails) {
            return Err(io::ErrorKind::Other.into());
        }
        state.stable = state.data.clone();
        Ok(())
    }
}

/// Runs the load until the disk lied a few times; then verifies, as another process would.
fn check(lie: Lie, cache: Cache) -> (Report, Report) {
    let dir = tempfile::tempdir().unwrap();
    let path: &Path = &dir.path().join("log");
    let disk = LyingDisk::new(lie);
    let start = Start {
        seed: 42,
        block_bytes: BLOCK as u32,
        blocks: BLOCKS as u64,
        cache,
    };
    let log = Log::create(path, start).unwrap();
    let plan = Plan {
        writers: 3,
        readers: 2,
        max_extent_bytes: 8192,
        flush_percent: 3,
        fua_percent: 5,
        hot_percent: 30,
        pause: Duration::ZERO,
    };
    let stop = Arc::new(AtomicBool::new(false));
    let load = Load::start(
        Arc::clone(&disk) as Arc<dyn Disk>,
        (log, start, Model::new(cache, BLOCKS as u64)),
        plan,
        Arc::clone(&stop),
    )
    .unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while disk.lies.load(Ordering::Relaxed) < 30 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(2));
    }
    stop.store(true, Ordering::Relaxed);
    let (_, run) = load.finish().unwrap();
    let (_, start, mut model) = Log::open(path).unwrap();
    let after = verify(&*disk, &start, &mut model, true);
    (run, after)
}

/// Whether one of the reports has it.
fn found(reports: &(Report, Report), broken: Broken) -> bool {
    [&reports.0, &reports.1]
        .iter()
        .any(|r| r.violations.iter().any(|v| v.broken == broken))
}

#[test]
fn an_honest_disk_is_not_accused() {
    for cache in [Cache::WriteThrough, Cache::Volatile] {
        let (run, after) = check(Lie::Nothing, cache);
        assert_eq!((run.broken, after.broken), (0, 0));
        assert_eq!(run.failures() + after.failures(), 0);
        assert!(run.done.writes > 100 && run.done.reads > 0 && run.done.flushes > 0);
        assert_eq!(after.done.reads, 1);
    }
}

#[test]
fn failed_requests_are_no_broken_promise() {
    let (run, after) = check(Lie::Fails, Cache::WriteThrough);
    assert_eq!((run.broken, after.broken), (0, 0));
    assert!(run.failed.writes > 0 && !run.errors.is_empty());
}

#[test]
fn a_forgotten_write_is_found() {
    let reports = check(Lie::Forgets, Cache::WriteThrough);
    assert!(found(&reports, Broken::Stale) || found(&reports, Broken::Lost));
}

#[test]
fn a_late_write_over_newer_data_is_found() {
    assert!(found(
        &check(Lie::WritesTwice, Cache::WriteThrough),
        Broken::Stale
    ));
    assert!(found(
        &check(Lie::WritesTwice, Cache::Volatile),
        Broken::Stale
    ));
}

#[test]
fn a_torn_block_is_found() {
    assert!(found(&check(Lie::Tears, Cache::WriteThrough), Broken::Torn));
}

#[test]
fn a_misdirected_write_is_found() {
    assert!(found(
        &check(Lie::Misplaces, Cache::WriteThrough),
        Broken::Misdirected
    ));
}

#[test]
fn a_flipped_bit_is_found() {
    assert!(found(
        &check(Lie::FlipsBit, Cache::WriteThrough),
        Broken::Damaged
    ));
}

#[test]
fn a_loss_that_a_flush_reports_is_accepted_where_there_is_a_cache() {
    let (run, after) = check(Lie::LosesCache, Cache::Volatile);
    assert_eq!((run.broken, after.broken), (0, 0));
    assert!(run.failed.flushes > 0);
    // On a disk that has none the same is a loss.
    let (run, after) = check(Lie::LosesCache, Cache::WriteThrough);
    assert!(run.broken + after.broken > 0);
}

#[test]
fn a_loss_that_no_flush_reports_is_found() {
    // What a flush that succeeded covers is plainly stale or lost from then on; the loss itself is
    // only named if a read saw it before.
    let reports = check(Lie::LosesCacheSilently, Cache::Volatile);
    let names = [Broken::LossNotReported, Broken::Stale, Broken::Lost];
    assert!(names.iter().any(|name| found(&reports, *name)));
}
