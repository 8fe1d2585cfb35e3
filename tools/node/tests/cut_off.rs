// SPDX-License-Identifier: GPL-2.0 OR MIT
//! A node that is cut off from the cluster, but runs, on the cluster that
//! `tools/testing/lab/ceph` starts in a network namespace of its own.
//!
//! The cluster forgets a fenced client after a while. What that client still has to
//! send then must not land over what the next owner wrote.
//!
//! An hour is a minute here, and all times that belong together are shortened alike:
//! how long the cluster keeps a client out, how long a node tries to carry out an
//! operation, and how long the system tries to send what lies in a socket.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::wire::{Open, Wire};
use common::{block_on, ceph, create, directory, Node};
use neonsan_api::EngineState;
use neonsan_engine::rbd::{RbdEngine, RbdOptions};
use neonsan_engine::{Buffer, Completion, Engine as _, Op, Queue, Request, Volume};
use neonsan_proto::{Kind, RequestFlags, Status};

const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;
const BLOCKS: u64 = 64;

/// Of the old owner, of the next one.
const OLD: u8 = 0xaa;
const NEW: u8 = 0xbb;

/// How long the cluster keeps a fenced client out.
const EXPIRY: Duration = Duration::from_secs(60);
/// How long the old owner is cut off.
const CUT: Duration = Duration::from_secs(90);
/// How long after that a late write is waited for: TCP tries again every two
/// minutes at worst.
const LATE: Duration = Duration::from_secs(150);
/// After this long an operation is given up.
const MAX_OPERATION: Duration = Duration::from_secs(15);

/// The user whose nodes are cut off.
const USER: u32 = 61_017;

fn run(program: &str, words: &[&str]) {
    let output = Command::new(program).args(words).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {words:?}: {text}");
}

/// The system gives up what lies in a socket after some 13 seconds instead of 15
/// minutes, and in one that was closed after a second.
fn shorten_the_patience_of_tcp() {
    fs::write("/proc/sys/net/ipv4/tcp_retries2", "5").unwrap();
    fs::write("/proc/sys/net/ipv4/tcp_orphan_retries", "2").unwrap();
}

fn ceph_admin(words: &[&str]) {
    let conf = ceph::lab("NEONSAN_CEPH_ADMIN");
    let all = [&["60", "ceph", "-c", &conf, "-n", "client.admin"], words].concat();
    run("timeout", &all);
}

/// Nothing that the nodes of [`USER`] send arrives, but what they send to hosts from
/// these ports, until it goes out of scope.
struct Cut;

impl Cut {
    fn new(ports: &[u16]) -> Self {
        run("nft", &["add", "table", "inet", "cut"]);
        let chain = "{ type filter hook output priority 0 ; }";
        run("nft", &["add", "chain", "inet", "cut", "out", chain]);
        let ports: Vec<_> = ports.iter().map(ToString::to_string).collect();
        let rule = format!(
            "meta skuid {USER} tcp sport != {{ {} }} drop",
            ports.join(", ")
        );
        run("nft", &["add", "rule", "inet", "cut", "out", &rule]);
        Self
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        let healed = Command::new("nft")
            .args(["delete", "table", "inet", "cut"])
            .status();
        assert!(healed.unwrap().success());
    }
}

