// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `neonsan-node init`, and a node that finds another directory than it should.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::wire::{Open, Wire};
use common::{block_on, config, create, directory, init, Node};
use neonsan_proto::Status;

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
fn how_it_ended_is_known_though_nothing_can_be_said() {
    let full = || fs::File::options().write(true).open("/dev/full").unwrap();
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_neonsan-node"));
        let status = command.args(args).stdout(full()).stderr(full()).status();
        status.unwrap().code()
    };
    let dir = directory();
    let root = dir.path().join("root");
    assert_eq!(run(&["init", root.to_str().unwrap()]), Some(1));
    assert!(root.join(".neonsan-engine").exists());
    let good = dir.path().join("good.toml");
    let text = format!(
        "state_path = {:?}\n[engine.main]\nkind = \"file\"\npath = {root:?}\n",
        dir.path().join("state")
    );
    fs::write(&good, text).unwrap();
    let good = good.to_str().unwrap();
    assert_eq!(run(&["--check", "--config", good]), Some(1));
    assert_eq!(run(&["forget", "--config", good, "/x"]), Some(1));
    assert_eq!(run(&["--check", "--config", "/nonexistent"]), Some(78));
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

/// As the guide once said it: a volume's directory, copied while the node runs.
#[test]
fn a_copied_volume_is_named_everywhere_and_adopted() {
    let dir = directory();
    let node = Node::start(dir.path());
    create(&node, "p/v", 1 << 20, 512, "main");
    let (v, w) = ("p/v".parse().unwrap(), "p/w".parse().unwrap());
    let id = block_on(node.api().volume(&v)).unwrap().id;
    Wire::open(node.data, &Open::new("p/v", 1))
        .unwrap()
        .release();
    let pool = dir.path().join("volumes/p");
    let copied = Command::new("cp")
        .arg("-a")
        .args([pool.join("v"), pool.join("w")])
        .status();
    assert!(copied.unwrap().success());
    let both = |text: &str| {
        let paths = [pool.join("v"), pool.join("w")];
        paths
            .iter()
            .all(|path| text.contains(path.to_str().unwrap()))
    };
    let listed = block_on(node.api().list_volumes(None)).unwrap().volumes;
    assert_eq!(listed.len(), 2);
    for volume in &listed {
        assert_eq!(volume.id, id);
        assert_eq!(volume.same_identity.len(), 1, "{volume:?}");
        let warnings = volume.warnings.join("; ");
        assert!(warnings.contains("volume adopt"), "{warnings}");
    }
    // Health says what was found when the engine was asked last.
    let request = "GET /v1/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let health_becomes = |what: &dyn Fn(&str) -> bool| {
        let deadline = Instant::now() + 2 * common::PATIENCE;
        loop {
            let health = node.http(request).1;
            if what(&health) {
                return;
            }
            assert!(Instant::now() < deadline, "{health}");
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    health_becomes(&|health| health.contains("degraded") && both(health));
    for name in ["p/v", "p/w"] {
        let refused = Wire::open(node.data, &Open::new(name, 1)).err().unwrap();
        assert_eq!(refused.status, Status::VolumeDamaged);
        assert!(both(&refused.text), "{}", refused.text);
    }
    let adopted = block_on(node.api().adopt_volume(&w)).unwrap();
    assert_ne!(adopted.id, id);
    assert_eq!(adopted.same_identity, [""; 0]);
    health_becomes(&|health| health.contains("\"status\":\"ok\""));
    // Both can be had, the original as the volume that it was.
    let original = Wire::open(node.data, &Open::new("p/v", 1)).unwrap();
    let copy = Wire::open(node.data, &Open::new("p/w", 2)).unwrap();
    // What is held is not adopted.
    let refused = block_on(node.api().adopt_volume(&v)).unwrap_err();
    assert!(refused.to_string().contains("is held by host"), "{refused}");
    original.release();
    copy.release();
    assert_eq!(block_on(node.api().volume(&v)).unwrap().id, id);
}

#[test]
fn a_foreign_directory_and_a_foreign_file_are_not_deleted() {
    let dir = directory();
    let node = Node::start(dir.path());
    create(&node, "p/v", 1 << 20, 512, "main");
    let home = dir.path().join("volumes/home/alice");
    fs::create_dir_all(&home).unwrap();
    fs::write(home.join("thesis"), "years of work").unwrap();
    let listed = block_on(node.api().list_volumes(None)).unwrap().volumes;
    assert_eq!(listed.len(), 1);
    let refused = block_on(node.api().delete_volume(&"home/alice".parse().unwrap())).unwrap_err();
    assert!(
        refused.to_string().contains("no volume home/alice"),
        "{refused}"
    );
    assert!(home.join("thesis").exists());
    let notes = dir.path().join("volumes/p/v/notes.txt");
    fs::write(&notes, "mine").unwrap();
    let name = "p/v".parse().unwrap();
    let refused = block_on(node.api().delete_volume(&name)).unwrap_err();
    assert!(refused.to_string().contains("notes.txt"), "{refused}");
    block_on(node.api().volume(&name)).unwrap();
    fs::remove_file(notes).unwrap();
    block_on(node.api().delete_volume(&name)).unwrap();
}

/// Each engine a directory of its own: `--check` says so, and so does the start.
#[test]
fn engines_within_each_other_are_refused() {
    let dir = directory();
    let path = dir.path().join("node.toml");
    let inner = dir.path().join("volumes/p/inner");
    let text = format!(
        "{}[engine.inner]\nkind = \"file\"\npath = {inner:?}\n",
        config(dir.path(), "")
    );
    fs::write(&path, text).unwrap();
    for more in [&["--check"][..], &[]] {
        let name = path.to_str().unwrap();
        let (status, text) = neonsan_node(&[&["--config", name], more].concat());
        assert_eq!(status, 78);
        assert!(text.contains("directory of its own"), "{text}");
    }
    // One engine of another node is as good as one of this.
    let (status, text) = neonsan_node(&["init", inner.to_str().unwrap()]);
    assert_eq!(status, 1);
    assert!(
        text.contains("above it is not there") || text.contains("lies within"),
        "{text}"
    );
    fs::create_dir(dir.path().join("volumes/p")).unwrap();
    let (status, text) = neonsan_node(&["init", inner.to_str().unwrap()]);
    assert_eq!(status, 1);
    assert!(text.contains("lies within"), "{text}");
}
