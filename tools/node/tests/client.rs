// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The user-space client against a node: what the command line's import and
//! export, the benchmarks and the integrity checks rely on.
#![allow(clippy::unwrap_used)]

mod common;

use bytes::Bytes;
use common::{block_on, create, directory, Node, PATIENCE};
use neonsan_client::{Client, Config, Error, Event, WriteFlags};
use neonsan_proto::Status;
use neonsan_session::Timeouts;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;

/// Runs a test's future, and fails instead of hanging.
fn run<T>(future: impl Future<Output = T>) -> T {
    block_on(async {
        tokio::time::timeout(PATIENCE, future)
            .await
            .expect("the test hangs")
    })
}

fn volume(node: SocketAddr) -> Config {
    let mut config = Config::new("pool/vol", vec![node]);
    config.timeouts = Timeouts {
        reconnect_delay_max_ms: 100,
        ..Timeouts::DEFAULT
    };
    config
}

fn pattern(seed: u8, length: usize) -> Bytes {
    (0..length)
        .map(|i| seed.wrapping_add((i / 512) as u8) ^ (i as u8))
        .collect()
}

/// A configuration whose data port stays the same, so that a client finds the node again.
fn on_port(dir: &Path, port: u16) -> PathBuf {
    let path = dir.join("same-port.toml");
    let data = format!("[data]\nlisten = [\"127.0.0.1:{port}\"]\n");
    std::fs::write(&path, common::config(dir, &data)).unwrap();
    path
}

#[test]
fn what_is_written_is_read_with_and_without_checksums_over_many_connections() {
    let dir = directory();
    let node = Node::start(dir.path());
    create(&node, "pool/vol", 64 * MIB, 512, "main");
    for (checksums, connections) in [(false, 1), (true, 4)] {
        run(async {
            let mut config = volume(node.data);
            config.checksums = checksums;
            config.connections = connections;
            let client = Client::attach(config).await.unwrap();
            assert_eq!(client.connections(), usize::from(connections));
            assert_eq!(client.geometry().size_bytes.get(), 64 * MIB);
            // Longer than one request may be, and not a multiple of anything but the block size.
            let data = pattern(connections as u8, 9 * MIB as usize + 512);
            client.write(512, data.clone()).await.unwrap();
            assert_eq!(client.read(512, data.len()).await.unwrap(), data);
            let fua = WriteFlags {
                fua: true,
                atomic: false,
            };
            client.write_with(0, pattern(9, 4096), fua).await.unwrap();
            client.flush().await.unwrap();
            client.write_zeroes(4096, 8192, false).await.unwrap();
            assert!(client
                .read(4096, 8192)
                .await
                .unwrap()
                .iter()
                .all(|b| *b == 0));
            client.discard(MIB, MIB).await.unwrap();
            client.detach().await;
            assert_eq!(client.read(0, 512).await, Err(Error::Detached));
        });
    }
}

