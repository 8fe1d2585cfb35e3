// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What a node does when its storage is slow, stuck or failing; with the
//! feature `test-faults` only.
#![cfg(feature = "test-faults")]
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::wire::{Open, Wire};
use common::{create, directory, Node};
use neonsan_proto::{Header, Kind, RequestFlags, Status};

const MIB: u64 = 1 << 20;

fn set_faults(node: &Node, body: &str) {
    let (head, answer) = node.http(&format!(
        "PUT /v1/test-faults HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    ));
    assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
}

#[test]
fn nobody_is_let_in_while_an_older_write_is_in_the_engine() {
    for engine in ["main", "mem"] {
        let dir = directory();
        let node = Node::start_with(dir.path(), "[timeouts]\ndrain_ms = 300\n");
        create(&node, "p/v", MIB, 512, engine);
        let mut first = Wire::open(node.data, &Open::new("p/v", 1)).unwrap();
        set_faults(&node, r#"{"hang":true}"#);
        first.ask(Kind::Write, RequestFlags::NONE, 0, 512, &[1; 512]);
        std::thread::sleep(Duration::from_millis(50));

        // The same host after a lost connection, and another host by force.
        let mut again = Open::new("p/v", 1);
        again.generation = 2;
        let refused = Wire::open(node.data, &again).err().unwrap();
        assert_eq!(refused.status, Status::Draining, "{}", refused.text);
        assert!(refused.refusal.retry_after_ms.get() > 0);
        let mut other = Open::new("p/v", 2);
        other.force = true;
        let refused = Wire::open(node.data, &other).err().unwrap();
        assert_eq!(refused.status, Status::Draining, "{}", refused.text);

        set_faults(&node, "{}");
        let until = Instant::now() + common::PATIENCE;
        let mut second = loop {
            other.generation += 1;
            match Wire::open(node.data, &other) {
                Ok(wire) => break wire,
                Err(refused) => {
                    assert_eq!(refused.status, Status::Draining, "{}", refused.text);
                    assert!(Instant::now() < until);
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        };
        assert_eq!(second.write(0, &[2; 512]), Status::Ok);
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(second.read(0, 512), [2; 512]);
        // The first write was never answered.
        assert!(first.receive_reply().is_none());
    }
}

#[test]
fn a_volume_that_cannot_be_closed_keeps_nobody_from_another() {
    let dir = directory();
    let node = Node::start_with(dir.path(), "");
    create(&node, "p/v", MIB, 512, "main");
    create(&node, "p/w", MIB, 512, "mem");
    let mut first = Wire::open(node.data, &Open::new("p/v", 1)).unwrap();
    assert_eq!(first.write(0, &[1; 512]), Status::Ok);
    set_faults(&node, r#"{"hang_close":true}"#);
    first.release();
    std::thread::sleep(Duration::from_millis(500));
    let begun = Instant::now();
    let other = Wire::open(node.data, &Open::new("p/w", 2)).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(8));
    drop(other);
    // Whoever wants the volume itself waits, and has it as it was.
    let data = node.data;
    let second = std::thread::spawn(move || Wire::open(data, &Open::new("p/v", 2)));
    std::thread::sleep(Duration::from_millis(300));
    assert!(!second.is_finished());
    set_faults(&node, "{}");
    let mut second = second.join().unwrap().unwrap();
    assert_eq!(second.read(0, 512), [1; 512]);
}

/// The story of ydb-platform/nbs #7070: a write stalls in the engine, the client loses patience,
/// comes back and sends it again, newer data is acknowledged, the stalled write wakes up. Returns
/// what the block holds in the end.
fn stale_write(program: &str) -> Vec<u8> {
    let dir = directory();
    let path = dir.path().join("node.toml");
    let config = common::config(dir.path(), "[timeouts]\ndrain_ms = 300\n");
    std::fs::write(&path, config).unwrap();
    let node = Node::start_program(program, &path);
    create(&node, "p/v", MIB, 512, "main");
    let mut open = Open::new("p/v", 1);
    let mut first = Wire::open(node.data, &open).unwrap();
    set_faults(&node, r#"{"stall_next":1}"#);
    first.ask(Kind::Write, RequestFlags::NONE, 0, 512, &[1; 512]);
    std::thread::sleep(Duration::from_millis(50));
    // A node that fences lets nobody in until the stalled write is done.
    let mut stalls = true;
    let until = Instant::now() + common::PATIENCE;
    let mut second = loop {
        open.generation += 1;
        match Wire::open(node.data, &open) {
            Ok(wire) => break wire,
            Err(refused) => {
                assert_eq!(refused.status, Status::Draining, "{}", refused.text);
                assert!(Instant::now() < until);
                set_faults(&node, "{}");
                stalls = false;
            }
        }
    };
    assert_eq!(second.write(0, &[1; 512]), Status::Ok);
    assert_eq!(second.write(0, &[2; 512]), Status::Ok);
    assert_eq!(second.flush(), Status::Ok);
    assert_eq!(second.read(0, 512), [2; 512]);
    if stalls {
        set_faults(&node, "{}");
    }
    std::thread::sleep(Duration::from_millis(300));
    second.read(0, 512)
}

#[test]
fn a_stalled_write_never_lands_over_newer_data() {
    assert_eq!(
        stale_write(env!("CARGO_BIN_EXE_neonsan-node-faulty")),
        [2; 512]
    );
}

#[test]
fn the_planted_node_without_fencing_shows_stale_data() {
    // What the lab's checkers must notice is really there.
    let program = env!("CARGO_BIN_EXE_neonsan-node-unfenced");
    assert_eq!(stale_write(program), [1; 512]);
}

#[test]
fn failures_of_the_engine_reach_the_client_as_what_they_are() {
    let dir = directory();
    let node = Node::start(dir.path());
    create(&node, "p/v", MIB, 512, "main");
    let mut wire = Wire::open(node.data, &Open::new("p/v", 1)).unwrap();
    set_faults(&node, r#"{"fail":"no-space","writes_only":true}"#);
    assert_eq!(wire.write(0, &[1; 512]), Status::NoSpace);
    assert_eq!(wire.read(0, 512), [0; 512]);
    set_faults(&node, r#"{"fail":"io"}"#);
    assert_eq!(wire.flush(), Status::MediaError);
    let none = RequestFlags::NONE;
    let (status, data) = wire.call(Kind::Read, none, 0, 512, &[]);
    assert_eq!((status, data.len()), (Status::MediaError, 0));
    set_faults(&node, "{}");
    assert_eq!(wire.write(0, &[1; 512]), Status::Ok);
    assert_eq!(node.metric("neonsan_node_in_flight_bytes"), 0.0);
    assert_eq!(
        node.metric("neonsan_node_requests_failed_total{op=\"flush\"}"),
        1.0
    );
}

#[test]
fn a_stuck_engine_does_not_stop_heartbeats_or_the_control_api() {
    let dir = directory();
    let more = "[timeouts]\nheartbeat_interval_ms = 100\nheartbeat_timeout_ms = 500\n\
                shutdown_grace_ms = 100\nshutdown_drain_ms = 500\n";
    let mut node = Node::start_with(dir.path(), more);
    create(&node, "p/v", MIB, 512, "mem");
    let mut wire = Wire::open(node.data, &Open::new("p/v", 1)).unwrap();
    set_faults(&node, r#"{"hang":true}"#);
    wire.ask(Kind::Write, RequestFlags::NONE, 0, 512, &[1; 512]);
    let until = Instant::now() + Duration::from_millis(1500);
    while Instant::now() < until {
        let ping = wire.receive().unwrap();
        assert_eq!(ping.header.kind(), Kind::Ping);
        let cookie = ping.header.cookie();
        wire.send(
            Header::request(Kind::Pong, RequestFlags::NONE, cookie, 0, 0),
            &[],
        );
        assert_eq!(node.metric("neonsan_node_connections "), 1.0);
    }
    // Nor a stop, though it takes as long as it may.
    node.terminate();
    node.wait_for("requests did not end in time");
    assert_eq!(node.wait(), 1);
}
