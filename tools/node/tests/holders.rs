// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Who may have a volume whose session lost its connections: the session itself, or another boot of
//! its host; all others wait. Whoever comes in by that or by force is saved before anybody is fenced.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::disk::Disk;
use common::wire::{open_message, Open, Refused, Wire};
use common::{block_on, create, directory, Node};
use neonsan_client::{Client, Config};
use neonsan_proto::{EventKind, Features, Kind, RequestFlags, Status};
use rustix::process::{getrlimit, prlimit, Resource, Rlimit};

const MIB: u64 = 1 << 20;

/// Longer than any of these tests takes, on however slow a machine.
const LINGERS_LONG: &str = "[timeouts]\nsession_linger_ms = 600000\n";

/// A second session of host 1, which says that it is of this boot.
fn second(boot: u64) -> Open<'static> {
    Open {
        session: 2,
        boot,
        ..Open::new("p/v", 1)
    }
}

/// The first session of host 1, in a later generation.
fn first(generation: u64) -> Open<'static> {
    Open {
        generation,
        ..Open::new("p/v", 1)
    }
}

fn must_wait(result: Result<Wire, Refused>, why: &str) {
    let refused = result.err().unwrap_or_else(|| panic!("let in: {why}"));
    assert_eq!(refused.status, Status::HeldByOther, "{why}");
    assert_eq!(refused.refusal.holder, [1; 16], "{why}");
    let left_ms = refused.refusal.retry_after_ms.get();
    assert!((1..=600_000).contains(&left_ms), "{why}: {left_ms}");
    // People read who has it and until when.
    assert!(refused.text.contains("held by host"), "{}", refused.text);
    assert!(refused.text.contains("free in "), "{}", refused.text);
    assert!(refused.text.contains(" s, at 2"), "{}", refused.text);
}

