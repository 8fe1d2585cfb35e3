// SPDX-License-Identifier: GPL-2.0 OR MIT
//! One suite of snapshots and clones for all engines.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use common::{engines, run, snapshot_name, spec, volume_name, Subject};
use neonsan_api::{SnapshotName, VolumeName};
use neonsan_engine::{Buffer, Engine, ErrorKind, Op, Queue, Volume};

const MIB: u64 = 1 << 20;

fn write(offset: u64, len: usize, byte: u8) -> Op {
    let mut buffer = Buffer::zeroed(len).unwrap();
    buffer.fill(byte);
    Op::Write {
        offset,
        buffer,
        fua: false,
        atomic: false,
    }
}

fn read(queue: &mut dyn Queue, offset: u64, len: usize) -> Buffer {
    let buffer = Buffer::zeroed(len).unwrap();
    run(queue, Op::Read { offset, buffer }).unwrap().unwrap()
}

fn all_are(queue: &mut dyn Queue, offset: u64, len: usize, byte: u8) -> bool {
    read(queue, offset, len).iter().all(|&b| b == byte)
}

/// Whether the engine has snapshots here; if not, that it says what to do.
fn has_snapshots(subject: &Subject) -> bool {
    let name = volume_name("probe/v");
    let snapshot = snapshot_name("probe/v@s");
    subject.engine.create(&name, &spec(MIB, 512)).unwrap();
    let volume = subject.engine.open(&name).unwrap();
    let made = volume.create_snapshot(&snapshot);
    drop(volume);
    let has = match made {
        Ok(_) => {
            subject.engine.delete_snapshot(&snapshot).unwrap();
            true
        }
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{}", subject.label);
            assert!(error.to_string().contains("XFS"), "{error}");
            assert!(subject.engine.snapshots(&name).unwrap().is_empty());
            assert_ne!(subject.label, "file on XFS");
            false
        }
    };
    subject.engine.delete(&name).unwrap();
    has
}

/// The engines that have snapshots; at least one of them.
fn subjects() -> Vec<Subject> {
    let mut subjects = engines();
    subjects.retain(has_snapshots);
    assert!(!subjects.is_empty());
    subjects
}

/// A new volume of 4 MiB, its first half filled with `byte`.
fn fresh(engine: &dyn Engine, name: &VolumeName, byte: u8) -> Arc<dyn Volume> {
    engine.create(name, &spec(4 * MIB, 512)).unwrap();
    let volume = engine.open(name).unwrap();
    let mut queue = Arc::clone(&volume).queue(4).unwrap();
    for at in 0..2 {
        run(&mut *queue, write(at * MIB, MIB as usize, byte)).unwrap();
    }
    volume
}

/// Opens and closes: rbd closes a while later.
fn wait_until_closed(engine: &dyn Engine, name: &VolumeName) {
    drop(engine.open(name).unwrap());
}

