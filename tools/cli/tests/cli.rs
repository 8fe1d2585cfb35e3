// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The command as a person meets it, without a kernel module: help, wrong usage, and each message
//! that says what to do.

#![allow(clippy::unwrap_used)]

use assert_cmd::Command;
use predicates::prelude::PredicateBooleanExt as _;
use predicates::str::contains;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::mpsc::{channel, Receiver};
use std::time::Duration;

fn neonsan() -> Command {
    let mut command = Command::cargo_bin("neonsan").unwrap();
    // Help is as wide as the terminal; without one it is 100 columns.
    command.env_remove("COLUMNS");
    command
}

/// Holds a text against tests/golden/NAME; NEONSAN_UPDATE=1 writes it anew.
fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var_os("NEONSAN_UPDATE").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap();
    assert_eq!(
        text,
        stored,
        "{} differs; NEONSAN_UPDATE=1 accepts it",
        path.display()
    );
}

fn help_of(words: &[&str]) -> String {
    let output = neonsan().args(words).arg("--help").output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn help_of_every_command_is_stable() {
    let commands: [&[&str]; 31] = [
        &[],
        &["attach"],
        &["detach"],
        &["list"],
        &["info"],
        &["set"],
        &["suspend"],
        &["resume"],
        &["watch"],
        &["resolve"],
        &["volume"],
        &["volume", "create"],
        &["volume", "list"],
        &["volume", "info"],
        &["volume", "resize"],
        &["volume", "delete"],
        &["volume", "import"],
        &["volume", "export"],
        &["volume", "snapshot"],
        &["volume", "snapshot", "create"],
        &["volume", "snapshot", "list"],
        &["volume", "snapshot", "info"],
        &["volume", "snapshot", "delete"],
        &["volume", "snapshot", "rollback"],
        &["volume", "clone"],
        &["volume", "flatten"],
        &["volume", "adopt"],
        &["node"],
        &["node", "list"],
        &["node", "health"],
        &["doctor"],
    ];
    let mut all = String::new();
    for words in commands {
        let line = ["neonsan"]
            .iter()
            .chain(words)
            .copied()
            .collect::<Vec<_>>()
            .join(" ");
        all.push_str(&format!("$ {line} --help\n{}\n", help_of(words)));
    }
    golden("help.txt", &all);
}

/// The program under one of its other names.
fn named(directory: &Path, name: &str) -> Command {
    let path: PathBuf = directory.join(name);
    symlink(assert_cmd::cargo::cargo_bin("neonsan"), &path).unwrap();
    Command::new(path)
}

#[test]
fn other_names_are_commands() {
    let directory = tempfile::tempdir().unwrap();
    named(directory.path(), "neonsan-attach")
        .arg("--help")
        .assert()
        .success()
        .stdout(contains("Usage: neonsan-attach [OPTIONS] <TARGET>"));
    named(directory.path(), "neonsan-detach")
        .arg("--help")
        .assert()
        .success()
        .stdout(contains("Usage: neonsan-detach [OPTIONS] [DEVICE]..."));
}

#[test]
fn wrong_usage_exits_with_2() {
    for line in [
        &["frobnicate"][..],
        &["attach"],
        &["attach", "p/v", "--request-timeout", "5"],
        &["attach", "p/v", "--connections", "0"],
        &["attach", "p/v", "--mode", "mine"],
        &["attach", "p/v", "--read-only", "--mode", "shared"],
        &["detach"],
        &["detach", "--all", "0"],
        &["set", "0"],
        &["set", "0", "--node", "h:0"],
        &["set", "--all", "--node", "192.0.2.1"],
        &["resolve", "0"],
        &["watch", "sda"],
        &["info", "0", "--qemu", "--libvirt"],
        &["volume", "create", "p/v"],
        &["volume", "create", "p/v", "--size", "ten"],
    ] {
        neonsan().args(line).assert().code(2);
    }
}

#[test]
fn bad_targets_say_how_to_write_one() {
    let long = format!("p/{}", "v".repeat(300));
    for (target, said) in [
        ("volume", "the pool is missing"),
        ("p/v w", "the character ' ' at position 3 is not allowed"),
        ("p/-v", "must start with a letter"),
        (long.as_str(), "longer than 255 bytes"),
        ("nbd://h/p/v", "does not start with neonsan://"),
        ("neonsan://h:99999/p/v", "not from 1 to 65535"),
        ("p/v", "no node is named that serves p/v"),
    ] {
        neonsan()
            .args(["attach", target])
            .assert()
            .code(2)
            .stdout("")
            .stderr(contains(said));
    }
}

#[test]
fn a_bad_config_file_exits_with_3() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("neonsan.toml");
    std::fs::write(&path, "[attach]\nconections = 4\n").unwrap();
    neonsan()
        .args(["list", "--config"])
        .arg(&path)
        .assert()
        .code(3)
        .stderr(contains(
            "line 2: unknown key `conections`, expected one of `mode`, `connections`",
        ));
    neonsan()
        .args(["list", "--config", "/nonexistent/neonsan.toml"])
        .assert()
        .code(3)
        .stderr(contains("cannot be read"));
}

