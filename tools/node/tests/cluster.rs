// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What several nodes on one Ceph cluster know of each other, and what they
//! leave alone, on the cluster that `tools/testing/lab/ceph` starts.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use common::wire::{Open, Wire};
use common::{block, block_on, ceph, create, directory, within, Node};
use neonsan_api::{
    ClientError, ErrorCode, NodeEntry, NodeState, SnapshotName, VolumeName, VolumeResize,
};
use neonsan_client::{Client, Config, Error, Event};
use neonsan_engine::rbd::{RbdEngine, RbdOptions};
use neonsan_engine::Engine as _;
use neonsan_proto::{Mode, Status};

const MIB: u64 = 1 << 20;

/// Longest time that anything may take: a dead client is believed in for 30 s.
const PATIENCE: Duration = Duration::from_secs(90);

/// How long a host has to come back.
const LINGER: Duration = Duration::from_secs(4);

fn run<T>(future: impl std::future::Future<Output = T>) -> T {
    within(PATIENCE * 2, future)
}

/// Starts a node; the same `data` address when it is started again.
fn start(dir: &tempfile::TempDir, index: usize, data: &str) -> Node {
    let linger = format!("[timeouts]\nsession_linger_ms = {}\n", LINGER.as_millis());
    Node::start_from(&ceph::config_file(dir, index, data, "", &linger))
}

fn config(volume: &str, nodes: &[SocketAddr]) -> Config {
    let mut config = Config::new(volume, nodes.to_vec());
    config.timeouts = ceph::TIMEOUTS;
    config
}

fn nodes(node: &Node) -> Vec<NodeEntry> {
    block_on(node.api().nodes()).unwrap().nodes
}

