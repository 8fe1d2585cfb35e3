// SPDX-License-Identifier: GPL-2.0 OR MIT
//! A node as a service: signals, addresses that come late, and what the service manager is told.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use common::netns;
use common::wire::{Open, Wire};
use common::{address_in, block_on, config, create, directory, Node, PATIENCE};
use neonsan_api::{Client, ClientError, HealthStatus};
use neonsan_proto::{Mode, Status};
use rustix::process::{kill_process, Signal};

const MIB: u64 = 1 << 20;

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_neonsan-node"))
}

fn reload(node: &Node) {
    kill_process(node.pid(), Signal::HUP).unwrap();
}

/// What stands in for the service manager.
struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    fn new(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket }
    }

    /// The next message, as its lines; `None` if none comes.
    fn next(&self) -> Option<Vec<String>> {
        let mut message = [0; 4096];
        let len = self.socket.recv(&mut message).ok()?;
        let text = std::str::from_utf8(&message[..len]).unwrap();
        Some(text.lines().map(str::to_owned).collect())
    }

    /// Waits for a message with this line.
    fn wait_for(&self, wanted: &str) -> Vec<String> {
        let end = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < end, "the node does not say {wanted}");
            match self.next() {
                Some(lines) if lines.iter().any(|line| line == wanted) => return lines,
                Some(_) => {}
                None => panic!("the node does not say {wanted}"),
            }
        }
    }

    /// Whether a message with this line comes within a time.
    fn hears(&self, wanted: &str, within: Duration) -> bool {
        let end = Instant::now() + within;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.socket.set_read_timeout(Some(left)).unwrap();
            let heard = self.next();
            self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
            if heard.is_some_and(|lines| lines.iter().any(|line| line == wanted)) {
                return true;
            }
        }
    }
}

#[test]
fn the_service_manager_is_told_of_start_reload_and_stop() {
    let dir = directory();
    let notify = dir.path().join("notify");
    let manager = Manager::new(&notify);
    let path = dir.path().join("node.toml");
    fs::write(&path, config(dir.path(), "")).unwrap();
    let mut command = program();
    command.env("NOTIFY_SOCKET", &notify);
    let mut node = Node::start_command(command, &path);
    manager.wait_for("READY=1");
    reload(&node);
    let lines = manager.wait_for("RELOADING=1");
    let clock = lines
        .iter()
        .find_map(|line| line.strip_prefix("MONOTONIC_USEC="));
    assert!(clock.unwrap().parse::<u64>().unwrap() > 0);
    manager.wait_for("READY=1");
    node.terminate();
    manager.wait_for("STOPPING=1");
    assert_eq!(node.wait(), 0);
}

/// Also for a volume that was open before: what it remembers of its sessions is kept as long as the node
/// runs, and what was configured then is not.
#[test]
fn reloaded_limits_reach_volumes_that_were_opened_before() {
    let dir = directory();
    let path = dir.path().join("node.toml");
    let with = |connections: u16, sessions: u32| {
        let limits = format!(
            "[limits]\nmax_session_connections = {connections}\nmax_sessions = {sessions}\n\
             max_peer_sessions = {sessions}\n[timeouts]\nsession_linger_ms = 100\n"
        );
        fs::write(&path, config(dir.path(), &limits)).unwrap();
    };
    with(1, 8);
    let mut node = Node::start_from(&path);
    create(&node, "p/v", MIB, 512, "main");
    let session = |n: u8| Open {
        mode: Mode::Shared,
        ..Open::new("p/v", n)
    };
    let first = Wire::open(node.data, &session(1)).unwrap();
    assert_eq!(first.reply.max_connections.get(), 1);
    with(8, 64);
    reload(&node);
    node.wait_for("configuration reloaded");
    // It is open still, and has sessions of both kinds.
    let second = Wire::open(node.data, &session(2)).unwrap();
    assert_eq!(second.reply.max_connections.get(), 8);
    let beyond = Wire::join(node.data, &session(1), 1, 1).err().unwrap();
    assert_eq!(beyond.status, Status::TooManyConnections);
    Wire::join(node.data, &session(2), 7, 1).unwrap();
    let more: Vec<Wire> = (3..=12)
        .map(|n| Wire::open(node.data, &session(n)).unwrap())
        .collect();
    for wire in more.into_iter().chain([first, second]) {
        wire.release();
    }
    // It was closed, and is opened again.
    let again = Wire::open(node.data, &session(20)).unwrap();
    assert_eq!(again.reply.max_connections.get(), 8);
}

