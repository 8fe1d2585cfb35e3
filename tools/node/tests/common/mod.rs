// SPDX-License-Identifier: GPL-2.0 OR MIT
//! A node process under test, and a client which is nothing but messages.
#![allow(clippy::unwrap_used, dead_code)]

pub mod ceph;
pub mod disk;
pub mod hung;
pub mod netns;
pub mod seccomp;
pub mod wire;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use neonsan_api::Client;
use rustix::process::{kill_process, Pid, Signal};

/// How long anything may take before a test fails instead of hanging.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A running node. Killed when it goes out of scope.
pub struct Node {
    child: Child,
    lines: Receiver<String>,
    /// Who holds it keeps the node's log from being read.
    pub log_reader: Arc<Mutex<()>>,
    /// The log so far.
    pub log: Vec<String>,
    pub data: SocketAddr,
    pub control: SocketAddr,
}

/// A directory for a node's files.
pub fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Makes the directory a file engine's if it is not yet.
pub fn init(root: &Path) {
    if !root.join(".neonsan-engine").exists() {
        neonsan_engine::file::init(root, &neonsan_engine::file::InitOptions::default()).unwrap();
    }
}

/// Configuration of a node with a file engine `main` and a mem engine `mem`,
/// with `more` before the sections of the engines. The file engine's directory is
/// made.
pub fn config(dir: &Path, more: &str) -> String {
    init(&dir.join("volumes"));
    let mut config = format!(
        "default_engine = \"main\"\nstate_path = {:?}\n",
        dir.join("state")
    );
    config.push_str(more);
    for (section, setting) in [
        ("data", "listen = [\"127.0.0.1:0\"]"),
        ("control", "listen = [\"127.0.0.1:0\"]"),
    ] {
        let header = format!("[{section}]");
        if !config.contains(&header) {
            config.push_str(&format!("{header}\n{setting}\n"));
        }
    }
    config.push_str(&format!(
        "[engine.main]\nkind = \"file\"\npath = {:?}\n\
         [engine.mem]\nkind = \"mem\"\ncapacity_bytes = 268435456\n",
        dir.join("volumes")
    ));
    config
}

impl Node {
    /// Starts a node with the usual configuration.
    pub fn start(dir: &Path) -> Self {
        Self::start_with(dir, "")
    }

    /// Starts a node with more configuration.
    pub fn start_with(dir: &Path, more: &str) -> Self {
        let path = dir.join("node.toml");
        fs::write(&path, config(dir, more)).unwrap();
        Self::start_from(&path)
    }

    /// Starts a node and waits until it is ready.
    pub fn start_from(config: &Path) -> Self {
        Self::start_program(env!("CARGO_BIN_EXE_neonsan-node"), config)
    }

