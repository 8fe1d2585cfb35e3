// SPDX-License-Identifier: GPL-2.0 OR MIT
//! An engine whose storage answers nobody: what the others do meanwhile, and the node. The tests run as
//! root, as everything in the lab: they mount.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::hung::HungFileSystem;
use common::wire::{open_message, Open, Wire};
use common::{create, directory, init, Node};
use neonsan_proto::{Features, Status};
use rustix::process::{kill_process, Signal};

const MIB: u64 = 1 << 20;

/// How long a look at an engine, or at a path, takes at most; and time for a slow machine.
const A_LOOK: Duration = Duration::from_secs(3 + 20);

/// How long a node waits at its start for engines; and time for a slow machine.
const A_START: Duration = Duration::from_secs(15 + 30);

/// A configuration with two file engines, `a` and `b`.
fn two_engines(dir: &Path) -> PathBuf {
    let mut config = format!(
        "default_engine = \"a\"\nstate_path = {:?}\n\
         [data]\nlisten = [\"127.0.0.1:0\"]\n[control]\nlisten = [\"127.0.0.1:0\"]\n\
         [timeouts]\nsession_linger_ms = 100\nshutdown_grace_ms = 100\nshutdown_drain_ms = 1000\n",
        dir.join("state")
    );
    for name in ["a", "b"] {
        let root = dir.join(name);
        init(&root);
        config.push_str(&format!(
            "[engine.{name}]\nkind = \"file\"\npath = {root:?}\n"
        ));
    }
    let path = dir.join("node.toml");
    fs::write(&path, config).unwrap();
    path
}

fn threads(node: &Node) -> usize {
    let tasks = format!("/proc/{}/task", node.pid().as_raw_nonzero());
    fs::read_dir(tasks).unwrap().count()
}

/// Opens the volume until it is there: a node that has not looked at its engines yet says "busy".
fn open(node: &Node, generation: &mut u64) -> Wire {
    let end = Instant::now() + A_LOOK;
    loop {
        *generation += 1;
        let open = Open {
            generation: *generation,
            ..Open::new("p/v", 1)
        };
        match Wire::open(node.data, &open) {
            Ok(wire) => return wire,
            Err(refused) => assert!(Instant::now() < end, "{}", refused.text),
        }
    }
}

/// What `--check` says of a configuration that is good.
fn checked(config: &Path) -> String {
    let mut check = Command::new(env!("CARGO_BIN_EXE_neonsan-node"))
        .arg("--check")
        .arg("--config")
        .arg(config)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let end = Instant::now() + A_LOOK;
    let status = loop {
        if let Some(status) = check.try_wait().unwrap() {
            break status;
        }
        if Instant::now() >= end {
            check.kill().unwrap();
            check.wait().unwrap();
            panic!("--check waits for the engine that hangs");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(status.success(), "{status}");
    let mut said = String::new();
    let mut stdout = check.stdout.take().unwrap();
    stdout.read_to_string(&mut said).unwrap();
    said
}

#[test]
fn an_engine_that_hangs_keeps_nobody_from_the_volumes_of_another() {
    let dir = directory();
    let path = two_engines(dir.path());
    let mut node = Node::start_from(&path);
    create(&node, "p/v", MIB, 512, "b");
    let mut generation = 0;
    open(&node, &mut generation).release();
    let hung = HungFileSystem::over(&dir.path().join("a"));
    let mut wire = open(&node, &mut generation);
    assert_eq!(wire.write(0, &[1; 512]), Status::Ok);
    wire.release();
    // That it hangs is known now: nobody waits for it again.
    let begun = Instant::now();
    open(&node, &mut generation).release();
    assert!(begun.elapsed() < Duration::from_secs(3), "it waited again");
    // Nor is it known of any other volume whether it is there.
    let refused = Wire::open(node.data, &Open::new("p/other", 1))
        .err()
        .unwrap();
    assert_eq!(refused.status, Status::Busy);
    assert!(
        refused.text.contains("the engine a does not answer"),
        "{}",
        refused.text
    );

    // The configuration is read again, and the node stops.
    kill_process(node.pid(), Signal::HUP).unwrap();
    node.wait_for("configuration reloaded");
    open(&node, &mut generation).release();
    kill_process(node.pid(), Signal::HUP).unwrap();
    node.terminate();
    node.wait();
    drop(hung);
}

#[test]
fn names_that_somebody_makes_up_leave_no_threads_at_an_engine_that_hangs() {
    let dir = directory();
    let node = Node::start_from(&two_engines(dir.path()));
    let hung = HungFileSystem::over(&dir.path().join("a"));
    let before = threads(&node);
    for n in 0..200 {
        let mut wire = Wire::connect(node.data, Features::NONE);
        // In many pools.
        let name = format!("pool{}/volume{n}", n % 50);
        let open = open_message(&Open::new(&name, 1));
        wire.stream.write_all(&open).unwrap();
        // The node has it when it looks at the connection, which is closed then.
        std::thread::sleep(Duration::from_millis(5));
    }
    let end = Instant::now() + A_LOOK;
    // 16 looks that do not come back, and what the node has for itself.
    while threads(&node) > before + 20 {
        assert!(
            Instant::now() < end,
            "{} threads, of {before}",
            threads(&node)
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    drop(hung);
}

#[test]
fn a_node_starts_and_a_configuration_is_checked_while_an_engine_hangs() {
    let dir = directory();
    let path = two_engines(dir.path());
    let node = Node::start_from(&path);
    create(&node, "p/v", MIB, 512, "b");
    drop(node);
    let hung = HungFileSystem::over(&dir.path().join("a"));
    let said = checked(&path);
    let note = format!(
        "but the engine a: {} does not answer",
        hung.path().display()
    );
    assert!(said.contains(&note), "{said}");

    let program = Command::new(env!("CARGO_BIN_EXE_neonsan-node"));
    let mut node = Node::spawn(program, &path);
    let ready = node.wait_for_up_to("data port open", A_START);
    node.data = common::address_in(&ready);
    node.wait_for("node ready");
    open(&node, &mut 0);
    drop(hung);
    node.terminate();
    node.wait();
}
