// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What crashes and damage leave in the directory of a file engine keeps nothing
//! else from being served, and whether the storage works is found out by trying.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::Path;

use common::{file_options, snapshot_name, spec, volume_name, xfs};
use neonsan_engine::file::FileEngine;
use neonsan_engine::{Engine, ErrorKind};
use rustix::fs::{ioctl_getflags, ioctl_setflags, IFlags};

const MIB: u64 = 1 << 20;
const ID: &str = "0123456789abcdef0123456789abcdef";

fn open(root: &Path) -> FileEngine {
    FileEngine::open(file_options(root)).unwrap()
}

/// A directory of an engine with the volume `p/v`.
fn root() -> tempfile::TempDir {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let engine = open(dir.path());
    engine.create(&volume_name("p/v"), &spec(MIB, 512)).unwrap();
    dir
}

#[test]
fn leftovers_of_ours_are_cleared_and_others_are_not() {
    let dir = root();
    let volume = dir.path().join("p/v");
    let foreign = dir.path().join("home/alice");
    fs::create_dir_all(&foreign).unwrap();
    fs::create_dir(volume.join("snapshots")).unwrap();
    let half_made = [
        dir.path().join(format!("p/.create-{ID}")),
        dir.path().join(format!("p/.delete-{ID}")),
        volume.join(format!("snapshots/.create-{ID}")),
    ];
    for path in &half_made {
        fs::create_dir(path).unwrap();
        fs::write(path.join("data"), b"x").unwrap();
        fs::copy(volume.join(".neonsan-volume"), path.join(".neonsan-volume")).unwrap();
    }
    // A crash came before, or while, the marker was written.
    let unmarked = ["e", "f"].map(|n| dir.path().join(format!("p/.create-{n}{}", &ID[1..])));
    for path in &unmarked {
        fs::create_dir(path).unwrap();
    }
    fs::write(unmarked[1].join(".neonsan-volume.new"), b"").unwrap();
    let files = [
        dir.path().join(format!(".probe-{ID}")),
        dir.path().join(format!(".probe-{ID}-shared")),
        volume.join("meta.new"),
        volume.join("meta.ready"),
        volume.join("data.ready"),
        volume.join("rollback.new"),
    ];
    // The names of ours where nothing is ours, and names that are not quite ours.
    let kept = [
        foreign.join("meta.new"),
        foreign.join("data.ready"),
        dir.path().join(".probe-results"),
        dir.path().join("p/notes"),
    ];
    for path in files.iter().chain(&kept) {
        fs::write(path, b"x").unwrap();
    }
    fs::create_dir(dir.path().join("p/.create-today")).unwrap();
    let engine = open(dir.path());
    assert_eq!(engine.health().unwrap(), [""; 0]);
    for path in half_made.iter().chain(&files).chain(&unmarked) {
        assert!(!path.exists(), "{} is still there", path.display());
    }
    for path in &kept {
        assert!(path.exists(), "{} is gone", path.display());
    }
    assert!(dir.path().join("p/.create-today").exists());
    drop(engine.open(&volume_name("p/v")).unwrap());
}

/// Whatever its name: without a marker nothing says that a node made it.
#[test]
fn nothing_without_a_marker_is_removed() {
    let dir = root();
    let volume = dir.path().join("p/v");
    fs::create_dir(volume.join("snapshots")).unwrap();
    let kept = [
        dir.path().join("p/.delete-2026"),
        dir.path().join(format!("p/.delete-{ID}")),
        volume.join("snapshots/.delete-2026"),
        volume.join(format!("snapshots/.create-{ID}")),
    ];
    for path in &kept {
        fs::create_dir(path).unwrap();
        for file in ["data", "record"] {
            fs::write(path.join(file), b"precious").unwrap();
        }
    }
    let engine = open(dir.path());
    for path in &kept {
        for file in ["data", "record"] {
            assert!(path.join(file).exists(), "{} is gone", path.display());
        }
    }
    // Those that could be the engine's are named.
    let problems = engine.health().unwrap();
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems
        .iter()
        .all(|p| p.contains(ID) && p.contains("marker")));
    drop(engine.open(&volume_name("p/v")).unwrap());
    // Nor with the volume.
    let error = engine.delete(&volume_name("p/v")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert!(kept[3].join("data").exists() && volume.join("meta").exists());
}

