// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Storage that loses what it had taken: no host may be left to believe that it is safe.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::disk::Disk;
use common::wire::{Open, Wire};
use common::{block_on, create, directory, Node, PATIENCE};
use neonsan_proto::{Kind, RequestFlags, Status};

const MIB: u64 = 1 << 20;
const BLOCKS: u8 = 64;

/// Writes blocks that have not been allocated, and flushes nothing.
fn write_blocks(wire: &mut Wire) {
    for i in 0..BLOCKS {
        assert_eq!(wire.write(u64::from(i) * 65536, &[i + 1; 4096]), Status::Ok);
    }
}

fn blocks_lost(wire: &mut Wire) -> usize {
    (0..BLOCKS)
        .filter(|i| wire.read(u64::from(*i) * 65536, 4096) != [*i + 1; 4096])
        .count()
}

fn stop(node: &mut Node) {
    node.terminate();
    assert_eq!(node.wait(), 0);
}

/// The boot id of the engine `main`, as the control API tells it.
fn engine_boot_id(node: &Node) -> String {
    let info = block_on(node.api().node()).unwrap();
    let main = info.engines.into_iter().find(|e| e.name == "main").unwrap();
    main.boot_id
}

fn hex(id: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(id))
}

const MORE: &str = "[timeouts]\nshutdown_grace_ms = 50\n";

/// Opens the volume again after the node was started again.
fn open_again(node: &Node, open: &mut Open) -> Wire {
    open.generation += 1;
    Wire::open(node.data, open).unwrap()
}