/// A pipe to which nobody writes: whoever reads it waits, and cannot be told to stop meanwhile.
#[test]
fn a_configuration_that_became_a_pipe_is_not_waited_for() {
    let dir = directory();
    let path = dir.path().join("node.toml");
    fs::write(&path, config(dir.path(), "")).unwrap();
    let mut node = Node::start_from(&path);
    fs::remove_file(&path).unwrap();
    assert!(Command::new("mkfifo")
        .arg(&path)
        .status()
        .unwrap()
        .success());
    reload(&node);
    let line = node.wait_for("not reloaded");
    assert!(line.contains("no regular file"), "{line}");
    node.terminate();
    assert_eq!(node.wait(), 0);
}

/// Whoever looks at a host (`neonsan doctor`, the package) asks by --check, and would wait for ever.
#[test]
fn a_configuration_that_is_no_file_is_refused() {
    let dir = directory();
    let pipe = dir.path().join("pipe.toml");
    assert!(Command::new("mkfifo")
        .arg(&pipe)
        .status()
        .unwrap()
        .success());
    for path in [pipe.as_path(), dir.path(), Path::new("/dev/null")] {
        for check in [&["--check"][..], &[]] {
            // What waits is ended, with another code.
            let mut command = Command::new("timeout");
            command.arg("20").arg(program().get_program());
            let output = command.args(check).arg("--config").arg(path).output();
            let output = output.unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(78), "{path:?}: {said}");
            assert!(said.contains("it is no regular file"), "{path:?}: {said}");
        }
    }
}

/// The thread of a node with this name.
fn thread_of(node: &Node, name: &str) -> i32 {
    let tasks = format!("/proc/{}/task", node.pid().as_raw_nonzero());
    fs::read_dir(tasks)
        .unwrap()
        .map(|task| task.unwrap())
        .find(|task| fs::read_to_string(task.path().join("comm")).unwrap().trim() == name)
        .unwrap_or_else(|| panic!("the node has no thread {name}"))
        .file_name()
        .to_str()
        .unwrap()
        .parse()
        .unwrap()
}

fn ptrace(request: u32, thread: i32) {
    let nothing = std::ptr::null_mut::<nix::libc::c_void>();
    // SAFETY: none of these requests reads or writes memory of this process.
    let result = unsafe { nix::libc::ptrace(request, thread, nothing, nothing) };
    let error = std::io::Error::last_os_error();
    assert_ne!(result, -1, "ptrace request {request}: {error}");
}

/// The sign of life is that of the threads that serve: one that hangs ends it.
#[test]
fn a_thread_that_hangs_ends_the_signs_of_life() {
    let dir = directory();
    let notify = dir.path().join("notify");
    let manager = Manager::new(&notify);
    let path = dir.path().join("node.toml");
    let more = "[data]\nlisten = [\"127.0.0.1:0\"]\nworkers = 2\n";
    fs::write(&path, config(dir.path(), more)).unwrap();
    let mut command = program();
    command
        .env("NOTIFY_SOCKET", &notify)
        .env("WATCHDOG_USEC", "3000000");
    let mut node = Node::start_command(command, &path);
    manager.wait_for("WATCHDOG=1");
    for name in ["data-1", "hub"] {
        let thread = thread_of(&node, name);
        ptrace(nix::libc::PTRACE_SEIZE, thread);
        ptrace(nix::libc::PTRACE_INTERRUPT, thread);
        let line = node.wait_for(&format!("threads={name:?}"));
        assert!(line.contains("hang"), "{line}");
        // One may have been on its way.
        manager.hears("WATCHDOG=1", Duration::from_millis(100));
        let heard = manager.hears("WATCHDOG=1", Duration::from_secs(3));
        assert!(!heard, "{name} hangs, and the node says that it serves");
        ptrace(nix::libc::PTRACE_DETACH, thread);
        manager.wait_for("WATCHDOG=1");
    }
}