#[test]
fn without_the_module_each_command_says_so() {
    if Path::new("/sys/module/neonsan").exists() {
        eprintln!("skipped: the module is loaded here");
        return;
    }
    let attach = "attach neonsan://127.0.0.1/p/v --host-id 00112233445566778899aabbccddeeff";
    for line in [
        "list",
        "info 0",
        "detach 0",
        "watch",
        "set 0 --loss-timeout 1m",
        "set 0 --node 192.0.2.1",
        "resolve --once",
        attach,
    ] {
        neonsan()
            .args(line.split(' '))
            .assert()
            .code(5)
            .stdout("")
            .stderr(contains("is not loaded").and(contains("modprobe neonsan")));
    }
}

#[test]
fn errors_have_a_json_form() {
    let output = neonsan()
        .args(["attach", "volume", "--json"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["error"]["kind"], "usage");
    assert_eq!(error["error"]["exit_code"], 2);
    assert!(error["error"]["message"]
        .as_str()
        .unwrap()
        .contains("pool is missing"));
    assert!(error["error"]["hint"]
        .as_str()
        .unwrap()
        .contains("neonsan://"));
}

/// A peer that answers each connection with `answer`.
fn peer(answer: &'static [u8]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let mut stream = stream;
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer);
        }
    });
    port
}

#[test]
fn volume_commands_name_the_address_that_does_not_answer() {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let api = format!("http://127.0.0.1:{port}");
    neonsan()
        .args(["volume", "list", "--api", &api])
        .assert()
        .code(8)
        .stderr(contains(api.as_str()).and(contains("check that neonsan-node runs there")));
}

#[test]
fn a_node_that_accepts_and_never_answers_is_given_up_soon() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let api = format!("http://{}", silent.local_addr().unwrap());
    let told = |command: &mut Command, look: &str| {
        command
            .timeout(Duration::from_secs(60))
            .assert()
            .code(8)
            .stderr(
                contains(api.as_str())
                    .and(contains("no sign of life"))
                    .and(contains("--api-timeout"))
                    .and(contains(look)),
            );
    };
    // Which a node of many volumes is given ten minutes for.
    told(
        neonsan().args(["volume", "list", "--api", &api]),
        "for 10 s",
    );
    let soon = ["--api", &api, "--api-timeout", "1s"];
    told(neonsan().args(["node", "health"]).args(soon), "for 1 s");
    let resize = ["volume", "resize", "p/v", "--size", "1G"];
    told(
        neonsan().args(resize).args(soon),
        "is seen when it answers: `neonsan volume info p/v` shows the size",
    );
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    std::fs::write(&image, [1; 4096]).unwrap();
    let target = "neonsan://127.0.0.1:1/p/v";
    let import = ["volume", "import", "--create", target];
    told(
        neonsan().args(import).arg(&image).args(soon),
        "`neonsan volume info neonsan://127.0.0.1:1/p/v` shows the volume",
    );
    neonsan()
        .args(["volume", "list", "--api-timeout", "10m"])
        .assert()
        .code(2)
        .stderr(contains("write a time from 1s to 590s"));
}

/// A node that says how it is, and answers nothing else, as one whose engine hangs. Returns its API.
fn hung_node() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let api = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut waiting = Vec::new();
        for mut stream in listener.incoming().flatten() {
            let mut head = [0; 4096];
            let length = stream.read(&mut head).unwrap_or(0);
            if head[..length].starts_with(b"GET /v1/health ") {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
            } else {
                waiting.push(stream);
            }
        }
    });
    api
}

/// A command that runs, with the lines that it says on standard error. It minds signals even if the tests were
/// started by somebody who does not (nohup).
fn started(words: &[&str]) -> (Child, Receiver<String>) {
    let mut command = std::process::Command::new("env");
    command.arg("--default-signal=INT,TERM,HUP");
    command.arg(assert_cmd::cargo::cargo_bin("neonsan"));
    command
        .args(words)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let said = BufReader::new(child.stderr.take().unwrap());
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in said.lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    (child, lines)
}

fn interrupt(child: &Child) {
    let mut kill = std::process::Command::new("kill");
    let killed = kill.args(["-INT", &child.id().to_string()]).status();
    assert!(killed.unwrap().success());
}

