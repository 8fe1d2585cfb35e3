// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The control API, the command line and start-up of a node process.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use common::wire::{Open, Wire};
use common::{block_on, config, create, data_path, directory, Node};
use neonsan_api::{
    Client, ClientError, ErrorCode, HealthStatus, OpenMode, VolumeCreate, VolumeResize,
};
use neonsan_proto::Status;

const MIB: u64 = 1 << 20;

fn code<T: std::fmt::Debug>(result: Result<T, ClientError>) -> ErrorCode {
    match result.unwrap_err() {
        ClientError::Refused(error) => error.code,
        other => panic!("{other}"),
    }
}

fn spec(name: &str, size_bytes: u64, logical: u32) -> VolumeCreate {
    VolumeCreate {
        name: name.parse().unwrap(),
        size_bytes,
        logical_block_size_bytes: logical,
        physical_block_size_bytes: None,
        engine: None,
    }
}

#[test]
fn volumes_are_created_listed_resized_and_deleted() {
    let dir = directory();
    let node = Node::start(dir.path());
    let api = node.api();
    block_on(async {
        let name = "b/one".parse().unwrap();
        let made = api.create_volume(&spec("b/one", MIB, 4096)).await.unwrap();
        assert_eq!((made.engine.as_str(), made.size_bytes), ("main", MIB));
        assert_eq!(made.logical_block_size_bytes, 4096);
        assert!(made.physical_block_size_bytes >= 4096);
        assert!(made.limits.is_some());
        let again = api.create_volume(&spec("b/one", MIB, 4096)).await;
        assert_eq!(code(again), ErrorCode::AlreadyExists);
        let mut elsewhere = spec("b/one", MIB, 512);
        elsewhere.engine = Some("mem".to_owned());
        let again = api.create_volume(&elsewhere).await;
        assert_eq!(code(again), ErrorCode::AlreadyExists, "in any engine");
        elsewhere.name = "a/two".parse().unwrap();
        api.create_volume(&elsewhere).await.unwrap();

        let all = api.list_volumes(None).await.unwrap().volumes;
        let names: Vec<&str> = all.iter().map(|v| v.name.as_str()).collect();
        assert_eq!(names, ["a/two", "b/one"]);
        let pool = api.list_volumes(Some("b")).await.unwrap().volumes;
        assert_eq!(pool.len(), 1);

        let resize = |size_bytes, allow_shrink| VolumeResize {
            size_bytes,
            allow_shrink,
        };
        let larger = api.resize_volume(&name, &resize(2 * MIB, false)).await;
        assert_eq!(larger.unwrap().size_bytes, 2 * MIB);
        let smaller = api.resize_volume(&name, &resize(MIB, false)).await;
        assert_eq!(code(smaller), ErrorCode::BadSize);
        let smaller = api.resize_volume(&name, &resize(MIB, true)).await;
        assert_eq!(smaller.unwrap().size_bytes, MIB);
        let odd = api.resize_volume(&name, &resize(MIB + 512, true)).await;
        assert_eq!(code(odd), ErrorCode::BadSize);

        api.delete_volume(&name).await.unwrap();
        assert_eq!(code(api.volume(&name).await), ErrorCode::NotFound);
        assert_eq!(code(api.delete_volume(&name).await), ErrorCode::NotFound);
        let resized = api.resize_volume(&name, &resize(MIB, false)).await;
        assert_eq!(code(resized), ErrorCode::NotFound);
    });
}

