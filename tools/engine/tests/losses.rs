// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What the file engine takes for a loss of what it had answered, and what it notes of
//! that for the next process.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use common::{file_options, run, spec, volume_name, Mount};
use neonsan_engine::file::FileEngine;
use neonsan_engine::{Buffer, Engine, Op, Queue, Volume};

const MIB: u64 = 1 << 20;

/// Not on tmpfs, unless a test wants that.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn open(root: &Path) -> FileEngine {
    FileEngine::open(file_options(root)).unwrap()
}

/// The volume, which is made, with a queue: somebody relies on the boot id.
fn used(engine: &FileEngine, name: &str) -> (Arc<dyn Volume>, Box<dyn Queue>) {
    engine.create(&volume_name(name), &spec(MIB, 4096)).unwrap();
    let volume = engine.open(&volume_name(name)).unwrap();
    let queue = Arc::clone(&volume).queue(4).unwrap();
    (volume, queue)
}

fn write(queue: &mut dyn Queue) {
    let mut buffer = Buffer::zeroed(4096).unwrap();
    buffer.fill(7);
    let op = Op::Write {
        offset: 0,
        buffer,
        fua: false,
        atomic: false,
    };
    run(queue, op).unwrap();
}

/// The boot id that the next process finds.
fn noted_boot_id(root: &Path) -> [u8; 16] {
    let text = fs::read_to_string(root.join(".boot")).unwrap();
    let digits = text.lines().find_map(|line| line.strip_prefix("id "));
    let number = u128::from_str_radix(digits.unwrap(), 16).unwrap();
    number.to_be_bytes()
}

/// In the place of a volume's data there is what nobody can open, for as long as this is there: its
/// sync fails, and the file system is well.
struct Hidden(PathBuf);

impl Hidden {
    fn new(data: &Path) -> Self {
        fs::rename(data, data.with_extension("away")).unwrap();
        std::os::unix::fs::symlink("data", data).unwrap();
        Self(data.to_owned())
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
        fs::rename(self.0.with_extension("away"), &self.0).unwrap();
    }
}

#[test]
fn a_stop_that_failed_has_noted_the_new_boot_id_when_it_returns() {
    for _ in 0..5 {
        let dir = directory();
        let engine = open(dir.path());
        let before = engine.boot_id();
        let (volume, mut queue) = used(&engine, "p/v");
        write(&mut *queue);
        drop((queue, volume));
        let hidden = Hidden::new(&dir.path().join("p/v/data"));
        assert!(engine.stop().is_err(), "the sync did not fail");
        // The process ends now.
        let noted = noted_boot_id(dir.path());
        assert_ne!(engine.boot_id(), before);
        assert_eq!(noted, engine.boot_id());
        drop((hidden, engine));
        assert_ne!(open(dir.path()).boot_id(), before);
    }
}

/// A file system of its own at `point`: what was in it is gone when it is mounted again.
fn tmpfs(point: &Path) -> Option<Mount> {
    mount(&["-t", "tmpfs", "-o", "size=8m", "none"], point)
}

fn mount(arguments: &[&str], point: &Path) -> Option<Mount> {
    let mounted = Command::new("mount").args(arguments).arg(point).status();
    match mounted {
        Ok(status) if status.success() => Some(Mount(point.to_owned())),
        _ => {
            eprintln!("SKIP: mounting is not allowed here");
            None
        }
    }
}

/// It is gone from its place, though something in it may be open.
fn unmount_lazily(mount: Mount) {
    let mut umount = Command::new("umount");
    let status = umount.arg("-l").arg(&mount.0).status().unwrap();
    assert!(status.success());
    std::mem::forget(mount);
}

/// An engine's root on a tmpfs, which has a witness, with a directory for the pool `q`.
fn root_with_pool() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    drop(open(dir.path()));
    let pool = dir.path().join("q");
    fs::create_dir(&pool).unwrap();
    (dir, pool)
}

/// Before the engine was asked how it is, so before it could notice.
#[test]
fn a_pool_that_was_unmounted_lazily_is_noticed_at_the_stop() {
    for comes_back_before in [false, true] {
        let (dir, pool) = root_with_pool();
        let Some(first) = tmpfs(&pool) else { return };
        let engine = open(dir.path());
        let before = engine.boot_id();
        let (volume, mut queue) = used(&engine, "q/v");
        write(&mut *queue);
        drop((queue, volume));
        let mut second = None;
        unmount_lazily(first);
        if comes_back_before {
            second = tmpfs(&pool);
            fs::create_dir(pool.join("v")).unwrap();
            fs::write(pool.join("v/data"), b"").unwrap();
        }
        // Whether it says so or not.
        let stopped = engine.stop();
        assert!(stopped.is_err() || comes_back_before);
        drop(engine);
        let second = second.or_else(|| tmpfs(&pool));
        assert_ne!(
            open(dir.path()).boot_id(),
            before,
            "back before the stop: {comes_back_before}"
        );
        drop(second);
    }
}

#[test]
fn a_volume_that_the_engine_deleted_is_no_failure_of_a_stop() {
    let dir = directory();
    let engine = open(dir.path());
    let before = engine.boot_id();
    let (volume, mut queue) = used(&engine, "p/v");
    write(&mut *queue);
    drop((queue, volume));
    engine.delete(&volume_name("p/v")).unwrap();
    engine.stop().unwrap();
    drop(engine);
    assert_eq!(open(dir.path()).boot_id(), before);
}