#[test]
fn who_waits_for_a_node_is_told_what_for_and_how_to_end_it() {
    const LIMIT: Duration = Duration::from_secs(60);
    let api = hung_node();
    let waits = format!("neonsan: waiting for the node at {api} to answer; Ctrl-C ends that");
    let (mut list, lines) = started(&["volume", "list", "--api", &api]);
    assert_eq!(lines.recv_timeout(LIMIT).unwrap(), waits);
    interrupt(&list);
    assert_eq!(list.wait().unwrap().signal(), Some(2));

    // The volume may be there all the same, which only the node can say: it is asked for once more.
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("image");
    std::fs::write(&image, [1; 4096]).unwrap();
    let words = ["volume", "import", "--create", "neonsan://127.0.0.1:1/p/v"];
    let words = [&words[..], &[image.to_str().unwrap(), "--api", &api]].concat();
    let (mut import, lines) = started(&words);
    assert_eq!(lines.recv_timeout(LIMIT).unwrap(), waits);
    interrupt(&import);
    let line = lines.recv_timeout(LIMIT).unwrap();
    assert!(line.contains("is deleted again; another signal"), "{line}");
    interrupt(&import);
    let line = lines.recv_timeout(LIMIT).unwrap();
    assert!(line.contains("interrupted by SIGINT"), "{line}");
    let line = lines.recv_timeout(LIMIT).unwrap();
    assert!(line.contains("`neonsan volume info"), "{line}");
    assert_eq!(import.wait().unwrap().code(), Some(130));
}

#[test]
fn a_peer_that_is_no_control_api_is_named_as_such() {
    for answer in [
        &b"NEONSANs\0\0\0\0"[..],
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
        b"",
    ] {
        let api = format!("127.0.0.1:{}", peer(answer));
        neonsan()
            .args(["volume", "info", "p/v", "--api", &api])
            .assert()
            .code(9)
            .stderr(contains("does not answer as a NeonSAN control API"));
    }
}

#[test]
fn refusals_of_a_node_keep_their_advice_and_get_their_exit_code() {
    let answer = b"HTTP/1.1 507 Insufficient Storage\r\nContent-Type: application/json\r\n\
        Content-Length: 76\r\n\r\n\
        {\"code\":\"no-space\",\"message\":\"the disk is full\",\"hint\":\"delete a volume\"}     ";
    let api = format!("127.0.0.1:{}", peer(answer));
    neonsan()
        .args(["volume", "create", "p/v", "--size", "1G", "--api", &api])
        .assert()
        .code(11)
        .stderr(contains("the disk is full").and(contains("delete a volume")));
}

#[test]
fn what_a_node_says_does_not_steer_the_terminal() {
    let answer = b"HTTP/1.1 409 Conflict\r\nContent-Length: 95\r\n\r\n\
        {\"code\":\"busy\",\"message\":\"held\\u001b[2J by\\nneonsan: all is well\",\"hint\":\"wait\\u0007\\u009b31m\"}  ";
    let api = format!("127.0.0.1:{}", peer(answer));
    let output = neonsan()
        .args(["volume", "info", "p/v", "--api", &api])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        !said.chars().any(|c| c.is_control() && c != '\n'),
        "{said:?}"
    );
    assert_eq!(said.lines().count(), 2, "{said:?}");
}

#[test]
fn a_failure_in_json_is_one_line_with_the_warnings_in_it() {
    // One name that cannot be resolved is a warning, the other node a failure.
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let target = format!("neonsan://no.such.name.invalid,127.0.0.1:{port}/p/v");
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("neonsan.toml");
    std::fs::write(&config, "[timeouts]\nloss = \"1s\"\n").unwrap();
    let export = || {
        let mut command = neonsan();
        command.arg("--config").arg(&config);
        command.args(["volume", "export", &target, "/nonexistent/image"]);
        command
    };
    let output = export().arg("--json").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    let error: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(error["error"]["kind"], "unreachable");
    let warning = error["error"]["warnings"][0].as_str().unwrap();
    assert!(warning.contains("no.such.name.invalid"), "{warning}");
    export().assert().code(8).stderr(contains(
        "neonsan: warning: the name 'no.such.name.invalid'",
    ));
}

#[test]
fn deleting_asks_and_takes_no_answer_for_no() {
    neonsan()
        .args(["volume", "delete", "p/v"])
        .write_stdin("p/v\n")
        .assert()
        .code(2)
        .stderr(contains("nobody can be asked").and(contains("--yes")));
}

#[test]
fn the_manual_has_every_option() {
    let manual =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../Documentation/man/neonsan.8.rst");
    let manual = std::fs::read_to_string(manual).unwrap();
    let help = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/help.txt"),
    )
    .unwrap();
    for word in help.split(|c: char| !c.is_ascii_alphanumeric() && c != '-') {
        if let Some(option) = word.strip_prefix("--").filter(|option| !option.is_empty()) {
            assert!(
                manual.contains(&format!("--{option}")),
                "--{option} is not in the manual"
            );
        }
    }
}

#[test]
fn the_json_document_has_every_field() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = std::fs::read_to_string(root.join("../../Documentation/cli-json.rst")).unwrap();
    let info = std::fs::read_to_string(root.join("tests/golden/info.json")).unwrap();
    for line in info.lines() {
        if let Some((field, _)) = line
            .trim()
            .strip_prefix('"')
            .and_then(|l| l.split_once("\":"))
        {
            assert!(
                document.contains(&format!("``{field}``")),
                "{field} is not in the document"
            );
        }
    }
}
