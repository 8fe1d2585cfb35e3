// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The data port of a node process: requests, sessions, holders.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::wire::{Open, Wire, CHECKED};
use common::{block_on, create, data_path, directory, Node};
use neonsan_api::VolumeResize;
use neonsan_proto::{Capabilities, EventKind, Features, Kind, Mode, RequestFlags, Status};

const MIB: u64 = 1 << 20;

#[test]
fn what_was_written_is_read_on_both_engines() {
    let dir = directory();
    let node = Node::start(dir.path());
    for (engine, features) in [
        ("main", Features::NONE),
        ("mem", CHECKED),
        ("main", CHECKED),
    ] {
        let name = format!("p/{engine}");
        // The third round opens the first one's volume again.
        if block_on(node.api().volume(&name.parse().unwrap())).is_err() {
            create(&node, &name, 16 * MIB, 512, engine);
        }
        let mut open = Open::new(&name, 1);
        open.features = features;
        let mut wire = Wire::open(node.data, &open).unwrap();
        let geometry = wire.reply.geometry;
        assert_eq!(geometry.size_bytes.get(), 16 * MIB);
        assert_eq!(geometry.logical_block_size.get(), 512);
        let caps = geometry.capabilities();
        assert!(caps.contains(Capabilities::FUA.union(Capabilities::VOLATILE_CACHE)));

        let data: Vec<u8> = (0..1_048_576u32).map(|i| (i / 511) as u8).collect();
        assert_eq!(wire.write(512, &data), Status::Ok);
        assert_eq!(wire.flush(), Status::Ok);
        assert_eq!(wire.read(512, 1_048_576), data);
        assert_eq!(wire.read(1024, 512), data[512..1024]);

        let fua = RequestFlags::FUA;
        let (status, _) = wire.call(Kind::Write, fua, 0, 512, &[7; 512]);
        assert_eq!(status, Status::Ok);
        let (status, _) = wire.call(Kind::WriteZeroes, fua, 4096, 8192, &[]);
        assert_eq!(status, Status::Ok);
        assert!(wire.read(4096, 8192).iter().all(|&b| b == 0));
        let none = RequestFlags::NONE;
        let (status, _) = wire.call(Kind::Discard, none, 0, 1_048_576, &[]);
        assert_eq!(status, Status::Ok);
        assert!(wire.read(0, 1_048_576).iter().all(|&b| b == 0));
        wire.release();
    }
    assert_eq!(node.metric("neonsan_node_in_flight_bytes"), 0.0);
    assert_eq!(node.metric("neonsan_node_fua_total"), 6.0);
    assert_eq!(
        node.metric("neonsan_node_requests_total{op=\"flush\"}"),
        3.0
    );
}

#[test]
fn many_requests_in_flight_are_all_answered() {
    let dir = directory();
    let node = Node::start(dir.path());
    create(&node, "p/v", 64 * MIB, 4096, "main");
    let mut wire = Wire::open(node.data, &Open::new("p/v", 1)).unwrap();
    let depth = u64::from(wire.reply.max_depth.get());
    for round in 0..4u64 {
        for i in 0..depth {
            let data = [(round + i) as u8; 16384];
            wire.ask(Kind::Write, RequestFlags::NONE, i * 16384, 16384, &data);
        }
        for _ in 0..depth {
            assert_eq!(wire.receive_reply().unwrap().header.status(), Status::Ok);
        }
        let first = wire.next_cookie();
        for i in 0..depth {
            wire.ask(Kind::Read, RequestFlags::NONE, i * 16384, 16384, &[]);
        }
        for _ in 0..depth {
            let reply = wire.receive_reply().unwrap();
            let i = reply.header.cookie() - first;
            assert!(reply.payload.iter().all(|&b| b == (round + i) as u8));
        }
    }
    wire.release();
}

