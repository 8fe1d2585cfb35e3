// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What the file engine makes is for its user and group alone, whatever the umask.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use common::{file_options, spec, volume_name};
use neonsan_engine::file::FileEngine;
use neonsan_engine::Engine;
use rustix::fs::Mode;

fn check(dir: &Path, seen: &mut usize) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let mode = fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o7777;
        let is_dir = path.is_dir();
        let wanted = if is_dir { 0o750 } else { 0o640 };
        assert_eq!(mode, wanted, "{} has {mode:o}", path.display());
        *seen += 1;
        if is_dir {
            check(&path, seen);
        }
    }
}

/// The only test of this program, since the umask is the process's.
#[test]
fn nobody_else_may_read_what_the_engine_makes() {
    rustix::process::umask(Mode::empty());
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let engine = FileEngine::open(file_options(&dir.path().join("root"))).unwrap();
    let name = volume_name("p/v");
    engine.create(&name, &spec(1 << 20, 512)).unwrap();
    engine.save_record(&name, b"note").unwrap();
    engine.open(&name).unwrap().resize(2 << 20).unwrap();
    let mut seen = 0;
    check(dir.path(), &mut seen);
    // The root with marker, lock, boot id and what is tried in; pool, volume and its four files.
    assert_eq!(seen, 11);
}