#[test]
fn growing_twice_at_a_time_never_makes_a_volume_smaller() {
    let dir = directory();
    let node = Node::start(dir.path());
    create(&node, "p/held", MIB, 512, "mem");
    create(&node, "p/free", MIB, 512, "mem");
    let _holder = Wire::open(node.data, &Open::new("p/held", 1)).unwrap();
    let address = node.control.to_string();
    for name in ["p/held", "p/free"] {
        let grow = |mib: u64| {
            let api = Client::new(address.parse().unwrap());
            let name = name.parse().unwrap();
            let size_bytes = mib * MIB;
            let resize = VolumeResize {
                size_bytes,
                allow_shrink: false,
            };
            match block_on(api.resize_volume(&name, &resize)) {
                Ok(_) => Some(size_bytes),
                Err(ClientError::Refused(error)) => {
                    let expected = [ErrorCode::Busy, ErrorCode::BadSize];
                    assert!(expected.contains(&error.code), "{error}");
                    None
                }
                Err(other) => panic!("{other}"),
            }
        };
        for round in 1..100 {
            let largest = std::thread::scope(|scope| {
                let more = [2 * round, 2 * round + 1].map(|mib| scope.spawn(move || grow(mib)));
                more.into_iter().filter_map(|t| t.join().unwrap()).max()
            });
            let volume = block_on(node.api().volume(&name.parse().unwrap())).unwrap();
            assert!(Some(volume.size_bytes) >= largest, "{volume:?}");
        }
    }
}

#[test]
fn bad_requests_are_refused_with_code_message_and_hint() {
    let dir = directory();
    let node = Node::start(dir.path());
    let api = node.api();
    block_on(async {
        for bad in [
            spec("p/v", 1000, 512),
            spec("p/v", 0, 512),
            spec("p/v", MIB, 100),
        ] {
            assert_eq!(code(api.create_volume(&bad).await), ErrorCode::BadSize);
        }
        let mut unknown = spec("p/v", MIB, 512);
        unknown.engine = Some("nvme".to_owned());
        let error = api.create_volume(&unknown).await.unwrap_err().to_string();
        assert!(error.contains("it has: main, mem"), "{error}");
    });
    let post = |path: &str, headers: &str, body: &str| {
        node.http(&format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    };
    let json = "Content-Type: application/json\r\n";
    let (head, body) = post("/v1/volumes", json, r#"{"name":"p/v","size":1}"#);
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
    assert!(
        body.contains("bad-request") && body.contains("unknown field `size`"),
        "{body}"
    );
    let (head, body) = post("/v1/volumes", json, r#"{"name":"../v","size_bytes":512}"#);
    assert!(head.starts_with("HTTP/1.1 400"), "{head}{body}");
    let (head, _) = post("/v1/volumes", "", "{}");
    assert!(
        head.starts_with("HTTP/1.1 400"),
        "not declared as JSON: {head}"
    );
    let origin = format!("{json}Origin: http://evil.example\r\n");
    let (head, _) = post("/v1/volumes", &origin, "{}");
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
    let (head, _) = post("/v1/volumes", json, &"x".repeat(100_000));
    assert!(head.starts_with("HTTP/1.1 400"), "{head}");
    let (head, body) = post("/v1/nothing", json, "");
    assert!(
        head.starts_with("HTTP/1.1 404") && body.contains("openapi.yaml"),
        "{head}{body}"
    );
    let get = |path: &str| {
        node.http(&format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        ))
    };
    assert!(get("/v1/volumes?pol=a").0.starts_with("HTTP/1.1 400"));
    assert!(get("/v1/volumes/a/..").0.starts_with("HTTP/1.1 400"));
    assert!(get("/v1/volumes/a/b/c").0.starts_with("HTTP/1.1 404"));
    let (head, body) = get("/v1/openapi.yaml");
    assert!(head.starts_with("HTTP/1.1 200") && body.contains("openapi: 3.1.0"));
}

#[test]
fn the_description_names_every_field_of_the_answers() {
    let dir = directory();
    let node = Node::start(dir.path());
    create(&node, "p/v", MIB, 512, "mem");
    block_on(node.api().create_snapshot(&"p/v@s".parse().unwrap())).unwrap();
    let _wire = Wire::open(node.data, &Open::new("p/v", 1)).unwrap();
    let description = include_str!("../../../Documentation/node-api/openapi.yaml");
    for path in [
        "/v1/node",
        "/v1/health",
        "/v1/sessions",
        "/v1/volumes",
        "/v1/volumes/p/v",
        "/v1/volumes/p/v/snapshots",
        "/v1/volumes/p/v/snapshots/s",
        "/v1/nodes",
    ] {
        let (_, body) = node.http(&format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        ));
        let value: serde_json::Value = serde_json::from_str(&body).unwrap();
        let mut names = Vec::new();
        collect_names(&value, &mut names);
        assert!(!names.is_empty());
        for name in names {
            assert!(
                description.contains(&format!("{name}:")),
                "{name} of {path} is not described"
            );
        }
    }
}

fn collect_names(value: &serde_json::Value, names: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            for (name, value) in fields {
                names.push(name.clone());
                collect_names(value, names);
            }
        }
        serde_json::Value::Array(values) => values.iter().for_each(|v| collect_names(v, names)),
        _ => {}
    }
}