#[test]
fn impossible_requests_are_answered_by_what_is_wrong_with_them() {
    let dir = directory();
    let node = Node::start(dir.path());
    create(&node, "p/v", MIB, 4096, "main");
    let mut wire = Wire::open(node.data, &Open::new("p/v", 1)).unwrap();
    let none = RequestFlags::NONE;
    let mut status = |kind, flags, offset, length, payload: &[u8]| {
        wire.call(kind, flags, offset, length, payload).0
    };
    assert_eq!(status(Kind::Read, none, 512, 4096, &[]), Status::Misaligned);
    assert_eq!(status(Kind::Read, none, MIB, 4096, &[]), Status::OutOfRange);
    assert_eq!(
        status(Kind::Write, none, MIB, 4096, &[1; 4096]),
        Status::OutOfRange
    );
    assert_eq!(status(Kind::Read, none, 0, 0, &[]), Status::BadRequest);
    assert_eq!(
        status(Kind::Read, RequestFlags::FUA, 0, 4096, &[]),
        Status::BadRequest
    );
    assert_eq!(
        status(Kind::Write, none, 0, 4096, &[1; 4096]),
        Status::Ok,
        "the connection goes on"
    );
}

#[test]
fn a_second_host_is_refused_and_told_who_holds_the_volume() {
    let dir = directory();
    let node = Node::start(dir.path());
    create(&node, "p/v", MIB, 512, "main");
    let mut first = Wire::open(node.data, &Open::new("p/v", 1)).unwrap();
    let refused = Wire::open(node.data, &Open::new("p/v", 2)).err().unwrap();
    assert_eq!(refused.status, Status::HeldByOther);
    assert_eq!(refused.refusal.holder, [1; 16]);
    assert!(refused.refusal.held_since_s.get() > 0);
    assert!(refused.text.contains("host1"), "{}", refused.text);
    assert!(refused.text.contains("--force"), "{}", refused.text);

    // A reader disturbs nobody, and cannot write.
    let mut reader = Open::new("p/v", 3);
    reader.mode = Mode::ReadOnly;
    let mut reader = Wire::open(node.data, &reader).unwrap();
    assert!(reader
        .reply
        .geometry
        .capabilities()
        .contains(Capabilities::READ_ONLY));
    assert_eq!(reader.write(0, &[1; 512]), Status::ReadOnly);

    // By force the first host is fenced before the second is let in.
    let mut force = Open::new("p/v", 2);
    force.force = true;
    let mut second = Wire::open(node.data, &force).unwrap();
    first.wait_closed();
    assert_eq!(first.events, [(EventKind::Fenced, 0)]);
    assert_eq!(second.write(0, &[2; 512]), Status::Ok);
    let mut again = Open::new("p/v", 1);
    again.generation = 2;
    let refused = Wire::open(node.data, &again).err().unwrap();
    assert_eq!(refused.status, Status::Fenced);
    assert_eq!(second.read(0, 512), [2; 512]);
}

#[test]
fn a_released_volume_is_free_at_once() {
    let dir = directory();
    let node = Node::start(dir.path());
    create(&node, "p/v", MIB, 512, "main");
    for host in 1..20 {
        Wire::open(node.data, &Open::new("p/v", host))
            .unwrap()
            .release();
    }
}

#[test]
fn a_session_has_several_connections_and_each_can_be_replaced() {
    let dir = directory();
    let node = Node::start(dir.path());
    create(&node, "p/v", MIB, 512, "main");
    let open = Open::new("p/v", 1);
    let mut zero = Wire::open(node.data, &open).unwrap();
    let mut one = Wire::join(node.data, &open, 1, 1).unwrap();
    assert_eq!(one.write(0, &[1; 512]), Status::Ok);
    assert_eq!(zero.read(0, 512), [1; 512]);
    let stale = Wire::join(node.data, &open, 1, 1).err().unwrap();
    assert_eq!(stale.status, Status::StaleGeneration);
    let mut again = Wire::join(node.data, &open, 1, 2).unwrap();
    one.wait_closed();
    assert_eq!(again.read(0, 512), [1; 512]);
    let mut stranger = open;
    stranger.session = 9;
    let unknown = Wire::join(node.data, &stranger, 1, 1).err().unwrap();
    assert_eq!(unknown.status, Status::UnknownSession);
    let sessions = block_on(node.api().sessions()).unwrap();
    assert_eq!(sessions.len(), 1);
    assert_eq!(sessions[0].connections.len(), 2);
    // A newer generation ends everything of the older one.
    let mut newer = open;
    newer.generation = 2;
    let mut promoted = Wire::open(node.data, &newer).unwrap();
    zero.wait_closed();
    again.wait_closed();
    assert_eq!(promoted.reply.generation.get(), 2);
    assert_eq!(promoted.read(0, 512), [1; 512]);
}

