// SPDX-License-Identifier: GPL-2.0 OR MIT
//! A killed process cannot write into its successor's volume: the lock of the
//! data file lasts until the last write in flight has ended.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{file_options, run, spec, volume_name};
use neonsan_engine::file::FileEngine;
use neonsan_engine::{Buffer, Engine, ErrorKind, Op, Request};

/// Names the directory to the child.
const CHILD_DIR: &str = "NEONSAN_TEST_KILLED_NODE";

const SIZE: u64 = 64 << 20;

/// The part of the child: writes as much as it can until it is killed.
#[test]
fn child_that_writes_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else {
        return;
    };
    let engine = FileEngine::open(file_options(Path::new(&dir))).unwrap();
    let mut queue = engine.open(&volume_name("p/v")).unwrap().queue(64).unwrap();
    let mut completions = Vec::new();
    let mut next = 0u64;
    println!("writing");
    loop {
        while queue.in_flight() < 64 {
            let mut buffer = Buffer::zeroed(1 << 20).unwrap();
            buffer.fill(next as u8 | 1);
            queue.submit(Request {
                token: next,
                op: Op::Write {
                    offset: (next << 20) % SIZE,
                    buffer,
                    fua: true,
                    atomic: false,
                },
            });
            next += 1;
        }
        queue.kick();
        queue.reap(&mut completions);
        completions.clear();
    }
}

/// A control group in which a process writes slowly, so that its writes are
/// still on their way long after it was killed.
struct SlowWrites {
    mount: tempfile::TempDir,
    group: PathBuf,
}

impl SlowWrites {
    /// `None` where control groups of version 1 cannot be mounted, or the
    /// directory is on no disk.
    fn on_disk_of(dir: &Path) -> Option<Self> {
        let device = fs::metadata(dir).unwrap().dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let mut disk = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        if disk.join("partition").exists() {
            disk = disk.join("..");
        }
        let number = fs::read_to_string(disk.join("dev")).ok()?;
        let mount = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "cgroup", "-o", "blkio", "none"])
            .arg(mount.path())
            .stderr(Stdio::null())
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            return None;
        }
        let group = mount
            .path()
            .join(format!("neonsan-test-{}", std::process::id()));
        let slow = Self { mount, group };
        fs::create_dir(&slow.group).ok()?;
        let limit = format!("{} {}", number.trim(), 32 << 20);
        fs::write(slow.group.join("blkio.throttle.write_bps_device"), limit).ok()?;
        Some(slow)
    }

    fn add(&self, child: &Child) {
        fs::write(self.group.join("cgroup.procs"), child.id().to_string()).unwrap();
    }
}

impl Drop for SlowWrites {
    fn drop(&mut self) {
        // The group goes when nothing is in it any more; not a fault here.
        let _ = fs::remove_dir(&self.group);
        let _ = Command::new("umount").arg(self.mount.path()).status();
    }
}

/// Starts the child, and kills it while it has many writes on their way.
fn kill_while_writing(dir: &Path, slow: Option<&SlowWrites>) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "child_that_writes_until_it_is_killed",
            "--nocapture",
        ])
        .env(CHILD_DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    if let Some(slow) = slow {
        slow.add(&child);
    }
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while !lines.next().unwrap().unwrap().contains("writing") {}
    std::thread::sleep(Duration::from_millis(300));
    let busy = FileEngine::open(file_options(dir)).unwrap_err();
    assert_eq!(busy.kind(), ErrorKind::Busy);
    child.kill().unwrap();
    child
}

#[test]
fn a_killed_node_cannot_write_into_its_successors_volume() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let name = volume_name("p/v");
    let mut options = file_options(dir.path());
    options.lock_wait = Duration::from_secs(60);
    FileEngine::open(options.clone())
        .unwrap()
        .create(&name, &spec(SIZE, 4096))
        .unwrap();
    let slow = SlowWrites::on_disk_of(dir.path());
    if slow.is_none() {
        eprintln!(
            "writes cannot be slowed down here: a fast disk may end them before they are seen"
        );
    }
    for _ in 0..if slow.is_some() { 1 } else { 3 } {
        let mut child = kill_while_writing(dir.path(), slow.as_ref());
        let engine = FileEngine::open(options.clone()).unwrap();
        let mut queue = engine.open(&name).unwrap().queue(64).unwrap();
        // All of the volume is ours now: what we write stays.
        for i in 0..SIZE >> 20 {
            let op = Op::Write {
                offset: i << 20,
                buffer: Buffer::zeroed(1 << 20).unwrap(),
                fua: false,
                atomic: false,
            };
            run(&mut *queue, op).unwrap();
        }
        // As long as all that was on its way can take.
        let settle = if slow.is_some() { 3000 } else { 200 };
        std::thread::sleep(Duration::from_millis(settle));
        child.wait().unwrap();
        for i in 0..SIZE >> 20 {
            let op = Op::Read {
                offset: i << 20,
                buffer: Buffer::zeroed(1 << 20).unwrap(),
            };
            let data = run(&mut *queue, op).unwrap().unwrap();
            assert!(
                data.iter().all(|&b| b == 0),
                "a write from the past at {i} MiB"
            );
        }
    }
}
