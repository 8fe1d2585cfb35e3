// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The file engine touches only what it made: what is none of its own is not
//! listed, not opened, and never removed.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{file_options, options_as_it_is, snapshot_name, spec, volume_name, xfs, Mount};
use neonsan_engine::file::{init, FileEngine, InitOptions, Place};
use neonsan_engine::{Engine, Error, ErrorKind};

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn open(root: &Path) -> FileEngine {
    FileEngine::open(file_options(root)).unwrap()
}

/// Opens a directory as it is.
fn try_open(root: &Path) -> Result<FileEngine, Error> {
    FileEngine::open(options_as_it_is(root))
}

/// Mounts a directory at another place too; or why it cannot be.
fn bind(directory: &Path, at: &Path) -> Result<Mount, String> {
    let output = Command::new("mount")
        .arg("--bind")
        .args([directory, at])
        .output();
    match output {
        Ok(output) if output.status.success() => Ok(Mount(at.to_owned())),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Everything below a directory, by name.
fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            paths.extend(tree(&path));
        }
        paths.push(path);
    }
    paths.sort();
    paths
}

#[test]
fn a_directory_of_somebody_else_is_no_volume() {
    let dir = directory();
    let engine = open(dir.path());
    let thesis = dir.path().join("home/alice/thesis");
    fs::create_dir_all(thesis.parent().unwrap()).unwrap();
    fs::write(&thesis, "years of work").unwrap();
    // Not even one with names like ours.
    fs::write(dir.path().join("home/alice/data"), "numbers").unwrap();
    fs::write(dir.path().join("home/alice/meta"), "notes").unwrap();
    let before = tree(dir.path());
    let name = volume_name("home/alice");
    assert_eq!(engine.list().unwrap(), []);
    assert!(!engine.exists(&name).unwrap());
    let errors = [
        engine.stat(&name).err(),
        engine.open(&name).err(),
        engine.load_record(&name).err(),
        engine.save_record(&name, b"x").err(),
        engine.snapshots(&name).err(),
        engine.delete(&name).err(),
    ];
    for error in errors {
        assert_eq!(error.unwrap().kind(), ErrorKind::NotFound);
    }
    // A volume of its name takes nothing away from it either.
    assert!(engine.create(&name, &spec(1 << 20, 512)).is_err());
    drop(engine);
    open(dir.path());
    assert_eq!(tree(dir.path()), before);
}

#[test]
fn what_lies_behind_a_link_is_no_volume() {
    let (dir, other) = (directory(), directory());
    let engine = open(dir.path());
    let elsewhere = open(other.path());
    let name = volume_name("p/v");
    elsewhere.create(&name, &spec(1 << 20, 512)).unwrap();
    symlink(other.path().join("p"), dir.path().join("p")).unwrap();
    fs::create_dir(dir.path().join("q")).unwrap();
    symlink(other.path().join("p/v"), dir.path().join("q/v")).unwrap();
    assert_eq!(engine.list().unwrap(), []);
    for name in ["p/v", "q/v"].map(volume_name) {
        assert_eq!(
            engine.open(&name).err().unwrap().kind(),
            ErrorKind::NotFound
        );
        assert_eq!(
            engine.delete(&name).unwrap_err().kind(),
            ErrorKind::NotFound
        );
    }
    // Nor is one made there.
    for name in ["p/new", "q/v"].map(volume_name) {
        let error = engine.create(&name, &spec(8192, 512)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
    }
    assert_eq!(elsewhere.list().unwrap(), [name]);
}

#[test]
fn a_foreign_file_in_a_volume_keeps_it_from_being_deleted() {
    let dir = directory();
    let engine = open(dir.path());
    let name = volume_name("p/v");
    engine.create(&name, &spec(1 << 20, 512)).unwrap();
    for foreign in ["notes.txt", "backup/data", "snapshots/notes.txt"] {
        let path = dir.path().join("p/v").join(foreign);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "mine").unwrap();
        let before = tree(dir.path());
        let error = engine.delete(&name).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        let named = foreign.split('/').next_back().unwrap();
        let first = foreign.split('/').next().unwrap();
        let text = error.to_string();
        assert!(text.contains(named) || text.contains(first), "{text}");
        assert_eq!(tree(dir.path()), before, "nothing is removed");
        engine.open(&name).unwrap();
        match first {
            "notes.txt" => fs::remove_file(path).unwrap(),
            _ => fs::remove_dir_all(dir.path().join("p/v").join(first)).unwrap(),
        }
    }
    engine.delete(&name).unwrap();
    assert_eq!(fs::read_dir(dir.path().join("p")).unwrap().count(), 0);
}