/// So a crash in the middle of a removal leaves what the next start knows for the engine's.
#[test]
fn the_marker_is_removed_last() {
    let dir = root();
    let leftover = dir.path().join(format!("p/.delete-{ID}"));
    fs::create_dir(&leftover).unwrap();
    let marker = ".neonsan-volume";
    fs::copy(dir.path().join("p/v").join(marker), leftover.join(marker)).unwrap();
    for last in ["data", "meta", "record"] {
        for file in ["meta", "data", "record"] {
            fs::copy(dir.path().join("p/v").join(file), leftover.join(file)).unwrap();
        }
        let Some(immutable) = Immutable::new(&leftover.join(last)) else {
            eprintln!("skipped: this needs root and a file system with chattr +i");
            return;
        };
        drop(open(dir.path()));
        assert!(leftover.join(marker).exists(), "{last}");
        drop(immutable);
    }
    drop(open(dir.path()));
    assert!(!leftover.exists());
}

/// Not to be removed by anybody (`chattr +i`), until it goes out of scope.
struct Immutable(File);

impl Immutable {
    /// `None` where the file system does not have that.
    fn new(path: &Path) -> Option<Self> {
        let file = File::open(path).unwrap();
        let flags = ioctl_getflags(&file).ok()?;
        ioctl_setflags(&file, flags | IFlags::IMMUTABLE).ok()?;
        Some(Self(file))
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        let flags = ioctl_getflags(&self.0).unwrap();
        ioctl_setflags(&self.0, flags - IFlags::IMMUTABLE).unwrap();
    }
}

#[test]
fn a_leftover_that_cannot_be_removed_keeps_nothing_from_being_served() {
    let dir = root();
    let leftover = dir.path().join(format!("p/.create-{ID}"));
    fs::create_dir(&leftover).unwrap();
    fs::write(leftover.join("data"), b"x").unwrap();
    let marker = ".neonsan-volume";
    fs::copy(dir.path().join("p/v").join(marker), leftover.join(marker)).unwrap();
    let Some(immutable) = Immutable::new(&leftover.join("data")) else {
        eprintln!("skipped: this needs root and a file system with chattr +i");
        return;
    };
    let engine = open(dir.path());
    let problems = engine.health().unwrap();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].contains(".create-"), "{problems:?}");
    drop(engine.open(&volume_name("p/v")).unwrap());
    engine.create(&volume_name("p/w"), &spec(MIB, 512)).unwrap();
    drop((immutable, engine));
    assert_eq!(open(dir.path()).health().unwrap(), [""; 0]);
    assert!(!leftover.exists());
}

#[test]
fn a_damaged_snapshot_is_listed_as_such_among_the_others() {
    let dir = root();
    let volume = dir.path().join("p/v");
    for name in ["good", "bad", "empty"] {
        let snapshot = volume.join("snapshots").join(name);
        fs::create_dir_all(&snapshot).unwrap();
        let files: &[&str] = match name {
            "empty" => &[".neonsan-volume"],
            _ => &[".neonsan-volume", "meta", "data"],
        };
        for file in files {
            fs::copy(volume.join(file), snapshot.join(file)).unwrap();
        }
    }
    fs::write(volume.join("snapshots/bad/meta"), b"not a description").unwrap();
    let engine = open(dir.path());
    let name = volume_name("p/v");
    let listed = engine.snapshots(&name).unwrap();
    assert_eq!(listed.len(), 3);
    for snapshot in &listed {
        let damage = snapshot.damage.as_deref();
        match snapshot.name.snapshot() {
            "good" => assert!(damage.is_none() && snapshot.size_bytes == MIB),
            _ => assert!(damage.unwrap().contains("meta"), "{snapshot:?}"),
        }
    }
    // Made by copying its volume, of which it has the identity still.
    let error = engine.open_snapshot(&snapshot_name("p/v@good")).err();
    assert_eq!(error.unwrap().kind(), ErrorKind::Conflict);
    engine.delete_snapshot(&snapshot_name("p/v@good")).unwrap();
    let error = engine
        .open_snapshot(&snapshot_name("p/v@bad"))
        .err()
        .unwrap();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    for damaged in ["p/v@bad", "p/v@empty"] {
        engine.delete_snapshot(&snapshot_name(damaged)).unwrap();
    }
    assert_eq!(engine.snapshots(&name).unwrap().len(), 0);
}