/// Waits until a node's list of nodes is as it should be.
fn wait_for(node: &Node, what: &str, is: impl Fn(&[NodeEntry]) -> bool) {
    let begun = Instant::now();
    loop {
        let list = nodes(node);
        if is(&list) {
            println!("{what}: after {} ms", begun.elapsed().as_millis());
            return;
        }
        assert!(begun.elapsed() < PATIENCE, "never {what}: {list:#?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn state_of(list: &[NodeEntry], address: SocketAddr) -> Option<NodeState> {
    let address = address.to_string();
    let entry = list.iter().find(|node| node.addresses == [address.clone()]);
    entry.map(|node| node.state)
}

fn rbd(words: &[&str]) {
    let status = Command::new("rbd")
        .args(["-c", &ceph::lab("NEONSAN_CEPH_CONF"), "--no-progress"])
        .args(["-n", &format!("client.{}", ceph::lab("NEONSAN_CEPH_USER"))])
        .args(words)
        .status()
        .unwrap();
    assert!(status.success(), "{words:?}");
}

#[test]
fn nodes_find_each_other_and_hosts_are_told_of_all() {
    let dir = directory();
    let mut all: Vec<Node> = (0..3).map(|i| start(&dir, i, "127.0.0.1:0")).collect();
    let at: Vec<SocketAddr> = all.iter().map(|node| node.data).collect();
    for node in &all {
        wait_for(node, "all three are known", |list| {
            at.iter().all(|a| state_of(list, *a) == Some(NodeState::Ok))
        });
        let list = nodes(node);
        assert!(list[0].is_this && list[0].addresses == [node.data.to_string()]);
        assert!(list[1..]
            .iter()
            .all(|other| !other.is_this && other.engines == ["ceph"]));
    }
    create(&all[0], "peers/v", MIB, 512, "ceph");
    run(async {
        // The host was given one node only.
        let host = Client::attach(config("peers/v", &at[..1])).await.unwrap();
        host.write(0, block(1)).await.unwrap();
        let (begun, api) = (Instant::now(), all[1].api());
        let first = [at[0].to_string()];
        let seen = |n: &NodeEntry| n.addresses == first && n.sessions == 1;
        while !api.nodes().await.unwrap().nodes.iter().any(seen) {
            assert!(begun.elapsed() < PATIENCE, "the session is not seen");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        all[0].kill();
        host.write(4096, block(2)).await.unwrap();
        assert_eq!(host.read(0, 4096).await.unwrap(), block(1));
        host.detach().await;
    });
    for node in &all[1..] {
        wait_for(node, "the killed one is silent", |list| {
            state_of(list, at[0]) == Some(NodeState::Silent)
        });
    }
    // Those that other tests have killed are silent too.
    assert!(all[1].metric("neonsan_node_nodes{state=\"silent\"}") > 0.9);
    // Stopped in order, it leaves the list.
    all[2].terminate();
    assert_eq!(all[2].wait(), 0);
    wait_for(&all[1], "the stopped one is gone", |list| {
        state_of(list, at[2]).is_none()
    });
    // Back at its address, it is the same node.
    all[0] = start(&dir, 0, &at[0].to_string());
    wait_for(&all[1], "the killed one is back", |list| {
        state_of(list, at[0]) == Some(NodeState::Ok)
    });
}

/// What nodes on loopback tell in the cluster leads no other machine to itself.
#[test]
fn addresses_of_loopback_are_not_told_to_other_machines() {
    let dir = directory();
    let mut node = start(&dir, 0, "127.0.0.1:0");
    node.wait_for("on other machines are not told of this one");
    let engine = RbdEngine::open(RbdOptions::new(
        ceph::lab("NEONSAN_CEPH_CONF"),
        &ceph::lab("NEONSAN_CEPH_USER"),
        &ceph::lab("NEONSAN_CEPH_POOL"),
    ))
    .unwrap();
    let port = node.data.port();
    let begun = Instant::now();
    let told: serde_json::Value = loop {
        let notes = engine.told_nodes().unwrap();
        let own = format!("127.0.0.1:{port}@");
        if let Some(note) = notes.iter().find(|note| note.key.starts_with(&own)) {
            break serde_json::from_str(&note.text).unwrap();
        }
        assert!(begun.elapsed() < PATIENCE, "{notes:?}");
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(told["addresses"], serde_json::json!([]));
    assert_eq!(told["local_addresses"][0], format!("127.0.0.1:{port}"));
}

/// The host of a dead node may come back to any other with writes in flight:
/// nobody changes the volume under it, until it has had its time.
#[test]
fn a_volume_of_a_dead_node_is_left_alone_until_its_host_has_had_its_time() {
    let dir = directory();
    let mut all: Vec<Node> = (0..2).map(|i| start(&dir, i, "127.0.0.1:0")).collect();
    let api = all[1].api();
    let name: VolumeName = "peers/orphan".parse().unwrap();
    create(&all[0], name.as_str(), MIB, 512, "ceph");
    let mut host = Wire::open(all[0].data, &Open::new(name.as_str(), 1)).unwrap();
    host.write(0, &[1; 4096]);
    all[0].kill();
    let resize = VolumeResize {
        size_bytes: 2 * MIB,
        allow_shrink: false,
    };
    let (mut in_use, mut expected_back) = (0, None);
    run(async {
        loop {
            match api.resize_volume(&name, &resize).await {
                Ok(_) => break,
                Err(ClientError::Refused(error)) => {
                    assert_eq!(error.code, ErrorCode::Busy, "{error}");
                    if error.message.contains("may come back") {
                        assert!(error.hint.unwrap().contains("try again in"));
                        // Once, at the beginning: between two questions the time may be over.
                        if expected_back.is_none() {
                            expected_back = Some(Instant::now());
                            let deleted = api.delete_volume(&name).await.unwrap_err();
                            let snapshot = SnapshotName::new(&name, "s").unwrap();
                            let made = api.create_snapshot(&snapshot).await.unwrap_err();
                            for refused in [deleted, made] {
                                println!("{refused}");
                            }
                        }
                    } else {
                        in_use += 1;
                    }
                }
                Err(other) => panic!("{other}"),
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        let waited = expected_back.expect("was never protected").elapsed();
        println!(
            "refused {in_use} times as in use, then for {} ms",
            waited.as_millis()
        );
        assert!(waited >= LINGER - Duration::from_millis(500));
        assert_eq!(api.volume(&name).await.unwrap().size_bytes, 2 * MIB);
        api.delete_volume(&name).await.unwrap();
    });
}

#[test]
fn an_image_that_somebody_resizes_is_a_volume_resized() {
    let dir = directory();
    let node = start(&dir, 0, "127.0.0.1:0");
    let image = format!("{}/peers/sized", ceph::lab("NEONSAN_CEPH_POOL"));
    create(&node, "peers/sized", 4 * MIB, 512, "ceph");
    run(async {
        let host = Client::attach(config("peers/sized", &[node.data]))
            .await
            .unwrap();
        let mut events = host.events();
        host.write(0, block(1)).await.unwrap();
        for (size, words) in [(9 * MIB, "9M"), (3 * MIB, "3M")] {
            let image = image.clone();
            tokio::task::spawn_blocking(move || {
                rbd(&["resize", "--allow-shrink", "--size", words, &image]);
            })
            .await
            .unwrap();
            let begun = Instant::now();
            loop {
                if let Event::Resized(new) = events.recv().await.unwrap() {
                    assert_eq!(new, size);
                    break;
                }
            }
            println!("heard of it after {} ms", begun.elapsed().as_millis());
            assert_eq!(host.geometry().size_bytes.get(), size);
            host.write(size - 4096, block(2)).await.unwrap();
        }
        // Behind the new end there is nothing any more.
        assert!(host.write(4 * MIB, block(3)).await.is_err());
        assert_eq!(host.read(0, 4096).await.unwrap(), block(1));
        host.detach().await;
    });
}

#[test]
fn a_snapshot_made_at_one_node_is_read_and_cloned_at_another() {
    let dir = directory();
    let all: Vec<Node> = (0..2).map(|i| start(&dir, i, "127.0.0.1:0")).collect();
    let name: VolumeName = "peers/live".parse().unwrap();
    let snapshot = SnapshotName::new(&name, "s").unwrap();
    let clone: VolumeName = "peers/clone".parse().unwrap();
    create(&all[0], name.as_str(), 4 * MIB, 512, "ceph");
    let (here, there) = (all[0].api(), all[1].api());
    run(async {
        let busy = |result: Result<(), ClientError>| match result.unwrap_err() {
            ClientError::Refused(error) => {
                assert_eq!(error.code, ErrorCode::Busy, "{error}");
                error.to_string()
            }
            other => panic!("{other}"),
        };
        let host = Client::attach(config(name.as_str(), &[all[0].data]))
            .await
            .unwrap();
        host.write(0, block(1)).await.unwrap();
        here.create_snapshot(&snapshot).await.unwrap();
        host.write(0, block(2)).await.unwrap();
        // The volume is open at the other node.
        busy(there.roll_back(&snapshot).await.map(drop));
        let mut read = config(&snapshot.to_string(), &[all[1].data]);
        read.mode = Mode::ReadOnly;
        let reader = Client::attach(read).await.unwrap();
        assert_eq!(reader.read(0, 4096).await.unwrap(), block(1));
        reader.detach().await;

        let made = there.clone_snapshot(&snapshot, &clone).await.unwrap();
        assert_eq!(made.parent.as_ref(), Some(&snapshot));
        let info = there.snapshot(&snapshot).await.unwrap();
        assert_eq!(info.children, std::slice::from_ref(&clone));
        let text = busy(here.delete_snapshot(&snapshot).await);
        assert!(text.contains("peers/clone"), "{text}");
        let copy = Client::attach(config(clone.as_str(), &[all[1].data]))
            .await
            .unwrap();
        assert_eq!(copy.read(0, 4096).await.unwrap(), block(1));
        // In use, too.
        there.flatten_volume(&clone).await.unwrap();
        copy.write(0, block(3)).await.unwrap();
        // The owner of the volume is another node: Ceph asks it.
        there.delete_snapshot(&snapshot).await.unwrap();
        assert_eq!(host.read(0, 4096).await.unwrap(), block(2));
        assert_eq!(copy.read(0, 4096).await.unwrap(), block(3));
        copy.detach().await;
        host.detach().await;
        let begun = Instant::now();
        for (api, name) in [(&here, &name), (&there, &clone)] {
            while let Err(error) = api.delete_volume(name).await {
                assert!(begun.elapsed() < PATIENCE, "{error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    });
}

#[test]
fn two_hosts_share_a_volume_and_lose_their_node() {
    const BLOCKS: u64 = 64;
    const ROUNDS: u8 = 8;
    let dir = directory();
    let mut all: Vec<Node> = (0..2).map(|i| start(&dir, i, "127.0.0.1:0")).collect();
    let addresses: Vec<_> = all.iter().map(|node| node.data).collect();
    create(&all[0], "peers/both", MIB, 512, "ceph");
    let wanted = |host: u8, mode| {
        let mut wanted = config("peers/both", &addresses);
        wanted.host_id = [host; 16];
        wanted.mode = mode;
        wanted
    };
    run(async {
        let mut hosts = Vec::new();
        for host in [1, 2] {
            let attached = Client::attach(wanted(host, Mode::Shared)).await;
            hosts.push(attached.unwrap());
        }
        // Each has every second block.
        let blocks_of = |host: usize| (host as u64..BLOCKS).step_by(2);
        for round in 0..ROUNDS {
            let content = |host: usize| block(round * 2 + host as u8 + 1);
            let write = async |host: usize| {
                for i in blocks_of(host) {
                    hosts[host].write(i * 4096, content(host)).await.unwrap();
                }
                hosts[host].flush().await.unwrap();
            };
            let lose = async {
                if round == ROUNDS / 2 {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    drop(all.remove(0));
                }
            };
            tokio::join!(write(0), write(1), lose);
            for (reader, writer) in [(0, 1), (1, 0)] {
                for i in blocks_of(writer) {
                    let got = hosts[reader].read(i * 4096, 4096).await.unwrap();
                    assert_eq!(got, content(writer), "round {round}, block {i}");
                }
            }
        }
        match Client::attach(wanted(3, Mode::Exclusive)).await.err() {
            Some(Error::Refused { status, .. }) => assert_eq!(status, Status::HeldByOther),
            other => panic!("{other:?}"),
        }
        for host in hosts {
            host.detach().await;
        }
    });
}