#[test]
fn leftovers_with_something_foreign_in_them_stay_and_keep_nothing_from_being_served() {
    let dir = directory();
    let name = volume_name("p/v");
    open(dir.path()).create(&name, &spec(8192, 512)).unwrap();
    let pool = dir.path().join("p");
    let [created, deleted] = ["create", "delete"].map(|what| format!(".{what}-{:032x}", 123));
    for leftover in [&created, &deleted, ".delete-mine"] {
        let leftover = pool.join(leftover);
        fs::create_dir(&leftover).unwrap();
        let marker = ".neonsan-volume";
        fs::copy(pool.join("v").join(marker), leftover.join(marker)).unwrap();
        fs::write(leftover.join("data"), b"x").unwrap();
    }
    let deleted = pool.join(deleted);
    let foreign = deleted.join("thesis");
    fs::write(&foreign, "years of work").unwrap();
    let engine = open(dir.path());
    assert_eq!(engine.list().unwrap(), [name]);
    assert!(!pool.join(created).exists());
    assert!(foreign.exists() && deleted.join("data").exists());
    assert!(pool.join(".delete-mine/data").exists(), "no name of ours");
}

#[test]
fn a_damaged_volume_is_still_one() {
    let dir = directory();
    let engine = open(dir.path());
    let name = volume_name("p/v");
    engine.create(&name, &spec(1 << 20, 512)).unwrap();
    fs::remove_file(dir.path().join("p/v/meta")).unwrap();
    assert_eq!(engine.list().unwrap(), std::slice::from_ref(&name));
    assert_eq!(engine.open(&name).err().unwrap().kind(), ErrorKind::Corrupt);
    engine.delete(&name).unwrap();
}

#[test]
fn a_foreign_directory_among_the_snapshots_is_none() {
    let (_dir, mount) = match xfs() {
        Ok(mounted) => mounted,
        Err(reason) => {
            eprintln!("SKIP a_foreign_directory_among_the_snapshots: {reason}");
            return;
        }
    };
    let root = mount.0.join("root");
    let engine = open(&root);
    let (name, snapshot) = (volume_name("p/v"), snapshot_name("p/v@s"));
    engine.create(&name, &spec(1 << 20, 512)).unwrap();
    let volume = engine.open(&name).unwrap();
    volume.create_snapshot(&snapshot).unwrap();
    drop(volume);
    let foreign = root.join("p/v/snapshots/mine");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("thesis"), "years of work").unwrap();
    assert_eq!(engine.snapshots(&name).unwrap().len(), 1);
    let error = engine.delete_snapshot(&snapshot_name("p/v@mine"));
    assert_eq!(error.unwrap_err().kind(), ErrorKind::NoSuchSnapshot);
    // And a foreign file in a snapshot of ours keeps that.
    let notes = root.join("p/v/snapshots/s/notes.txt");
    fs::write(&notes, "mine").unwrap();
    let error = engine.delete_snapshot(&snapshot).unwrap_err();
    assert!(error.to_string().contains("notes.txt"), "{error}");
    engine.open_snapshot(&snapshot).unwrap();
    fs::remove_file(notes).unwrap();
    engine.delete_snapshot(&snapshot).unwrap();
    let error = engine.delete(&name).unwrap_err();
    assert!(error.to_string().contains("snapshots/mine"), "{error}");
    assert!(foreign.join("thesis").exists());
}

#[test]
fn of_two_inits_at_once_one_makes_the_engine() {
    let dir = directory();
    for round in 0..50 {
        // Both in a directory that is there, and in one that either makes.
        let root = dir.path().join(round.to_string());
        if round % 2 == 0 {
            fs::create_dir(&root).unwrap();
        }
        let start = std::sync::Barrier::new(2);
        let try_init = || {
            start.wait();
            init(&root, &InitOptions::default())
        };
        let made: Vec<_> = std::thread::scope(|scope| {
            let threads = [scope.spawn(try_init), scope.spawn(try_init)];
            threads.map(|thread| thread.join().unwrap()).into()
        });
        let (made, refused): (Vec<_>, Vec<_>) = made.into_iter().partition(Result::is_ok);
        assert_eq!(made.len(), 1, "{made:?}");
        let error = refused.into_iter().next().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
        let identity = made.into_iter().next().unwrap().unwrap().identity;
        assert!(error.to_string().contains(&identity.to_string()), "{error}");
    }
}