#[test]
fn a_file_system_that_went_away_and_came_back_is_told_by_another_boot_id() {
    type End = (&'static str, fn(&mut Node));
    // It can neither sync what it answered nor note that.
    let stop: fn(&mut Node) = |node| {
        node.terminate();
        assert_eq!(node.wait(), 1);
    };
    let more = format!("{MORE}shutdown_drain_ms = 1500\n");
    let ends: [End; 2] = [("stopped", stop), ("killed", Node::kill)];
    for (how, end) in ends {
        for mut disk in Disk::each("a_file_system_that_went_away") {
            let label = format!("{}, {how}", disk.kind());
            let mut node = Node::start_with(&disk.path(), &more);
            create(&node, "p/v", 16 * MIB, 4096, "main");
            // So that the boot id itself is not among what is lost.
            disk.sync();
            let mut open = Open::new("p/v", 1);
            let mut wire = Wire::open(node.data, &open).unwrap();
            write_blocks(&mut wire);
            let before = wire.reply.boot_id;
            disk.go_away();
            end(&mut node);
            drop((wire, node));
            disk.mount_anew();

            let node = Node::start_with(&disk.path(), MORE);
            let mut wire = open_again(&node, &mut open);
            assert!(blocks_lost(&mut wire) > 0, "{label}: the fault was none");
            assert_ne!(wire.reply.boot_id, before, "{label}");
            assert_eq!(wire.flush(), Status::Ok, "{label}: it serves again");
            drop((wire, node));
        }
    }
}

#[test]
fn a_node_that_was_only_killed_keeps_its_boot_id() {
    for disk in Disk::each("a_node_that_was_only_killed") {
        let mut node = Node::start_with(&disk.path(), MORE);
        create(&node, "p/v", 16 * MIB, 4096, "main");
        let mut open = Open::new("p/v", 1);
        let mut wire = Wire::open(node.data, &open).unwrap();
        let before = wire.reply.boot_id;
        for _ in 0..3 {
            write_blocks(&mut wire);
            node.kill();
            node = Node::start_with(&disk.path(), MORE);
            wire = open_again(&node, &mut open);
            assert_eq!(wire.reply.boot_id, before, "{}", disk.kind());
            assert_eq!(blocks_lost(&mut wire), 0);
        }
        drop((wire, node));
    }
}

/// A node that was started again in between has to sync what the killed one had answered, also of volumes
/// to which nobody came back: it stops in order, so that the boot id is kept whatever happens then. Here
/// the answers were of the page cache.
#[test]
fn what_a_killed_node_had_answered_is_synced_by_the_stop_of_the_next_one() {
    for mut disk in Disk::each("what_a_killed_node_had_answered") {
        let path = disk.path().join("node.toml");
        let buffered = "kind = \"file\"\nbuffered = true";
        let config = common::config(&disk.path(), MORE).replace("kind = \"file\"", buffered);
        std::fs::write(&path, config).unwrap();
        let mut node = Node::start_from(&path);
        create(&node, "p/v", 16 * MIB, 4096, "main");
        disk.sync();
        let mut open = Open::new("p/v", 1);
        let mut wire = Wire::open(node.data, &open).unwrap();
        write_blocks(&mut wire);
        let before = wire.reply.boot_id;
        node.kill();
        node = Node::start_from(&path);
        stop(&mut node);
        disk.go_away();
        disk.mount_anew();
        node = Node::start_from(&path);
        let mut wire = open_again(&node, &mut open);
        let kept = wire.reply.boot_id == before;
        let lost = blocks_lost(&mut wire);
        assert_eq!((kept, lost), (true, 0), "{}", disk.kind());
        drop((wire, node));
    }
}

#[test]
fn a_node_that_stopped_in_order_has_synced_what_it_answered_and_keeps_its_boot_id() {
    for mut disk in Disk::each("a_node_that_stopped_in_order") {
        let mut node = Node::start_with(&disk.path(), MORE);
        create(&node, "p/v", 16 * MIB, 4096, "main");
        create(&node, "p/closed", 16 * MIB, 4096, "main");
        // One volume is open to the end, the other was released without a flush.
        let mut closed = Wire::open(node.data, &Open::new("p/closed", 2)).unwrap();
        write_blocks(&mut closed);
        closed.release();
        let mut open = Open::new("p/v", 1);
        let mut wire = Wire::open(node.data, &open).unwrap();
        write_blocks(&mut wire);
        let before = wire.reply.boot_id;
        stop(&mut node);
        // Whatever is not synced by now is lost.
        disk.go_away();
        disk.mount_anew();
        node = Node::start_with(&disk.path(), MORE);
        let mut wire = open_again(&node, &mut open);
        assert_eq!(wire.reply.boot_id, before, "{}", disk.kind());
        assert_eq!(blocks_lost(&mut wire), 0, "{}", disk.kind());
        let mut closed = Wire::open(node.data, &Open::new("p/closed", 2)).unwrap();
        assert_eq!(blocks_lost(&mut closed), 0, "{}", disk.kind());
        drop((wire, closed));
        // That it stopped in order says nothing of the process after that.
        node.kill();
        disk.mount_anew();
        let node = Node::start_with(&disk.path(), MORE);
        assert_ne!(open_again(&node, &mut open).reply.boot_id, before);
        drop(node);
    }
}

/// Nobody can open the data, so that its sync fails; the file system is well, and takes the note of it.
#[test]
fn a_stop_that_could_not_sync_ends_with_a_failure_and_another_boot_id() {
    let dir = directory();
    let mut node = Node::start_with(dir.path(), MORE);
    create(&node, "p/v", 16 * MIB, 4096, "main");
    let mut open = Open::new("p/v", 1);
    for _ in 0..3 {
        let mut wire = Wire::open(node.data, &open).unwrap();
        write_blocks(&mut wire);
        let before = wire.reply.boot_id;
        let data = common::data_path(dir.path(), "p/v");
        let away = data.with_extension("away");
        std::fs::rename(&data, &away).unwrap();
        std::os::unix::fs::symlink("data", &data).unwrap();
        node.terminate();
        assert_eq!(node.wait(), 1);
        std::fs::remove_file(&data).unwrap();
        std::fs::rename(&away, &data).unwrap();
        node = Node::start_with(dir.path(), MORE);
        open.generation += 1;
        let wire = Wire::open(node.data, &open).unwrap();
        assert_ne!(wire.reply.boot_id, before);
        open.generation += 1;
    }
}

/// An overlay, at `there` in this directory: it does not show whether it was mounted anew. `None`, and
/// the test is named: there is none.
fn overlay(dir: &Path, test: &str) -> Option<Bound> {
    let path = |name: &str| dir.join(name);
    for name in ["lower", "upper", "work", "there"] {
        std::fs::create_dir(path(name)).unwrap();
    }
    let mut options = "lowerdir=".to_owned();
    options.push_str(&format!(
        "{},upperdir={},workdir={}",
        path("lower").display(),
        path("upper").display(),
        path("work").display()
    ));
    let mut mount = Command::new("mount");
    mount.args(["-t", "overlay", "-o", &options, "overlay"]);
    if !mount.arg(path("there")).status().is_ok_and(|s| s.success()) {
        eprintln!("SKIP {test}: no overlay can be mounted");
        return None;
    }
    Some(Bound(path("there")))
}

/// Starts a node that has no place to listen: an address that no interface has, or one that another
/// program has.
fn start_without_a_port(dir: &Path, address: &str) -> Node {
    let more = format!("{MORE}[data]\nlisten = [\"{address}\"]\n");
    let path = dir.join("without.toml");
    std::fs::write(&path, common::config(dir, &more)).unwrap();
    Node::spawn(Command::new(env!("CARGO_BIN_EXE_neonsan-node")), &path)
}

/// It has answered nothing, so nothing that the node before it had answered can be lost by it.
#[test]
fn a_node_that_never_served_leaves_its_engines_stopped_as_they_were() {
    let dir = directory();
    let Some(_mounted) = overlay(dir.path(), "a_node_that_never_served") else {
        return;
    };
    let there = dir.path().join("there");
    let mut node = Node::start_with(&there, MORE);
    create(&node, "p/v", MIB, 4096, "main");
    let mut open = Open::new("p/v", 1);
    let mut wire = Wire::open(node.data, &open).unwrap();
    assert_eq!(wire.write(0, &[1; 4096]), Status::Ok);
    let before = wire.reply.boot_id;
    stop(&mut node);

    let mut node = start_without_a_port(&there, "192.0.2.9:9666");
    node.wait_for("the node waits for it");
    stop(&mut node);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut node = start_without_a_port(&there, &address);
    node.wait_for("cannot listen on");
    assert_eq!(node.wait(), 1);

    let node = Node::start_with(&there, MORE);
    let mut wire = open_again(&node, &mut open);
    assert_eq!(wire.reply.boot_id, before);
    assert_eq!(wire.flush(), Status::Ok);
    drop((wire, node));
}

#[test]
fn where_the_file_system_cannot_be_known_again_only_a_stop_in_order_keeps_the_boot_id() {
    let dir = directory();
    let path = |name: &str| dir.path().join(name);
    let test = "where_the_file_system_cannot_be_known_again";
    let Some(_mounted) = overlay(dir.path(), test) else {
        return;
    };
    let mut node = Node::start_with(&path("there"), MORE);
    create(&node, "p/v", MIB, 4096, "main");
    let info = block_on(node.api().node()).unwrap();
    let notes: Vec<_> = info.engines.iter().flat_map(|e| &e.notes).collect();
    let says = |note: &&&String| note.contains("comes back with another boot id");
    assert_eq!(notes.iter().filter(says).count(), 1, "{notes:?}");
    let mut open = Open::new("p/v", 1);
    let before = Wire::open(node.data, &open).unwrap().reply.boot_id;
    stop(&mut node);
    node = Node::start_with(&path("there"), MORE);
    assert_eq!(open_again(&node, &mut open).reply.boot_id, before);
    node.kill();
    node = Node::start_with(&path("there"), MORE);
    assert_ne!(open_again(&node, &mut open).reply.boot_id, before);
    drop(node);
}

/// Waits until the engine has another boot id than `before`; that.
fn other_boot_id(node: &Node, before: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = engine_boot_id(node);
        if now != before {
            return now;
        }
        assert!(Instant::now() < deadline, "the engine keeps its boot id");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The pool `q` is on a file system of its own, which goes away: the other volumes of the engine
/// are told, whatever they are doing.
#[test]
fn a_loss_is_told_to_every_session_of_the_engine() {
    let fua = |wire: &mut Wire| {
        let fua = RequestFlags::FUA;
        wire.call(Kind::Write, fua, 0, 4096, &[9; 4096]).0
    };
    let flush: fn(&mut Wire) -> Status = |wire| wire.flush();
    let plain: fn(&mut Wire) -> Status = |wire| wire.write(8192, &[9; 4096]);
    for (what, tells) in [("flush", flush), ("FUA", fua), ("write", plain)] {
        for disk in Disk::each("a_loss_is_told_to_every_session") {
            let label = format!("{what} on {}", disk.kind());
            let dir = directory();
            std::fs::create_dir(dir.path().join("volumes")).unwrap();
            // A pool of another name first: the root must be there before the mount point.
            let mut node = Node::start_with(dir.path(), MORE);
            create(&node, "p/b", 16 * MIB, 4096, "main");
            stop(&mut node);
            let pool = dir.path().join("volumes/q");
            let _pool = Bound::new(&disk.path(), &pool);
            let node = Node::start_with(dir.path(), MORE);
            create(&node, "q/a", 16 * MIB, 4096, "main");
            let (a, mut b) = (Open::new("q/a", 1), Open::new("p/b", 2));
            let mut wire_a = Wire::open(node.data, &a).unwrap();
            let mut wire_b = Wire::open(node.data, &b).unwrap();
            let mut join_b = Wire::join(node.data, &b, 1, 1).unwrap();
            assert_eq!(wire_a.write(0, &[1; 4096]), Status::Ok);
            assert_eq!(wire_b.write(0, &[1; 4096]), Status::Ok);
            assert_eq!(join_b.write(4096, &[1; 4096]), Status::Ok);
            let before = engine_boot_id(&node);
            assert_eq!(hex(wire_b.reply.boot_id), before);
            disk.go_away();
            assert_ne!(
                tells(&mut wire_a),
                Status::Ok,
                "{label}: the fault was none"
            );
            let after = other_boot_id(&node, &before);
            // The connections that were let in before are closed, those that have nothing to say
            // too; nobody joins what was opened before.
            wire_a.wait_closed();
            wire_b.wait_closed();
            join_b.wait_closed();
            let refused = Wire::join(node.data, &b, 1, 2).err().unwrap();
            assert_eq!(refused.status, Status::UnknownSession, "{label}");
            let mut again = open_again(&node, &mut b);
            assert_eq!(hex(again.reply.boot_id), after, "{label}");
            assert_eq!(
                again.flush(),
                Status::Ok,
                "{label}: its own storage is well"
            );
            assert_eq!(again.read(0, 4096), [1; 4096]);
            assert_eq!(
                node.metric("neonsan_node_engine_losses_total{engine=\"main\"}"),
                1.0,
                "{label}"
            );
            let closed = "neonsan_node_connections_closed_total{cause=\"writes-lost\"}";
            assert_eq!(node.metric(closed), 3.0, "{label}");
            drop((wire_a, again, node));
        }
    }
}

/// No flush on a connection from before a loss says that all is well, though it asks at once.
#[test]
fn a_flush_on_a_connection_from_before_a_loss_fails() {
    for disk in Disk::each("a_flush_on_a_connection_from_before_a_loss_fails") {
        let dir = directory();
        let mut node = Node::start_with(dir.path(), MORE);
        create(&node, "p/b", 16 * MIB, 4096, "main");
        stop(&mut node);
        let _pool = Bound::new(&disk.path(), &dir.path().join("volumes/q"));
        let node = Node::start_with(dir.path(), MORE);
        create(&node, "q/a", 16 * MIB, 4096, "main");
        let mut wire_a = Wire::open(node.data, &Open::new("q/a", 1)).unwrap();
        let mut wire_b = Wire::open(node.data, &Open::new("p/b", 2)).unwrap();
        assert_eq!(wire_a.write(0, &[1; 4096]), Status::Ok);
        assert_eq!(wire_b.write(0, &[1; 4096]), Status::Ok);
        disk.go_away();
        assert_ne!(wire_a.flush(), Status::Ok);
        // Either it is answered, with an error, or the connection has been closed by now.
        wire_b.ask(Kind::Flush, RequestFlags::NONE, 0, 0, &[]);
        if let Some(reply) = wire_b.receive_reply() {
            assert_ne!(reply.header.status(), Status::Ok, "{}", disk.kind());
        }
        drop((wire_a, wire_b, node));
    }
}

/// A directory that is seen at another place too.
struct Bound(PathBuf);

impl Bound {
    fn new(from: &Path, to: &Path) -> Self {
        std::fs::create_dir_all(to).unwrap();
        let mut mount = Command::new("mount");
        let status = mount.arg("--bind").args([from, to]).status().unwrap();
        assert!(status.success(), "cannot bind {}", to.display());
        Self(to.to_owned())
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(&self.0).status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("cannot unmount {}", self.0.display());
        }
    }
}