/// A link to nowhere in the root, or a pool that cannot be looked at, does not hide the others.
#[test]
fn a_dangling_link_does_not_keep_a_loss_from_being_noticed() {
    let (dir, pool) = root_with_pool();
    let Some(first) = tmpfs(&pool) else { return };
    let engine = open(dir.path());
    let _used = used(&engine, "p/v");
    std::os::unix::fs::symlink("nowhere", dir.path().join("dangling")).unwrap();
    engine.status().unwrap();
    assert_eq!(engine.losses(), 0);
    drop(first);
    let second = tmpfs(&pool);
    engine.status().unwrap();
    assert_eq!(engine.losses(), 1);
    drop((second, engine));
}

/// Its superblock is noted before anybody writes there.
#[test]
fn a_pool_that_was_mounted_while_the_node_ran_is_known_to_the_next_one() {
    let (dir, pool) = root_with_pool();
    let engine = open(dir.path());
    let before = engine.boot_id();
    let Some(first) = tmpfs(&pool) else { return };
    let (volume, mut queue) = used(&engine, "q/v");
    write(&mut *queue);
    drop((queue, volume));
    // Killed.
    drop(engine);
    drop(first);
    let second = tmpfs(&pool);
    let next = open(dir.path());
    assert_ne!(next.boot_id(), before);
    drop((next, second));
}

#[test]
fn a_pool_that_is_mounted_read_only_loses_nothing() {
    let dir = directory();
    let engine = open(dir.path());
    let _used = used(&engine, "p/v");
    engine
        .create(&volume_name("ro/x"), &spec(MIB, 4096))
        .unwrap();
    let pool = dir.path().join("ro");
    let Some(mounted) = mount(&["--bind", pool.to_str().unwrap()], &pool) else {
        return;
    };
    let mut remount = Command::new("mount");
    let status = remount.args(["-o", "remount,bind,ro"]).arg(&pool).status();
    assert!(status.unwrap().success());
    let created = engine.create(&volume_name("ro/y"), &spec(MIB, 4096));
    assert!(created.unwrap_err().to_string().contains("Read-only"));
    assert!(engine.delete(&volume_name("ro/x")).is_err());
    assert!(engine.save_record(&volume_name("ro/x"), b"x").is_err());
    assert_eq!(engine.losses(), 0);
    drop(mounted);
}

#[test]
fn what_cannot_be_read_loses_nothing() {
    let dir = directory();
    let engine = open(dir.path());
    let _used = used(&engine, "p/v");
    engine
        .create(&volume_name("p/w"), &spec(MIB, 4096))
        .unwrap();
    let record = dir.path().join("p/w/record");
    fs::remove_file(&record).unwrap();
    // Reading its beginning fails with EIO.
    std::os::unix::fs::symlink("/proc/self/mem", &record).unwrap();
    for _ in 0..3 {
        let error = engine.load_record(&volume_name("p/w")).unwrap_err();
        assert!(error.to_string().contains("os error 5"), "{error}");
    }
    assert_eq!(engine.losses(), 0);
}

/// A file system that takes no writes until this goes.
struct Frozen(PathBuf);

impl Frozen {
    fn new(point: &Path) -> Option<Self> {
        let frozen = Command::new("fsfreeze").arg("-f").arg(point).status();
        frozen
            .is_ok_and(|status| status.success())
            .then(|| Self(point.to_owned()))
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let thawed = Command::new("fsfreeze").arg("-u").arg(&self.0).status();
        if !thawed.is_ok_and(|status| status.success()) {
            eprintln!("cannot thaw {}", self.0.display());
        }
    }
}

/// One write to a pool hangs: flushes of volumes in others do not, and health says which pool it is.
#[test]
fn a_pool_that_hangs_holds_up_no_flush_of_another() {
    let (_xfs, other) = match common::xfs() {
        Ok(made) => made,
        Err(why) => {
            eprintln!("SKIP a_pool_that_hangs_holds_up_no_flush_of_another: {why}");
            return;
        }
    };
    let dir = directory();
    drop(open(dir.path()));
    let pool = dir.path().join("a");
    fs::create_dir(&pool).unwrap();
    let from = other.0.to_str().unwrap().to_owned();
    let mounted = mount(&["--bind", &from], &pool).unwrap();
    let engine = open(dir.path());
    engine
        .create(&volume_name("a/v"), &spec(MIB, 4096))
        .unwrap();
    let (volume, mut queue) = used(&engine, "b/v");
    write(&mut *queue);
    run(&mut *queue, Op::Flush).unwrap();
    assert_eq!(engine.health().unwrap(), [""; 0]);
    std::thread::scope(|scope| {
        let Some(frozen) = Frozen::new(&pool) else {
            eprintln!("SKIP: there is no fsfreeze");
            return;
        };
        let saving = scope.spawn(|| engine.save_record(&volume_name("a/v"), b"x"));
        std::thread::sleep(std::time::Duration::from_millis(300));
        assert!(!saving.is_finished(), "the fault was none");
        write(&mut *queue);
        run(&mut *queue, Op::Flush).unwrap();
        for _ in 0..2 {
            let begun = std::time::Instant::now();
            let problems = engine.health().unwrap();
            assert!(begun.elapsed() < std::time::Duration::from_secs(8));
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].contains("/a "), "{problems:?}");
        }
        drop(frozen);
        saving.join().unwrap().unwrap();
    });
    assert_eq!(engine.losses(), 0);
    // What was still asked when it came back has an end.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !engine.health().unwrap().is_empty() {
        assert!(std::time::Instant::now() < deadline, "it is well again");
    }
    drop((queue, volume, engine, mounted));
}