#[test]
fn what_a_killed_init_left_is_not_in_the_way_of_the_next() {
    let dir = directory();
    let root = dir.path().join("root");
    let unfinished = root.join(".neonsan-engine.new");
    fs::create_dir(&root).unwrap();
    fs::write(&unfinished, b"NEONENG").unwrap();
    init(&root, &InitOptions::default()).unwrap();
    assert!(!unfinished.exists());
    try_open(&root).unwrap();
    // Whatever else has that name is somebody's.
    let other = dir.path().join("other");
    fs::create_dir_all(other.join(".neonsan-engine.new")).unwrap();
    let error = init(&other, &InitOptions::default()).unwrap_err();
    assert!(error.to_string().contains("is not empty"), "{error}");
}

#[test]
fn only_a_directory_that_init_has_made_is_opened() {
    let dir = directory();
    let root = dir.path().join("root");
    let refused = |what: &str| {
        let error = try_open(&root).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        let text = error.to_string();
        assert!(text.contains(what), "{text}");
        assert!(text.contains(root.to_str().unwrap()), "{text}");
    };
    refused("mount its disk");
    assert!(!root.exists(), "it is not made");
    fs::create_dir(&root).unwrap();
    refused("neonsan-node init");
    assert_eq!(
        fs::read_dir(&root).unwrap().count(),
        0,
        "nothing is written"
    );
    let made = init(&root, &InitOptions::default()).unwrap();
    assert!(!made.made);
    let engine = try_open(&root).unwrap();
    assert_eq!(engine.identity(), made.identity);
    drop(engine);
    // Away, with an empty directory in its place: as a disk that is not mounted.
    fs::rename(&root, dir.path().join("away")).unwrap();
    fs::create_dir(&root).unwrap();
    refused("mount its disk");
    // Another engine is not taken for it.
    init(&root, &InitOptions::default()).unwrap();
    let mut options = file_options(&root);
    options.identity = Some(made.identity);
    let error = FileEngine::open(options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    let text = error.to_string();
    assert!(
        text.contains("another engine") && text.contains(&made.identity.to_string()),
        "{text}"
    );
    // A damaged marker is not taken for none.
    fs::write(root.join(".neonsan-engine"), "x").unwrap();
    assert_eq!(try_open(&root).unwrap_err().kind(), ErrorKind::Corrupt);
    assert!(init(&root, &InitOptions::default()).is_err());
}

#[test]
fn engines_do_not_lie_within_each_other() {
    let dir = directory();
    let outer = open(&dir.path().join("outer"));
    outer.create(&volume_name("p/v"), &spec(8192, 512)).unwrap();
    let inner = dir.path().join("outer/p/v/inner");
    let error = init(&inner, &InitOptions::default()).unwrap_err();
    assert!(error.to_string().contains("lies within"), "{error}");
    assert!(!inner.exists());
    // By a link too.
    let link = dir.path().join("link");
    symlink(dir.path().join("outer"), &link).unwrap();
    let error = init(&link.join("inner"), &InitOptions::default()).unwrap_err();
    assert!(error.to_string().contains("lies within"), "{error}");
    // And by another mount of a part of it.
    let (part, elsewhere) = (dir.path().join("outer/p"), dir.path().join("elsewhere"));
    fs::create_dir(&elsewhere).unwrap();
    match bind(&part, &elsewhere) {
        Ok(_mount) => {
            let inner = elsewhere.join("inner");
            let error = init(&inner, &InitOptions::default()).unwrap_err();
            assert!(error.to_string().contains("lies within"), "{error}");
            let (outer, inner) = (Place::of(&dir.path().join("outer")), Place::of(&inner));
            assert!(outer.contains(&inner) && !inner.contains(&outer));
        }
        Err(reason) => eprintln!("SKIP engines behind a bind mount: {reason}"),
    }
    // One that was made there before the outer one is not opened any more.
    let first = dir.path().join("later/first");
    fs::create_dir(dir.path().join("later")).unwrap();
    init(&first, &InitOptions::default()).unwrap();
    let outer_marker = dir.path().join("outer/.neonsan-engine");
    fs::copy(outer_marker, dir.path().join("later/.neonsan-engine")).unwrap();
    let error = try_open(&first).unwrap_err();
    assert!(error.to_string().contains("lies within"), "{error}");
}

/// The root that a node of the release before the markers has left, with a volume of
/// 16 KiB and a snapshot.
fn root_of_an_earlier_release(root: &Path) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/root-v1");
    for file in [
        ".boot",
        "vms/db/meta",
        "vms/db/record",
        "vms/db/snapshots/monday/meta",
    ] {
        fs::create_dir_all(root.join(file).parent().unwrap()).unwrap();
        fs::copy(golden.join(file), root.join(file)).unwrap();
    }
    fs::write(root.join(".lock"), "").unwrap();
    for data in ["vms/db/data", "vms/db/snapshots/monday/data"] {
        fs::write(root.join(data), [b'A'; 16384]).unwrap();
    }
}

