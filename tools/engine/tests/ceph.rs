// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What the engine rbd promises beyond the suite, on the cluster that
//! `tools/testing/lab/ceph` starts: two engines stand for two nodes.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{rbd_options, run, run_all, snapshot_name, spec, volume_name};
use neonsan_api::VolumeName;
use neonsan_engine::rbd::RbdEngine;
use neonsan_engine::{Buffer, Engine, ErrorKind, NodeNote, Op, Queue, Request, Volume};

const MIB: u64 = 1 << 20;

fn node() -> RbdEngine {
    RbdEngine::open(rbd_options().expect("run this with tools/testing/lab/ceph")).unwrap()
}

/// A new volume of the test's own.
fn fresh(node: &RbdEngine, name: &str, size_bytes: u64) -> VolumeName {
    let name = volume_name(name);
    node.create(&name, &spec(size_bytes, 512)).unwrap();
    name
}

fn write(at: u64, len: usize, byte: u8) -> Op {
    let mut buffer = Buffer::zeroed(len).unwrap();
    buffer.fill(byte);
    Op::Write {
        offset: at,
        buffer,
        fua: false,
        atomic: false,
    }
}

fn bytes_of(queue: &mut dyn Queue, size_bytes: u64) -> Vec<u8> {
    let mut all = Vec::new();
    for at in (0..size_bytes).step_by(MIB as usize) {
        let buffer = Buffer::zeroed(MIB as usize).unwrap();
        let op = Op::Read { offset: at, buffer };
        all.extend_from_slice(&run(queue, op).unwrap().unwrap());
    }
    all
}