#[test]
fn data_and_boot_id_of_files_outlive_a_restart_of_the_node() {
    let dir = directory();
    let mut node = Node::start(dir.path());
    create(&node, "p/v", MIB, 512, "main");
    let mut wire = Wire::open(node.data, &Open::new("p/v", 1)).unwrap();
    assert_eq!(wire.write(4096, &[5; 4096]), Status::Ok);
    assert_eq!(wire.flush(), Status::Ok);
    let before = wire.reply;
    node.kill();
    drop(wire);

    let mut node = Node::start(dir.path());
    let mut open = Open::new("p/v", 1);
    let unknown = Wire::join(node.data, &open, 0, 2).err().unwrap();
    assert_eq!(unknown.status, Status::UnknownSession);
    open.generation = 2;
    let mut wire = Wire::open(node.data, &open).unwrap();
    // What was written is in the kernel's and the disk's caches at worst,
    // which the process does not take along. Where that cannot be told there is another
    // boot id (see `loss.rs`).
    let info = block_on(node.api().node()).unwrap();
    let notes = info.engines.iter().flat_map(|engine| &engine.notes);
    let cannot_tell = |note: &String| note.contains("comes back with another boot id");
    if !notes.clone().any(cannot_tell) {
        assert_eq!(wire.reply.boot_id, before.boot_id);
    }
    assert_eq!(wire.reply.volume_id, before.volume_id);
    assert_eq!(wire.read(4096, 4096), [5; 4096]);
    node.terminate();
    let (event, _) = wire.receive_event();
    assert_eq!(event, EventKind::GoingAway);
    // It still answers until the time is up.
    assert_eq!(wire.read(4096, 512), [5; 512]);
    drop(wire);
    assert_eq!(node.wait(), 0);
}

#[test]
fn a_restarted_node_keeps_the_volume_for_its_host() {
    for stop in [Node::kill as fn(&mut Node), stop_in_order] {
        let dir = directory();
        let more = "[timeouts]\nsession_linger_ms = 1500\nshutdown_grace_ms = 100\n";
        let mut node = Node::start_with(dir.path(), more);
        create(&node, "p/v", MIB, 512, "main");
        let wire = Wire::open(node.data, &Open::new("p/v", 1)).unwrap();
        stop(&mut node);
        drop(wire);

        let mut node = Node::start_with(dir.path(), more);
        let name = "p/v".parse().unwrap();
        let error = block_on(node.api().delete_volume(&name)).unwrap_err();
        assert!(error.to_string().contains("when its node ended"), "{error}");
        let refused = Wire::open(node.data, &Open::new("p/v", 2)).err().unwrap();
        assert_eq!(refused.status, Status::HeldByOther);
        assert_eq!(refused.refusal.holder, [1; 16]);
        let mut again = Open::new("p/v", 1);
        again.generation = 2;
        let wire = Wire::open(node.data, &again).unwrap();
        stop(&mut node);
        drop(wire);

        // It does not come back in time: the other host gets the volume, and
        // the first one never again, whatever is restarted.
        let mut node = Node::start_with(dir.path(), more);
        let until = Instant::now() + common::PATIENCE;
        let mut other = Open::new("p/v", 2);
        let wire = loop {
            match Wire::open(node.data, &other) {
                Ok(wire) => break wire,
                Err(refused) => assert_eq!(refused.status, Status::HeldByOther),
            }
            assert!(Instant::now() < until);
            std::thread::sleep(Duration::from_millis(100));
        };
        stop(&mut node);
        drop(wire);
        let mut node = Node::start_with(dir.path(), more);
        other.generation = 2;
        Wire::open(node.data, &other).unwrap().release();
        again.generation = 3;
        let refused = Wire::open(node.data, &again).err().unwrap();
        assert_eq!(refused.status, Status::Fenced);
        stop_in_order(&mut node);
        // What was released is free at once after a restart, for all others.
        let node = Node::start_with(dir.path(), more);
        let refused = Wire::open(node.data, &again).err().unwrap();
        assert_eq!(refused.status, Status::Fenced);
        Wire::open(node.data, &Open::new("p/v", 3))
            .unwrap()
            .release();
    }
}

fn stop_in_order(node: &mut Node) {
    node.terminate();
    assert_eq!(node.wait(), 0);
}

