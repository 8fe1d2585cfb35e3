// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What only the file engine promises: damage is noticed, a full disk is
//! told, a crash leaves nothing half made.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use common::{file_options, run, snapshot_name, spec, volume_name, xfs};
use neonsan_engine::file::FileEngine;
use neonsan_engine::{Buffer, Engine, ErrorKind, Op};

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn open(root: &Path) -> FileEngine {
    FileEngine::open(file_options(root)).unwrap()
}

#[test]
fn a_volume_outlives_the_engine() {
    let dir = directory();
    let name = volume_name("p/v");
    let (made, boot_id) = {
        let engine = open(dir.path());
        let made = engine.create(&name, &spec(1 << 20, 512)).unwrap();
        let mut queue = engine.open(&name).unwrap().queue(1).unwrap();
        let mut buffer = Buffer::zeroed(4096).unwrap();
        buffer.fill(3);
        let op = Op::Write {
            offset: 8192,
            buffer,
            fua: true,
            atomic: false,
        };
        run(&mut *queue, op).unwrap();
        drop(queue);
        engine.stop().unwrap();
        (made, engine.boot_id())
    };
    let engine = open(dir.path());
    assert_eq!(engine.boot_id(), boot_id, "nothing was lost");
    assert_eq!(engine.stat(&name).unwrap().id, made.id);
    let mut queue = engine.open(&name).unwrap().queue(1).unwrap();
    let op = Op::Read {
        offset: 8192,
        buffer: Buffer::zeroed(4096).unwrap(),
    };
    let data = run(&mut *queue, op).unwrap().unwrap();
    assert!(data.iter().all(|&b| b == 3));
}

#[test]
fn truncated_data_is_refused_with_both_sizes() {
    let dir = directory();
    let name = volume_name("p/v");
    let engine = open(dir.path());
    engine.create(&name, &spec(1 << 20, 512)).unwrap();
    let data = dir.path().join("p/v/data");
    File::options()
        .write(true)
        .open(&data)
        .unwrap()
        .set_len(4096)
        .unwrap();
    let error = engine.open(&name).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    let text = error.to_string();
    assert!(text.contains("4096") && text.contains("1048576"), "{text}");
    assert_eq!(engine.stat(&name).unwrap_err().kind(), ErrorKind::Corrupt);
    fs::remove_file(&data).unwrap();
    assert_eq!(engine.open(&name).err().unwrap().kind(), ErrorKind::Corrupt);
    assert_eq!(engine.stat(&name).unwrap_err().kind(), ErrorKind::Corrupt);
    assert_eq!(
        engine.list().unwrap(),
        std::slice::from_ref(&name),
        "still listed"
    );
    engine.delete(&name).unwrap();
    assert_eq!(engine.list().unwrap(), []);
}

#[test]
fn a_changed_description_is_refused() {
    let dir = directory();
    let name = volume_name("p/v");
    let engine = open(dir.path());
    engine.create(&name, &spec(1 << 20, 512)).unwrap();
    let meta = dir.path().join("p/v/meta");
    let mut bytes = fs::read(&meta).unwrap();
    bytes[33] ^= 1;
    fs::write(&meta, bytes).unwrap();
    let error = engine.open(&name).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("checksum"), "{error}");
}

#[test]
fn an_interrupted_resize_is_put_right() {
    let dir = directory();
    let name = volume_name("p/v");
    let engine = open(dir.path());
    engine.create(&name, &spec(8192, 512)).unwrap();
    // The crash came after the file grew and before the description did.
    let data = dir.path().join("p/v/data");
    File::options()
        .write(true)
        .open(&data)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    let volume = engine.open(&name).unwrap();
    assert_eq!(volume.stat().size_bytes, 8192);
    assert_eq!(fs::metadata(&data).unwrap().len(), 8192);
}

