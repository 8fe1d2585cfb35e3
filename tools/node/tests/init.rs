// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `neonsan-node init`, and a node that finds another directory than it should.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use common::{config, directory, Node};

/// Runs the program to its end: exit status, and all that it says.
fn neonsan_node(args: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_neonsan-node"))
        .args(args)
        .output()
        .unwrap();
    let text =
        String::from_utf8(output.stderr).unwrap() + &String::from_utf8(output.stdout).unwrap();
    (output.status.code().unwrap(), text)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn init_makes_a_directory_an_engines_once() {
    let dir = directory();
    let root = dir.path().join("root");
    let name = root.to_str().unwrap();
    let (status, text) = neonsan_node(&["init", name]);
    assert_eq!(status, 0, "{text}");
    assert!(text.contains(name) && text.contains("engine"), "{text}");
    // No more than this, whatever the umask of the test takes away.
    assert_eq!(mode(&root) & !0o750, 0, "{:o}", mode(&root));
    let marker = root.join(".neonsan-engine");
    assert_eq!(mode(&marker) & !0o640, 0, "{:o}", mode(&marker));
    let before = fs::read(&marker).unwrap();
    let (status, text) = neonsan_node(&["init", name]);
    assert_eq!(status, 1);
    assert!(text.contains("already"), "{text}");
    assert_eq!(
        fs::read(&marker).unwrap(),
        before,
        "it stays the same engine"
    );
}

#[test]
fn init_takes_the_topmost_directory_of_a_new_file_system() {
    let dir = directory();
    fs::create_dir(dir.path().join("lost+found")).unwrap();
    let (status, text) = neonsan_node(&["init", dir.path().to_str().unwrap()]);
    assert_eq!(status, 0, "{text}");
}

#[test]
fn init_refuses_what_is_in_use_for_something_else() {
    let dir = directory();
    let name = dir.path().to_str().unwrap();
    fs::write(dir.path().join("thesis"), "x").unwrap();
    for adopt in [&["init", name][..], &["init", "--adopt", name][..]] {
        let (status, text) = neonsan_node(adopt);
        assert_eq!(status, 1, "{text}");
    }
    let (_, text) = neonsan_node(&["init", name]);
    assert!(text.contains("thesis"), "{text}");
    assert!(!dir.path().join(".neonsan-engine").exists());
    let (status, text) = neonsan_node(&["init", &format!("{name}/no/such")]);
    assert_eq!(status, 1);
    assert!(text.contains("above it is not there"), "{text}");
    assert!(!dir.path().join("no").exists());
}

#[test]
fn a_directory_without_a_marker_is_not_served() {
    let dir = directory();
    let text = config(dir.path(), "");
    let path = dir.path().join("node.toml");
    fs::write(&path, text.replace("volumes", "elsewhere")).unwrap();
    let elsewhere = dir.path().join("elsewhere");
    // Not there at all, as a mount point that was removed; and there, but empty.
    for make in [false, true] {
        if make {
            fs::create_dir(&elsewhere).unwrap();
        }
        let said = Node::said_at_start(&path);
        assert!(
            said.contains("neonsan-node init") && said.contains("mount its disk"),
            "{said}"
        );
        let made: Vec<_> = fs::read_dir(&elsewhere).into_iter().flatten().collect();
        assert!(made.is_empty(), "nothing is made there: {made:?}");
    }
}
