// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Rolling back file volumes where something is in the way: a crash, a full
//! disk, somebody who deletes the snapshot.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{file_options, run, run_all, snapshot_name, spec, volume_name, xfs, Mount};
use neonsan_api::{SnapshotName, VolumeName};
use neonsan_engine::file::FileEngine;
use neonsan_engine::{Buffer, Engine, ErrorKind, Op};

const MIB: u64 = 1 << 20;

/// A place for an engine; `None` where there is none, which is said.
fn place(test: &str) -> Option<(tempfile::TempDir, Mount, PathBuf)> {
    match xfs() {
        Ok((dir, mount)) => {
            let root = mount.0.join("root");
            Some((dir, mount, root))
        }
        Err(reason) => {
            eprintln!("SKIP {test}: {reason}");
            None
        }
    }
}

fn open(root: &Path) -> FileEngine {
    FileEngine::open(file_options(root)).unwrap()
}

fn write(offset: u64, byte: u8) -> Op {
    let mut buffer = Buffer::zeroed(4096).unwrap();
    buffer.fill(byte);
    Op::Write {
        offset,
        buffer,
        fua: true,
        atomic: false,
    }
}

fn put(engine: &FileEngine, name: &VolumeName, byte: u8) {
    let mut queue = engine.open(name).unwrap().queue(1).unwrap();
    run(&mut *queue, write(0, byte)).unwrap();
}

fn first_byte(engine: &FileEngine, name: &VolumeName) -> u8 {
    let mut queue = engine.open(name).unwrap().queue(1).unwrap();
    let op = Op::Read {
        offset: 0,
        buffer: Buffer::zeroed(4096).unwrap(),
    };
    run(&mut *queue, op).unwrap().unwrap()[0]
}

fn snapshot(engine: &FileEngine, name: &SnapshotName) {
    let volume = engine.open(name.volume()).unwrap();
    volume.create_snapshot(name).unwrap();
}

fn clear(engine: &FileEngine, name: &VolumeName) {
    for snapshot in engine.snapshots(name).unwrap() {
        engine.delete_snapshot(&snapshot.name).unwrap();
    }
    engine.delete(name).unwrap();
}