#[test]
fn what_a_crash_left_half_made_is_cleared_away() {
    let dir = directory();
    let name = volume_name("p/v");
    open(dir.path()).create(&name, &spec(8192, 512)).unwrap();
    for leftover in ["create", "delete"] {
        let leftover = dir.path().join(format!("p/.{leftover}-{:032x}", 123));
        fs::create_dir(&leftover).unwrap();
        let marker = ".neonsan-volume";
        fs::copy(dir.path().join("p/v").join(marker), leftover.join(marker)).unwrap();
        fs::write(leftover.join("data"), b"x").unwrap();
    }
    let engine = open(dir.path());
    assert_eq!(engine.list().unwrap(), [name]);
    assert_eq!(fs::read_dir(dir.path().join("p")).unwrap().count(), 1);
}

#[test]
fn a_directory_serves_one_engine_at_a_time() {
    let dir = directory();
    let first = open(dir.path());
    let error = FileEngine::open(file_options(dir.path())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(error.to_string().contains("another process"), "{error}");
    drop(first);
    open(dir.path());
}

#[test]
fn a_full_disk_is_told_as_such() {
    let dir = directory();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=2M", "none"])
        .arg(dir.path())
        .status()
        .is_ok_and(|status| status.success());
    if !mounted {
        eprintln!("SKIP a_full_disk_is_told_as_such: mounting a tmpfs is not allowed here");
        return;
    }
    let result = std::panic::catch_unwind(|| {
        let name = volume_name("p/v");
        let engine = open(&dir.path().join("root"));
        engine.create(&name, &spec(64 << 20, 512)).unwrap();
        let mut queue = engine.open(&name).unwrap().queue(4).unwrap();
        let mut last = None;
        for i in 0..64u64 {
            let op = Op::Write {
                offset: i << 20,
                buffer: Buffer::zeroed(1 << 20).unwrap(),
                fua: false,
                atomic: false,
            };
            if let Err(error) = run(&mut *queue, op) {
                last = Some(error);
                break;
            }
        }
        let error = last.expect("64 MiB do not fit into 2");
        assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
        // Reading goes on, and so does writing after a discard.
        let op = Op::Discard {
            offset: 0,
            len: 1 << 20,
        };
        run(&mut *queue, op).unwrap();
        let op = Op::Write {
            offset: 0,
            buffer: Buffer::zeroed(4096).unwrap(),
            fua: true,
            atomic: false,
        };
        run(&mut *queue, op).unwrap();
    });
    let unmounted = Command::new("umount").arg(dir.path()).status().unwrap();
    assert!(unmounted.success());
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// The kernel tells of lost writes once, and here it is a write with FUA that it
/// tells. The file system is gone after that, so all that can be seen is the boot
/// id: `durability` has the rest of the rule, with tests of its own.
#[test]
fn a_write_with_fua_that_hears_of_a_loss_tells_every_client() {
    let (_dir, mount) = match xfs() {
        Ok(mounted) => mounted,
        Err(reason) => {
            eprintln!("SKIP a_write_with_fua_that_hears_of_a_loss: {reason}");
            return;
        }
    };
    let engine = open(&mount.0.join("root"));
    let name = volume_name("p/v");
    engine.create(&name, &spec(1 << 20, 4096)).unwrap();
    let mut queue = engine.open(&name).unwrap().queue(4).unwrap();
    let write = |fua| Op::Write {
        offset: 0,
        buffer: Buffer::zeroed(4096).unwrap(),
        fua,
        atomic: false,
    };
    run(&mut *queue, write(true)).unwrap();
    run(&mut *queue, Op::Flush).unwrap();
    let before = engine.boot_id();
    run(&mut *queue, write(false)).unwrap();
    let shut = Command::new("xfs_io")
        .args(["-x", "-c", "shutdown"])
        .arg(&mount.0)
        .status()
        .unwrap();
    assert!(shut.success());
    assert_eq!(engine.boot_id(), before);
    let error = run(&mut *queue, write(true)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert_ne!(engine.boot_id(), before, "a host that comes back must know");
    assert!(run(&mut *queue, Op::Flush).is_err());
}

#[test]
fn an_interrupted_rollback_is_finished_before_the_volume_is_opened() {
    let (_dir, mount) = match xfs() {
        Ok(mounted) => mounted,
        Err(reason) => {
            eprintln!("SKIP an_interrupted_rollback_is_finished: {reason}");
            return;
        }
    };
    let root = mount.0.join("root");
    let (name, snapshot) = (volume_name("p/v"), snapshot_name("p/v@s"));
    let engine = open(&root);
    engine.create(&name, &spec(1 << 20, 512)).unwrap();
    let write = |byte| {
        let mut queue = engine.open(&name).unwrap().queue(1).unwrap();
        let mut buffer = Buffer::zeroed(4096).unwrap();
        buffer.fill(byte);
        let op = Op::Write {
            offset: 0,
            buffer,
            fua: true,
            atomic: false,
        };
        run(&mut *queue, op).unwrap();
    };
    write(1);
    let volume = engine.open(&name).unwrap();
    volume.create_snapshot(&snapshot).unwrap();
    drop(volume);
    write(2);
    // The crash came before the new data took its place.
    fs::write(root.join("p/v/rollback"), "s").unwrap();
    fs::write(root.join("p/v/data.new"), b"half").unwrap();
    // And another while a snapshot was made.
    let half_made = root.join(format!("p/v/snapshots/.create-{:032x}", 1));
    fs::create_dir(&half_made).unwrap();
    drop(engine);
    let engine = open(&root);
    assert!(!half_made.exists());
    assert_eq!(engine.snapshots(&name).unwrap().len(), 1);
    let mut queue = engine.open(&name).unwrap().queue(1).unwrap();
    let op = Op::Read {
        offset: 0,
        buffer: Buffer::zeroed(4096).unwrap(),
    };
    let data = run(&mut *queue, op).unwrap().unwrap();
    assert!(data.iter().all(|&b| b == 1));
    assert!(!root.join("p/v/rollback").exists());
    assert!(!root.join("p/v/data.new").exists());
    drop(queue);
    // The note of a snapshot that is not there is damage.
    fs::write(root.join("p/v/rollback"), "none").unwrap();
    assert!(engine.open(&name).is_err());
}

/// What is found out about the storage, and the rest of a start, needs no room that was not taken by
/// the first start.
#[test]
fn an_engine_on_a_full_disk_is_opened_and_finds_what_it_had_found() {
    let tmpfs = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut mount = Command::new("mount");
    mount.args(["-t", "tmpfs", "-o", "size=8m", "none"]);
    let mut disks = Vec::new();
    match mount.arg(tmpfs.path()).status() {
        Ok(status) if status.success() => disks.push(common::Mount(tmpfs.path().to_owned())),
        _ => eprintln!("SKIP a full tmpfs: mounting is not allowed here"),
    }
    let xfs = xfs();
    match &xfs {
        Ok((_, mount)) => disks.push(common::Mount(mount.0.clone())),
        Err(why) => eprintln!("SKIP a full XFS: {why}"),
    }
    for disk in disks {
        let root = disk.0.join("root");
        let name = volume_name("p/v");
        let engine = open(&root);
        engine.create(&name, &spec(1 << 20, 4096)).unwrap();
        let limits = engine.limits(&engine.stat(&name).unwrap());
        let found = engine.notes().to_vec();
        drop(engine);
        fill(&disk.0.join("filler"));
        for is_first in [true, false] {
            let engine = open(&root);
            let volume = engine.open(&name).unwrap();
            // Without the file it takes the largest blocks if the file system names none.
            if is_first {
                assert_eq!(engine.notes(), found);
                assert_eq!(volume.limits(), limits);
            }
            drop((volume, engine));
            // As after an upgrade from a release that kept none.
            let probe = root.join(".probe");
            if is_first && probe.exists() {
                fs::remove_file(probe).unwrap();
                fill(&disk.0.join("rest"));
            }
        }
        if xfs.as_ref().is_ok_and(|(_, mount)| mount.0 == disk.0) {
            std::mem::forget(disk);
        }
    }
}

/// Takes all the room that there is.
fn fill(path: &Path) {
    use std::io::Write as _;
    let Ok(mut file) = File::create(path) else {
        // Not even for another file.
        return;
    };
    for piece in [1 << 20, 4096] {
        let piece = vec![1; piece];
        while file.write_all(&piece).is_ok() {}
    }
    // Delayed allocation may have promised more than there was.
    let _ = file.sync_all();
}