    /// Starts a node that may refuse to serve its file engine: what it says, until it
    /// ends or is ready.
    pub fn said_at_start(config: &Path) -> String {
        let mut child = Command::new(env!("CARGO_BIN_EXE_neonsan-node"))
            .arg("--config")
            .arg(config)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = child.stderr.take().unwrap();
        let mut said = String::new();
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            said.push_str(&line);
            said.push('\n');
            if line.contains("node ready") {
                break;
            }
        }
        // A node that has ended is not there to be killed.
        let _ = child.kill();
        child.wait().unwrap();
        said
    }

    /// Starts another program that is a node, and waits until it is ready.
    pub fn start_program(program: &str, config: &Path) -> Self {
        Self::start_command(Command::new(program), config)
    }

    /// The same with arguments before the node's own.
    pub fn start_command(command: Command, config: &Path) -> Self {
        let mut node = Self::spawn(command, config);
        node.data = address_in(&node.wait_for("data port open"));
        node.control = address_in(&node.wait_for("control API open"));
        node.wait_for("node ready");
        node
    }

    /// The same for a node whose control API is on a Unix socket alone: `control` is nowhere.
    pub fn start_on_socket(command: Command, config: &Path) -> Self {
        let mut node = Self::spawn(command, config);
        node.data = address_in(&node.wait_for("data port open"));
        node.wait_for("node ready");
        node
    }

    /// A node that has just been started: where it listens is not known yet.
    // `Drop` waits for the child; clippy 1.85 looks at the panics before `Self` exists.
    #[allow(clippy::zombie_processes)]
    pub fn spawn(mut command: Command, config: &Path) -> Self {
        let mut child = command
            .arg("--config")
            .arg(config)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = child.stderr.take().unwrap();
        let (send, lines) = mpsc::channel();
        let log_reader = Arc::new(Mutex::new(()));
        let reader = Arc::clone(&log_reader);
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                drop(reader.lock());
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
        Self {
            child,
            lines,
            log_reader,
            log: Vec::new(),
            data: nowhere,
            control: nowhere,
        }
    }

    /// Waits for a line of the log which has `text`.
    pub fn wait_for(&mut self, text: &str) -> String {
        self.wait_for_up_to(text, PATIENCE)
    }

    /// The same with another patience.
    pub fn wait_for_up_to(&mut self, text: &str, patience: Duration) -> String {
        let deadline = Instant::now() + patience;
        if let Some(line) = self.log.iter().find(|line| line.contains(text)) {
            return line.clone();
        }
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => {
                    self.log.push(line.clone());
                    if line.contains(text) {
                        return line;
                    }
                }
                Err(_) => panic!("no {text:?} in the log:\n{}", self.log.join("\n")),
            }
        }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Waits until a SIGSTOP has reached every thread of it.
    pub fn wait_stopped(&self) {
        let tasks = format!("/proc/{}/task", self.child.id());
        let is_stopped = |stat: String| {
            // The state follows the name, which is in brackets.
            let after = stat.rsplit_once(") ").map(|(_, after)| after.to_owned());
            after.is_some_and(|after| after.starts_with('T'))
        };
        let deadline = Instant::now() + PATIENCE;
        while !fs::read_dir(&tasks)
            .unwrap()
            .map(|task| fs::read_to_string(task.unwrap().path().join("stat")).unwrap_or_default())
            .all(is_stopped)
        {
            assert!(Instant::now() < deadline, "the node does not stand still");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Asks it to stop.
    pub fn terminate(&self) {
        kill_process(self.pid(), Signal::TERM).unwrap();
    }

    /// Waits until it has stopped; its exit status.
    pub fn wait(&mut self) -> i32 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < deadline, "the node does not stop");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Kills it as a crash would.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// A client of the control API.
    pub fn api(&self) -> Client {
        Client::new(self.control.to_string().parse().unwrap())
    }

    /// The metrics page.
    pub fn metrics(&self) -> String {
        let (head, body) =
            self.http("GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        body
    }

    /// The value of one sample of the metrics page; 0 if it is not there.
    pub fn metric(&self, sample: &str) -> f64 {
        self.metrics()
            .lines()
            .find_map(|line| line.strip_prefix(sample)?.trim().parse().ok())
            .unwrap_or(0.0)
    }

    /// Sends a raw request to the control API: head and body of the answer.
    pub fn http(&self, request: &str) -> (String, String) {
        http_at(self.control, request)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            self.log.extend(self.lines.try_iter());
            eprintln!("the node's log:\n{}", self.log.join("\n"));
        }
    }
}

/// The address in a line of the log.
pub fn address_in(line: &str) -> SocketAddr {
    let (_, address) = line.split_once("address=").unwrap();
    address.trim().parse().unwrap()
}

/// Sends a raw request: head and body of the answer.
pub fn http_at(address: SocketAddr, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// Runs something of the async client.
pub fn block_on<T>(future: impl std::future::Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// The same, and the test fails if it takes longer.
pub fn within<T>(limit: Duration, future: impl std::future::Future<Output = T>) -> T {
    block_on(async {
        tokio::time::timeout(limit, future)
            .await
            .expect("the test hangs")
    })
}

/// A block of one byte.
pub fn block(byte: u8) -> bytes::Bytes {
    vec![byte; 4096].into()
}

/// Creates a volume through the API.
pub fn create(node: &Node, name: &str, size_bytes: u64, logical: u32, engine: &str) {
    block_on(node.api().create_volume(&neonsan_api::VolumeCreate {
        name: name.parse().unwrap(),
        size_bytes,
        logical_block_size_bytes: logical,
        physical_block_size_bytes: None,
        engine: Some(engine.to_owned()),
    }))
    .unwrap();
}

/// The path of the data of a volume of the file engine.
pub fn data_path(dir: &Path, name: &str) -> PathBuf {
    dir.join("volumes").join(name).join("data")
}
