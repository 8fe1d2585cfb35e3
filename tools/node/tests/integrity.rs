// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The integrity checker at work over the user-space client, while things happen to the node; with
//! the feature `test-faults` only. A node with fencing planted out must be caught.
//!
//! The same checker works on the kernel's device in the lab's fault matrix.
#![cfg(feature = "test-faults")]
#![allow(clippy::unwrap_used)]

mod common;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::disk::Disk as FileSystem;
use common::{create, directory, Node};
use neonsan_checker::disk::Disk;
use neonsan_checker::load::{Load, Plan};
use neonsan_checker::log::{Log, Start};
use neonsan_checker::model::{Broken, Cache, Model};
use neonsan_checker::report::Report;
use neonsan_checker::verify::verify;
use neonsan_client::{Client, Config, WriteFlags};
use neonsan_session::Timeouts;
use rustix::process::{kill_process, Signal};
use tokio::runtime::Runtime;

const BLOCK_BYTES: u32 = 512;
const BLOCKS: u64 = 512;

const FAULTY: &str = env!("CARGO_BIN_EXE_neonsan-node-faulty");
const UNFENCED: &str = env!("CARGO_BIN_EXE_neonsan-node-unfenced");

/// A volume as a disk; every call blocks its thread.
struct VolumeDisk {
    runtime: Runtime,
    client: Client,
}

impl VolumeDisk {
    fn attach(node: &Node, request_ms: u32) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let mut config = Config::new("p/v", vec![node.data]);
        config.connections = 2;
        config.timeouts = Timeouts {
            request_ms,
            reconnect_delay_max_ms: 100,
            ..Timeouts::DEFAULT
        };
        let client = runtime.block_on(Client::attach(config)).unwrap();
        VolumeDisk { runtime, client }
    }
}

impl Disk for VolumeDisk {
    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let read = self.client.read(offset, data.len());
        data.copy_from_slice(&self.runtime.block_on(read).map_err(io::Error::other)?);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> io::Result<()> {
        let flags = WriteFlags {
            fua,
            ..WriteFlags::default()
        };
        let data = Bytes::copy_from_slice(data);
        let write = self.client.write_with(offset, data, flags);
        self.runtime.block_on(write).map_err(io::Error::other)
    }

    fn flush(&self) -> io::Result<()> {
        let flush = self.client.flush();
        self.runtime.block_on(flush).map_err(io::Error::other)
    }
}