#[test]
fn a_reload_takes_the_log_and_limits_over_and_names_the_rest() {
    let dir = directory();
    let path = dir.path().join("node.toml");
    fs::write(&path, config(dir.path(), "")).unwrap();
    let mut node = Node::start_from(&path);
    create(&node, "p/v", MIB, 512, "mem");
    let read_only = |host| Open {
        mode: Mode::ReadOnly,
        ..Open::new("p/v", host)
    };
    let held = Wire::open(node.data, &read_only(1)).unwrap();

    // One that is wrong changes nothing.
    fs::write(&path, config(dir.path(), "lissten = 1\n")).unwrap();
    reload(&node);
    node.wait_for("not reloaded");
    node.wait_for("lissten");
    block_on(node.api().node()).unwrap();

    let more = "[limits]\nmax_sessions = 1\nmax_peer_sessions = 1\nmax_depth = 7\n\
                [timeouts]\ndrain_ms = 4321\n[log]\nfilter = \"debug\"\n";
    fs::write(&path, config(dir.path(), more)).unwrap();
    reload(&node);
    let line = node.wait_for("started again");
    assert!(line.contains("timeouts.drain_ms"), "{line}");
    for applied in ["limits.", "log.filter"] {
        assert!(!line.contains(applied), "{line}");
    }
    let refused = Wire::open(node.data, &read_only(2)).err();
    assert_eq!(refused.unwrap().status, Status::TooManySessions);
    held.release();
    let end = Instant::now() + PATIENCE;
    let wire = loop {
        match Wire::open(node.data, &read_only(3)) {
            Ok(wire) => break wire,
            Err(refused) => assert!(Instant::now() < end, "{refused:?}"),
        }
    };
    assert_eq!(wire.reply.max_depth.get(), 7);
    block_on(node.api().node()).unwrap();
    node.wait_for("DEBUG");
}