#[test]
fn held_volumes_show_their_sessions_and_cannot_be_deleted() {
    let dir = directory();
    let node = Node::start(dir.path());
    create(&node, "p/v", MIB, 512, "main");
    let wire = Wire::open(node.data, &Open::new("p/v", 1)).unwrap();
    let name = "p/v".parse().unwrap();
    block_on(async {
        let info = node.api().volume(&name).await.unwrap();
        assert_eq!(info.sessions.len(), 1);
        let session = &info.sessions[0];
        assert!(session.host.starts_with("host1 ("), "{}", session.host);
        assert_eq!((session.mode, session.generation), (OpenMode::Exclusive, 1));
        assert_eq!(session.connections.len(), 1);
        let error = node.api().delete_volume(&name).await;
        assert_eq!(code(error), ErrorCode::Busy);
    });
    wire.release();
    block_on(node.api().delete_volume(&name)).unwrap();
    let refused = Wire::open(node.data, &Open::new("p/v", 1)).err().unwrap();
    assert_eq!(refused.status, neonsan_proto::Status::NoSuchVolume);
}

#[test]
fn damaged_volumes_are_listed_with_a_warning_and_can_be_deleted() {
    let dir = directory();
    let node = Node::start(dir.path());
    create(&node, "p/v", MIB, 512, "main");
    let meta = data_path(dir.path(), "p/v").with_file_name("meta");
    fs::write(&meta, b"nonsense").unwrap();
    block_on(async {
        let api = node.api();
        let listed = api.list_volumes(None).await.unwrap().volumes;
        assert!(listed[0].warnings[0].contains("damaged"), "{listed:?}");
        let name = "p/v".parse().unwrap();
        assert_eq!(code(api.volume(&name).await), ErrorCode::Corrupt);
        api.delete_volume(&name).await.unwrap();
        assert!(api.list_volumes(None).await.unwrap().volumes.is_empty());
    });
}

#[test]
fn an_engine_that_fails_does_not_hide_the_volumes_of_others() {
    let dir = directory();
    let node = Node::start(dir.path());
    create(&node, "p/v", MIB, 512, "mem");
    // The file engine, which is asked first, cannot look into the pool any more.
    fs::write(dir.path().join("volumes/p"), b"not a directory").unwrap();
    block_on(async {
        let api = node.api();
        let found = api.volume(&"p/v".parse().unwrap()).await.unwrap();
        assert_eq!(found.engine, "mem");
        let absent = api.volume(&"p/absent".parse().unwrap()).await;
        assert_eq!(code(absent), ErrorCode::Unavailable);
        let mut other = spec("p/other", MIB, 512);
        other.engine = Some("mem".to_owned());
        // Nobody knows whether it has that name.
        assert_eq!(
            code(api.create_volume(&other).await),
            ErrorCode::Unavailable
        );
        assert_eq!(api.list_volumes(None).await.unwrap().missing, [""; 0]);
        fs::remove_file(dir.path().join("volumes/p")).unwrap();
        fs::rename(dir.path().join("volumes"), dir.path().join("gone")).unwrap();
        let list = api.list_volumes(None).await.unwrap();
        assert_eq!(list.volumes.len(), 1, "{list:?}");
        assert_eq!(list.volumes[0].name.as_str(), "p/v");
        assert!(list.missing[0].starts_with("the engine main: "), "{list:?}");
    });
    let mut wire = Wire::open(node.data, &Open::new("p/v", 1)).unwrap();
    assert_eq!(wire.read(0, 512), [0; 512]);
}

