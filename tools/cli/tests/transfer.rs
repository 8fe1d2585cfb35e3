// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Imports and exports that do not go as they should: what was there before is not lost.

#![allow(clippy::unwrap_used)]

mod lab;

use lab::{image, loop_device, same, send, Lab};
use predicates::prelude::PredicateBooleanExt as _;
use predicates::str::contains;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Larger than what the relay lets through.
const SIZE: u64 = 64 << 20;

/// What a relay does to a node's connections when enough was read from it.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    /// Nothing comes any more, and nobody is told.
    Stall,
    /// They are closed, and so are new ones.
    Die,
}

/// What a relay lets through: more than a program asks for at a time, so that some of it has been written.
const PASSES: u64 = 24 << 20;

/// A way to a node that lets [`PASSES`] bytes through. Returns its address.
fn relay(node: SocketAddr, then: Then) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let passed = Arc::new(AtomicU64::new(0));
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            if passed.load(Ordering::Relaxed) > PASSES && then == Then::Die {
                continue;
            }
            let node = TcpStream::connect(node).unwrap();
            let (mut from, mut to) = (client.try_clone().unwrap(), node.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            let passed = passed.clone();
            std::thread::spawn(move || pass(node, client, &passed, then));
        }
    });
    address
}

fn pass(mut node: TcpStream, mut client: TcpStream, passed: &AtomicU64, then: Then) {
    let mut buffer = vec![0; 1 << 16];
    while let Ok(length @ 1..) = node.read(&mut buffer) {
        if passed.fetch_add(length as u64, Ordering::Relaxed) > PASSES {
            if then == Then::Stall {
                std::thread::sleep(Duration::from_secs(120));
            }
            break;
        }
        if client.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = client.shutdown(Shutdown::Both);
    let _ = node.shutdown(Shutdown::Both);
}

/// A lab with a volume `pool/v`.
fn lab_with_volume() -> Lab {
    let lab = Lab::new();
    let create = ["create", &lab.target("pool/v"), "--size", &SIZE.to_string()];
    lab.volume(&create).assert().success();
    lab
}

/// The volume's target through a relay.
fn target_behind(lab: &Lab, then: Then) -> String {
    format!("neonsan://{}/pool/v", relay(lab.data, then))
}

/// Starts the program and waits until it has begun to write an image beside `name`.
fn begun(lab: &Lab, mut program: std::process::Command, name: &str) -> Child {
    let child = program
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    while leftovers(lab, name).is_empty() {
        assert!(Instant::now() < end, "no image is begun");
        std::thread::sleep(Duration::from_millis(10));
    }
    child
}

/// Files in the directory whose names begin with that of the image.
fn leftovers(lab: &Lab, name: &str) -> Vec<String> {
    let entries = std::fs::read_dir(lab.directory.path()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let beside = format!("{name}.neonsan-");
    names.filter(|found| found.starts_with(&beside)).collect()
}

#[test]
fn a_signal_leaves_the_image_that_was_there() {
    let lab = lab_with_volume();
    let path = lab.path("image");
    for signal in ["INT", "TERM", "HUP"] {
        std::fs::write(&path, "the one before").unwrap();
        let export = || {
            let target = target_behind(&lab, Then::Stall);
            let words = ["export", &target, path.to_str().unwrap(), "--force"];
            begun(&lab, lab.program(&words), "image")
        };
        let child = export();
        send(signal, &child);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(130), "{signal}: {said}");
        assert!(
            said.contains(&format!("interrupted by SIG{signal}")),
            "{said}"
        );
        assert_eq!(std::fs::read(&path).unwrap(), b"the one before");
        assert!(leftovers(&lab, "image").is_empty());
        // And none where there was none.
        std::fs::remove_file(&path).unwrap();
        let child = export();
        send(signal, &child);
        child.wait_with_output().unwrap();
        assert!(!path.exists() && leftovers(&lab, "image").is_empty());
    }
}

#[test]
fn a_signal_that_was_ignored_from_the_start_stays_ignored() {
    let lab = lab_with_volume();
    let target = target_behind(&lab, Then::Stall);
    let path = lab.path("image");
    let words = ["export", &target, path.to_str().unwrap()];
    let plain = lab.program(&words);
    // As nohup starts it: without the program before it that has signals taken as usual.
    let mut program = std::process::Command::new("sh");
    program.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]);
    program.args(plain.get_args().skip(1));
    let mut child = begun(&lab, program, "image");
    send("HUP", &child);
    std::thread::sleep(Duration::from_millis(500));
    assert!(child.try_wait().unwrap().is_none());
    send("TERM", &child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_node_that_dies_midway_leaves_the_image_that_was_there() {
    let lab = lab_with_volume();
    let target = target_behind(&lab, Then::Die);
    let path = lab.path("image");
    std::fs::write(&path, "the one before").unwrap();
    let words = ["export", &target, path.to_str().unwrap(), "--force"];
    lab.volume(&words).assert().code(8);
    assert_eq!(std::fs::read(&path).unwrap(), b"the one before");
    assert!(leftovers(&lab, "image").is_empty());
}

#[test]
fn a_device_with_half_an_image_does_not_look_whole() {
    let lab = lab_with_volume();
    let original = lab.path("original");
    image(&original, SIZE);
    let import = ["import", &lab.target("pool/v"), original.to_str().unwrap()];
    lab.volume(&import).assert().success();
    let backing = lab.path("backing");
    std::fs::write(&backing, vec![0xa5; SIZE as usize]).unwrap();
    let Some(device) = loop_device(&backing) else {
        return;
    };
    let target = target_behind(&lab, Then::Die);
    lab.volume(&["export", &target, device.path.to_str().unwrap(), "--force"])
        .assert()
        .code(8)
        .stderr(contains("does not have the whole image"));
    // Neither the partition table of the image nor the one that was there.
    let mut beginning = vec![1; 1 << 20];
    let file = std::fs::File::open(&device.path).unwrap();
    file.read_exact_at(&mut beginning, 0).unwrap();
    assert!(beginning.iter().all(|byte| *byte == 0));
}

#[test]
fn only_files_and_block_devices_are_exported_into() {
    let lab = Lab::new();
    let target = lab.target("pool/v");
    let create = ["create", &target, "--size", "1M"];
    lab.volume(&create).assert().success();
    let null = lab.path("null");
    std::os::unix::fs::symlink("/dev/null", &null).unwrap();
    for (file, said) in [
        (null.to_str().unwrap(), "is a character device"),
        ("/dev/stdout", "is a pipe"),
        (lab.directory.path().to_str().unwrap(), "is a directory"),
    ] {
        lab.volume(&["export", &target, file, "--force"])
            .assert()
            .code(2)
            .stdout("")
            .stderr(contains(said));
    }
    assert!(null.exists());
}

#[test]
fn an_import_into_another_volume_than_the_one_created_is_refused() {
    let (one, other) = (Lab::new(), Lab::new());
    let (old, new, copy) = (other.path("old"), one.path("new"), other.path("copy"));
    image(&old, 4 << 20);
    std::fs::write(&new, vec![0x5a; 4 << 20]).unwrap();
    let target = other.target("pool/v");
    let import = ["import", &target, old.to_str().unwrap(), "--create"];
    other.volume(&import).assert().success();
    // The control API of one node, the data port of the other.
    one.volume(&["import", &target, new.to_str().unwrap(), "--create"])
        .assert()
        .code(10)
        .stderr(contains("nothing was written").and(contains("--api and --node")));
    let export = ["export", &target, copy.to_str().unwrap()];
    other.volume(&export).assert().success();
    assert!(same(&old, &copy));
}

#[test]
fn an_export_of_a_volume_that_is_written_to_warns() {
    let lab = lab_with_volume();
    let path = lab.path("image");
    let words = [
        "export",
        &lab.target("pool/v"),
        path.to_str().unwrap(),
        "--force",
    ];
    let assert = lab.volume(&words).assert().success();
    assert.stderr(contains("warning").not());
    // Another host has it.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut config = neonsan_client::Config::new("pool/v", vec![lab.data]);
    config.mode = neonsan_proto::Mode::Exclusive;
    config.host_id = [7; 16];
    let holder = runtime
        .block_on(neonsan_client::Client::attach(config))
        .unwrap();
    let assert = lab.volume(&words).assert().success();
    assert.stderr(contains("pool/v is held for writing, by").and(contains("snapshot")));
    runtime.block_on(holder.detach());
}

#[test]
fn a_block_device_that_is_in_use_is_imported_only_by_force() {
    let lab = Lab::new();
    let backing = lab.path("backing");
    image(&backing, 4 << 20);
    let Some(device) = loop_device(&backing) else {
        return;
    };
    let name = device.path.to_str().unwrap();
    let target = lab.target("pool/v");
    let import = ["import", &target, name, "--create"];
    // Held as a mount holds it.
    let exclusive = rustix::fs::OFlags::EXCL.bits() as i32;
    let mut options = std::fs::OpenOptions::new();
    options.read(true).custom_flags(exclusive);
    let holder = options.open(&device.path).unwrap();
    let holds = format!("(process {})", std::process::id());
    lab.volume(&import).assert().code(7).stderr(
        contains("is in use")
            .and(contains(holds.as_str()))
            .and(contains("--force")),
    );
    lab.volume(&["info", &target]).assert().code(6);
    lab.volume(&[&import[..], &["--force"]].concat())
        .assert()
        .success()
        .stderr(contains("is in use").and(contains("may mix states")));
    lab.volume(&["delete", &target, "--yes"]).assert().success();
    drop(holder);
    lab.volume(&import)
        .assert()
        .success()
        .stderr(contains("in use").not());
    let copy = lab.path("copy");
    let export = ["export", &target, copy.to_str().unwrap()];
    lab.volume(&export).assert().success();
    assert!(same(&backing, &copy));
}
