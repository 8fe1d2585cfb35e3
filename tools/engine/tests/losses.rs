// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What the file engine takes for a loss of what it had answered, and what it notes of
//! that for the next process.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{file_options, run, spec, volume_name};
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
