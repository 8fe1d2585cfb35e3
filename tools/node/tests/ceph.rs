// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Several nodes on the cluster that `tools/testing/lab/ceph` starts: a client
//! that writes all the time goes from one to the other, and every block holds
//! what was acknowledged last.
//!
//! `NEONSAN_TEST_ROUNDS` says how often each fault happens.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use common::{block_on, ceph, create, directory, Node};
use neonsan_client::{Client, Config, Error};
use neonsan_proto::Status;
use rustix::process::{kill_process, Signal};
use tokio::task::JoinSet;

/// One task writes only its own blocks, one write at a time, so that it knows
/// what each of them holds.
const TASKS: u64 = 32;
const BLOCKS: u64 = 256;
const BLOCK_BYTES: u64 = 64 << 10;

/// Longest time that anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// The two nodes; they keep their ports when they are started again.
struct Pair {
    dir: tempfile::TempDir,
    nodes: [Node; 2],
    /// More settings of the engine.
    more: &'static str,
}

impl Pair {
    fn start(more: &'static str) -> Self {
        let dir = directory();
        let start =
            |index| Node::start_from(&ceph::config_file(&dir, index, "127.0.0.1:0", more, ""));
        let nodes = [start(0), start(1)];
        Self { dir, nodes, more }
    }

    /// Starts a node again that is gone.
    fn restart(&mut self, index: usize) {
        let address = self.nodes[index].data.to_string();
        let config = ceph::config_file(&self.dir, index, &address, self.more, "");
        self.nodes[index] = Node::start_from(&config);
    }

    fn signal(&self, index: usize, signal: Signal) {
        kill_process(self.nodes[index].pid(), signal).unwrap();
    }

    /// A host of its own each time.
    fn config(&self, volume: &str, host: u8) -> Config {
        let mut config = Config::new(volume, self.nodes.iter().map(|n| n.data).collect());
        config.host_id = [host; 16];
        config.timeouts = ceph::TIMEOUTS;
        config
    }
}

/// A host that writes all the time.
struct Load {
    client: Client,
    writers: JoinSet<()>,
    stop: Arc<AtomicBool>,
    /// Of each block: how often it was written and acknowledged.
    acknowledged: Arc<Vec<AtomicU64>>,
}

fn content(block: u64, stamp: u64) -> Bytes {
    let word = ((block << 40) | stamp).to_le_bytes();
    word.iter()
        .copied()
        .cycle()
        .take(BLOCK_BYTES as usize)
        .collect()
}

impl Load {
    fn new(client: Client) -> Self {
        Self {
            client,
            writers: JoinSet::new(),
            stop: Arc::default(),
            acknowledged: Arc::new((0..BLOCKS).map(|_| AtomicU64::new(0)).collect()),
        }
    }

    fn start(&mut self) {
        self.stop.store(false, Ordering::Relaxed);
        for task in 0..TASKS {
            let client = self.client.clone();
            let stop = Arc::clone(&self.stop);
            let acknowledged = Arc::clone(&self.acknowledged);
            self.writers.spawn(async move {
                for block in (task..BLOCKS).step_by(TASKS as usize).cycle() {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let place = &acknowledged[block as usize];
                    let stamp = place.load(Ordering::Relaxed) + 1;
                    client
                        .write(block * BLOCK_BYTES, content(block, stamp))
                        .await
                        .expect("no write ever fails");
                    place.store(stamp, Ordering::Relaxed);
                }
            });
        }
    }

    /// Ends the writers, so that nothing is in flight.
    async fn rest(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.writers.join_next().await {
            ended.unwrap();
        }
    }

