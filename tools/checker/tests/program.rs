// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The program: exit codes and the result, on a file with direct I/O.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Output};

fn checker(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_neonsan-checker"))
        .args(arguments)
        .output()
        .unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

/// Not in /tmp, which may be a tmpfs of an old kernel, without direct I/O.
fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in("/var/tmp").unwrap()
}

fn run(dir: &Path, more: &[&str]) -> Output {
    let (disk, log) = (dir.join("disk"), dir.join("log"));
    let mut arguments = vec![
        "run",
        disk.to_str().unwrap(),
        "--log",
        log.to_str().unwrap(),
    ];
    arguments.extend(["--size", "2097152", "--seconds", "1"]);
    arguments.extend(more);
    checker(&arguments)
}

fn verify(dir: &Path, more: &[&str]) -> Output {
    let (disk, log) = (dir.join("disk"), dir.join("log"));
    let mut arguments = vec!["verify", disk.to_str().unwrap()];
    arguments.extend(["--log", log.to_str().unwrap()]);
    arguments.extend(more);
    checker(&arguments)
}

#[test]
fn an_honest_file_passes_and_a_run_can_go_on() {
    let dir = directory();
    let first = run(dir.path(), &["--json"]);
    assert_eq!(code(&first), 0, "{first:?}");
    let report: serde_json::Value = serde_json::from_slice(&first.stdout).unwrap();
    assert!(report["done"]["writes"].as_u64().unwrap() > 0);
    assert_eq!(report["broken"], 0);
    assert_eq!(code(&verify(dir.path(), &[])), 0);
    // A log is not overwritten by mistake.
    assert_eq!(code(&run(dir.path(), &[])), 1);
    assert_eq!(code(&run(dir.path(), &["--resume"])), 0);
    assert_eq!(code(&verify(dir.path(), &["--json"])), 0);
}

#[test]
fn a_file_that_went_back_in_time_is_found() {
    let dir = directory();
    assert_eq!(code(&run(dir.path(), &[])), 0);
    std::fs::copy(dir.path().join("disk"), dir.path().join("old")).unwrap();
    assert_eq!(code(&run(dir.path(), &["--resume"])), 0);
    std::fs::copy(dir.path().join("old"), dir.path().join("disk")).unwrap();
    let output = verify(dir.path(), &["--json"]);
    assert_eq!(code(&output), 3, "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["violations"][0]["broken"], "stale");
}

#[test]
fn a_damaged_block_is_named() {
    let dir = directory();
    assert_eq!(code(&run(dir.path(), &[])), 0);
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(dir.path().join("disk"))
        .unwrap();
    file.write_all_at(b"x", 5 * 4096 + 100).unwrap();
    let output = verify(dir.path(), &[]);
    assert_eq!(code(&output), 3);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("block 5: Damaged"), "{said}");
}

#[test]
fn wrong_usage_has_its_own_code() {
    assert_eq!(code(&checker(&["run"])), 2);
    assert_eq!(
        code(&checker(&[
            "verify",
            "/nonexistent",
            "--log",
            "/nonexistent"
        ])),
        1
    );
}