#[test]
fn node_and_health_tell_what_there_is() {
    let dir = directory();
    let node = Node::start(dir.path());
    block_on(async {
        let info = node.api().node().await.unwrap();
        assert_eq!(info.data_addresses, [node.data.to_string()]);
        let engines: Vec<&str> = info.engines.iter().map(|e| e.name.as_str()).collect();
        assert_eq!(engines, ["main", "mem"]);
        assert!(info.engines[0].persistent && !info.engines[1].persistent);
        assert_eq!(info.protocol_versions, [1, 1]);
        assert_eq!(info.boot_id.len(), 32);
        let health = node.api().health().await;
        if let Ok(health) = health {
            assert_eq!(health.status, HealthStatus::Ok);
        }
    });
}

#[test]
fn the_control_api_works_on_a_unix_socket() {
    let dir = directory();
    let socket = dir.path().join("control.sock");
    let listen = format!(
        "[control]\nlisten = [\"127.0.0.1:0\", \"unix:{0}\"]\nsocket_mode = \"0600\"\n",
        socket.display()
    );
    let mut node = Node::start_with(dir.path(), &listen);
    let mode = fs::metadata(&socket).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let client = Client::new(format!("unix:{}", socket.display()).parse().unwrap());
    block_on(client.node()).unwrap();
    // What a killed node leaves is no obstacle.
    node.kill();
    assert!(socket.exists());
    let mut node = Node::start_with(dir.path(), &listen);
    block_on(client.node()).unwrap();
    node.terminate();
    assert_eq!(node.wait(), 0);
    assert!(!socket.exists());
}

fn neonsan_node(args: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_neonsan-node"))
        .args(args)
        .output()
        .unwrap();
    let text =
        String::from_utf8(output.stderr).unwrap() + &String::from_utf8(output.stdout).unwrap();
    (output.status.code().unwrap(), text)
}

#[test]
fn a_wrong_configuration_is_refused_with_file_and_key() {
    let dir = directory();
    let path = dir.path().join("node.toml");
    let name = path.to_str().unwrap();
    let (status, text) = neonsan_node(&["--config", name]);
    assert_eq!(status, 78);
    assert!(text.contains(name), "{text}");
    fs::write(&path, config(dir.path(), "lissten = 1\n")).unwrap();
    let (status, text) = neonsan_node(&["--config", name, "--check"]);
    assert_eq!(status, 78);
    assert!(text.contains("lissten") && text.contains(name), "{text}");
    fs::write(&path, config(dir.path(), "")).unwrap();
    let (status, text) = neonsan_node(&["--config", name, "--check"]);
    assert_eq!((status, text.contains("is good")), (0, true), "{text}");
}

#[test]
fn what_keeps_a_node_from_starting_is_named() {
    let dir = directory();
    let node = Node::start(dir.path());
    // Its data port is taken.
    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    let more = format!("[data]\nlisten = [\"{}\"]\n", node.data);
    let path = other.join("node.toml");
    fs::write(&path, config(&other, &more)).unwrap();
    let (status, text) = neonsan_node(&["--config", path.to_str().unwrap()]);
    assert_eq!(status, 1);
    assert!(
        text.contains(&format!("cannot listen on {}", node.data)),
        "{text}"
    );
    assert!(text.contains("change data.listen"), "{text}");
}

#[test]
fn a_limit_of_open_files_that_is_too_low_is_warned_of() {
    let dir = directory();
    let program = env!("CARGO_BIN_EXE_neonsan-node");
    let mut limited = Command::new("sh");
    limited
        .arg("-c")
        .arg(format!("ulimit -n 512 && exec {program} \"$@\""))
        .arg("node");
    let path = dir.path().join("node.toml");
    fs::write(&path, config(dir.path(), "")).unwrap();
    let mut node = Node::start_command(limited, &path);
    let line = node.wait_for("raise LimitNOFILE");
    assert!(line.contains("WARN"), "{line}");
}