/// The node hears of the end of a connection a moment after its client.
fn wait_until_empty(node: &Node) {
    let until = Instant::now() + common::PATIENCE;
    loop {
        match Wire::open(node.data, &Open::new("p/v", 9)).err().unwrap() {
            refused if refused.refusal.retry_after_ms.get() > 0 => return,
            refused => assert_eq!(refused.status, Status::HeldByOther),
        }
        assert!(Instant::now() < until, "the connection does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_second_session_of_the_same_boot_does_not_fence_the_first() {
    for engine in ["main", "mem"] {
        let dir = directory();
        let node = Node::start_with(dir.path(), LINGERS_LONG);
        create(&node, "p/v", MIB, 512, engine);
        let one = Wire::open(node.data, &first(1)).unwrap();
        let refused = Wire::open(node.data, &second(7)).err().unwrap();
        assert_eq!(refused.status, Status::HeldByOther);
        assert_eq!(refused.refusal.retry_after_ms.get(), 0, "it is connected");
        drop(one);
        wait_until_empty(&node);
        must_wait(Wire::open(node.data, &second(7)), "the same boot");
        must_wait(Wire::open(node.data, &second(0)), "no boot is said");
        let stranger = Open::new("p/v", 2);
        must_wait(Wire::open(node.data, &stranger), "another host");
        // The first comes back, and is resumed by whoever knows it.
        let mut one = Wire::open(node.data, &first(2)).unwrap();
        one.ask(Kind::Write, RequestFlags::NONE, 0, 512, &[1; 512]);
        assert_eq!(one.receive().unwrap().header.status(), Status::Ok);
        drop(one);
        Wire::open(node.data, &first(3)).unwrap().release();
        Wire::open(node.data, &second(7)).unwrap();
    }
}

#[test]
fn another_boot_of_the_host_has_the_volume_at_once() {
    let dir = directory();
    let node = Node::start_with(dir.path(), LINGERS_LONG);
    create(&node, "p/v", MIB, 512, "main");
    drop(Wire::open(node.data, &first(1)).unwrap());
    wait_until_empty(&node);
    let two = Wire::open(node.data, &second(8)).unwrap();
    let refused = Wire::open(node.data, &first(2)).err().unwrap();
    assert_eq!(refused.status, Status::Fenced);
    drop(two);
}

#[test]
fn a_node_that_restarted_knows_the_boot_of_who_held_the_volume() {
    // A node that was killed, and one that was stopped in order.
    for stop in [Node::kill as fn(&mut Node), stop_in_order] {
        let dir = directory();
        let more = format!("{LINGERS_LONG}shutdown_grace_ms = 100\n");
        let mut node = Node::start_with(dir.path(), &more);
        create(&node, "p/v", MIB, 512, "main");
        let one = Wire::open(node.data, &first(1)).unwrap();
        stop(&mut node);
        drop(one);

        let mut node = Node::start_with(dir.path(), &more);
        must_wait(Wire::open(node.data, &second(7)), "the same boot");
        must_wait(Wire::open(node.data, &second(0)), "no boot is said");
        must_wait(Wire::open(node.data, &Open::new("p/v", 2)), "another host");
        // For the session itself the restart is nothing but a lost connection.
        let one = Wire::open(node.data, &first(2)).unwrap();
        stop(&mut node);
        drop(one);

        let node = Node::start_with(dir.path(), &more);
        let _two = Wire::open(node.data, &second(8)).unwrap();
        let refused = Wire::open(node.data, &first(3)).err().unwrap();
        assert_eq!(refused.status, Status::Fenced);
    }
}

/// A client whose process is killed: its tasks end wherever they are, and nothing is said.
fn attach_and_be_killed(config: Config) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let client = runtime.block_on(Client::attach(config)).unwrap();
    runtime
        .block_on(client.write(0, vec![1; 512].into()))
        .unwrap();
    drop(runtime);
}

#[test]
fn what_a_killed_client_left_is_resumed_by_the_next_one() {
    let dir = directory();
    let node = Node::start_with(dir.path(), LINGERS_LONG);
    create(&node, "p/v", MIB, 512, "main");
    let mut config = Config::new("p/v", vec![node.data]);
    config.host_id = [1; 16];
    config.host_boot = 7;
    config.session_dir = Some(dir.path().join("notes"));
    let notes = || std::fs::read_dir(dir.path().join("notes")).unwrap().count();
    attach_and_be_killed(config.clone());
    assert_eq!(notes(), 1);
    // One that does not know the session waits like anybody.
    let mut stranger = config.clone();
    stranger.session_dir = None;
    let refused = block_on(Client::attach(stranger)).err().unwrap();
    assert!(refused.to_string().contains("held by host"), "{refused}");
    // Again and again, by clients with any number of connections.
    for connections in [1, 3, 2] {
        config.connections = connections;
        attach_and_be_killed(config.clone());
    }
    let client = async || {
        let client = Client::attach(config.clone()).await.unwrap();
        assert_eq!(client.read(0, 512).await.unwrap(), vec![1; 512]);
        client.detach().await;
    };
    block_on(client());
    assert_eq!(notes(), 0, "it ended in order");

    // Somebody took the volume meanwhile: the session is lost, and the volume free again.
    attach_and_be_killed(config.clone());
    let thief = Open {
        force: true,
        ..Open::new("p/v", 2)
    };
    let thief = Wire::open(node.data, &thief).unwrap();
    let refused = block_on(Client::attach(config.clone())).err().unwrap();
    assert!(refused.to_string().contains("held by host"), "{refused}");
    thief.release();
    block_on(client());
    assert_eq!(notes(), 0);
}

/// Makes every attempt to save who holds the volume fail while it is there: a record that has
/// become a link to something that cannot be read.
struct DamagedRecord(PathBuf);

impl DamagedRecord {
    fn new(dir: &Path) -> Self {
        let record = dir.join("volumes/p/v/record");
        fs::rename(&record, record.with_extension("aside")).unwrap();
        symlink("/proc/self/mem", &record).unwrap();
        Self(record)
    }
}

impl Drop for DamagedRecord {
    fn drop(&mut self) {
        fs::remove_file(&self.0).unwrap();
        fs::rename(self.0.with_extension("aside"), &self.0).unwrap();
    }
}

/// A session of another host that takes the volume.
fn taker() -> Open<'static> {
    Open {
        force: true,
        ..Open::new("p/v", 2)
    }
}