#[test]
fn what_is_released_while_the_node_stops_is_free_after_the_restart() {
    let dir = directory();
    let more = "[timeouts]\nshutdown_grace_ms = 10000\n";
    let mut node = Node::start_with(dir.path(), more);
    create(&node, "p/released", MIB, 512, "main");
    create(&node, "p/held", MIB, 512, "main");
    let mut released = Wire::open(node.data, &Open::new("p/released", 1)).unwrap();
    let held = Wire::open(node.data, &Open::new("p/held", 1)).unwrap();
    node.terminate();
    assert_eq!(released.receive_event().0, EventKind::GoingAway);
    released.release();
    // The other one goes away without a word, and may come back.
    drop(held);
    assert_eq!(node.wait(), 0);

    let node = Node::start_with(dir.path(), more);
    Wire::open(node.data, &Open::new("p/released", 2)).unwrap();
    let refused = Wire::open(node.data, &Open::new("p/held", 2))
        .err()
        .unwrap();
    assert_eq!(refused.status, Status::HeldByOther);
}

#[test]
fn a_damaged_record_of_holders_keeps_the_volume_closed() {
    let dir = directory();
    let mut node = Node::start(dir.path());
    create(&node, "p/v", MIB, 512, "main");
    Wire::open(node.data, &Open::new("p/v", 1))
        .unwrap()
        .release();
    stop_in_order(&mut node);
    let record = data_path(dir.path(), "p/v").with_file_name("record");
    fs::write(&record, [0x55; 32768]).unwrap();
    let node = Node::start(dir.path());
    let refused = Wire::open(node.data, &Open::new("p/v", 1)).err().unwrap();
    assert_eq!(refused.status, Status::VolumeDamaged);
    assert!(refused.text.contains("remove it if"), "{}", refused.text);
    fs::remove_file(&record).unwrap();
    Wire::open(node.data, &Open::new("p/v", 1))
        .unwrap()
        .release();
}

#[test]
fn a_stopping_node_refuses_new_sessions_and_answers_what_was_begun() {
    let dir = directory();
    let more = "[timeouts]\nshutdown_grace_ms = 500\n";
    let mut node = Node::start_with(dir.path(), more);
    create(&node, "p/v", MIB, 512, "main");
    let mut wire = Wire::open(node.data, &Open::new("p/v", 1)).unwrap();
    node.terminate();
    assert_eq!(wire.receive_event().0, EventKind::GoingAway);
    for i in 0..100 {
        wire.ask(
            Kind::Write,
            RequestFlags::NONE,
            i * 512,
            512,
            &[i as u8; 512],
        );
        assert_eq!(wire.receive_reply().unwrap().header.status(), Status::Ok);
    }
    wire.wait_closed();
    assert_eq!(node.wait(), 0);
    node.wait_for("node stopped");
}

#[test]
fn a_stopping_node_does_not_wait_for_who_was_not_let_in() {
    let dir = directory();
    let more = "[timeouts]\nhandshake_ms = 60000\nshutdown_grace_ms = 500\n\
                shutdown_drain_ms = 2000\nlock_wait_ms = 15000\n";
    let mut node = Node::start_with(dir.path(), more);
    create(&node, "p/v", MIB, 512, "main");
    // One says nothing; another waits for a volume that cannot be opened yet.
    let silent = std::net::TcpStream::connect(node.data).unwrap();
    let file = fs::File::open(data_path(dir.path(), "p/v")).unwrap();
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let address = node.data;
    let waiting = std::thread::spawn(move || Wire::open(address, &Open::new("p/v", 1)).err());
    let until = Instant::now() + common::PATIENCE;
    while node.metric("neonsan_node_connections ") < 2.0 {
        assert!(Instant::now() < until);
    }
    std::thread::sleep(Duration::from_millis(300));
    node.terminate();
    let refused = waiting.join().unwrap().unwrap();
    assert_eq!(refused.status, Status::GoingAway, "{}", refused.text);
    assert_eq!(node.wait(), 0);
    drop(silent);
}