/// The files of the volume, but for its snapshots.
fn files(root: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(root.join("p/v"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

const USUAL: [&str; 5] = [".neonsan-volume", "data", "meta", "record", "snapshots"];

#[test]
fn a_snapshot_is_not_deleted_while_the_volume_is_rolled_back_to_it() {
    let Some((_dir, _mount, root)) = place("a_snapshot_is_not_deleted") else {
        return;
    };
    let engine = open(&root);
    let (name, to) = (volume_name("p/v"), snapshot_name("p/v@s"));
    engine.create(&name, &spec(MIB, 4096)).unwrap();
    let mut ended = [0; 2];
    for round in 0..40 {
        put(&engine, &name, 1);
        snapshot(&engine, &to);
        put(&engine, &name, 2);
        let (rolled_back, deleted) = std::thread::scope(|scope| {
            let rolling = scope.spawn(|| engine.roll_back(&to, b"r"));
            // At another moment of it each time.
            std::thread::sleep(Duration::from_micros(250 * (round % 20)));
            let deleted = loop {
                match engine.delete_snapshot(&to) {
                    Err(error) if error.kind() == ErrorKind::Busy => {}
                    other => break other,
                }
            };
            (rolling.join().unwrap(), deleted)
        });
        deleted.unwrap();
        // Whatever came first, the volume is one or the other, and opens.
        let expected = match rolled_back {
            Ok(()) => 1,
            Err(error) => {
                let kinds = [ErrorKind::NoSuchSnapshot, ErrorKind::Busy];
                assert!(kinds.contains(&error.kind()), "{error}");
                2
            }
        };
        assert_eq!(first_byte(&engine, &name), expected);
        ended[usize::from(expected == 1)] += 1;
    }
    println!("{} were refused, {} rolled back", ended[0], ended[1]);
    clear(&engine, &name);
}

#[test]
fn a_full_disk_is_found_out_about_before_anything_has_happened() {
    let Some((_dir, mount, root)) = place("a_full_disk_is_found_out_about") else {
        return;
    };
    let engine = open(&root);
    let name = volume_name("p/v");
    let (to, other) = (snapshot_name("p/v@s"), snapshot_name("p/v@other"));
    engine.create(&name, &spec(64 * MIB, 4096)).unwrap();
    // In many pieces, so that it takes space to share them.
    let mut queue = engine.open(&name).unwrap().queue(64).unwrap();
    for piece in 0..2u64 {
        let ops = (0..512)
            .map(|i| write((piece * 512 + i) * 8192, 1))
            .collect();
        for result in run_all(&mut *queue, ops) {
            result.unwrap();
        }
    }
    drop(queue);
    snapshot(&engine, &to);
    snapshot(&engine, &other);
    put(&engine, &name, 2);
    let mut filler = File::create(mount.0.join("filler")).unwrap();
    for len in [MIB as usize, 4096] {
        while filler.write_all(&vec![7; len]).is_ok() && filler.sync_data().is_ok() {}
    }
    let error = engine.roll_back(&to, b"new record").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert_eq!(files(&root), USUAL);
    assert_eq!(first_byte(&engine, &name), 2, "as it was");
    engine.delete_snapshot(&other).unwrap();
    filler.set_len(0).unwrap();
    drop(filler);
    fs::remove_file(mount.0.join("filler")).unwrap();
    engine.roll_back(&to, b"new record").unwrap();
    assert_eq!(files(&root), USUAL);
    assert_eq!(first_byte(&engine, &name), 1);
    clear(&engine, &name);
}

/// After the note is there, all that is left to do takes no space.
#[test]
fn what_was_prepared_is_used_when_rolling_back_is_finished() {
    let Some((_dir, _mount, root)) = place("what_was_prepared_is_used") else {
        return;
    };
    let engine = open(&root);
    let (name, to) = (volume_name("p/v"), snapshot_name("p/v@s"));
    engine.create(&name, &spec(2 * MIB, 4096)).unwrap();
    put(&engine, &name, 1);
    snapshot(&engine, &to);
    put(&engine, &name, 2);
    engine.open(&name).unwrap().resize(4 * MIB).unwrap();
    let dir = root.join("p/v");
    let prepare = |byte: u8| {
        fs::copy(dir.join("snapshots/s/data"), dir.join("data.ready")).unwrap();
        let mut data = File::options()
            .write(true)
            .open(dir.join("data.ready"))
            .unwrap();
        data.write_all(&[byte; 4096]).unwrap();
    };
    // A crash before the note: nothing has happened, and nothing is left.
    prepare(8);
    drop(engine);
    let engine = open(&root);
    assert_eq!(files(&root), USUAL);
    assert_eq!(first_byte(&engine, &name), 2);
    // After the note.
    prepare(9);
    fs::write(dir.join("rollback"), "s").unwrap();
    let other = snapshot_name("p/v@other");
    // One of which nothing but the marker is left.
    fs::create_dir(dir.join("snapshots/other")).unwrap();
    fs::copy(
        dir.join(".neonsan-volume"),
        dir.join("snapshots/other/.neonsan-volume"),
    )
    .unwrap();
    engine.delete_snapshot(&other).unwrap();
    assert!(dir.join("rollback").exists(), "that did not need it");
    assert_eq!(first_byte(&engine, &name), 9);
    assert_eq!(engine.stat(&name).unwrap().size_bytes, 2 * MIB);
    assert_eq!(files(&root), USUAL);
    // And whoever deletes the snapshot finishes first.
    put(&engine, &name, 3);
    fs::write(dir.join("rollback"), "s").unwrap();
    engine.delete_snapshot(&to).unwrap();
    assert_eq!(first_byte(&engine, &name), 1);
    clear(&engine, &name);
}