/// The file system below goes away without a reboot: what is in the page cache may
/// still be read, and nothing else works.
#[test]
fn health_fails_when_the_file_system_below_has_gone() {
    let (_dir, mount) = match xfs() {
        Ok(made) => made,
        Err(why) => {
            eprintln!("skipped: {why}");
            return;
        }
    };
    let root = mount.0.join("volumes");
    fs::create_dir(&root).unwrap();
    let engine = open(&root);
    assert_eq!(engine.health().unwrap(), [""; 0]);
    let point = File::open(&mount.0).unwrap();
    // `XFS_IOC_GOINGDOWN` with `XFS_FSOP_GOING_FLAGS_NOLOGFLUSH`.
    let flags: u32 = 2;
    // SAFETY: The request reads one `u32`, which `flags` is.
    let down = unsafe { libc::ioctl(point.as_raw_fd(), 0x8004_587d, &raw const flags) };
    assert_eq!(down, 0, "{}", std::io::Error::last_os_error());
    drop(point);
    assert!(engine.health().is_err());
    drop(engine);
}

/// Another directory came to the place of the engine's while that was open: a file system that was
/// mounted over it, or is not mounted any more. Nothing there is looked up, made, removed or written.
#[test]
fn what_has_come_to_the_place_of_an_engine_is_left_alone() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let (root, away) = (dir.path().join("root"), dir.path().join("away"));
    let (volume, new) = (volume_name("p/v"), volume_name("p/new"));
    let engine = open(&root);
    engine.create(&volume, &spec(MIB, 512)).unwrap();
    fs::rename(&root, &away).unwrap();
    // An engine of its own, with a volume of the same name, which nobody serves.
    let other = open(&root);
    other.create(&volume, &spec(MIB, 512)).unwrap();
    other.stop().unwrap();
    drop(other);
    let boot = fs::read(root.join(".boot")).unwrap();
    let kind = |error: neonsan_engine::Error| error.kind();
    let unavailable = Some(ErrorKind::Unavailable);
    assert_eq!(engine.open(&volume).err().map(kind), unavailable);
    assert_eq!(engine.exists(&volume).err().map(kind), unavailable);
    assert_eq!(
        engine.exists(&new).err().map(kind),
        unavailable,
        "it may be"
    );
    assert_eq!(engine.list().err().map(kind), unavailable);
    assert_eq!(engine.delete(&volume).err().map(kind), unavailable);
    assert_eq!(engine.adopt(&volume).err().map(kind), unavailable);
    let made = engine.create(&new, &spec(MIB, 512));
    assert_eq!(made.err().map(kind), unavailable);
    assert_eq!(engine.stop().err().map(kind), unavailable);
    assert!(root.join("p/v/meta").exists() && !root.join("p/new").exists());
    assert_eq!(fs::read(root.join(".boot")).unwrap(), boot);
    // It comes back.
    fs::remove_dir_all(&root).unwrap();
    fs::rename(&away, &root).unwrap();
    engine.delete(&volume).unwrap();
    engine.stop().unwrap();
}

