// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What the tests of engines share.
#![allow(clippy::unwrap_used, dead_code)]

mod xfs;

use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use neonsan_api::{SnapshotName, VolumeName};
use neonsan_engine::file::{init, FileEngine, FileOptions, InitOptions};
use neonsan_engine::mem::{MemEngine, MemOptions};
use neonsan_engine::rbd::{RbdEngine, RbdOptions};
use neonsan_engine::{Buffer, Engine, Error, Op, Queue, Request, VolumeSpec};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
pub use xfs::{xfs, Mount};

/// An engine to be tested, and what it is called in messages.
pub struct Subject {
    pub label: &'static str,
    pub engine: Box<dyn Engine>,
    /// How many random cases a test can afford.
    pub cases: u32,
    /// Unmounted when the engine is gone.
    _mount: Option<Mount>,
    /// Removed last.
    _dir: Option<tempfile::TempDir>,
    /// Held while a test uses what all tests share.
    _alone: Option<MutexGuard<'static, ()>>,
}

pub fn volume_name(name: &str) -> VolumeName {
    name.parse().unwrap()
}

pub fn snapshot_name(name: &str) -> SnapshotName {
    name.parse().unwrap()
}

pub fn spec(size_bytes: u64, logical_block_size: u32) -> VolumeSpec {
    VolumeSpec {
        size_bytes,
        logical_block_size,
        physical_block_size: None,
    }
}

/// Makes the directory an engine's if it is not yet.
pub fn file_options(root: &Path) -> FileOptions {
    if !root.join(".neonsan-engine").exists() {
        init(root, &InitOptions::default()).unwrap();
    }
    options_as_it_is(root)
}

/// The same for a directory as it is.
pub fn options_as_it_is(root: &Path) -> FileOptions {
    FileOptions {
        root: root.to_owned(),
        identity: None,
        identities: Arc::default(),
        buffered: false,
        min_block_bytes: 512,
        lock_wait: Duration::from_millis(100),
    }
}

/// The cluster that `tools/testing/lab/ceph` has started, with objects so small
/// that tests see many.
pub fn rbd_options() -> Option<RbdOptions> {
    let conf = std::env::var_os("NEONSAN_CEPH_CONF")?;
    let user = std::env::var("NEONSAN_CEPH_USER").unwrap();
    let pool = std::env::var("NEONSAN_CEPH_POOL").unwrap();
    let mut options = RbdOptions::new(conf, &user, &pool);
    options.object_bytes = 256 << 10;
    Some(options)
}

/// Deletes everything that tests have left: clones before what they need.
pub fn empty(engine: &dyn Engine) {
    while !engine.list().unwrap().is_empty() {
        for name in engine.list().unwrap() {
            for snapshot in engine.snapshots(&name).unwrap() {
                let _ = engine.delete_snapshot(&snapshot.name);
            }
            let _ = engine.delete(&name);
        }
    }
}

/// The engine rbd on an empty pool.
fn rbd(options: RbdOptions) -> Subject {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let engine = RbdEngine::open(options).unwrap();
    empty(&engine);
    Subject {
        label: "rbd",
        engine: Box::new(engine),
        cases: 6,
        _mount: None,
        _dir: None,
        _alone: Some(alone),
    }
}

/// Every engine in every way it can work here; with a Ceph cluster, the engine
/// that needs one.
pub fn engines() -> Vec<Subject> {
    if let Some(options) = rbd_options() {
        return vec![rbd(options)];
    }
    let mut subjects = vec![Subject {
        label: "mem",
        engine: Box::new(
            MemEngine::new(MemOptions {
                capacity_bytes: 1 << 30,
                volatile_cache: true,
            })
            .unwrap(),
        ),
        cases: 40,
        _mount: None,
        _dir: None,
        _alone: None,
    }];
    let mut file = |label, parent: &str, change: fn(&mut FileOptions)| {
        let dir = tempfile::Builder::new()
            .prefix("neonsan-engine-")
            .tempdir_in(parent)
            .unwrap();
        let mut options = file_options(dir.path());
        change(&mut options);
        subjects.push(Subject {
            label,
            engine: Box::new(FileEngine::open(options).unwrap()),
            cases: 40,
            _mount: None,
            _dir: Some(dir),
            _alone: None,
        });
    };
    let target = env!("CARGO_TARGET_TMPDIR");
    file("file", target, |_| {});
    file("file with 4096-byte blocks", target, |o| {
        o.min_block_bytes = 4096;
    });
    file("file through the page cache", target, |o| o.buffered = true);
    if Path::new("/dev/shm").is_dir() {
        file("file on tmpfs", "/dev/shm", |_| {});
    }
    match xfs() {
        Ok((dir, mount)) => {
            let options = file_options(&mount.0.join("root"));
            subjects.push(Subject {
                label: "file on XFS",
                engine: Box::new(FileEngine::open(options).unwrap()),
                cases: 10,
                _mount: Some(mount),
                _dir: Some(dir),
                _alone: None,
            });
        }
        Err(reason) => eprintln!("SKIP file on XFS: {reason}"),
    }
    subjects
}

/// Runs operations together; results in the order of the operations.
pub fn run_all(queue: &mut dyn Queue, ops: Vec<Op>) -> Vec<Result<Option<Buffer>, Error>> {
    let count = ops.len();
    let mut results: Vec<_> = (0..count).map(|_| None).collect();
    for (token, op) in ops.into_iter().enumerate() {
        queue.submit(Request {
            token: token as u64,
            op,
        });
    }
    queue.kick();
    let mut completions = Vec::new();
    let mut done = 0;
    while done < count {
        queue.reap(&mut completions);
        for completion in completions.drain(..) {
            let place = &mut results[completion.token as usize];
            assert!(place.is_none(), "completed twice");
            *place = Some(completion.result.map(|()| completion.buffer));
            done += 1;
        }
        if done < count {
            let fd = queue
                .event_fd()
                .expect("no completion and nothing to wait for");
            let timeout = Timespec {
                tv_sec: 20,
                tv_nsec: 0,
            };
            let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
            assert!(
                poll(&mut fds, Some(&timeout)).unwrap() > 0,
                "a request hangs"
            );
        }
    }
    results.into_iter().map(Option::unwrap).collect()
}

/// Runs one operation.
pub fn run(queue: &mut dyn Queue, op: Op) -> Result<Option<Buffer>, Error> {
    run_all(queue, vec![op]).remove(0)
}
