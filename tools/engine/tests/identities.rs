// SPDX-License-Identifier: GPL-2.0 OR MIT
//! A copied volume has the identity of the original: it is noticed, and neither is
//! opened until the copy has one of its own.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use common::{file_options, run, snapshot_name, spec, volume_name, xfs};
use neonsan_engine::file::{FileEngine, FileOptions, Identities};
use neonsan_engine::{Buffer, Engine, ErrorKind, Op};

fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// As the guide says it.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.unwrap().success());
}

fn open(root: &Path, identities: &Arc<Identities>) -> FileEngine {
    FileEngine::open(FileOptions {
        identities: Arc::clone(identities),
        ..file_options(root)
    })
    .unwrap()
}

fn refusal(engine: &FileEngine, name: &str) -> String {
    let error = engine.open(&volume_name(name)).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    error.to_string()
}

#[test]
fn of_two_volumes_with_one_identity_neither_is_opened() {
    let dir = directory();
    let identities = Arc::default();
    let engine = open(dir.path(), &identities);
    let (v, w) = (volume_name("p/v"), volume_name("p/w"));
    let made = engine.create(&v, &spec(1 << 20, 512)).unwrap();
    engine.open(&v).unwrap();
    assert!(identities.conflicts().is_empty());
    // While the engine is there, and before the next one begins.
    copy(&dir.path().join("p/v"), &dir.path().join("p/w"));
    let mut engine = engine;
    for _ in 0..2 {
        for name in ["p/v", "p/w"] {
            let text = refusal(&engine, name);
            let both = ["p/v", "p/w"].map(|name| dir.path().join(name));
            for path in both {
                assert!(text.contains(path.to_str().unwrap()), "{text}");
            }
            assert!(text.contains("volume adopt"), "{text}");
        }
        let conflicts = identities.conflicts();
        assert_eq!(conflicts.len(), 1);
        assert_eq!(conflicts[0].id, made.id);
        assert_eq!(
            engine.same_identity(&v, &made.id),
            [dir.path().join("p/w").to_str().unwrap()]
        );
        drop(engine);
        engine = open(dir.path(), &identities);
    }
    let adopted = engine.adopt(&w).unwrap();
    assert_ne!(adopted.id, made.id);
    assert!(identities.conflicts().is_empty());
    assert_eq!(engine.open(&w).unwrap().stat().id, adopted.id);
    assert_eq!(engine.open(&v).unwrap().stat().id, made.id);
}

#[test]
fn a_copy_in_another_engine_is_noticed() {
    let (one, other) = (directory(), directory());
    let identities = Arc::default();
    let first = open(one.path(), &identities);
    let second = open(other.path(), &identities);
    let name = volume_name("p/v");
    first.create(&name, &spec(1 << 20, 512)).unwrap();
    fs::create_dir(other.path().join("q")).unwrap();
    copy(&one.path().join("p/v"), &other.path().join("q/copy"));
    // Found by the engine's own look, as for health, or when it is opened there.
    assert_eq!(second.health().unwrap().len(), 1);
    for (engine, name) in [(&first, "p/v"), (&second, "q/copy")] {
        let text = refusal(engine, name);
        assert!(text.contains(one.path().to_str().unwrap()), "{text}");
        assert!(text.contains(other.path().to_str().unwrap()), "{text}");
    }
    // It is deleted as any other volume.
    second.delete(&volume_name("q/copy")).unwrap();
    first.open(&name).unwrap();
    // An engine that is not served any more is in nobody's way.
    copy(&one.path().join("p/v"), &other.path().join("q/copy"));
    assert_eq!(identities.conflicts().len(), 1);
    drop(second);
    first.open(&name).unwrap();
}