fn health(client: &Client) -> (HealthStatus, Vec<String>) {
    // A node that is not well says so by its status.
    match block_on(client.health()) {
        Ok(health) => (health.status, health.problems),
        Err(ClientError::Protocol { reason, .. }) if reason.contains("503") => {
            (HealthStatus::Degraded, vec![reason])
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn an_address_that_comes_late_is_waited_for() {
    netns::enter();
    let dir = directory();
    let path = dir.path().join("node.toml");
    let more = "[data]\nlisten = [\"127.0.0.1:9666\", \"192.0.2.9:9666\"]\n\
                [control]\nlisten = [\"127.0.0.1:9667\", \"192.0.2.9:9667\"]\n";
    fs::write(&path, config(dir.path(), more)).unwrap();
    let mut node = Node::start_from(&path);
    create(&node, "p/v", MIB, 512, "mem");
    let info = block_on(node.api().node()).unwrap();
    assert_eq!(info.data_addresses, ["127.0.0.1:9666"]);
    assert_eq!(health(&node.api()).0, HealthStatus::Degraded);
    netns::ip(&["address", "add", "192.0.2.9/32", "dev", "lo"]);
    let late = SocketAddr::from(([192, 0, 2, 9], 9666));
    let end = Instant::now() + PATIENCE;
    while std::net::TcpStream::connect(late).is_err() {
        assert!(Instant::now() < end, "the node does not listen on {late}");
        thread::sleep(Duration::from_millis(100));
    }
    Wire::open(late, &Open::new("p/v", 1)).unwrap();
    node.wait_for("control API open address=192.0.2.9:9667");
    let client = Client::new("192.0.2.9:9667".parse().unwrap());
    let info = block_on(client.node()).unwrap();
    assert_eq!(info.data_addresses, ["127.0.0.1:9666", "192.0.2.9:9666"]);
}

#[test]
fn a_node_without_any_address_is_ready_when_the_first_comes() {
    netns::enter();
    let dir = directory();
    let notify = dir.path().join("notify");
    let manager = Manager::new(&notify);
    let path = dir.path().join("node.toml");
    let more = "[data]\nlisten = [\"192.0.2.8:9666\", \"192.0.2.9:9666\"]\n";
    fs::write(&path, config(dir.path(), more)).unwrap();
    let mut command = program();
    command.env("NOTIFY_SOCKET", &notify);
    let mut node = Node::spawn(command, &path);
    node.wait_for("the node waits for it");
    assert!(!manager.hears("READY=1", Duration::from_secs(3)));
    netns::ip(&["address", "add", "192.0.2.9/32", "dev", "lo"]);
    let open = node.wait_for("data port open");
    assert_eq!(address_in(&open), SocketAddr::from(([192, 0, 2, 9], 9666)));
    manager.wait_for("READY=1");
    // A node that waits can be stopped.
    node.terminate();
    assert_eq!(node.wait(), 0);
    netns::ip(&["address", "del", "192.0.2.9/32", "dev", "lo"]);
    let mut node = Node::spawn(program(), &path);
    node.wait_for("the node waits for it");
    node.terminate();
    assert_eq!(node.wait(), 0);
}

#[test]
fn both_families_go_together_on_one_port() {
    netns::enter();
    let dir = directory();
    let path = dir.path().join("node.toml");
    let more = "[data]\nlisten = [\"0.0.0.0:9666\", \"[::]:9666\"]\n\
                [control]\nlisten = [\"0.0.0.0:9667\", \"[::]:9667\"]\n";
    fs::write(&path, config(dir.path(), more)).unwrap();
    let check = program()
        .arg("--check")
        .arg("--config")
        .arg(&path)
        .output()
        .unwrap();
    assert!(check.status.success(), "{check:?}");
    let node = Node::start_from(&path);
    create(&node, "p/v", MIB, 512, "mem");
    for address in ["127.0.0.1:9666", "[::1]:9666"] {
        Wire::open(address.parse().unwrap(), &Open::new("p/v", 1))
            .unwrap()
            .release();
    }
    drop(node);
    // Alone, the IPv6 address is for both, as ever.
    let more = "[data]\nlisten = [\"[::]:9666\"]\n[control]\nlisten = [\"127.0.0.1:9667\"]\n";
    fs::write(&path, config(dir.path(), more)).unwrap();
    let node = Node::start_from(&path);
    create(&node, "p/w", MIB, 512, "mem");
    for address in ["127.0.0.1:9666", "[::1]:9666"] {
        Wire::open(address.parse().unwrap(), &Open::new("p/w", 1))
            .unwrap()
            .release();
    }
}

#[test]
fn one_address_for_two_things_is_noticed_before_the_start() {
    let dir = directory();
    let path = dir.path().join("node.toml");
    let more = "[data]\nlisten = [\"0.0.0.0:9\"]\n[control]\nlisten = [\"127.0.0.1:9\"]\n";
    fs::write(&path, config(dir.path(), more)).unwrap();
    let check = program()
        .arg("--check")
        .arg("--config")
        .arg(&path)
        .output()
        .unwrap();
    assert_eq!(check.status.code(), Some(78));
    let said = String::from_utf8_lossy(&check.stderr);
    assert!(
        said.contains("data.listen") && said.contains("control.listen"),
        "{said}"
    );
    // Nor does a waiting node hide that somebody else has an address.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let more = format!("[data]\nlisten = [\"{}\"]\n", taken.local_addr().unwrap());
    fs::write(&path, config(dir.path(), &more)).unwrap();
    let output = program().arg("--config").arg(&path).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("another program has it"), "{said}");
}
