// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `neonsan-node init`, and a node that finds another directory than it should.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use common::{block_on, config, create, directory, init, Node};

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

/// A disk that is not mounted, and another one in its place.
#[test]
fn a_node_serves_no_other_engine_than_before() {
    let dir = directory();
    let path = dir.path().join("node.toml");
    let mut node = Node::start(dir.path());
    create(&node, "p/v", 1 << 20, 512, "main");
    node.terminate();
    assert_eq!(node.wait(), 0);
    let volumes = dir.path().join("volumes");
    let away = dir.path().join("away");
    fs::rename(&volumes, &away).unwrap();
    fs::create_dir(&volumes).unwrap();
    let said = Node::said_at_start(&path);
    assert!(
        said.contains("mount its disk") && said.contains("neonsan-node forget"),
        "{said}"
    );
    let found: Vec<_> = fs::read_dir(&volumes).unwrap().collect();
    assert!(found.is_empty(), "nothing is made there: {found:?}");
    let (status, text) = neonsan_node(&["--config", path.to_str().unwrap(), "--check"]);
    assert_eq!(status, 0);
    assert!(text.contains("mount its disk"), "{text}");
    // Somebody believed that it had to be made anew.
    init(&volumes);
    let said = Node::said_at_start(&path);
    assert!(
        said.contains("another engine") && said.contains("neonsan-node forget"),
        "{said}"
    );
    // The right one comes back.
    fs::remove_dir_all(&volumes).unwrap();
    fs::rename(&away, &volumes).unwrap();
    let node = Node::start(dir.path());
    let listed = block_on(node.api().list_volumes(None)).unwrap().volumes;
    assert_eq!(listed.len(), 1);
    drop(node);
    // Or it is on purpose.
    fs::rename(&volumes, &away).unwrap();
    init(&volumes);
    let (status, text) = neonsan_node(&[
        "forget",
        "--config",
        path.to_str().unwrap(),
        volumes.to_str().unwrap(),
    ]);
    assert_eq!((status, text.contains("forgotten")), (0, true), "{text}");
    let node = Node::start(dir.path());
    let listed = block_on(node.api().list_volumes(None)).unwrap().volumes;
    assert!(listed.is_empty());
}

#[test]
fn a_root_of_an_earlier_release_is_named() {
    let dir = directory();
    let text = config(dir.path(), "");
    let path = dir.path().join("node.toml");
    fs::write(&path, text).unwrap();
    drop(Node::start_from(&path));
    // What such a release leaves.
    fs::remove_file(dir.path().join("volumes/.neonsan-engine")).unwrap();
    fs::remove_dir_all(dir.path().join("state")).unwrap();
    let said = Node::said_at_start(&path);
    let volumes = dir.path().join("volumes");
    let hint = format!("neonsan-node init --adopt {}", volumes.display());
    assert!(said.contains(&hint), "{said}");
    let (status, text) = neonsan_node(&["init", "--adopt", volumes.to_str().unwrap()]);
    assert_eq!(status, 0, "{text}");
    drop(Node::start_from(&path));
}

#[test]
fn a_node_that_cannot_remember_says_so() {
    let dir = directory();
    let path = dir.path().join("node.toml");
    let text = config(dir.path(), "");
    // Below a file nothing can be made.
    fs::write(&path, text.replace("/state\"", "/node.toml/state\"")).unwrap();
    let said = Node::said_at_start(&path);
    assert!(said.contains("state_path"), "{said}");
}