#[test]
fn a_description_that_is_overwritten_in_place_is_noticed() {
    let dir = directory();
    let identities = Arc::default();
    let engine = open(dir.path(), &identities);
    for name in ["p/v", "p/w"] {
        engine
            .create(&volume_name(name), &spec(1 << 20, 512))
            .unwrap();
        engine.open(&volume_name(name)).unwrap();
    }
    let meta = fs::read(dir.path().join("p/v/meta")).unwrap();
    fs::write(dir.path().join("p/w/meta"), meta).unwrap();
    assert_eq!(identities.conflicts().len(), 1);
    refusal(&engine, "p/v");
    refusal(&engine, "p/w");
}

#[test]
fn a_copy_begins_without_the_memory_of_who_held_the_original() {
    let dir = directory();
    let engine = open(dir.path(), &Arc::default());
    let (v, w) = (volume_name("p/v"), volume_name("p/w"));
    engine.create(&v, &spec(1 << 20, 512)).unwrap();
    engine.save_record(&v, b"held by a host").unwrap();
    let write = Op::Write {
        offset: 0,
        buffer: Buffer::zeroed(4096).unwrap(),
        fua: true,
        atomic: false,
    };
    run(&mut *engine.open(&v).unwrap().queue(1).unwrap(), write).unwrap();
    copy(&dir.path().join("p/v"), &dir.path().join("p/w"));
    engine.adopt(&w).unwrap();
    assert_eq!(engine.load_record(&w).unwrap(), None);
    assert_eq!(engine.load_record(&v).unwrap().unwrap(), b"held by a host");
    // Not while it is open.
    let volume = engine.open(&w).unwrap();
    assert_eq!(engine.adopt(&w).unwrap_err().kind(), ErrorKind::Busy);
    drop(volume);
    let absent = engine.adopt(&volume_name("p/none")).unwrap_err();
    assert_eq!(absent.kind(), ErrorKind::NotFound);
}

#[test]
fn the_snapshots_of_a_copy_get_identities_of_their_own() {
    let (_dir, mount) = match xfs() {
        Ok(mounted) => mounted,
        Err(reason) => {
            eprintln!("SKIP the_snapshots_of_a_copy: {reason}");
            return;
        }
    };
    let root = mount.0.join("root");
    let identities = Arc::default();
    let engine = open(&root, &identities);
    let (v, w) = (volume_name("p/v"), volume_name("p/w"));
    engine.create(&v, &spec(1 << 20, 512)).unwrap();
    let snapshot = snapshot_name("p/v@s");
    let made = engine.open(&v).unwrap().create_snapshot(&snapshot).unwrap();
    copy(&root.join("p/v"), &root.join("p/w"));
    for name in ["p/v@s", "p/w@s"] {
        let error = engine.open_snapshot(&snapshot_name(name)).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    }
    let error = engine.roll_back(&snapshot_name("p/w@s"), b"").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    // Told once, not for each snapshot too.
    assert_eq!(identities.conflicts().len(), 1);
    engine.adopt(&w).unwrap();
    assert!(identities.conflicts().is_empty());
    assert_ne!(engine.snapshots(&w).unwrap()[0].id, made.id);
    assert_eq!(engine.snapshots(&v).unwrap()[0].id, made.id);
    for name in ["p/v@s", "p/w@s"] {
        engine.open_snapshot(&snapshot_name(name)).unwrap();
    }
}