/// A file system of its own at `point`; `None` where that is not allowed.
fn tmpfs(point: &Path) -> Option<common::Mount> {
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m", "none"])
        .arg(point)
        .status();
    match mounted {
        Ok(status) if status.success() => Some(common::Mount(point.to_owned())),
        _ => {
            eprintln!("SKIP: mounting a tmpfs is not allowed here");
            None
        }
    }
}

/// As an engine's directory that is not mounted is refused.
#[test]
fn a_pool_whose_file_system_is_not_mounted_is_noticed() {
    // The file system of the target directory may have no witness.
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let pool = dir.path().join("q");
    drop(open(dir.path()));
    fs::create_dir(&pool).unwrap();
    let Some(mount) = tmpfs(&pool) else {
        return;
    };
    let engine = open(dir.path());
    engine.create(&volume_name("q/v"), &spec(MIB, 512)).unwrap();
    engine.stop().unwrap();
    drop(engine);
    drop(mount);
    let error = FileEngine::open(common::options_as_it_is(dir.path())).err();
    let error = error.expect("the pool is not mounted");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let text = error.to_string();
    assert!(text.contains("/q was the mount point"), "{text}");
    // And what it says to do works.
    fs::remove_file(dir.path().join(".boot")).unwrap();
    drop(open(dir.path()));
    // As does a pool that is gone altogether.
    let mount = tmpfs(&pool).unwrap();
    drop(open(dir.path()));
    drop(mount);
    fs::remove_dir(&pool).unwrap();
    drop(open(dir.path()));
}

#[test]
fn a_volume_on_another_file_system_than_its_pool_is_not_opened() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let other = tempfile::tempdir_in("/dev/shm").unwrap();
    let Some(mount) = tmpfs(other.path()) else {
        return;
    };
    let engine = open(dir.path());
    for name in ["p/v", "p/w"] {
        engine.create(&volume_name(name), &spec(MIB, 512)).unwrap();
    }
    let data = dir.path().join("p/v/data");
    let moved = other.path().join("data");
    fs::copy(&data, &moved).unwrap();
    fs::remove_file(&data).unwrap();
    std::os::unix::fs::symlink(&moved, &data).unwrap();
    let error = engine.open(&volume_name("p/v")).err().expect("elsewhere");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("another file system"), "{error}");
    drop(engine.open(&volume_name("p/w")).unwrap());
    engine.delete(&volume_name("p/v")).unwrap();
    assert!(moved.exists());
    drop(mount);
}

/// Root may run `init --adopt` in a directory of the node's user, who can put links there.
#[test]
fn nothing_is_written_to_where_a_link_leads() {
    use neonsan_engine::file::{init, InitOptions};
    let adopt = InitOptions {
        adopt: true,
        ..InitOptions::default()
    };
    for name in [".lock", ".neonsan-engine.new", "p/v/.neonsan-volume.new"] {
        let dir = root();
        let foreign = dir.path().with_extension("foreign");
        for marker in [".neonsan-engine", "p/v/.neonsan-volume"] {
            fs::remove_file(dir.path().join(marker)).unwrap();
        }
        let link = dir.path().join(name);
        let _ = fs::remove_file(&link);
        fs::write(&foreign, b"precious").unwrap();
        std::os::unix::fs::symlink(&foreign, &link).unwrap();
        let done = init(dir.path(), &adopt);
        let bytes = fs::read(&foreign).unwrap();
        fs::remove_file(&foreign).unwrap();
        assert_eq!(bytes, b"precious", "{name}");
        assert!(done.is_err(), "{name}");
        fs::remove_file(&link).unwrap();
        init(dir.path(), &adopt).unwrap();
    }
    // And by a node.
    let dir = root();
    let foreign = dir.path().with_extension("foreign");
    fs::write(&foreign, b"precious").unwrap();
    std::os::unix::fs::symlink(&foreign, dir.path().join(".boot.new")).unwrap();
    let opened = FileEngine::open(file_options(dir.path()));
    let bytes = fs::read(&foreign).unwrap();
    fs::remove_file(&foreign).unwrap();
    assert_eq!(bytes, b"precious");
    assert!(opened.is_err());
}