#[test]
fn many_tasks_share_a_client() {
    let dir = directory();
    let node = Node::start(dir.path());
    create(&node, "pool/vol", 64 * MIB, 4096, "mem");
    run(async {
        let mut config = volume(node.data);
        (config.connections, config.depth) = (2, 4);
        let client = Client::attach(config).await.unwrap();
        let tasks: Vec<_> = (0..64u64)
            .map(|i| {
                let client = client.clone();
                tokio::spawn(async move {
                    let data = pattern(i as u8, 65536);
                    for round in 0..8 {
                        let at = (i * 8 + round) * 65536;
                        client.write(at, data.clone()).await?;
                        assert_eq!(client.read(at, data.len()).await?, data);
                    }
                    Ok::<(), Error>(())
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap().unwrap();
        }
        client.detach().await;
    });
}

#[test]
fn a_request_that_fails_says_what_and_where() {
    let dir = directory();
    let node = Node::start(dir.path());
    create(&node, "pool/vol", MIB, 4096, "mem");
    run(async {
        let client = Client::attach(volume(node.data)).await.unwrap();
        let error = client.read(MIB, 4096).await.unwrap_err();
        assert!(
            matches!(error, Error::Io { status: Status::OutOfRange, offset, .. } if offset == MIB)
        );
        let error = client.write(512, pattern(1, 4096)).await.unwrap_err();
        assert!(
            matches!(
                error,
                Error::Io {
                    status: Status::Misaligned,
                    ..
                }
            ),
            "{error}"
        );
        // The connection is still good.
        client.read(0, 4096).await.unwrap();
        client.detach().await;
    });
}

#[test]
fn attach_fails_with_the_reason() {
    let dir = directory();
    let node = Node::start(dir.path());
    create(&node, "pool/vol", MIB, 512, "mem");
    run(async {
        let holder = Client::attach(volume(node.data)).await.unwrap();
        let mut second = volume(node.data);
        second.host_id = [7; 16];
        let error = Client::attach(second.clone()).await.map(drop).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Refused {
                    status: Status::HeldByOther,
                    ..
                }
            ),
            "{error}"
        );
        second.force = true;
        let thief = Client::attach(second).await.unwrap();
        thief.write(0, pattern(3, 512)).await.unwrap();
        // The first holder gets errors, not silence.
        assert!(matches!(holder.read(0, 512).await, Err(Error::Lost(_))));
        thief.detach().await;

        let no_volume = Config::new("pool/other", vec![node.data]);
        let error = Client::attach(no_volume).await.map(drop).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Refused {
                    status: Status::NoSuchVolume,
                    ..
                }
            ),
            "{error}"
        );
        let http = Config::new("pool/vol", vec![node.control]);
        let error = Client::attach(http)
            .await
            .map(drop)
            .unwrap_err()
            .to_string();
        assert!(error.contains("HTTP"), "{error}");
        let nobody = Config::new("pool/vol", vec!["127.0.0.1:1".parse().unwrap()]);
        assert!(matches!(
            Client::attach(nobody).await.map(drop),
            Err(Error::Connect { .. })
        ));
        let bad = Config::new("vol", vec![node.data]);
        assert!(matches!(
            Client::attach(bad).await.map(drop),
            Err(Error::Misuse(_))
        ));
    });
}

#[test]
fn a_restart_of_the_node_is_not_seen_by_requests() {
    let dir = directory();
    let mut node = Node::start(dir.path());
    create(&node, "pool/vol", 16 * MIB, 512, "main");
    let address = node.data;
    let config_path = on_port(dir.path(), address.port());
    run(async {
        let mut config = volume(address);
        config.connections = 2;
        let client = Client::attach(config).await.unwrap();
        let mut events = client.events();
        let data = pattern(5, MIB as usize);
        client.write(0, data.clone()).await.unwrap();
        client.flush().await.unwrap();
        client.write(2 * MIB, data.clone()).await.unwrap();

        node.kill();
        let waiting = {
            let (client, data) = (client.clone(), data.clone());
            tokio::spawn(async move { client.write(4 * MIB, data).await })
        };
        while !matches!(events.recv().await.unwrap(), Event::Lost(_)) {}
        let _node = Node::start_from(&config_path);
        // It was made while there was no node, and nobody notices.
        waiting.await.unwrap().unwrap();
        assert_eq!(client.read(0, data.len()).await.unwrap(), data);
        // A killed process takes nothing with it: what it had answered is with the kernel or on
        // the disk, and the boot id says so.
        assert_eq!(client.flush().await, Ok(()));
        assert_eq!(client.read(2 * MIB, data.len()).await.unwrap(), data);
        client.detach().await;
    });
}

#[test]
fn a_lost_volume_fails_requests_only_after_the_loss_timeout() {
    let dir = directory();
    let mut node = Node::start(dir.path());
    create(&node, "pool/vol", MIB, 512, "main");
    run(async {
        let mut config = volume(node.data);
        config.timeouts.loss_ms = 500;
        let client = Client::attach(config).await.unwrap();
        node.kill();
        let error = client.read(0, 512).await.unwrap_err();
        assert!(matches!(error, Error::Lost(_)), "{error}");
        // And at once from then on.
        assert!(client.read(0, 512).await.is_err());
        client.detach().await;
    });
}

#[test]
fn a_larger_volume_is_told_to_the_client() {
    let dir = directory();
    let node = Node::start(dir.path());
    create(&node, "pool/vol", MIB, 512, "main");
    run(async {
        let client = Client::attach(volume(node.data)).await.unwrap();
        let mut events = client.events();
        let name = "pool/vol".parse().unwrap();
        let resize = neonsan_api::VolumeResize {
            size_bytes: 2 * MIB,
            allow_shrink: false,
        };
        node.api().resize_volume(&name, &resize).await.unwrap();
        assert_eq!(events.recv().await.unwrap(), Event::Resized(2 * MIB));
        client.write(MIB, pattern(1, 512)).await.unwrap();
        client.detach().await;
    });
}
