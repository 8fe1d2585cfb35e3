// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Snapshots and clones through a node: over the control API, and attached by
//! hosts. Those of several nodes are in `cluster.rs`.
#![allow(clippy::unwrap_used)]

mod common;
#[allow(dead_code, reason = "what the tests of the engine do with it too")]
#[path = "../../engine/tests/common/xfs.rs"]
mod xfs;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{block, create, directory, within, Node, PATIENCE};
use neonsan_api::{ClientError, ErrorCode, NodeState, SnapshotName, VolumeName, VolumeResize};
use neonsan_client::{Client, Config, Error};
use neonsan_proto::{Mode, Status};

const MIB: u64 = 1 << 20;

fn run<T>(future: impl std::future::Future<Output = T>) -> T {
    within(PATIENCE * 3, future)
}

fn refusal<T: std::fmt::Debug>(result: Result<T, ClientError>) -> (ErrorCode, String) {
    match result.unwrap_err() {
        ClientError::Refused(error) => (error.code, error.to_string()),
        other => panic!("{other}"),
    }
}

fn config(node: &Node, name: &str, mode: Mode) -> Config {
    let mut config = Config::new(name, vec![node.data]);
    config.mode = mode;
    config
}

async fn status_of(config: Config) -> Status {
    match Client::attach(config).await.err().unwrap() {
        Error::Refused { status, .. } => status,
        other => panic!("{other}"),
    }
}

/// A node with engine `main` on XFS, or with engine `mem` alone where XFS cannot
/// be mounted.
struct Lab {
    node: Option<Node>,
    mount: Option<xfs::Mount>,
    _dirs: Vec<tempfile::TempDir>,
    engines: &'static [&'static str],
}

impl Lab {
    fn new() -> Self {
        let dir = directory();
        match xfs::xfs() {
            Ok((image, mount)) => Self {
                node: Some(Node::start(&mount.0)),
                mount: Some(mount),
                _dirs: vec![dir, image],
                engines: &["mem", "main"],
            },
            Err(reason) => {
                eprintln!("SKIP the file engine: {reason}");
                Self {
                    node: Some(Node::start(dir.path())),
                    mount: None,
                    _dirs: vec![dir],
                    engines: &["mem"],
                }
            }
        }
    }

    fn node(&self) -> &Node {
        self.node.as_ref().unwrap()
    }
}

impl Drop for Lab {
    /// The node first, since it has files open there.
    fn drop(&mut self) {
        self.node = None;
        self.mount = None;
    }
}

#[test]
fn a_snapshot_of_a_volume_in_use_is_attached_read_only() {
    let lab = Lab::new();
    let node = lab.node();
    let api = node.api();
    for engine in lab.engines {
        let volume: VolumeName = format!("p/{engine}").parse().unwrap();
        let snapshot = SnapshotName::new(&volume, "s").unwrap();
        create(node, volume.as_str(), 4 * MIB, 512, engine);
        run(async {
            let host = Client::attach(config(node, volume.as_str(), Mode::Exclusive))
                .await
                .unwrap();
            // The second block is written when the first has been answered.
            let stop = AtomicBool::new(false);
            let writes = async {
                let mut count = 0u8;
                while !stop.load(Ordering::Relaxed) {
                    count = count.wrapping_add(1);
                    host.write(0, block(count)).await.unwrap();
                    host.write(2 * MIB, block(count)).await.unwrap();
                }
            };
            let snapshots = async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                let made = api.create_snapshot(&snapshot).await.unwrap();
                assert_eq!((made.size_bytes, made.snapshot.as_str()), (4 * MIB, "s"));
                tokio::time::sleep(Duration::from_millis(50)).await;
                stop.store(true, Ordering::Relaxed);
                made
            };
            let ((), made) = tokio::join!(writes, snapshots);

            let name = snapshot.to_string();
            for mode in [Mode::Exclusive, Mode::Shared] {
                let status = status_of(config(node, &name, mode)).await;
                assert_eq!(status, Status::OpenedReadOnly);
            }
            let none = config(node, &format!("{volume}@none"), Mode::ReadOnly);
            assert_eq!(status_of(none).await, Status::NoSuchSnapshot);
            let reader = Client::attach(config(node, &name, Mode::ReadOnly))
                .await
                .unwrap();
            let second = Client::attach(config(node, &name, Mode::ReadOnly))
                .await
                .unwrap();
            assert_ne!(reader.opened().volume_id, host.opened().volume_id);
            let first = reader.read(0, 4096).await.unwrap()[0];
            let later = reader.read(2 * MIB, 4096).await.unwrap()[0];
            assert!(first.wrapping_sub(later) <= 1, "{engine}: {first} {later}");
            host.write(0, block(255)).await.unwrap();
            assert_eq!(second.read(0, 4096).await.unwrap()[0], first);
            assert!(reader.write(0, block(1)).await.is_err());

            // Who reads it is shown, and in the way of its deletion.
            let info = api.snapshot(&snapshot).await.unwrap();
            assert_eq!((info.sessions.len(), info.id == made.id), (2, true));
            assert_eq!(info.sessions[0].snapshot.as_deref(), Some("s"));
            let of_volume = api.volume(&volume).await.unwrap().sessions;
            assert_eq!((of_volume.len(), of_volume[0].snapshot.clone()), (1, None));
            let (code, text) = refusal(api.delete_snapshot(&snapshot).await);
            assert_eq!(code, ErrorCode::Busy);
            assert!(text.contains("is held by host"), "{text}");
            let (code, _) = refusal(api.roll_back(&snapshot).await);
            assert_eq!(code, ErrorCode::Busy, "{engine}");
            reader.detach().await;
            second.detach().await;
            host.detach().await;
            let (code, text) = refusal(api.delete_volume(&volume).await);
            assert_eq!(code, ErrorCode::Busy);
            assert!(text.contains("snapshots") && text.contains(": s"), "{text}");
            api.delete_snapshot(&snapshot).await.unwrap();
            api.delete_volume(&volume).await.unwrap();
        });
    }
}