    /// Waits until every block was written `times` more often than now, and
    /// returns how long there was no write at all at the longest.
    async fn progress(&self, times: u64) -> Duration {
        let begun = Instant::now();
        let load = || -> Vec<u64> {
            let of = |a: &AtomicU64| a.load(Ordering::Relaxed);
            self.acknowledged.iter().map(of).collect()
        };
        let goal: Vec<u64> = load().iter().map(|stamp| stamp + times).collect();
        let (mut last, mut last_at, mut longest) = (0, begun, Duration::ZERO);
        loop {
            let now = load();
            let sum = now.iter().sum();
            if sum != last {
                longest = longest.max(last_at.elapsed());
                (last, last_at) = (sum, Instant::now());
            }
            if now.iter().zip(&goal).all(|(now, goal)| now >= goal) {
                return longest;
            }
            assert!(begun.elapsed() < PATIENCE, "the service does not come back");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// How many blocks do not hold what was acknowledged last. Only at rest.
    async fn stale_blocks(&self) -> usize {
        let mut stale = 0;
        for block in 0..BLOCKS {
            let stamp = self.acknowledged[block as usize].load(Ordering::Relaxed);
            let at = block * BLOCK_BYTES;
            let data = self.client.read(at, BLOCK_BYTES as usize).await.unwrap();
            let expected = match stamp {
                0 => Bytes::from(vec![0; BLOCK_BYTES as usize]),
                stamp => content(block, stamp),
            };
            stale += usize::from(data != expected);
        }
        stale
    }
}

fn rounds() -> usize {
    std::env::var("NEONSAN_TEST_ROUNDS").map_or(3, |text| text.parse().unwrap())
}

/// Runs a test's future on several threads, and fails instead of hanging.
fn run<T>(future: impl std::future::Future<Output = T>) -> T {
    let limit = PATIENCE * (2 + rounds() as u32);
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(async { tokio::time::timeout(limit, future).await.unwrap() })
}

/// The pair with a new volume, held by a host through the first node.
async fn begin(pair: &Pair, volume: &str) -> Load {
    let client = Client::attach(pair.config(volume, 1)).await.unwrap();
    Load::new(client)
}

fn make(pair: &Pair, volume: &str) {
    create(&pair.nodes[0], volume, BLOCKS * BLOCK_BYTES, 512, "ceph");
}

fn report(what: &str, gaps: &mut [Duration]) {
    gaps.sort_unstable();
    println!(
        "{what}: {} rounds, longest time without a write: median {} ms, largest {} ms",
        gaps.len(),
        gaps[gaps.len() / 2].as_millis(),
        gaps[gaps.len() - 1].as_millis()
    );
}

#[test]
fn a_killed_node_is_followed_by_the_other_without_an_error_or_a_stale_block() {
    let mut pair = Pair::start("");
    make(&pair, "ha/killed");
    run(async {
        let mut load = begin(&pair, "ha/killed").await;
        let mut gaps = Vec::new();
        for round in 0..rounds() {
            let owner = round % 2;
            load.start();
            load.progress(1).await;
            pair.nodes[owner].kill();
            gaps.push(load.progress(2).await);
            load.rest().await;
            assert_eq!(load.stale_blocks().await, 0, "round {round}");
            pair.restart(owner);
        }
        report("killed", &mut gaps);
        load.client.detach().await;
    });
}

/// Stops the owner in the middle of its writes, lets the other node take over
/// and everything be written anew, then lets the first go on. The number of
/// blocks that hold something old then.
async fn stop_and_go_on(pair: &Pair, load: &mut Load, owner: usize) -> (usize, Duration) {
    load.start();
    load.progress(1).await;
    pair.signal(owner, Signal::STOP);
    let gap = load.progress(2).await;
    load.rest().await;
    assert_eq!(load.stale_blocks().await, 0, "before it goes on");
    pair.signal(owner, Signal::CONT);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    (load.stale_blocks().await, gap)
}

#[test]
fn late_writes_of_a_node_that_stood_still_are_refused() {
    let pair = Pair::start("");
    make(&pair, "ha/stopped");
    run(async {
        let mut load = begin(&pair, "ha/stopped").await;
        let mut gaps = Vec::new();
        for round in 0..rounds() {
            let (stale, gap) = stop_and_go_on(&pair, &mut load, round % 2).await;
            assert_eq!(stale, 0, "round {round}");
            gaps.push(gap);
        }
        report("stopped (1000 ms until it is noticed)", &mut gaps);
        load.client.detach().await;
    });
}

/// The same test catches a node that takes volumes without fencing the one
/// that had them.
#[cfg(feature = "test-faults")]
#[test]
fn without_blocklisting_late_writes_are_caught() {
    let pair = Pair::start("test_without_blocklist = true\n");
    make(&pair, "ha/unfenced");
    run(async {
        let mut load = begin(&pair, "ha/unfenced").await;
        for round in 0..10 {
            let (stale, _) = stop_and_go_on(&pair, &mut load, round % 2).await;
            println!("without blocklisting: {stale} stale blocks in round {round}");
            if stale > 0 {
                return;
            }
        }
        panic!("no late write was seen: the test proves nothing");
    });
}

/// A node that is stopped in order hands its volumes over while it ends.
#[test]
fn nodes_are_restarted_one_after_the_other_without_an_error() {
    let mut pair = Pair::start("");
    make(&pair, "ha/upgrade");
    run(async {
        let mut load = begin(&pair, "ha/upgrade").await;
        let mut gaps = Vec::new();
        for round in 0..rounds() {
            let owner = round % 2;
            load.start();
            load.progress(1).await;
            pair.nodes[owner].terminate();
            gaps.push(load.progress(2).await);
            assert_eq!(pair.nodes[owner].wait(), 0);
            load.rest().await;
            assert_eq!(load.stale_blocks().await, 0, "round {round}");
            pair.restart(owner);
        }
        report("stopped in order", &mut gaps);
        load.client.detach().await;
    });
}

#[test]
fn a_held_volume_is_refused_at_every_node_and_forced_fences() {
    let pair = Pair::start("");
    make(&pair, "ha/held");
    run(async {
        let holder = Client::attach(pair.config("ha/held", 1)).await.unwrap();
        holder.write(0, content(0, 1)).await.unwrap();
        // Another host, by the other node; and the same host a second time.
        for host in [2, 1] {
            let mut config = pair.config("ha/held", host);
            config.nodes.remove(0);
            match Client::attach(config).await.err().unwrap() {
                Error::Refused { status, .. } => assert_eq!(status, Status::HeldByOther),
                other => panic!("{other}"),
            }
        }
        holder.write(0, content(0, 2)).await.unwrap();
        let mut config = pair.config("ha/held", 2);
        config.nodes.remove(0);
        config.force = true;
        let winner = Client::attach(config).await.unwrap();
        let first = winner.read(0, BLOCK_BYTES as usize).await.unwrap();
        assert_eq!(first, content(0, 2));
        winner.write(0, content(0, 3)).await.unwrap();
        // The loser hears it, and is not let in again.
        holder.write(0, content(0, 4)).await.unwrap_err();
        let first = winner.read(0, BLOCK_BYTES as usize).await.unwrap();
        assert_eq!(first, content(0, 3));
        winner.detach().await;
        holder.detach().await;
    });
    // Free again, at whichever node, and deletable.
    let begun = Instant::now();
    while let Err(error) = block_on(
        pair.nodes[0]
            .api()
            .delete_volume(&"ha/held".parse().unwrap()),
    ) {
        assert!(begun.elapsed() < PATIENCE, "{error}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
