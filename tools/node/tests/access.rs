// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Who may use a node: users of its machine, and how many connections one of them may have.
//!
//! The tests run as root, as everything in the lab: they act as other users.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::netns;
use common::seccomp::{fail, load, node_under, unless, ALLOW, CALL, FIRST_ARGUMENT};
use common::wire::{Open, Wire};
use common::{block_on, config, create, directory, Node};
use neonsan_api::Client;
use neonsan_proto::{ClientHello, Features, Mode, Status};
use rustix::process::{kill_process, Signal};
use zerocopy::IntoBytes as _;

const NOBODY: u32 = 65534;
const MIB: u64 = 1 << 20;

/// What a thread does as another user: sockets that it makes belong to that one.
fn as_user<T>(uid: u32, act: impl FnOnce() -> T) -> T {
    assert!(
        rustix::process::geteuid().is_root(),
        "run the tests as root"
    );
    set_fsuid(uid);
    let result = act();
    set_fsuid(0);
    result
}

/// Files and sockets that this thread makes from now on belong to that user.
fn set_fsuid(uid: u32) {
    // SAFETY: the call takes no pointers, and is about this thread alone.
    unsafe { nix::libc::setfsuid(uid) };
}

fn read_only(volume: &str, host: u8) -> Open<'_> {
    Open {
        mode: Mode::ReadOnly,
        ..Open::new(volume, host)
    }
}