#[test]
fn a_larger_volume_is_told_to_its_sessions() {
    let dir = directory();
    let node = Node::start(dir.path());
    for engine in ["main", "mem"] {
        let name = format!("p/{engine}");
        create(&node, &name, MIB, 512, engine);
        let mut wire = Wire::open(node.data, &Open::new(&name, 1)).unwrap();
        let resize = VolumeResize {
            size_bytes: 2 * MIB,
            allow_shrink: false,
        };
        let name = name.parse().unwrap();
        let info = block_on(node.api().resize_volume(&name, &resize)).unwrap();
        assert_eq!(info.size_bytes, 2 * MIB);
        assert_eq!(wire.receive_event(), (EventKind::Resized, 2 * MIB));
        assert_eq!(wire.write(2 * MIB - 512, &[1; 512]), Status::Ok);
        let smaller = VolumeResize {
            size_bytes: MIB,
            allow_shrink: true,
        };
        let error = block_on(node.api().resize_volume(&name, &smaller)).unwrap_err();
        assert!(error.to_string().contains("held by host"), "{error}");
        wire.release();
    }
}

#[test]
fn damaged_and_absent_volumes_are_refused_with_the_reason() {
    let dir = directory();
    let node = Node::start(dir.path());
    create(&node, "p/v", MIB, 512, "main");
    let refused = Wire::open(node.data, &Open::new("p/none", 1))
        .err()
        .unwrap();
    assert_eq!(refused.status, Status::NoSuchVolume);
    assert!(refused.text.contains("p/none"), "{}", refused.text);
    let mut snapshot = Open::new("p/v@s", 1);
    let refused = Wire::open(node.data, &snapshot).err().unwrap();
    assert_eq!(refused.status, Status::OpenedReadOnly);
    snapshot.mode = Mode::ReadOnly;
    let refused = Wire::open(node.data, &snapshot).err().unwrap();
    assert_eq!(refused.status, Status::NoSuchSnapshot);

    let path = data_path(dir.path(), "p/v");
    fs::OpenOptions::new()
        .write(true)
        .open(path)
        .unwrap()
        .set_len(4096)
        .unwrap();
    let refused = Wire::open(node.data, &Open::new("p/v", 1)).err().unwrap();
    assert_eq!(refused.status, Status::VolumeDamaged);
    assert!(refused.text.contains("damaged"), "{}", refused.text);
    // A mended volume can be opened without a restart.
    fs::OpenOptions::new()
        .write(true)
        .open(data_path(dir.path(), "p/v"))
        .unwrap()
        .set_len(MIB)
        .unwrap();
    Wire::open(node.data, &Open::new("p/v", 1))
        .unwrap()
        .release();
}

#[test]
fn a_full_engine_is_told_as_no_space() {
    let dir = directory();
    let node = Node::start(dir.path());
    // The mem engine of the configuration has 256 MiB.
    create(&node, "p/v", 1024 * MIB, 512, "mem");
    let mut wire = Wire::open(node.data, &Open::new("p/v", 1)).unwrap();
    let data = vec![1; MIB as usize];
    let full = (0..1024)
        .map(|i| wire.write(i * MIB, &data))
        .find(|status| *status != Status::Ok);
    assert_eq!(full, Some(Status::NoSpace));
    assert_eq!(wire.read(0, 512), [1; 512]);
}

/// By a reset a client gives up all that was not answered, and on the same host the bytes that were
/// not read yet are no longer its own.
#[test]
fn what_was_not_read_before_a_reset_is_not_carried_out() {
    use rustix::process::{kill_process, Signal};
    let dir = directory();
    let node = Node::start(dir.path());
    create(&node, "p/reset", MIB, 512, "main");
    let mut wire = Wire::open(node.data, &Open::new("p/reset", 1)).unwrap();
    assert_eq!(wire.write(0, &[1; 4096]), Status::Ok);
    kill_process(node.pid(), Signal::STOP).unwrap();
    node.wait_stopped();
    wire.ask(Kind::Write, RequestFlags::NONE, 0, 4096, &[2; 4096]);
    let at_once = Some(Duration::ZERO);
    rustix::net::sockopt::set_socket_linger(&wire.stream, at_once).unwrap();
    drop(wire);
    kill_process(node.pid(), Signal::CONT).unwrap();
    let mut again = Open::new("p/reset", 1);
    again.generation = 2;
    let mut wire = Wire::open(node.data, &again).unwrap();
    let held = wire.read(0, 4096);
    assert!(held.iter().all(|&byte| byte == 1), "it holds {}", held[0]);
    wire.release();
}
