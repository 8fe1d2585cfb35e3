// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A real node, which runs in a thread of the test, and the command line at it.

// Each test program uses a part of this.
#![allow(dead_code, clippy::unwrap_used)]

use assert_cmd::Command;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// A node with a file engine, and a directory for it and the test. The node ends with the test.
pub struct Lab {
    pub directory: tempfile::TempDir,
    pub data: SocketAddr,
    pub control: SocketAddr,
}

/// An address that was free a moment ago.
pub fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

impl Lab {
    pub fn new() -> Self {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (data, control) = (free_address(), free_address());
        let volumes = directory.path().join("volumes");
        neonsan_engine::file::init(&volumes, &neonsan_engine::file::InitOptions::default())
            .unwrap();
        let socket = directory.path().join("run/control.sock");
        std::fs::create_dir(directory.path().join("run")).unwrap();
        let text = format!(
            "default_engine = \"main\"\nstate_path = {:?}\n[engine.main]\nkind = \"file\"\npath = {:?}\n\
             [engine.mem]\nkind = \"mem\"\ncapacity_bytes = 67108864\n\
             [data]\nlisten = [\"{data}\"]\n[control]\nlisten = [\"{control}\", \"unix:{}\"]\n",
            directory.path().join("state"),
            volumes,
            socket.display()
        );
        let config = neonsan_node::config::Config::parse(&text).unwrap();
        std::thread::spawn(move || {
            let (log, _guard) = tracing_appender::non_blocking(std::io::sink());
            neonsan_node::run(config, log.error_counter())
        });
        let end = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(control).is_err() {
            assert!(Instant::now() < end, "the node does not start");
            std::thread::sleep(Duration::from_millis(20));
        }
        Lab {
            directory,
            data,
            control,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn target(&self, volume: &str) -> String {
        format!("neonsan://{}/{volume}", self.data)
    }

    /// The command `volume` with these words.
    pub fn volume(&self, words: &[&str]) -> Command {
        let mut command = Command::from_std(self.program(words));
        command.timeout(Duration::from_secs(60));
        command
    }

    /// The same as a process that can be started and left alone. It gives a node up soon, and minds
    /// signals even if the tests were started by somebody who does not (nohup).
    pub fn program(&self, words: &[&str]) -> std::process::Command {
        let mut command = std::process::Command::new("env");
        command.arg("--default-signal=INT,TERM,HUP");
        command.arg(assert_cmd::cargo::cargo_bin("neonsan"));
        let config = self.path("empty.toml");
        std::fs::write(
            &config,
            "host-id = \"00112233-4455-6677-8899-aabbccddeeff\"\n[timeouts]\nloss = \"1s\"\n",
        )
        .unwrap();
        command.arg("--config").arg(config);
        command.args(["volume", "--api", &self.control.to_string()]);
        command.args(words);
        command
    }

    pub fn json(&self, words: &[&str]) -> serde_json::Value {
        let output = self.volume(words).arg("--json").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

/// An image of this size with data in some places and holes elsewhere.
pub fn image(path: &Path, size: u64) {
    let file = std::fs::File::create(path).unwrap();
    file.set_len(size).unwrap();
    let data: Vec<u8> = (0..300_000_u32).map(|i| (i * 7 + i / 251) as u8).collect();
    file.write_all_at(&data, 4096).unwrap();
    file.write_all_at(&data, size / 2 + 12_345).unwrap();
    file.write_all_at(b"the end", size - 7).unwrap();
}

pub fn same(a: &Path, b: &Path) -> bool {
    std::fs::read(a).unwrap() == std::fs::read(b).unwrap()
}

/// Waits until something is so.
pub fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends a signal to a program that runs.
pub fn send(signal: &str, child: &std::process::Child) {
    let line = format!("kill -{signal} {}", child.id());
    let status = std::process::Command::new("sh")
        .args(["-c", &line])
        .status();
    assert!(status.unwrap().success());
}

/// A loop device on a file; it goes with this.
pub struct LoopDevice {
    pub path: PathBuf,
}

/// Makes one. `None`, with the reason said, where this user or machine can have none.
pub fn loop_device(file: &Path) -> Option<LoopDevice> {
    let mut losetup = std::process::Command::new("losetup");
    let output = losetup.args(["--find", "--show"]).arg(file).output();
    match output {
        Ok(output) if output.status.success() => Some(LoopDevice {
            path: String::from_utf8(output.stdout).unwrap().trim().into(),
        }),
        failed => {
            eprintln!("skipped: no loop device can be had here: {failed:?}");
            None
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let mut losetup = std::process::Command::new("losetup");
        let _ = losetup.arg("--detach").arg(&self.path).status();
    }
}