/// A client that is let in as soon as the node takes up its configuration.
fn soon(what: &str, mut ok: impl FnMut() -> bool) {
    let end = Instant::now() + common::PATIENCE;
    while !ok() {
        assert!(Instant::now() < end, "not within 20 s: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_data_port_on_loopback_is_for_root_and_the_nodes_user() {
    let dir = directory();
    let node = Node::start_with(dir.path(), "[data]\nlisten = [\"127.0.0.1:0\"]\n");
    create(&node, "p/v", MIB, 512, "mem");
    let refused = as_user(NOBODY, || Wire::open(node.data, &Open::new("p/v", 1)));
    let refused = refused.err().expect("nobody may open a volume");
    assert_eq!(refused.status, Status::NotPermitted);
    assert!(refused.text.contains("uid 65534"), "{}", refused.text);
    assert!(
        refused.text.contains("data.local_users"),
        "{}",
        refused.text
    );
    assert_eq!(node.metric("neonsan_node_connections_denied_total"), 1.0);
    let mut wire = Wire::open(node.data, &Open::new("p/v", 1)).unwrap();
    assert_eq!(wire.write(0, &[7; 512]), Status::Ok);
}

#[test]
fn a_node_that_is_not_root_serves_root_and_its_own_user_alone() {
    use std::os::unix::process::CommandExt as _;
    let dir = directory();
    // The user's own: the directories above are root's.
    let home = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(home.path(), Some(4711), Some(4711)).unwrap();
    let path = home.path().join("node.toml");
    let text = "[data]\nlisten = [\"127.0.0.1:0\"]\n[control]\nlisten = [\"127.0.0.1:0\"]\n\
                [engine.mem]\nkind = \"mem\"\ncapacity_bytes = 268435456\n";
    fs::write(&path, text).unwrap();
    let program = home.path().join("neonsan-node");
    fs::copy(env!("CARGO_BIN_EXE_neonsan-node"), &program).unwrap();
    let mut command = Command::new(&program);
    command.uid(4711).gid(4711).current_dir("/");
    let node = Node::start_command(command, &path);
    create(&node, "p/v", MIB, 512, "mem");
    for uid in [0, 4711] {
        let wire = as_user(uid, || Wire::open(node.data, &Open::new("p/v", 1)));
        wire.unwrap_or_else(|refused| panic!("uid {uid}: {refused:?}"))
            .release();
    }
    let refused = as_user(NOBODY, || Wire::open(node.data, &Open::new("p/v", 1)));
    assert_eq!(refused.err().unwrap().status, Status::NotPermitted);
    drop(dir);
}

#[test]
fn further_users_are_let_in_by_name_and_a_reload_takes_that_back() {
    let dir = directory();
    let path = dir.path().join("node.toml");
    let with = |users: &str| {
        let data = format!("[data]\nlisten = [\"127.0.0.1:0\"]\nlocal_users = [{users}]\n");
        fs::write(&path, config(dir.path(), &data)).unwrap();
    };
    with("\"nobody\"");
    let mut node = Node::start_from(&path);
    create(&node, "p/v", MIB, 512, "mem");
    let open = || as_user(NOBODY, || Wire::open(node.data, &Open::new("p/v", 1)));
    open().expect("nobody is named").release();
    with("");
    kill_process(node.pid(), Signal::HUP).unwrap();
    soon("nobody is refused", || match open() {
        Ok(wire) => {
            wire.release();
            false
        }
        Err(refused) => refused.status == Status::NotPermitted,
    });
    node.wait_for("configuration reloaded");
}

/// An address of this machine is as good as loopback, for whoever uses it.
#[test]
fn the_machines_own_addresses_are_for_the_same_users() {
    netns::enter();
    netns::ip(&["address", "add", "192.0.2.7/32", "dev", "lo"]);
    let dir = directory();
    let node = Node::start_with(dir.path(), "[data]\nlisten = [\"0.0.0.0:0\"]\n");
    create(&node, "p/v", MIB, 512, "mem");
    let address = SocketAddr::from(([192, 0, 2, 7], node.data.port()));
    let refused = as_user(NOBODY, || Wire::open(address, &Open::new("p/v", 1)));
    assert_eq!(refused.err().unwrap().status, Status::NotPermitted);
    Wire::open(address, &Open::new("p/v", 1)).unwrap();
}

/// A node that cannot ask the kernel does not know which addresses are its machine's.
#[test]
fn without_netlink_nobody_is_let_in_by_any_address() {
    netns::enter();
    netns::ip(&["address", "add", "192.0.2.7/32", "dev", "lo"]);
    let dir = directory();
    let path = dir.path().join("node.toml");
    let listen = "[data]\nlisten = [\"0.0.0.0:0\"]\n";
    fs::write(&path, config(dir.path(), listen)).unwrap();
    // As RestrictAddressFamilies= does: socket(AF_NETLINK, ...) fails with EAFNOSUPPORT.
    let filter = [
        load(CALL),
        unless(41, 3),
        load(FIRST_ARGUMENT),
        unless(16, 1),
        fail(97),
        ALLOW,
    ];
    let mut node = Node::start_command(node_under(dir.path(), &filter), &path);
    node.wait_for("so none is served");
    create(&node, "p/v", MIB, 512, "mem");
    let port = node.data.port();
    for address in [[192, 0, 2, 7], [127, 0, 0, 1]] {
        for uid in [NOBODY, 0] {
            let opened = as_user(uid, || {
                Wire::open(SocketAddr::from((address, port)), &Open::new("p/v", 1))
            });
            let refused = opened.err().expect("somebody is let in");
            assert_eq!(refused.status, Status::NotPermitted);
            assert!(
                refused.text.contains("RestrictAddressFamilies="),
                "{}",
                refused.text
            );
        }
    }
}

/// A socket that was closed is shown as root's, so it counts as nobody's.
#[test]
fn what_was_closed_before_it_was_accepted_opens_nothing() {
    let dir = directory();
    let mut node = Node::start(dir.path());
    create(&node, "p/v", MIB, 512, "mem");
    let before = node.metric("neonsan_node_connections_denied_total");
    kill_process(node.pid(), Signal::STOP).unwrap();
    node.wait_stopped();
    as_user(NOBODY, || {
        let hello = ClientHello::new(Features::NONE, Features::NONE, "test");
        let open = common::wire::open_message(&Open::new("p/v", 1));
        for reset in [false, true] {
            let mut stream = TcpStream::connect(node.data).unwrap();
            stream.write_all(hello.as_bytes()).unwrap();
            stream.write_all(&open).unwrap();
            if reset {
                let linger = Some(Duration::ZERO);
                rustix::net::sockopt::set_socket_linger(stream.as_fd(), linger).unwrap();
            }
        }
    });
    kill_process(node.pid(), Signal::CONT).unwrap();
    node.wait_for("not let in");
    soon("both are denied", || {
        node.metric("neonsan_node_connections_denied_total") >= before + 2.0
    });
    let sessions = block_on(node.api().sessions()).unwrap();
    assert!(sessions.is_empty(), "{sessions:?}");
}

#[test]
fn one_peer_leaves_connections_and_sessions_to_others() {
    let dir = directory();
    let more = "[data]\nlisten = [\"127.0.0.1:0\"]\nlocal_users = [\"nobody\"]\n\
                [limits]\nmax_connections = 64\nmax_sessions = 16\n";
    let node = Node::start_with(dir.path(), more);
    create(&node, "p/v", MIB, 512, "mem");
    let mut held = Vec::new();
    let refused = as_user(NOBODY, || {
        for host in 1..=16 {
            match Wire::open(node.data, &read_only("p/v", host)) {
                Ok(wire) => held.push(wire),
                Err(refused) => return Some(refused),
            }
        }
        None
    });
    let refused = refused.expect("one peer cannot have all sessions");
    assert_eq!((refused.status, held.len()), (Status::TooManySessions, 12));
    assert!(
        refused.text.contains("max_peer_sessions"),
        "{}",
        refused.text
    );
    Wire::open(node.data, &read_only("p/v", 99)).expect("another peer has its own");

    // Silence of one peer shuts out neither others nor the peer's own.
    let silent: Vec<_> = as_user(NOBODY, || {
        (0..400)
            .map(|_| TcpStream::connect(node.data).unwrap())
            .collect()
    });
    Wire::open(node.data, &read_only("p/v", 98)).expect("another peer gets in");
    held.pop().unwrap().release();
    soon("the peer itself gets in", || {
        as_user(NOBODY, || {
            Wire::open(node.data, &read_only("p/v", 97)).is_ok()
        })
    });
    let made_room = node.metric("neonsan_node_connections_closed_total{cause=\"made-room\"}");
    assert!(made_room > 0.0);
    let late = node.metric("neonsan_node_connections_closed_total{cause=\"connect-timeout\"}");
    assert_eq!(late, 0.0, "none of them had its time");
    drop(silent);
}

/// Any user of the machine can connect as often as it likes; the log is not its to fill.
#[test]
fn who_is_not_let_in_again_and_again_does_not_fill_the_log() {
    const TIMES: usize = 60;
    let dir = directory();
    let mut node = Node::start_with(dir.path(), "[data]\nlisten = [\"127.0.0.1:0\"]\n");
    create(&node, "p/v", MIB, 512, "mem");
    let began = Instant::now();
    as_user(NOBODY, || {
        for _ in 0..TIMES {
            let refused = Wire::open(node.data, &Open::new("p/v", 1)).err().unwrap();
            assert_eq!(refused.status, Status::NotPermitted);
        }
    });
    // A slow machine may begin a new period, which has ten lines of its own.
    let periods = 1 + began.elapsed().as_secs() as usize / 10;
    node.wait_for("more lines like \"a connection is not let in\"");
    for line in ["a connection is not let in: ", "connection closed: refused"] {
        let written = node.log.iter().filter(|l| l.contains(line)).count();
        assert!(
            written >= 10 && written <= 10 * periods,
            "{line}: {written}"
        );
    }
    let denied = node.metric("neonsan_node_connections_denied_total");
    assert_eq!(denied, TIMES as f64);
    let left_out = node.metric("neonsan_node_log_lines_left_out_total");
    assert!(
        left_out >= (2 * (TIMES - 10 * periods)) as f64,
        "{left_out}"
    );
    // Whoever is let in has its lines.
    Wire::open(node.data, &Open::new("p/v", 1))
        .unwrap()
        .release();
    node.wait_for("connection closed: the session ended");
}

/// Options of `unshare` for mounts that nobody else sees. In a chroot, whose root is no mount, it cannot
/// make them private; that of the lab is in private mounts as a whole.
fn own_mounts() -> &'static [&'static str] {
    let works = Command::new("unshare").args(["--mount", "true"]).output();
    if works.unwrap().status.success() {
        &["--mount"]
    } else {
        &["--mount", "--propagation", "unchanged"]
    }
}

/// A node whose control API is where it is by default, in a file system of its own.
fn start_in_own_run(dir: &Path, control: &str) -> (Node, Client) {
    let path = dir.join("node.toml");
    let mut text = config(dir, "[control]\nHERE\n");
    text = text.replace("[control]\nHERE\n", control);
    fs::write(&path, text).unwrap();
    let mut command = Command::new("unshare");
    command.args(own_mounts()).args(["sh", "-c"]);
    command.arg("mount -t tmpfs tmpfs /run && exec \"$@\"");
    command.args(["node", env!("CARGO_BIN_EXE_neonsan-node")]);
    let node = Node::start_on_socket(command, &path);
    let socket = format!(
        "unix:/proc/{}/root{}",
        node.pid().as_raw_nonzero(),
        neonsan_api::DEFAULT_CONTROL_SOCKET
    );
    (node, Client::new(socket.parse().unwrap()))
}

#[test]
fn by_default_control_is_on_a_socket_for_root_and_the_nodes_group() {
    let dir = directory();
    let (node, client) = start_in_own_run(dir.path(), "");
    assert!(!node
        .log
        .iter()
        .any(|line| line.contains("control API listens on TCP")));
    block_on(client.node()).unwrap();
    assert!(asks_at_the_socket(&node, 0, 0));
    assert!(!asks_at_the_socket(&node, NOBODY, NOBODY));
    // The node's group, which is root's here, may.
    assert!(asks_at_the_socket(&node, NOBODY, 0));
}

/// Whether a process of this user and group, in the node's file system, gets an answer at the default
/// socket.
fn asks_at_the_socket(node: &Node, uid: u32, gid: u32) -> bool {
    let status = Command::new("nsenter")
        .arg(format!("--target={}", node.pid().as_raw_nonzero()))
        .args(["--mount", "--root", "setpriv", "--clear-groups"])
        .args([format!("--reuid={uid}"), format!("--regid={gid}")])
        .args(["curl", "-sS", "--unix-socket"])
        .args([
            neonsan_api::DEFAULT_CONTROL_SOCKET,
            "http://localhost/v1/node",
        ])
        .stdout(std::process::Stdio::null())
        .status();
    status.unwrap().success()
}

/// A node in a container, whose PID namespace does not have the caller.
#[test]
fn a_caller_whom_the_node_cannot_number_is_known_by_its_user() {
    let dir = directory();
    let socket = dir.path().join("control.sock");
    let path = dir.path().join("node.toml");
    let control = format!(
        "[control]\nlisten = [\"127.0.0.1:0\", \"unix:{}\"]\n",
        socket.display()
    );
    fs::write(&path, config(dir.path(), &control)).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child"]);
    command.arg(env!("CARGO_BIN_EXE_neonsan-node"));
    let _node = Node::start_command(command, &path);
    let client = Client::new(format!("unix:{}", socket.display()).parse().unwrap());
    block_on(client.node()).unwrap();
}

/// Who is let in stands in the configuration, and not in what somebody made of the file.
#[test]
fn credentials_are_looked_at_beside_the_permissions_of_the_socket() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = directory();
    let (mut node, client) = start_in_own_run(dir.path(), "");
    let socket = format!(
        "/proc/{}/root{}",
        node.pid().as_raw_nonzero(),
        neonsan_api::DEFAULT_CONTROL_SOCKET
    );
    fs::set_permissions(socket, fs::Permissions::from_mode(0o666)).unwrap();
    block_on(client.node()).unwrap();
    assert!(asks_at_the_socket(&node, 0, 0));
    assert!(!asks_at_the_socket(&node, NOBODY, NOBODY));
    let line = node.wait_for("may not use the control API");
    assert!(line.contains("uid=65534"), "{line}");
}