const DB: u128 = 0x4a73_f80b_2841_a066_df68_8428_dfdb_aabc;
const MONDAY: u128 = 0x6c1f_acaf_d2f3_fed5_ea36_fa73_78ed_005a;

#[test]
fn a_root_of_an_earlier_release_is_named_and_adopted() {
    let dir = directory();
    let root = dir.path().join("root");
    root_of_an_earlier_release(&root);
    fs::create_dir_all(root.join("home/alice")).unwrap();
    fs::create_dir_all(root.join("vms/mine")).unwrap();
    let error = try_open(&root).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("init --adopt"), "{error}");
    let error = init(&root, &InitOptions::default()).unwrap_err();
    assert!(error.to_string().contains("init --adopt"), "{error}");
    let adopt = InitOptions {
        adopt: true,
        ..InitOptions::default()
    };
    let done = init(&root, &adopt).unwrap();
    let name = volume_name("vms/db");
    assert_eq!(done.adopted, std::slice::from_ref(&name));
    assert_eq!(done.left_alone, [root.join("home"), root.join("vms/mine")]);
    // Once more, after a volume of that release was copied there.
    let again = init(&root, &adopt).unwrap();
    assert_eq!(again.identity, done.identity);
    assert_eq!(again.adopted, []);

    // All of it is there.
    let engine = try_open(&root).unwrap();
    assert_eq!(engine.list().unwrap(), std::slice::from_ref(&name));
    let stat = engine.stat(&name).unwrap();
    assert_eq!(stat.id, DB.to_be_bytes());
    assert_eq!((stat.size_bytes, stat.logical_block_size), (16384, 512));
    assert_eq!(stat.physical_block_size, 512);
    assert_eq!(stat.created_unix_s, 1_795_813_598);
    let snapshots = engine.snapshots(&name).unwrap();
    assert_eq!(snapshots.len(), 1);
    assert_eq!(snapshots[0].id, MONDAY.to_be_bytes());
    assert_eq!(engine.load_record(&name).unwrap(), Some(vec![2]));
    // Written anew, its description stays what it was.
    engine.open(&name).unwrap().resize(32768).unwrap();
    let resized = engine.stat(&name).unwrap();
    assert_eq!((resized.id, resized.size_bytes), (stat.id, 32768));
    assert_eq!(resized.created_unix_s, stat.created_unix_s);
    engine
        .delete_snapshot(&snapshot_name("vms/db@monday"))
        .unwrap();
    engine.delete(&name).unwrap();
}

#[test]
fn a_root_that_a_node_uses_is_not_adopted() {
    let dir = directory();
    let root = dir.path().join("root");
    let engine = open(&root);
    let adopt = InitOptions {
        adopt: true,
        ..InitOptions::default()
    };
    assert_eq!(init(&root, &adopt).unwrap_err().kind(), ErrorKind::Busy);
    drop(engine);
    init(&root, &adopt).unwrap();
}

/// A backup of a volume of an earlier release, brought back.
#[test]
fn a_volume_of_an_earlier_release_needs_no_marker() {
    let dir = directory();
    let root = dir.path().join("root");
    let engine = open(&root);
    root_of_an_earlier_release(&root);
    let name = volume_name("vms/db");
    assert_eq!(engine.list().unwrap(), std::slice::from_ref(&name));
    assert_eq!(engine.open(&name).unwrap().stat().id, DB.to_be_bytes());
}