fn set_faults(node: &Node, body: &str) {
    let (head, answer) = node.http(&format!(
        "PUT /v1/test-faults HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
}

/// A checker at work.
struct Check {
    disk: Arc<VolumeDisk>,
    log: PathBuf,
    stop: Arc<AtomicBool>,
    load: Load,
}

impl Check {
    fn start(dir: &Path, disk: VolumeDisk, cache: Cache) -> Self {
        let disk = Arc::new(disk);
        let log = dir.join("log");
        let start = Start {
            seed: 1,
            block_bytes: BLOCK_BYTES,
            blocks: BLOCKS,
            cache,
        };
        let plan = Plan {
            writers: 6,
            readers: 2,
            max_extent_bytes: 8192,
            flush_percent: 2,
            fua_percent: 5,
            hot_percent: 0,
            pause: Duration::from_millis(1),
        };
        let stop = Arc::new(AtomicBool::new(false));
        let books = (
            Log::create(&log, start).unwrap(),
            start,
            Model::new(cache, BLOCKS),
        );
        let load = Load::start(
            Arc::clone(&disk) as Arc<dyn Disk>,
            books,
            plan,
            Arc::clone(&stop),
        )
        .unwrap();
        let check = Check {
            disk,
            log,
            stop,
            load,
        };
        check.wait_for_records(200);
        check
    }

    fn records(&self) -> u64 {
        std::fs::metadata(&self.log).unwrap().len() / 64
    }

    /// Waits until the log has so many records more.
    fn wait_for_records(&self, more: u64) {
        let (until, end) = (Instant::now() + common::PATIENCE, self.records() + more);
        while self.records() < end {
            assert!(Instant::now() < until, "nothing is written");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends the load when all that is under way has ended.
    fn end(self) -> (Report, Arc<VolumeDisk>, PathBuf) {
        self.stop.store(true, Ordering::Relaxed);
        (self.load.finish().unwrap().1, self.disk, self.log)
    }
}

fn verify_log(disk: &VolumeDisk, log: &Path) -> Report {
    let (_log, start, mut model) = Log::open(log).unwrap();
    verify(disk, &start, &mut model, true)
}

/// Writes stall in the engine until the client gives up their connections and sends them again;
/// newer ones follow; only then the stalled ones go on. What the checker says of it.
fn stall(program: &str, let_go: impl FnOnce(&Node, &Check)) -> Report {
    let dir = directory();
    let path = dir.path().join("node.toml");
    std::fs::write(&path, common::config(dir.path(), "")).unwrap();
    let node = Node::start_program(program, &path);
    create(&node, "p/v", 1 << 20, BLOCK_BYTES, "main");
    let disk = VolumeDisk::attach(&node, 500);
    let check = Check::start(dir.path(), disk, Cache::WriteThrough);
    set_faults(&node, r#"{"stall_next":4}"#);
    let_go(&node, &check);
    let (report, disk, log) = check.end();
    assert_eq!((report.broken, report.failures()), (0, 0), "{report}");
    set_faults(&node, "{}");
    std::thread::sleep(Duration::from_millis(500));
    verify_log(&disk, &log)
}

#[test]
fn a_node_without_fencing_is_caught() {
    let report = stall(UNFENCED, |_, check| {
        // Past the request timeout, and every block a few times.
        std::thread::sleep(Duration::from_millis(1500));
        check.wait_for_records(3000);
    });
    assert!(report.broken > 0, "{report}");
    let all_stale = report.violations.iter().all(|v| v.broken == Broken::Stale);
    assert!(all_stale, "{report}");
}

#[test]
fn a_node_that_fences_lets_no_stalled_write_land_late() {
    let report = stall(FAULTY, |node, check| {
        std::thread::sleep(Duration::from_millis(1500));
        set_faults(node, "{}");
        check.wait_for_records(3000);
    });
    assert_eq!((report.broken, report.failures()), (0, 0), "{report}");
}

/// The node is killed and started again, a few times. What the checker says while that goes on,
/// and afterwards.
fn kill(engine: &str, cache: Cache) -> (Report, Report) {
    let dir = directory();
    let path = dir.path().join("node.toml");
    let config = |data: &str| {
        let config = common::config(dir.path(), data);
        // The engine "main" comes first, and its path is its last line.
        let lines: Vec<&str> = config.lines().collect();
        let at = lines.iter().position(|l| l.starts_with("path")).unwrap() + 1;
        let (head, tail) = lines.split_at(at);
        std::fs::write(&path, [head, &[engine], tail].concat().join("\n")).unwrap();
    };
    config("");
    let mut node = Node::start_program(FAULTY, &path);
    create(&node, "p/v", 1 << 20, BLOCK_BYTES, "main");
    config(&format!("[data]\nlisten = [\"{}\"]\n", node.data));
    let disk = VolumeDisk::attach(&node, 30_000);
    let check = Check::start(dir.path(), disk, cache);
    for _ in 0..3 {
        node.kill();
        std::thread::sleep(Duration::from_millis(200));
        node = Node::start_program(FAULTY, &path);
        check.wait_for_records(500);
    }
    let (report, disk, log) = check.end();
    let after = verify_log(&disk, &log);
    (report, after)
}

#[test]
fn a_killed_node_takes_nothing_with_it() {
    let (report, after) = kill("", Cache::WriteThrough);
    assert_eq!((report.broken, report.failures()), (0, 0), "{report}");
    assert_eq!((after.broken, after.failures()), (0, 0), "{after}");
}

#[test]
fn a_lost_cache_is_reported_by_a_flush_and_by_nothing_else() {
    let (report, after) = kill("test_volatile_cache = true", Cache::Volatile);
    assert_eq!((report.broken, after.broken), (0, 0), "{report}\n{after}");
    assert!(report.failed.flushes + after.failed.flushes > 0, "{report}");
    assert_eq!((report.failed.reads, report.failed.writes), (0, 0));
    // For who believes that what is acknowledged stays it is a loss.
    let (report, after) = kill("test_volatile_cache = true", Cache::WriteThrough);
    assert!(report.broken + after.broken > 0, "{report}\n{after}");
}

/// The file system below the node goes away and is mounted again, without a boot of the machine:
/// once before the node notices, and once while it serves.
#[test]
fn a_file_system_that_went_away_is_reported_by_a_flush() {
    for mut file_system in FileSystem::each("a_file_system_that_went_away_is_reported") {
        let dir = directory();
        let path = dir.path().join("node.toml");
        let config = |data: &str| {
            let config = common::config(&file_system.path(), data);
            std::fs::write(&path, config).unwrap();
        };
        config("");
        let mut node = Node::start_program(FAULTY, &path);
        create(&node, "p/v", 1 << 20, BLOCK_BYTES, "main");
        config(&format!("[data]\nlisten = [\"{}\"]\n", node.data));
        let disk = VolumeDisk::attach(&node, 30_000);
        let check = Check::start(dir.path(), disk, Cache::Volatile);
        for notices in [false, true] {
            if !notices {
                kill_process(node.pid(), Signal::STOP).unwrap();
                node.wait_stopped();
            }
            file_system.go_away();
            if notices {
                std::thread::sleep(Duration::from_millis(300));
            }
            node.kill();
            file_system.mount_anew();
            node = Node::start_program(FAULTY, &path);
            check.wait_for_records(500);
        }
        let (report, disk, log) = check.end();
        let after = verify_log(&disk, &log);
        assert_eq!((report.broken, after.broken), (0, 0), "{report}\n{after}");
        assert!(report.failed.flushes >= 1, "{report}");
        drop((disk, node));
    }
}