#[test]
fn configured_volumes_are_created_and_logs_can_be_json() {
    let dir = directory();
    let more = "[[volume]]\nname = \"bench/one\"\nsize_bytes = 1048576\nengine = \"mem\"\n";
    let node = Node::start_with(dir.path(), more);
    let volumes = block_on(node.api().list_volumes(None)).unwrap().volumes;
    assert_eq!(volumes[0].name.as_str(), "bench/one");
    drop(node);

    let path = dir.path().join("node.toml");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let more = format!(
        "[log]\nformat = \"json\"\n[data]\nlisten = [\"{}\"]\n",
        taken.local_addr().unwrap()
    );
    fs::write(&path, config(dir.path(), &more)).unwrap();
    // An address that somebody else has: it starts, logs and fails.
    let (status, text) = neonsan_node(&["--config", path.to_str().unwrap()]);
    assert_eq!(status, 1);
    let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!(first["level"], "INFO");
}

/// A field of `/proc/PID/status`, or the first word of a file beside it.
fn of_process(node: &Node, name: &str) -> String {
    let dir = format!("/proc/{}", node.pid().as_raw_nonzero());
    let status = fs::read_to_string(format!("{dir}/status")).unwrap();
    let field = status
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{name}:")));
    let text = field.map_or_else(
        || fs::read_to_string(format!("{dir}/{name}")).unwrap(),
        str::to_owned,
    );
    text.split_whitespace().next().unwrap().to_owned()
}

/// Whether this process, and so a node that it starts, has CAP_IPC_LOCK (14)
/// and CAP_SYS_RESOURCE (24). Root in a container may lack them.
fn has_memory_capabilities() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = u64::from_str_radix(effective.unwrap().trim(), 16).unwrap();
    effective & (1 << 14) != 0 && effective & (1 << 24) != 0
}

/// With the capabilities that takes, the node's memory is its own; without, it
/// does not start and says what it needs.
#[test]
fn a_node_that_serves_its_own_host_keeps_its_memory() {
    let dir = directory();
    let more = "[memory]\nserves_own_host = true\n";
    if !has_memory_capabilities() {
        let path = dir.path().join("node.toml");
        fs::write(&path, config(dir.path(), more)).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_neonsan-node"))
            .arg("--config")
            .arg(&path)
            .output()
            .unwrap();
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("CAP_IPC_LOCK") || said.contains("CAP_SYS_RESOURCE"));
        return;
    }
    let node = Node::start_with(dir.path(), more);
    let locked: u64 = of_process(&node, "VmLck").parse().unwrap();
    assert!(locked > 1024, "only {locked} KiB are locked");
    assert_eq!(of_process(&node, "oom_score_adj"), "-1000");
    drop(node);
    let node = Node::start(dir.path());
    assert_eq!(of_process(&node, "VmLck"), "0");
}

/// Who takes the log away may hang, or wait for a volume of this very node.
#[test]
fn who_serves_volumes_does_not_wait_for_the_log() {
    let dir = directory();
    let node = Node::start_with(dir.path(), "[log]\nfilter = \"debug\"\n");
    create(&node, "logs/volume", MIB, 512, "main");
    let metric = "neonsan_node_log_lines_lost_total";
    assert!(node.metrics().contains(&format!("{metric} 0\n")));
    let held = node.log_reader.lock().unwrap();
    // Every question writes a line: the pipe fills, then the place for lines that wait.
    let noticed = (0..20_000).any(|_| node.metric(metric) > 0.0);
    assert!(noticed, "lines for which there is no room are not counted");
    let mut wire = Wire::open(node.data, &Open::new("logs/volume", 1)).unwrap();
    assert_eq!(wire.write(0, &[7; 512]), Status::Ok);
    assert_eq!(wire.flush(), Status::Ok);
    assert_eq!(wire.read(0, 512), vec![7; 512]);
    wire.release();
    drop(held);
}
