// SPDX-License-Identifier: GPL-2.0 OR MIT
//! One bad engine leaves the rest served, and health says which.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::seccomp::{fail, load, node_under, unless, ALLOW, CALL};
use common::wire::{Open, Wire};
use common::{block_on, create, directory, Node, PATIENCE};
use neonsan_api::{ClientError, EngineHealth, EngineState, ErrorCode, HealthStatus, VolumeCreate};
use neonsan_proto::Status;
use rustix::fs::{flock, FlockOperation};

const MIB: u64 = 1 << 20;

fn spec(name: &str, engine: Option<&str>) -> VolumeCreate {
    VolumeCreate {
        name: name.parse().unwrap(),
        size_bytes: MIB,
        logical_block_size_bytes: 512,
        physical_block_size_bytes: None,
        engine: engine.map(str::to_owned),
    }
}

fn refused<T: std::fmt::Debug>(result: Result<T, ClientError>) -> (ErrorCode, String) {
    match result.unwrap_err() {
        ClientError::Refused(error) => (error.code, error.message),
        other => panic!("{other}"),
    }
}

/// The directory of an engine that another process uses, as long as the file lives.
fn locked_root(path: &Path) -> File {
    common::init(path);
    let lock = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path.join(".lock"))
        .unwrap();
    flock(&lock, FlockOperation::NonBlockingLockExclusive).unwrap();
    lock
}

/// A node with an engine `bad` beside `mem`, in this order; how long it waits for
/// locks is short.
fn config(dir: &Path, bad: &Path, with_mem: bool) -> PathBuf {
    let mem = "[engine.mem]\nkind = \"mem\"\ncapacity_bytes = 268435456\n";
    let text = format!(
        "default_engine = \"bad\"\n[data]\nlisten = [\"127.0.0.1:0\"]\n\
         [control]\nlisten = [\"127.0.0.1:0\"]\n[timeouts]\nlock_wait_ms = 100\n\
         [engine.bad]\nkind = \"file\"\npath = {bad:?}\n{}",
        if with_mem { mem } else { "" }
    );
    let path = dir.join("node.toml");
    fs::write(&path, text).unwrap();
    path
}

fn engine(node: &Node, name: &str) -> EngineHealth {
    let health = block_on(node.api().health()).unwrap();
    let found = health.engines.into_iter().find(|e| e.name == name);
    found.unwrap()
}