/// Opens the first session again until it is let in, which it is at once unless its node has just
/// given up its boot id.
fn come_back(node: &Node, generation: &mut u64) -> Wire {
    let until = Instant::now() + common::PATIENCE;
    loop {
        *generation += 1;
        match Wire::open(node.data, &first(*generation)) {
            Ok(wire) => return wire,
            Err(refused) => {
                let passes = [Status::Draining, Status::Busy].contains(&refused.status);
                assert!(passes, "{}: {}", refused.status.name(), refused.text);
            }
        }
        assert!(Instant::now() < until, "the first does not come back");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_forced_attach_that_cannot_be_saved_fences_nobody() {
    let dir = directory();
    let node = Node::start_with(dir.path(), LINGERS_LONG);
    create(&node, "p/v", MIB, 512, "main");
    let mut one = Wire::open(node.data, &first(1)).unwrap();
    assert_eq!(one.write(0, &[1; 512]), Status::Ok);
    let damaged = DamagedRecord::new(dir.path());
    let refused = Wire::open(node.data, &taker()).err().unwrap();
    assert_eq!(refused.status, Status::Internal, "{}", refused.text);
    assert!(
        refused.text.contains("cannot save who holds the volume"),
        "{}",
        refused.text
    );
    drop(damaged);
    // Whether the failure cost the engine its boot id, so that the first opens again, or not: it is not
    // fenced.
    let mut generation = 1;
    one.ask(Kind::Write, RequestFlags::NONE, 512, 512, &[2; 512]);
    let answer = one.receive_reply();
    let told_fenced = one
        .events
        .iter()
        .any(|(kind, _)| *kind == EventKind::Fenced);
    assert!(!told_fenced, "by an attach that failed");
    if answer.is_none() {
        one = come_back(&node, &mut generation);
        assert_eq!(one.write(512, &[2; 512]), Status::Ok);
    }
    assert_eq!(one.read(0, 1024), [[1; 512], [2; 512]].concat());
    drop(one);
    wait_until_empty(&node);
    let one = come_back(&node, &mut generation);
    // Who forces now has the volume, and then the first has lost it.
    let _two = Wire::open(node.data, &taker()).unwrap();
    drop(one);
    generation += 1;
    let refused = Wire::open(node.data, &first(generation)).err().unwrap();
    assert_eq!(refused.status, Status::Fenced);
}

/// It was let in when its session began: that another one cannot be is nothing to it.
#[test]
fn a_holder_comes_back_though_the_attach_of_another_cannot_be_saved() {
    let dir = directory();
    let node = Node::start_with(dir.path(), LINGERS_LONG);
    create(&node, "p/v", MIB, 512, "main");
    let one = Wire::open(node.data, &first(1)).unwrap();
    let damaged = DamagedRecord::new(dir.path());
    let refused = Wire::open(node.data, &taker()).err().unwrap();
    assert_eq!(refused.status, Status::Internal, "{}", refused.text);
    drop(one);
    wait_until_empty(&node);
    let mut generation = 1;
    let mut one = come_back(&node, &mut generation);
    assert_eq!(one.write(0, &[1; 512]), Status::Ok);
    Wire::join(node.data, &first(generation), 1, 1).unwrap();
    drop(damaged);
}

/// Asks for the volume by force, and waits until the node is saving that.
fn take_slowly(node: &Node) -> Wire {
    let mut two = Wire::connect(node.data, Features::NONE);
    two.stream.write_all(&open_message(&taker())).unwrap();
    let until = Instant::now() + common::PATIENCE;
    let tasks = format!("/proc/{}/task", node.pid().as_raw_nonzero());
    let is_saving = || {
        let mut tasks = fs::read_dir(&tasks).unwrap();
        tasks.any(|task| {
            let name = fs::read_to_string(task.unwrap().path().join("comm"));
            name.is_ok_and(|name| name.trim_end() == "save-record")
        })
    };
    while !is_saving() {
        assert!(Instant::now() < until, "the node does not save");
        std::thread::sleep(Duration::from_millis(5));
    }
    two
}

#[test]
fn a_holder_comes_back_while_it_takes_long_to_save_the_attach_of_another() {
    for disk in Disk::each("a_holder_comes_back_while_it_takes_long") {
        let node = Node::start_with(&disk.path(), LINGERS_LONG);
        create(&node, "p/v", MIB, 512, "main");
        let one = Wire::open(node.data, &first(1)).unwrap();
        let frozen = disk.freeze();
        let two = take_slowly(&node);
        drop(one);
        let begun = Instant::now();
        Wire::open(node.data, &first(2)).unwrap();
        let took = begun.elapsed();
        drop(frozen);
        // Not only when the other one is given up, which is when it has waited for draining.
        assert!(took < Duration::from_secs(4), "{took:?}");
        drop((two, node));
    }
}

#[test]
fn a_stop_while_a_forced_attach_is_saved_fences_nobody() {
    for disk in Disk::each("a_stop_while_a_forced_attach_is_saved") {
        let more = format!("{LINGERS_LONG}shutdown_grace_ms = 100\n");
        let mut node = Node::start_with(&disk.path(), &more);
        create(&node, "p/v", MIB, 512, "main");
        let mut one = Wire::open(node.data, &first(1)).unwrap();
        let frozen = disk.freeze();
        let mut two = take_slowly(&node);
        node.terminate();
        let answer = two.receive().unwrap();
        assert_eq!(answer.header.status(), Status::GoingAway);
        one.wait_closed();
        // What was being saved is saved now: that the second has the volume.
        drop(frozen);
        assert_eq!(node.wait(), 0);
        let node = Node::start_with(&disk.path(), &more);
        let again = Wire::open(node.data, &first(2));
        let refused = again.err().map(|refused| refused.status);
        assert_eq!(refused, None, "{}", disk.kind());
        drop(node);
    }
}

#[test]
fn another_boot_that_cannot_be_saved_leaves_the_volume_to_the_first() {
    let dir = directory();
    let node = Node::start_with(dir.path(), LINGERS_LONG);
    create(&node, "p/v", MIB, 512, "main");
    drop(Wire::open(node.data, &first(1)).unwrap());
    wait_until_empty(&node);
    let damaged = DamagedRecord::new(dir.path());
    let refused = Wire::open(node.data, &second(8)).err().unwrap();
    assert_eq!(refused.status, Status::Internal, "{}", refused.text);
    drop(damaged);
    come_back(&node, &mut 1);
}

/// Lets a node that runs open no more than so many files; `None`: as many as it may.
fn limit_files(node: &Node, files: Option<u64>) {
    // It has that of this process.
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit {
        current: files.or(maximum),
        maximum,
    };
    prlimit(Some(node.pid()), Resource::Nofile, limit).unwrap();
}

#[test]
fn a_forced_attach_for_which_there_is_no_queue_fences_nobody() {
    let dir = directory();
    let node = Node::start_with(dir.path(), LINGERS_LONG);
    create(&node, "p/v", MIB, 512, "main");
    let mut one = Wire::open(node.data, &first(1)).unwrap();
    // Its connection is accepted before, and needs no more files than it has.
    let mut two = Wire::connect(node.data, Features::NONE);
    std::thread::sleep(Duration::from_millis(200));
    limit_files(&node, Some(1));
    let open = open_message(&taker());
    two.stream.write_all(&open).unwrap();
    let answer = two.receive().unwrap();
    limit_files(&node, None);
    one.ask(Kind::Write, RequestFlags::NONE, 0, 512, &[1; 512]);
    let written = one.receive_reply().expect("it holds the volume");
    assert_eq!(written.header.status(), Status::Ok);
    assert_eq!(answer.header.status(), Status::Busy);
    let mut sessions = block_on(node.api().sessions()).unwrap();
    assert_eq!(sessions.len(), 1);
    assert!(sessions.remove(0).host.contains("host1"));
    let _two = Wire::open(node.data, &taker()).unwrap();
    assert!(one.receive_reply().is_none());
    assert_eq!(one.events.pop().unwrap().0, EventKind::Fenced);
}

fn stop_in_order(node: &mut Node) {
    node.terminate();
    assert_eq!(node.wait(), 0);
}