#[test]
fn a_file_in_the_place_of_the_control_socket_stays() {
    let dir = directory();
    let file = dir.path().join("precious");
    fs::write(&file, "do not remove").unwrap();
    let control = format!("[control]\nlisten = [\"unix:{}\"]\n", file.display());
    let path = dir.path().join("node.toml");
    fs::write(&path, config(dir.path(), &control)).unwrap();
    let mut node = Node::spawn(Command::new(env!("CARGO_BIN_EXE_neonsan-node")), &path);
    assert_eq!(node.wait(), 1);
    let said = node.wait_for("cannot listen");
    assert!(
        said.contains("precious") && said.contains("no socket"),
        "{said}"
    );
    assert_eq!(fs::read_to_string(&file).unwrap(), "do not remove");
}

#[test]
fn a_foreign_name_for_the_node_is_refused() {
    let dir = directory();
    let control = "[control]\nlisten = [\"127.0.0.1:0\"]\nhosts = [\"node1.example\"]\n";
    let node = Node::start_with(dir.path(), control);
    let get = |host: &str| {
        node.http(&format!(
            "GET /v1/volumes HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        ))
    };
    let own = format!("127.0.0.1:{}", node.control.port());
    for good in [own.as_str(), "localhost", "node1.example:9667"] {
        let (head, _) = get(good);
        assert!(head.starts_with("HTTP/1.1 200"), "{good}: {head}");
    }
    let (head, body) = get("evil.example");
    assert!(head.starts_with("HTTP/1.1 403"), "{head}");
    assert!(body.contains("control.hosts"), "{body}");
}

#[test]
fn idle_control_connections_do_not_delay_others() {
    let dir = directory();
    let node = Node::start(dir.path());
    let idle: Vec<_> = (0..200)
        .map(|_| {
            let mut stream = TcpStream::connect(node.control).unwrap();
            // Some say nothing, some never end their request.
            let _ = stream.write_all(b"GET /v1/health HTTP/1.1\r\nHost: ");
            stream
        })
        .collect();
    let begin = Instant::now();
    let _ = block_on(node.api().node()).unwrap();
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    drop(idle);
}

#[test]
fn metrics_have_a_port_of_their_own_that_changes_nothing() {
    let dir = directory();
    let more = "[metrics]\nlisten = [\"127.0.0.1:0\"]\n";
    let mut node = Node::start_with(dir.path(), more);
    create(&node, "p/v", MIB, 512, "mem");
    let line = node.wait_for("metrics open");
    let (_, address) = line.split_once("address=").unwrap();
    let address: SocketAddr = address.trim().parse().unwrap();
    let ask = |request: &str| {
        common::http_at(
            address,
            &format!("{request} HTTP/1.1\r\nHost: prometheus.example\r\nConnection: close\r\n\r\n"),
        )
    };
    let (head, body) = ask("GET /metrics");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(body.contains("neonsan_node_sessions 0"), "{body}");
    assert!(ask("GET /v1/health").1.contains("status"));
    for other in ["GET /v1/volumes", "DELETE /v1/volumes/p/v", "POST /metrics"] {
        let (head, _) = ask(other);
        assert!(head.starts_with("HTTP/1.1 404"), "{other}: {head}");
    }
    assert_eq!(
        block_on(node.api().list_volumes(None))
            .unwrap()
            .volumes
            .len(),
        1
    );
}