fn open_to_all(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A node of [`USER`], with `engine` at the end of the engine's section.
fn start(dir: &tempfile::TempDir, index: usize, engine: &str) -> Node {
    let config = ceph::config_file(dir, index, "127.0.0.1:0", engine, "");
    open_to_all(&config, 0o644);
    let mut command = Command::new("setpriv");
    let user = USER.to_string();
    command
        .args(["--reuid", &user, "--regid", &user, "--clear-groups"])
        .arg(env!("CARGO_BIN_EXE_neonsan-node"));
    Node::start_command(command, &config)
}

/// Begins to write all blocks of a volume, and does not wait.
fn begin_writes(node: &Node, name: &str) -> Wire {
    let mut wire = Wire::open(node.data, &Open::new(name, 1)).unwrap();
    // What lies under it is there: it was the owner.
    assert_eq!(wire.write(0, &[1; BLOCK]), Status::Ok);
    wire
}

fn end_all(queue: &mut dyn Queue, count: usize) -> Vec<Completion> {
    let begun = Instant::now();
    let mut ended = Vec::new();
    while ended.len() < count {
        assert!(begun.elapsed() < Duration::from_secs(60), "requests hang");
        queue.kick();
        queue.reap(&mut ended);
        std::thread::sleep(Duration::from_millis(1));
    }
    ended
}

/// The next owner of a volume, which is not cut off.
struct Next {
    volume: Arc<dyn Volume>,
    queue: Box<dyn Queue>,
}

impl Next {
    fn take(engine: &RbdEngine, name: &str) -> Self {
        let volume = engine.take(&name.parse().unwrap()).unwrap();
        let mut queue = Arc::clone(&volume).queue(64).unwrap();
        for token in 0..BLOCKS {
            let mut buffer = Buffer::zeroed(BLOCK).unwrap();
            buffer.fill(NEW);
            let offset = token * BLOCK as u64;
            let op = Op::Write {
                offset,
                buffer,
                fua: false,
                atomic: false,
            };
            queue.submit(Request { token, op });
        }
        for completion in end_all(&mut *queue, BLOCKS as usize) {
            completion.result.unwrap();
        }
        Self { volume, queue }
    }

    /// Blocks that do not hold what was acknowledged last.
    fn stale(&mut self) -> usize {
        for token in 0..BLOCKS {
            let buffer = Buffer::zeroed(BLOCK).unwrap();
            let offset = token * BLOCK as u64;
            self.queue.submit(Request {
                token,
                op: Op::Read { offset, buffer },
            });
        }
        let ended = end_all(&mut *self.queue, BLOCKS as usize);
        assert!(!self.volume.is_lost());
        ended
            .into_iter()
            .filter(|completion| {
                completion.result.as_ref().unwrap();
                let buffer = completion.buffer.as_ref().unwrap();
                buffer.iter().any(|byte| *byte != NEW)
            })
            .count()
    }
}

/// Two nodes are cut off with 64 writes in flight each, another one takes their
/// volumes and writes, and the two come back after the cluster has forgotten that
/// they are fenced. Without the limit of an operation the old writes land; with it
/// none does.
#[test]
fn writes_of_a_node_that_was_cut_off_do_not_land_after_the_blocklist_has_forgotten_it() {
    assert_eq!(
        ceph::lab("NEONSAN_CEPH_OWN_NET"),
        "1",
        "the test cuts off the network"
    );
    shorten_the_patience_of_tcp();
    let expiry = EXPIRY.as_secs().to_string();
    let setting = "mon_osd_blocklist_default_expire";
    ceph_admin(&["config", "set", "mon", setting, &expiry]);

    // The nodes are another user's.
    let (cluster, conf) = (ceph::lab("NEONSAN_CEPH"), ceph::lab("NEONSAN_CEPH_CONF"));
    let user = ceph::lab("NEONSAN_CEPH_USER");
    open_to_all(Path::new(&cluster), 0o755);
    open_to_all(Path::new(&conf), 0o644);
    open_to_all(
        &Path::new(&cluster).join(format!("client.{user}.keyring")),
        0o644,
    );
    let dir = directory();
    open_to_all(dir.path(), 0o755);
    let limit = format!("max_operation_ms = {}\n", MAX_OPERATION.as_millis());
    let mut limited = start(&dir, 0, &limit);
    let unlimited = start(&dir, 1, "test_without_operation_limit = true\n");
    let nodes = [(&limited, "cut/limited"), (&unlimited, "cut/unlimited")];
    let mut wires = Vec::new();
    for (node, name) in nodes {
        create(node, name, MIB, 512, "ceph");
        wires.push(begin_writes(node, name));
    }
    let engine = RbdEngine::open(RbdOptions::new(
        &conf,
        &user,
        &ceph::lab("NEONSAN_CEPH_POOL"),
    ));
    let engine = engine.unwrap();

    let mut ports = Vec::new();
    for (node, _) in nodes {
        ports.extend([node.data.port(), node.control.port()]);
    }
    let cut = Cut::new(&ports);
    let begun = Instant::now();
    for wire in &mut wires {
        for block in 0..BLOCKS {
            let offset = block * BLOCK as u64;
            wire.ask(
                Kind::Write,
                RequestFlags::NONE,
                offset,
                BLOCK as u32,
                &[OLD; BLOCK],
            );
        }
    }
    std::thread::sleep(Duration::from_secs(1));
    let mut after_limited = Next::take(&engine, nodes[0].1);
    let mut after_unlimited = Next::take(&engine, nodes[1].1);
    println!("taken after {:?}", begun.elapsed());
    assert_eq!((after_limited.stale(), after_unlimited.stale()), (0, 0));

    // The one with the limit gives up by itself; both say that the cluster is away.
    let is_lost = |node: &Node, name: &str| {
        node.metrics();
        let wire = Wire::open(node.data, &Open::new(name, 1));
        wire.err()
            .is_some_and(|refused| refused.status.is_retryable())
    };
    limited.wait_for_up_to("this node has lost the volume", MAX_OPERATION * 4);
    assert!(is_lost(&limited, "cut/limited"));
    let health = block_on(limited.api().health()).unwrap();
    assert_eq!(health.engines[0].state, EngineState::Failing, "{health:?}");

    std::thread::sleep(CUT.saturating_sub(begun.elapsed()));
    drop(cut);
    println!("healed after {:?}", begun.elapsed());
    let healed = Instant::now();
    let mut seen = None;
    let (mut limited_stale, mut unlimited_stale) = (0, 0);
    // Some time longer than it takes to see the control's.
    while seen.is_none_or(|at: Instant| at.elapsed() < Duration::from_secs(30)) {
        limited_stale = limited_stale.max(after_limited.stale());
        unlimited_stale = unlimited_stale.max(after_unlimited.stale());
        if unlimited_stale > 0 && seen.is_none() {
            println!("the control's late writes: after {:?}", healed.elapsed());
            seen = Some(Instant::now());
        }
        if healed.elapsed() > LATE {
            break;
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    println!("stale blocks in the end: {limited_stale} with the limit, {unlimited_stale} without");
    ceph_admin(&["config", "rm", "mon", setting]);
    assert_eq!(limited_stale, 0, "old writes landed over newer ones");
    assert!(unlimited_stale > 0, "the test does not see what it is for");
    drop((wires, after_limited, after_unlimited));
}