/// Waits until an engine is in this state.
fn wait_for(node: &Node, name: &str, state: EngineState) -> EngineHealth {
    let begun = Instant::now();
    loop {
        let health = engine(node, name);
        if health.state == state {
            return health;
        }
        assert!(
            begun.elapsed() < PATIENCE * 2,
            "never {state:?}: {health:?}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn an_engine_that_cannot_be_opened_leaves_the_others_served_and_comes_later() {
    let dir = directory();
    let bad = dir.path().join("bad");
    let lock = locked_root(&bad);
    let node = Node::start_from(&config(dir.path(), &bad, true));
    // It serves, and says what it does not serve and why.
    let health = block_on(node.api().health()).unwrap();
    assert_eq!(health.status, HealthStatus::Degraded, "{health:?}");
    let text = health.problems.join("\n");
    assert!(
        text.contains("engine bad") && text.contains("another process"),
        "{text}"
    );
    assert_eq!(engine(&node, "bad").state, EngineState::Down);
    assert_eq!(engine(&node, "mem").state, EngineState::Ok);
    let head = node
        .http("GET /v1/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .0;
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    assert_eq!(node.metric("neonsan_node_engine_up{engine=\"bad\"}"), 0.0);
    assert!(node.metric("neonsan_node_engine_up{engine=\"mem\"}") > 0.5);
    let info = block_on(node.api().node()).unwrap();
    assert!(
        info.engines[0].notes[0].contains("another process"),
        "{info:?}"
    );

    // A volume that it may have is not said to be absent: a host tries again.
    let unknown = Wire::open(node.data, &Open::new("p/v", 1)).err().unwrap();
    assert_eq!(unknown.status, Status::Busy, "{}", unknown.text);
    assert!(unknown.status.is_retryable());
    assert!(
        unknown.text.contains("the engine bad cannot be used"),
        "{}",
        unknown.text
    );
    block_on(async {
        let api = node.api();
        let (code, text) = refused(api.volume(&"p/v".parse().unwrap()).await);
        assert_eq!(code, ErrorCode::Unavailable, "{text}");
        // Neither in the default engine, nor in one that works: the name may be taken.
        for wanted in [None, Some("mem")] {
            let (code, text) = refused(api.create_volume(&spec("p/v", wanted)).await);
            assert_eq!(code, ErrorCode::Unavailable, "{text}");
            assert!(text.contains("engine bad"), "{text}");
        }
        let list = api.list_volumes(None).await.unwrap();
        assert!(list.missing[0].starts_with("the engine bad "), "{list:?}");
    });

    // Without a restart it is served as soon as it can be.
    drop(lock);
    wait_for(&node, "bad", EngineState::Ok);
    let health = block_on(node.api().health()).unwrap();
    assert_eq!(
        (health.status, health.problems.len()),
        (HealthStatus::Ok, 0)
    );
    block_on(node.api().create_volume(&spec("p/v", None))).unwrap();
    let mut wire = Wire::open(node.data, &Open::new("p/v", 1)).unwrap();
    assert_eq!(wire.write(0, &[1; 512]), Status::Ok);
    let absent = Wire::open(node.data, &Open::new("p/absent", 1))
        .err()
        .unwrap();
    assert_eq!(absent.status, Status::NoSuchVolume, "{}", absent.text);
}

/// A volume of an engine that works is served while another one is down, also if that
/// one is asked first; and data that was there is there.
#[test]
fn volumes_of_other_engines_are_served_while_one_is_down() {
    let dir = directory();
    let bad = dir.path().join("bad");
    drop(locked_root(&bad));
    let path = config(dir.path(), &bad, false);
    let good = dir.path().join("good");
    drop(locked_root(&good));
    let both = fs::read_to_string(&path).unwrap()
        + &format!("[engine.good]\nkind = \"file\"\npath = {good:?}\n");
    fs::write(&path, both).unwrap();
    let mut node = Node::start_from(&path);
    create(&node, "p/v", MIB, 512, "good");
    let mut wire = Wire::open(node.data, &Open::new("p/v", 1)).unwrap();
    assert_eq!(wire.write(0, &[7; 512]), Status::Ok);
    node.kill();
    fs::rename(&bad, dir.path().join("away")).unwrap();
    // In the way of a directory.
    fs::write(&bad, b"a file").unwrap();
    let node = Node::start_from(&path);
    assert_eq!(engine(&node, "bad").state, EngineState::Down);
    let mut again = Open::new("p/v", 1);
    again.generation = 2;
    let mut wire = Wire::open(node.data, &again).unwrap();
    assert_eq!(wire.read(0, 512), [7; 512]);
}

#[test]
fn a_node_without_a_usable_engine_stays_and_says_so() {
    let dir = directory();
    let bad = dir.path().join("bad");
    let lock = locked_root(&bad);
    let mut node = Node::start_from(&config(dir.path(), &bad, false));
    node.wait_for("no engine can be used");
    let health = block_on(node.api().health()).unwrap();
    assert_eq!(health.status, HealthStatus::Failed, "{health:?}");
    drop(lock);
    wait_for(&node, "bad", EngineState::Ok);
    block_on(node.api().create_volume(&spec("p/v", None))).unwrap();
    node.terminate();
    assert_eq!(node.wait(), 0);
}

/// A volume of the configuration that cannot be made keeps nothing from being served.
#[test]
fn a_configured_volume_that_cannot_be_created_is_a_problem_of_its_engine_only() {
    let dir = directory();
    let more = "[[volume]]\nname = \"p/huge\"\nsize_bytes = 1099511627776000\nengine = \"mem\"\n\
                [[volume]]\nname = \"p/odd\"\nsize_bytes = 1000\nengine = \"mem\"\n";
    let node = Node::start_with(dir.path(), more);
    let health = engine(&node, "mem");
    assert_eq!(health.state, EngineState::Degraded, "{health:?}");
    assert!(health.problems[0].contains("p/odd"), "{health:?}");
    create(&node, "p/v", MIB, 512, "mem");
    assert!(Wire::open(node.data, &Open::new("p/v", 1)).is_ok());
}

/// Where io_uring is not allowed the file engine says what to allow, and the others
/// are served.
#[test]
fn without_io_uring_the_file_engine_says_what_to_allow_and_others_are_served() {
    let dir = directory();
    // io_uring_setup fails with EPERM.
    let filter = [load(CALL), unless(425, 1), fail(1), ALLOW];
    let limited = node_under(dir.path(), &filter);
    let path = dir.path().join("node.toml");
    fs::write(&path, common::config(dir.path(), "")).unwrap();
    let node = Node::start_command(limited, &path);
    let health = engine(&node, "main");
    assert_eq!(health.state, EngineState::Down, "{health:?}");
    let text = &health.problems[0];
    assert!(text.contains("kernel.io_uring_disabled=0"), "{text}");
    assert_eq!(engine(&node, "mem").state, EngineState::Ok);
}

/// The directory that the node serves is not there any more (moved, or unmounted).
#[test]
fn health_notices_that_a_directory_has_gone() {
    let dir = directory();
    let node = Node::start(dir.path());
    assert_eq!(engine(&node, "main").state, EngineState::Ok);
    let (root, away) = (dir.path().join("volumes"), dir.path().join("away"));
    fs::rename(&root, &away).unwrap();
    wait_for(&node, "main", EngineState::Failing);
    // It may have gone in the middle of the first look, which fails at something else.
    let end = Instant::now() + PATIENCE;
    loop {
        let health = engine(&node, "main");
        if health.problems[0].contains("is not the directory any more") {
            break;
        }
        assert!(Instant::now() < end, "{health:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    fs::rename(&away, &root).unwrap();
    wait_for(&node, "main", EngineState::Ok);
}

#[cfg(feature = "test-faults")]
mod with_faults {
    use super::*;
    use neonsan_proto::{Kind, RequestFlags};

    fn set_faults(node: &Node, body: &str) {
        let (head, answer) = node.http(&format!(
            "PUT /v1/test-faults HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ));
        assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
    }

    #[test]
    fn health_is_not_ok_while_every_request_fails() {
        let dir = directory();
        let node = Node::start(dir.path());
        create(&node, "p/v", MIB, 512, "main");
        let mut wire = Wire::open(node.data, &Open::new("p/v", 1)).unwrap();
        set_faults(&node, r#"{"fail":"io"}"#);
        assert_eq!(wire.write(0, &[1; 512]), Status::MediaError);
        // At once, by the request that failed; then by the engine itself.
        let health = engine(&node, "main");
        assert_ne!(health.state, EngineState::Ok, "{health:?}");
        assert!(
            health.problems.join("\n").contains("write of p/v"),
            "{health:?}"
        );
        wait_for(&node, "main", EngineState::Failing);
        wait_for(&node, "mem", EngineState::Failing);
        let health = block_on(node.api().health()).unwrap();
        assert_eq!(health.status, HealthStatus::Failed, "{health:?}");
        let failed = "neonsan_node_engine_requests_failed_total{engine=\"main\",op=\"write\"}";
        assert!(node.metric(failed) > 0.5);
        assert_eq!(node.metric("neonsan_node_healthy"), 0.0);
        set_faults(&node, "{}");
        // It works again; that a request has failed is said for a while.
        let health = wait_for(&node, "main", EngineState::Degraded);
        assert!(
            health.problems[0].contains("1 requests have failed"),
            "{health:?}"
        );
        wait_for(&node, "mem", EngineState::Ok);
    }

    #[test]
    fn health_says_that_storage_does_not_answer_and_does_not_wait_for_it() {
        let dir = directory();
        let node = Node::start(dir.path());
        create(&node, "p/v", MIB, 512, "main");
        let mut wire = Wire::open(node.data, &Open::new("p/v", 1)).unwrap();
        set_faults(&node, r#"{"hang":true}"#);
        wire.ask(Kind::Write, RequestFlags::NONE, 0, 512, &[1; 512]);
        let begun = Instant::now();
        let health = loop {
            let asked = Instant::now();
            let health = engine(&node, "main");
            node.metrics();
            assert!(
                asked.elapsed() < PATIENCE / 4,
                "the answer waited for the storage"
            );
            if health.state == EngineState::Failing {
                break health;
            }
            assert!(begun.elapsed() < PATIENCE * 3, "{health:?}");
            std::thread::sleep(Duration::from_millis(100));
        };
        assert!(health.problems[0].contains("does not answer"), "{health:?}");
        set_faults(&node, "{}");
        wait_for(&node, "main", EngineState::Ok);
    }
}