#[test]
fn a_snapshot_keeps_the_content_of_its_moment() {
    for subject in subjects() {
        let engine = &*subject.engine;
        let name = volume_name("snap/moment");
        let snapshot = snapshot_name("snap/moment@one");
        let volume = fresh(engine, &name, 1);
        let made = volume.create_snapshot(&snapshot).unwrap();
        assert_eq!(made.size_bytes, 4 * MIB, "{}", subject.label);
        assert!(made.created_unix_s > 1_700_000_000);
        assert_ne!(made.id, volume.stat().id);
        let again = volume.create_snapshot(&snapshot).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::AlreadyExists);

        let mut queue = Arc::clone(&volume).queue(4).unwrap();
        run(&mut *queue, write(512, 1024, 2)).unwrap();
        run(&mut *queue, write(3 * MIB, 4096, 2)).unwrap();
        let zeroes = Op::WriteZeroes {
            offset: MIB,
            len: MIB as u32,
            fua: true,
            no_unmap: false,
        };
        run(&mut *queue, zeroes).unwrap();
        volume.resize(8 * MIB).unwrap();
        let second = snapshot_name("snap/moment@two");
        volume.create_snapshot(&second).unwrap();
        let listed: Vec<_> = engine.snapshots(&name).unwrap();
        let names: Vec<_> = listed
            .iter()
            .map(|s| (s.name.snapshot(), s.size_bytes))
            .collect();
        assert_eq!(names, [("one", 4 * MIB), ("two", 8 * MIB)]);
        assert_eq!(listed[0], made);

        // Two open it at a time, and see what was.
        let reader = engine.open_snapshot(&snapshot).unwrap();
        let other = engine.open_snapshot(&snapshot).unwrap();
        assert_eq!((reader.stat().id, reader.size_bytes()), (made.id, 4 * MIB));
        let mut old = Arc::clone(&reader).queue(4).unwrap();
        assert!(all_are(&mut *old, 0, MIB as usize, 1), "{}", subject.label);
        assert!(
            all_are(&mut *old, MIB, MIB as usize, 1),
            "{}",
            subject.label
        );
        assert!(all_are(&mut *old, 3 * MIB, MIB as usize, 0));
        assert!(all_are(&mut *queue, MIB, MIB as usize, 0));
        assert!(all_are(&mut *queue, 512, 1024, 2));
        // Nobody changes it.
        for op in [
            write(0, 512, 9),
            Op::Discard {
                offset: 0,
                len: 65536,
            },
            Op::WriteZeroes {
                offset: 0,
                len: 4096,
                fua: false,
                no_unmap: true,
            },
        ] {
            let error = run(&mut *old, op).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotPermitted, "{error}");
        }
        run(&mut *old, Op::Flush).unwrap();
        for refused in [
            reader.resize(16 * MIB),
            reader.flatten(),
            reader.create_snapshot(&second).map(drop),
        ] {
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::NotPermitted);
        }
        // While it is read it stays; Ceph alone does not know who reads.
        if subject.label != "rbd" {
            let error = engine.delete_snapshot(&snapshot).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Busy, "{}", subject.label);
        }
        drop((old, reader, other, queue, volume));
        wait_until_closed(engine, &name);
        let error = engine.delete(&name).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(error.to_string().contains("one, two"), "{error}");
        engine.delete_snapshot(&snapshot).unwrap();
        for gone in [
            engine.delete_snapshot(&snapshot),
            engine.open_snapshot(&snapshot).map(drop),
            engine.children(&snapshot).map(drop),
            engine.roll_back(&snapshot, b""),
            engine
                .clone_snapshot(&snapshot, &volume_name("a/b"))
                .map(drop),
            engine.open_snapshot(&snapshot_name("no/such@s")).map(drop),
        ] {
            let error = gone.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NoSuchSnapshot, "{error}");
        }
        // The same name again is another snapshot.
        let volume = engine.open(&name).unwrap();
        assert_ne!(volume.create_snapshot(&snapshot).unwrap().id, made.id);
        drop(volume);
        wait_until_closed(engine, &name);
        engine.delete_snapshot(&snapshot).unwrap();
        engine.delete_snapshot(&second).unwrap();
        engine.delete(&name).unwrap();
    }
}

/// Each writer counts in two blocks far from each other, in the second only
/// after the first has answered. A snapshot between sees at most one step of
/// difference, never a second block that is ahead.
#[test]
fn a_snapshot_of_a_busy_volume_is_one_moment() {
    const WRITERS: u64 = 4;
    const SNAPSHOTS: usize = 8;
    for subject in subjects() {
        let engine = &*subject.engine;
        let name = volume_name("snap/busy");
        engine.create(&name, &spec(4 * MIB, 512)).unwrap();
        let volume = engine.open(&name).unwrap();
        let stop = AtomicBool::new(false);
        let taken: Vec<SnapshotName> = std::thread::scope(|scope| {
            for writer in 0..WRITERS {
                let volume = Arc::clone(&volume);
                let stop = &stop;
                scope.spawn(move || {
                    let mut queue = volume.queue(4).unwrap();
                    let mut count = 0u8;
                    while !stop.load(Ordering::Relaxed) {
                        count = count.wrapping_add(1);
                        // Writers share the storage's blocks.
                        let at = writer * 512;
                        run(&mut *queue, write(at, 512, count)).unwrap();
                        run(&mut *queue, write(3 * MIB + at, 512, count)).unwrap();
                    }
                });
            }
            let taken = (0..SNAPSHOTS)
                .map(|i| {
                    let snapshot = snapshot_name(&format!("snap/busy@s{i}"));
                    volume.create_snapshot(&snapshot).unwrap();
                    snapshot
                })
                .collect();
            stop.store(true, Ordering::Relaxed);
            taken
        });
        drop(volume);
        for snapshot in &taken {
            let mut queue = engine.open_snapshot(snapshot).unwrap().queue(4).unwrap();
            for writer in 0..WRITERS {
                let first = read(&mut *queue, writer * 512, 512);
                let second = read(&mut *queue, 3 * MIB + writer * 512, 512);
                for block in [&first, &second] {
                    assert!(block.iter().all(|b| *b == block[0]), "a torn block");
                }
                let ahead = first[0].wrapping_sub(second[0]);
                assert!(ahead <= 1, "{} {snapshot}: {ahead}", subject.label);
            }
        }
        wait_until_closed(engine, &name);
        for snapshot in taken {
            // rbd closes it a while later, others at once.
            engine.delete_snapshot(&snapshot).unwrap();
        }
        engine.delete(&name).unwrap();
    }
}