#[test]
fn volumes_are_rolled_back_and_cloned_over_the_api() {
    let lab = Lab::new();
    let node = lab.node();
    let api = node.api();
    for engine in lab.engines {
        let volume: VolumeName = format!("p/{engine}").parse().unwrap();
        let snapshot = SnapshotName::new(&volume, "s").unwrap();
        create(node, volume.as_str(), MIB, 512, engine);
        run(async {
            let attach = || Client::attach(config(node, volume.as_str(), Mode::Exclusive));
            let host = attach().await.unwrap();
            host.write(0, block(1)).await.unwrap();
            host.detach().await;
            // Not held: the node opens it for this.
            api.create_snapshot(&snapshot).await.unwrap();
            let (code, _) = refusal(api.create_snapshot(&snapshot).await);
            assert_eq!(code, ErrorCode::AlreadyExists);
            let host = attach().await.unwrap();
            host.write(0, block(2)).await.unwrap();
            host.detach().await;
            let resize = VolumeResize {
                size_bytes: 2 * MIB,
                allow_shrink: false,
            };
            api.resize_volume(&volume, &resize).await.unwrap();

            let clone: VolumeName = format!("q/{engine}").parse().unwrap();
            let made = api.clone_snapshot(&snapshot, &clone).await.unwrap();
            assert_eq!((made.size_bytes, made.engine.as_str()), (MIB, *engine));
            let (code, _) = refusal(api.clone_snapshot(&snapshot, &clone).await);
            assert_eq!(code, ErrorCode::AlreadyExists);
            api.flatten_volume(&clone).await.unwrap();

            let rolled = api.roll_back(&snapshot).await.unwrap();
            assert_eq!(rolled.size_bytes, MIB);
            let host = attach().await.unwrap();
            assert_eq!(host.read(0, 4096).await.unwrap(), block(1));
            host.detach().await;
            let listed = api.list_snapshots(&volume).await.unwrap().snapshots;
            assert_eq!(listed.len(), 1);
            api.delete_snapshot(&snapshot).await.unwrap();
            for gone in [
                api.delete_snapshot(&snapshot).await,
                api.roll_back(&snapshot).await.map(drop),
                api.snapshot(&snapshot).await.map(drop),
                api.clone_snapshot(&snapshot, &"q/x".parse().unwrap())
                    .await
                    .map(drop),
            ] {
                assert_eq!(refusal(gone).0, ErrorCode::NotFound);
            }
            let copy = Client::attach(config(node, clone.as_str(), Mode::Exclusive))
                .await
                .unwrap();
            assert_eq!(copy.read(0, 4096).await.unwrap(), block(1));
            copy.detach().await;
        });
    }
}

/// A host that lost the volume would send what it had in flight over what was
/// rolled back.
#[test]
fn a_host_that_is_away_does_not_come_back_to_a_volume_that_was_rolled_back() {
    let dir = directory();
    let more = "[timeouts]\nsession_linger_ms = 300\n";
    let node = Node::start_with(dir.path(), more);
    create(&node, "p/v", MIB, 512, "mem");
    let api = node.api();
    let snapshot: SnapshotName = "p/v@s".parse().unwrap();
    use common::wire::{Open, Wire};
    let mut host = Wire::open(node.data, &Open::new("p/v", 1)).unwrap();
    host.write(0, &[1; 4096]);
    run(async {
        api.create_snapshot(&snapshot).await.unwrap();
        // Its connection breaks; it has no chance to release the volume.
        drop(host);
        loop {
            match api.roll_back(&snapshot).await {
                Ok(_) => break,
                Err(ClientError::Refused(error)) => assert_eq!(error.code, ErrorCode::Busy),
                Err(other) => panic!("{other}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    let mut again = Open::new("p/v", 1);
    again.generation = 2;
    let refused = Wire::open(node.data, &again).err().unwrap();
    assert_eq!(refused.status, Status::Fenced);
    // Another session is let in.
    Wire::open(node.data, &Open::new("p/v", 2)).unwrap();
}

#[test]
fn a_node_that_shares_nothing_lists_itself() {
    let dir = directory();
    let node = Node::start(dir.path());
    let nodes = run(node.api().nodes()).unwrap().nodes;
    assert_eq!(nodes.len(), 1);
    let this = &nodes[0];
    assert!(this.is_this && this.state == NodeState::Ok && this.heard_ms == 0);
    assert_eq!(this.addresses, [node.data.to_string()]);
    assert_eq!(this.engines, ["main", "mem"]);
    assert!((node.metric("neonsan_node_nodes{state=\"ok\"}") - 1.0).abs() < 0.1);
}

#[test]
fn where_files_cannot_share_blocks_snapshots_are_refused_with_what_to_do() {
    let dir = directory();
    let node = Node::start(dir.path());
    create(&node, "p/v", MIB, 512, "main");
    let notes = run(node.api().node()).unwrap().engines.remove(0).notes;
    let made = run(node.api().create_snapshot(&"p/v@s".parse().unwrap()));
    if notes.iter().any(|note| note.contains("no snapshots")) {
        let (code, text) = refusal(made);
        assert_eq!(code, ErrorCode::Unsupported);
        assert!(text.contains("XFS"), "{text}");
    } else {
        made.unwrap();
    }
}