#[test]
fn a_copied_snapshot_is_noticed_beside_the_first_and_as_a_volume() {
    let (_dir, mount) = match xfs() {
        Ok(mounted) => mounted,
        Err(reason) => {
            eprintln!("SKIP a_copied_snapshot: {reason}");
            return;
        }
    };
    let root = mount.0.join("root");
    let identities = Arc::default();
    let mut engine = open(&root, &identities);
    let v = volume_name("p/v");
    engine.create(&v, &spec(1 << 20, 512)).unwrap();
    let one = snapshot_name("p/v@one");
    let made = engine.open(&v).unwrap().create_snapshot(&one).unwrap();
    engine.open_snapshot(&one).unwrap();
    let first = root.join("p/v/snapshots/one");
    let (second, volume) = (root.join("p/v/snapshots/two"), root.join("p/fromsnap"));
    let refused = |error: neonsan_engine::Error, paths: &[&Path]| {
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        for path in paths {
            assert!(
                error.to_string().contains(path.to_str().unwrap()),
                "{error}"
            );
        }
    };

    // Beside the first: while the engine is there, and before the next one begins.
    copy(&first, &second);
    for _ in 0..2 {
        for name in ["p/v@one", "p/v@two"] {
            let error = engine.open_snapshot(&snapshot_name(name)).err().unwrap();
            refused(error, &[&first, &second]);
        }
        assert_eq!(identities.conflicts().len(), 1);
        // The volume has an identity of its own.
        engine.open(&v).unwrap();
        drop(engine);
        engine = open(&root, &identities);
    }
    engine.delete_snapshot(&snapshot_name("p/v@two")).unwrap();
    assert!(identities.conflicts().is_empty());
    engine.open_snapshot(&one).unwrap();

    // As a volume, until that is adopted.
    copy(&first, &volume);
    let copied = volume_name("p/fromsnap");
    refused(engine.open(&copied).err().unwrap(), &[&first, &volume]);
    refused(
        engine.open_snapshot(&one).err().unwrap(),
        &[&first, &volume],
    );
    assert_eq!(
        engine.same_identity(&copied, &made.id),
        [first.to_str().unwrap()]
    );
    let adopted = engine.adopt(&copied).unwrap();
    assert_ne!(adopted.id, made.id);
    engine.open(&copied).unwrap();
    assert_eq!(engine.open_snapshot(&one).unwrap().stat().id, made.id);
    assert!(identities.conflicts().is_empty());
}

/// A copy by hard links shares its data with the original, whatever it is called.
#[test]
fn data_with_a_second_name_is_not_opened() {
    let dir = directory();
    let identities = Arc::default();
    let engine = open(dir.path(), &identities);
    let (original, clone) = (volume_name("p/v"), volume_name("p/clone"));
    let made = engine.create(&original, &spec(1 << 20, 512)).unwrap();
    let mut cp = Command::new("cp");
    let names = ["p/v", "p/clone"].map(|name| dir.path().join(name));
    assert!(cp.arg("-al").args(&names).status().unwrap().success());
    let told = |error: neonsan_engine::Error| {
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        assert!(error.to_string().contains("hard link"), "{error}");
    };
    told(engine.adopt(&clone).unwrap_err());
    told(engine.open(&clone).err().unwrap());
    told(engine.open(&original).err().unwrap());
    assert_eq!(engine.stat(&original).unwrap().id, made.id);
    // The way out: what was linked goes, and takes nothing with it.
    engine.delete(&clone).unwrap();
    drop(engine.open(&original).unwrap());
}

#[test]
fn a_snapshot_whose_data_has_a_second_name_is_not_opened() {
    let Ok((_dir, mount)) = xfs().map_err(|why| eprintln!("SKIP: {why}")) else {
        return;
    };
    let root = mount.0.join("root");
    let engine = open(&root, &Arc::default());
    let (volume, snapshot) = (volume_name("p/v"), snapshot_name("p/v@s"));
    engine.create(&volume, &spec(1 << 20, 512)).unwrap();
    let opened = engine.open(&volume).unwrap();
    opened.create_snapshot(&snapshot).unwrap();
    drop(opened);
    let data = root.join("p/v/snapshots/s/data");
    let link = root.join("p/copy");
    fs::hard_link(&data, &link).unwrap();
    let clone = volume_name("p/w");
    for refused in [
        engine.open_snapshot(&snapshot).err(),
        engine.clone_snapshot(&snapshot, &clone).err(),
        engine.roll_back(&snapshot, b"").err(),
    ] {
        let error = refused.unwrap();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        let text = error.to_string();
        assert!(
            text.contains("hard link") && text.contains("p/v@s"),
            "{text}"
        );
    }
    engine.delete_snapshot(&snapshot).unwrap();
    assert!(link.exists());
}