#[test]
fn a_volume_is_rolled_back_with_its_size() {
    for subject in subjects() {
        let engine = &*subject.engine;
        for (test, later) in [("grown", 8 * MIB), ("shrunk", MIB)] {
            let name = volume_name(&format!("snap/{test}"));
            let snapshot = SnapshotName::new(&name, "before").unwrap();
            let volume = fresh(engine, &name, 1);
            let id = volume.stat().id;
            volume.create_snapshot(&snapshot).unwrap();
            let mut queue = Arc::clone(&volume).queue(4).unwrap();
            run(&mut *queue, write(4096, 8192, 7)).unwrap();
            drop(queue);
            volume.resize(later).unwrap();
            let error = engine.roll_back(&snapshot, b"r").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Busy, "{}", subject.label);
            drop(volume);
            wait_until_closed(engine, &name);
            for _ in 0..2 {
                engine.roll_back(&snapshot, b"record").unwrap();
            }
            assert_eq!(engine.load_record(&name).unwrap().unwrap(), b"record");
            let volume = engine.open(&name).unwrap();
            assert_eq!((volume.stat().id, volume.size_bytes()), (id, 4 * MIB));
            let mut queue = Arc::clone(&volume).queue(4).unwrap();
            assert!(
                all_are(&mut *queue, 0, MIB as usize, 1),
                "{}",
                subject.label
            );
            assert!(all_are(&mut *queue, 2 * MIB, MIB as usize, 0));
            // The snapshot is as it was, whatever comes now.
            run(&mut *queue, write(0, 4096, 9)).unwrap();
            let mut old = engine.open_snapshot(&snapshot).unwrap().queue(4).unwrap();
            assert!(all_are(&mut *old, 0, 4096, 1));
            drop((old, queue, volume));
            wait_until_closed(engine, &name);
            engine.delete_snapshot(&snapshot).unwrap();
            engine.delete(&name).unwrap();
        }
    }
}

#[test]
fn clones_are_volumes_of_their_own() {
    for subject in subjects() {
        let engine = &*subject.engine;
        let name = volume_name("snap/parent");
        let snapshot = snapshot_name("snap/parent@s");
        let clone = volume_name("other/clone");
        let volume = fresh(engine, &name, 1);
        engine.save_record(&name, b"of the parent").unwrap();
        volume.create_snapshot(&snapshot).unwrap();
        let mut queue = Arc::clone(&volume).queue(4).unwrap();
        run(&mut *queue, write(0, 4096, 2)).unwrap();
        let made = engine.clone_snapshot(&snapshot, &clone).unwrap();
        assert_ne!(made.id, volume.stat().id);
        assert_eq!(made.size_bytes, 4 * MIB);
        assert_eq!(made.logical_block_size, volume.stat().logical_block_size);
        let exists = engine.clone_snapshot(&snapshot, &name).unwrap_err();
        assert_eq!(exists.kind(), ErrorKind::AlreadyExists);
        assert_eq!(engine.load_record(&clone).unwrap(), None);

        let copy = engine.open(&clone).unwrap();
        let mut copied = Arc::clone(&copy).queue(4).unwrap();
        assert!(
            all_are(&mut *copied, 0, 2 * MIB as usize / 2, 1),
            "{}",
            subject.label
        );
        run(&mut *copied, write(512, 512, 3)).unwrap();
        let flush = run(&mut *copied, Op::Flush);
        flush.unwrap();
        let mut old = engine.open_snapshot(&snapshot).unwrap().queue(4).unwrap();
        assert!(all_are(&mut *old, 0, 8192, 1));
        assert!(all_are(&mut *queue, 0, 4096, 2));
        assert!(all_are(&mut *copied, 0, 512, 1));
        assert!(all_are(&mut *copied, 512, 512, 3));
        drop((old, queue, volume));
        wait_until_closed(engine, &name);

        // A clone that needs its parent keeps it.
        let children = engine.children(&snapshot).unwrap();
        if subject.label == "rbd" {
            assert_eq!(children, std::slice::from_ref(&clone));
            assert_eq!(made.parent.as_ref(), Some(&snapshot));
            let error = engine.delete_snapshot(&snapshot).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Busy);
            assert!(error.to_string().contains("other/clone"), "{error}");
        } else {
            assert_eq!((children.len(), made.parent), (0, None));
        }
        copy.flatten().unwrap();
        assert_eq!(engine.children(&snapshot).unwrap(), []);
        assert_eq!(engine.stat(&clone).unwrap().parent, None);
        engine.delete_snapshot(&snapshot).unwrap();
        engine.delete(&name).unwrap();
        assert!(all_are(&mut *copied, 512, 512, 3));
        assert!(
            all_are(&mut *copied, MIB, MIB as usize, 1),
            "{}",
            subject.label
        );
        drop((copied, copy));
        wait_until_closed(engine, &clone);
        engine.delete(&clone).unwrap();
        assert_eq!(engine.list().unwrap(), []);
    }
}