fn wait_until_lost(volume: &Arc<dyn Volume>) {
    let begun = Instant::now();
    while !volume.is_lost() {
        assert!(begun.elapsed() < Duration::from_secs(10), "never noticed");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn an_open_volume_is_seen_and_left_alone_by_other_nodes() {
    let (a, b) = (node(), node());
    let name = fresh(&a, "other/left-alone", 4 * MIB);
    assert!(!b.is_in_other_hands(&name).unwrap());
    let volume = a.open(&name).unwrap();
    assert!(b.is_in_other_hands(&name).unwrap());
    assert!(!a.is_in_other_hands(&name).unwrap());
    assert_eq!(b.open(&name).err().unwrap().kind(), ErrorKind::Busy);
    assert_eq!(b.delete(&name).unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(b.stat(&name).unwrap().id, volume.stat().id);
    assert!(!volume.is_lost());
    let mut queue = Arc::clone(&volume).queue(4).unwrap();
    run(&mut *queue, write(0, 512, 1)).unwrap();
    drop((queue, volume));
    // Closed in order: nobody has it, and nobody needs to be fenced.
    let begun = Instant::now();
    while b.is_in_other_hands(&name).unwrap() {
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
    drop(b.open(&name).unwrap());
    b.delete(&name).unwrap();
}

#[test]
fn a_taken_volume_is_lost_at_once_with_all_its_rights() {
    let (a, b) = (node(), node());
    let name = fresh(&a, "other/taken", 4 * MIB);
    let old = a.open(&name).unwrap();
    let mut old_queue = Arc::clone(&old).queue(4).unwrap();
    run(&mut *old_queue, write(0, 4096, 1)).unwrap();
    a.save_record(&name, b"of a").unwrap();

    let begun = Instant::now();
    let new = b.take(&name).unwrap();
    println!("taken after {} ms", begun.elapsed().as_millis());
    assert_eq!(b.load_record(&name).unwrap().unwrap(), b"of a");
    b.save_record(&name, b"of b").unwrap();
    let mut new_queue = Arc::clone(&new).queue(4).unwrap();
    run(&mut *new_queue, write(0, 4096, 2)).unwrap();

    for op in [
        write(0, 4096, 3),
        write(MIB, 4096, 3),
        Op::Read {
            offset: 0,
            buffer: Buffer::zeroed(512).unwrap(),
        },
        Op::Discard {
            offset: 0,
            len: 1 << 20,
        },
    ] {
        let error = run(&mut *old_queue, op).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotOwner, "{error}");
    }
    assert!(old.is_lost());
    assert_eq!(
        a.save_record(&name, b"late").unwrap_err().kind(),
        ErrorKind::NotOwner
    );
    assert_eq!(old.resize(8 * MIB).unwrap_err().kind(), ErrorKind::NotOwner);
    assert_eq!(b.load_record(&name).unwrap().unwrap(), b"of b");
    let data = bytes_of(&mut *new_queue, 4 * MIB);
    assert!(data[..4096].iter().all(|b| *b == 2));
    assert!(data[4096..].iter().all(|b| *b == 0));
    assert_eq!(new.size_bytes(), 4 * MIB);

    // The loser can come back, in a new term with a new client.
    drop((old_queue, old));
    let again = a.take(&name).unwrap();
    let mut queue = Arc::clone(&again).queue(4).unwrap();
    run(&mut *queue, write(0, 4096, 4)).unwrap();
    let error = run(&mut *new_queue, write(0, 4096, 5)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotOwner);
    drop((queue, again, new_queue, new));
    b.delete(&name).unwrap();
}

#[test]
fn an_idle_owner_notices_that_its_volume_was_taken() {
    let (a, b) = (node(), node());
    let name = fresh(&a, "other/idle", MIB);
    let old = a.open(&name).unwrap();
    let new = b.take(&name).unwrap();
    wait_until_lost(&old);
    drop(old);
    assert!(!new.is_lost());
    drop(new);
    b.delete(&name).unwrap();
}

/// Writes of the old owner in flight at the taking, and long after it, never
/// show over what the new owner wrote.
#[test]
fn writes_in_flight_do_not_land_over_newer_ones() {
    const SIZE: u64 = 16 * MIB;
    let (a, b) = (node(), node());
    let name = fresh(&a, "other/in-flight", SIZE);
    for round in 0..5u8 {
        let old = a.take(&name).unwrap();
        let mut old_queue = Arc::clone(&old).queue(64).unwrap();
        for token in 0..64u64 {
            let op = write(token * (SIZE / 64), 256 << 10, 0xff);
            old_queue.submit(Request { token, op });
        }
        old_queue.kick();
        let new = b.take(&name).unwrap();
        let mut new_queue = Arc::clone(&new).queue(64).unwrap();
        let ops = (0..SIZE / MIB)
            .map(|i| write(i * MIB, MIB as usize, round))
            .collect();
        for result in run_all(&mut *new_queue, ops) {
            result.unwrap();
        }
        old_queue.submit(Request {
            token: 64,
            op: write(0, 4096, 0xff),
        });
        // All of them end, the last one for certain with a refusal.
        let begun = Instant::now();
        let mut ended = Vec::new();
        while ended.len() <= 64 {
            assert!(begun.elapsed() < Duration::from_secs(20), "requests hang");
            old_queue.kick();
            old_queue.reap(&mut ended);
            std::thread::sleep(Duration::from_millis(1));
        }
        let late = ended.iter().find(|c| c.token == 64).unwrap();
        let error = late.result.as_ref().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotOwner);
        let refused = ended.iter().filter(|c| c.result.is_err()).count();
        println!("round {round}: {refused} of 65 writes were refused");
        drop((old_queue, old));
        let data = bytes_of(&mut *new_queue, SIZE);
        let stale = data.chunks(4096).filter(|c| c.iter().any(|b| *b != round));
        assert_eq!(stale.count(), 0, "stale blocks in round {round}");
    }
    drop(b);
    node().delete(&name).unwrap();
}

#[test]
fn images_that_are_no_volumes_are_left_alone() {
    let engine = node();
    let made = fresh(&engine, "other/made", MIB);
    let options = rbd_options().unwrap();
    let created = Command::new("rbd")
        .args(["-c", &options.conf.to_string_lossy()])
        .args(["-n", &format!("client.{}", options.user)])
        .args([
            "create",
            "--size",
            "1M",
            &format!("{}/other/foreign", options.pool),
        ])
        .status()
        .unwrap();
    assert!(created.success());
    let foreign = volume_name("other/foreign");
    for result in [
        engine.stat(&foreign).map(drop),
        engine.open(&foreign).map(drop),
        engine.take(&foreign).map(drop),
        engine.delete(&foreign),
    ] {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::NotFound);
    }
    assert_eq!(
        engine.create(&foreign, &spec(MIB, 512)).unwrap_err().kind(),
        ErrorKind::AlreadyExists
    );
    let removed = Command::new("rbd")
        .args(["-c", &options.conf.to_string_lossy()])
        .args(["-n", &format!("client.{}", options.user)])
        .args([
            "--no-progress",
            "rm",
            &format!("{}/other/foreign", options.pool),
        ])
        .status()
        .unwrap();
    assert!(removed.success());
    engine.delete(&made).unwrap();
}

/// Runs `rbd` as the node's user.
fn rbd(args: &[&str]) {
    let options = rbd_options().unwrap();
    let done = Command::new("rbd")
        .args(["-c", &options.conf.to_string_lossy()])
        .args(["-n", &format!("client.{}", options.user)])
        .args(args)
        .status()
        .unwrap();
    assert!(done.success(), "rbd {args:?}");
}

/// Settings of pool and image are stronger than a client's: with some of them
/// nobody would be fenced, or an acknowledged write would be in a cache.
#[test]
fn a_volume_is_refused_while_settings_in_the_cluster_would_make_it_unsafe() {
    let engine = node();
    let name = fresh(&engine, "other/settings", MIB);
    let pool = rbd_options().unwrap().pool;
    let image = format!("{pool}/other/settings");
    for (key, value) in [
        ("conf_rbd_blocklist_on_break_lock", "false"),
        ("conf_rbd_blocklist_expire_seconds", "60"),
        ("conf_rbd_cache", "true"),
        ("conf_rbd_persistent_cache_mode", "ssd"),
        ("conf_rbd_disable_zero_copy_writes", "false"),
    ] {
        rbd(&["image-meta", "set", &image, key, value]);
        let option = key.trim_start_matches("conf_");
        for refused in [engine.open(&name).err(), engine.take(&name).err()] {
            let error = refused.expect(key);
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
            let text = error.to_string();
            assert!(
                text.contains(option) && text.contains("rbd config image rm"),
                "{text}"
            );
        }
        rbd(&["image-meta", "rm", &image, key]);
    }
    // Of the pool, which all its volumes have.
    rbd(&["config", "pool", "set", &pool, "rbd_cache", "true"]);
    let error = engine.take(&name).err().unwrap();
    rbd(&["config", "pool", "rm", &pool, "rbd_cache"]);
    assert!(error.to_string().contains("rbd config pool rm"), "{error}");
    // What does no harm is no matter, in whatever words.
    rbd(&["image-meta", "set", &image, "conf_rbd_cache", "0"]);
    rbd(&[
        "image-meta",
        "set",
        &image,
        "conf_rbd_readahead_max_bytes",
        "0",
    ]);
    drop(engine.take(&name).unwrap());
    drop(engine.open(&name).unwrap());
    engine.delete(&name).unwrap();
}

/// Nobody can take a snapshot, so a pause of the process ends no term: what was
/// read before it is read after it.
#[test]
fn a_snapshot_is_read_after_a_pause() {
    let mut options = rbd_options().unwrap();
    // Between two beats of its pulse the process stands still for too long.
    options.max_pause = Duration::from_millis(1);
    let (paused, engine) = (RbdEngine::open(options).unwrap(), node());
    let name = fresh(&engine, "other/paused", MIB);
    let snapshot = snapshot_name("other/paused@s");
    let volume = engine.open(&name).unwrap();
    let mut queue = Arc::clone(&volume).queue(4).unwrap();
    run(&mut *queue, write(0, 4096, 1)).unwrap();
    volume.create_snapshot(&snapshot).unwrap();
    drop((queue, volume));
    let reader = paused.open_snapshot(&snapshot).unwrap();
    let mut queue = Arc::clone(&reader).queue(4).unwrap();
    std::thread::sleep(Duration::from_millis(1200));
    assert!(bytes_of(&mut *queue, MIB)[..4096].iter().all(|b| *b == 1));
    assert!(!reader.is_lost());
    // Not so of what can be taken.
    drop(engine.open(&name).unwrap());
    wait_until_lost(&paused.take(&name).unwrap());
    drop((queue, reader));
    drop(engine.take(&name).unwrap());
    engine.delete_snapshot(&snapshot).unwrap();
    engine.delete(&name).unwrap();
}

/// A node that dies while it rolls a volume back leaves a note; whoever opens the
/// volume next begins with that.
#[test]
fn an_interrupted_rollback_is_finished_by_the_next_owner() {
    let engine = node();
    let name = fresh(&engine, "other/rolled", MIB);
    let snapshot = snapshot_name("other/rolled@s");
    let volume = engine.open(&name).unwrap();
    let mut queue = Arc::clone(&volume).queue(4).unwrap();
    run(&mut *queue, write(0, 4096, 1)).unwrap();
    volume.create_snapshot(&snapshot).unwrap();
    run(&mut *queue, write(0, 4096, 2)).unwrap();
    drop((queue, volume));
    drop(engine.open(&name).unwrap());
    let options = rbd_options().unwrap();
    let noted = Command::new("rbd")
        .args(["-c", &options.conf.to_string_lossy()])
        .args(["-n", &format!("client.{}", options.user)])
        .args(["image-meta", "set"])
        .arg(format!("{}/other/rolled", options.pool))
        .args(["neonsan_rollback", "s"])
        .status()
        .unwrap();
    assert!(noted.success());
    let error = engine.delete_snapshot(&snapshot).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
    let mut queue = engine.take(&name).unwrap().queue(4).unwrap();
    assert!(bytes_of(&mut *queue, MIB)[..4096].iter().all(|b| *b == 1));
    drop(queue);
    engine.delete_snapshot(&snapshot).unwrap();
    engine.delete(&name).unwrap();
}

#[test]
fn what_nodes_tell_is_kept_changed_and_removed_by_key() {
    let (a, b) = (node(), node());
    let note = |key: &str, text: &str| NodeNote {
        key: key.to_owned(),
        text: text.to_owned(),
    };
    a.tell_node(&note("k1", "one")).unwrap();
    b.tell_node(&note("k2", "two\0with a zero byte")).unwrap();
    a.tell_node(&note("k1", "one again")).unwrap();
    let told = || {
        let mut told = b.told_nodes().unwrap();
        told.retain(|note| note.key.starts_with('k'));
        told.sort_by(|a, b| a.key.cmp(&b.key));
        told
    };
    let all = [note("k1", "one again"), note("k2", "two\0with a zero byte")];
    assert_eq!(told(), all);
    // Somebody who says something new is not forgotten.
    b.forget_node(&note("k1", "one")).unwrap();
    assert_eq!(told(), all);
    b.forget_node(&all[0]).unwrap();
    b.forget_node(&all[0]).unwrap();
    b.forget_node(&all[1]).unwrap();
    assert_eq!(told(), []);
}
