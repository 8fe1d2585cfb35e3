// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The volume commands against a real node, which runs in a thread of this test.

#![allow(clippy::unwrap_used)]

mod lab;

use assert_cmd::Command;
use lab::{free_address, image, same, Lab};
use predicates::prelude::PredicateBooleanExt as _;
use predicates::str::contains;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

#[test]
fn volumes_are_created_listed_resized_and_deleted() {
    let lab = Lab::new();
    let target = lab.target("pool/a");
    lab.volume(&["create", &target, "--size", "8M", "--block-size", "4096"])
        .assert()
        .success()
        .stdout("pool/a\n");
    lab.volume(&["create", &target, "--size", "8M"])
        .assert()
        .code(7)
        .stderr(contains("pool/a already"));
    lab.volume(&["create", &lab.target("pool/b"), "--size", "1000"])
        .assert()
        .code(10)
        .stderr(contains("multiple of 512"));
    lab.volume(&["list"])
        .assert()
        .success()
        .stdout(contains("pool/a").and(contains("4096/4096")));
    lab.volume(&["list", "other"])
        .assert()
        .success()
        .stdout(contains("pool/a").not());
    assert_eq!(lab.json(&["info", &target])["size_bytes"], 8 << 20);
    lab.volume(&["resize", &target, "--size", "4M"])
        .assert()
        .code(10);
    lab.volume(&["resize", &target, "--size", "16M"])
        .assert()
        .success();
    assert_eq!(lab.json(&["list"])["volumes"][0]["size_bytes"], 16 << 20);
    assert_eq!(lab.json(&["delete", &target, "--yes"])["deleted"], "pool/a");
    lab.volume(&["info", &target])
        .assert()
        .code(6)
        .stderr(contains("no volume pool/a"));
}

#[test]
fn a_list_without_the_volumes_of_an_engine_does_not_pass_for_a_whole_one() {
    let lab = Lab::new();
    let words = ["--size", "1M", "--engine", "mem"];
    lab.volume(&[&["create", &lab.target("p/v")], &words[..]].concat())
        .assert()
        .success();
    std::fs::rename(lab.path("volumes"), lab.path("gone")).unwrap();
    lab.volume(&["list"])
        .assert()
        .code(12)
        .stdout(contains("p/v"))
        .stderr(contains("not complete: the engine main"));
    let output = lab.volume(&["list", "--json"]).output().unwrap();
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(list["volumes"][0]["name"], "p/v", "{output:?}");
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(error["error"]["exit_code"], 12, "{output:?}");
}

#[test]
fn an_image_comes_back_as_it_went_and_stays_sparse() {
    let lab = Lab::new();
    let (original, copy) = (lab.path("original"), lab.path("copy"));
    let size = 24 << 20;
    image(&original, size);
    let (original_name, copy_name) = (original.to_str().unwrap(), copy.to_str().unwrap());
    for (volume, line) in [
        ("pool/made", &["--create"][..]),
        ("pool/made4k", &["--create", "--block-size", "4096"]),
    ] {
        let target = lab.target(volume);
        let sent = lab.json(&[&["import", &target, original_name], line].concat());
        assert_eq!(sent["size_bytes"], size);
        assert!(sent["data_bytes"].as_u64().unwrap() < 6 << 20, "{sent}");
        let received = lab.json(&["export", &target, copy_name, "--force"]);
        assert_eq!(received["volume"], volume);
        assert!(same(&original, &copy));
        let allocated = std::fs::metadata(&copy).unwrap().blocks() * 512;
        assert!(allocated < 4 << 20, "{allocated} bytes are allocated");
    }
}

#[test]
fn an_import_overwrites_what_was_there_zeroes_included() {
    let lab = Lab::new();
    let target = lab.target("pool/v");
    let (full, sparse, copy) = (lab.path("full"), lab.path("sparse"), lab.path("copy"));
    let size = 6 << 20;
    std::fs::write(&full, vec![0xa5; size]).unwrap();
    image(&sparse, size as u64);
    let create = ["create", &target, "--size", "8M"];
    lab.volume(&create).assert().success();
    for file in [&full, &sparse] {
        let line = ["import", &target, file.to_str().unwrap()];
        lab.volume(&line).assert().success().stdout("");
    }
    let line = ["export", &target, copy.to_str().unwrap()];
    lab.volume(&line).assert().success();
    // Behind the end of the file the volume stays as it is.
    let mut expected = std::fs::read(&sparse).unwrap();
    expected.resize(8 << 20, 0);
    assert!(std::fs::read(&copy).unwrap() == expected);
}

#[test]
fn what_cannot_be_transferred_is_refused_and_leaves_nothing() {
    let lab = Lab::new();
    let target = lab.target("pool/v");
    let (big, copy) = (lab.path("big"), lab.path("copy"));
    let (big_name, copy_name) = (big.to_str().unwrap(), copy.to_str().unwrap());
    let create = ["create", &target, "--size", "1M"];
    lab.volume(&create).assert().success();
    image(&big, 2 << 20);
    lab.volume(&["import", &target, big_name])
        .assert()
        .code(10)
        .stderr(contains("does not fit").and(contains("volume resize")));
    lab.volume(&["import", &target, "/nonexistent/file"])
        .assert()
        .code(6);
    lab.volume(&["import", &lab.target("pool/v@s"), big_name])
        .assert()
        .code(2)
        .stderr(contains("snapshot"));
    lab.volume(&["export", &lab.target("pool/none"), copy_name])
        .assert()
        .code(6)
        .stderr(contains("no volume pool/none"));
    let http = format!("neonsan://{}/pool/v", lab.control);
    lab.volume(&["export", &http, copy_name])
        .assert()
        .code(9)
        .stderr(contains("HTTP"));
    let nobody = format!("neonsan://{}/pool/v", free_address());
    lab.volume(&["export", &nobody, copy_name])
        .assert()
        .code(8)
        .stderr(contains("neonsan-node runs there"));
    assert!(!copy.exists());
    lab.volume(&["export", &target, big_name])
        .assert()
        .code(7)
        .stderr(contains("--force"));
}

#[test]
fn snapshots_are_made_listed_exported_cloned_rolled_back_and_deleted() {
    let lab = Lab::new();
    let (original, copy) = (lab.path("original"), lab.path("copy"));
    let (original_name, copy_name) = (original.to_str().unwrap(), copy.to_str().unwrap());
    image(&original, 4 << 20);
    let target = lab.target("pool/v");
    let snapshot = lab.target("pool/v@monday");
    let create = ["create", &target, "--size", "4M", "--engine", "mem"];
    lab.volume(&create).assert().success();
    lab.volume(&["import", &target, original_name])
        .assert()
        .success();
    lab.volume(&["snapshot", "create", &snapshot])
        .assert()
        .success()
        .stdout("pool/v@monday\n");
    lab.volume(&["snapshot", "create", &snapshot])
        .assert()
        .code(7)
        .stderr(contains("pool/v@monday already"));
    lab.volume(&["snapshot", "create", &target])
        .assert()
        .code(2)
        .stderr(contains("pool/volume@snapshot"));
    // The volume goes on; the snapshot does not.
    std::fs::write(lab.path("zeroes"), vec![0; 4 << 20]).unwrap();
    let zeroes = lab.path("zeroes");
    lab.volume(&["import", &target, zeroes.to_str().unwrap()])
        .assert()
        .success();
    lab.volume(&["export", &snapshot, copy_name])
        .assert()
        .success();
    assert!(same(&original, &copy));

    lab.volume(&["snapshot", "list", &target])
        .assert()
        .success()
        .stdout(contains("pool/v@monday").and(contains("4 MiB")));
    let listed = &lab.json(&["snapshot", "list", &target])["snapshots"];
    assert_eq!(listed.as_array().unwrap().len(), 1);
    assert_eq!(listed[0]["snapshot"], "monday");
    let info = lab.json(&["snapshot", "info", &snapshot]);
    assert_eq!(info["name"], "pool/v@monday");
    assert_eq!(info["id"], listed[0]["id"]);
    lab.volume(&["snapshot", "info", &snapshot])
        .assert()
        .success()
        .stdout(contains("pool/v@monday").and(contains("(4194304 bytes)")));

    lab.volume(&["clone", &snapshot, "pool/clone"])
        .assert()
        .success()
        .stdout("pool/clone\n");
    lab.volume(&["flatten", &lab.target("pool/clone")])
        .assert()
        .success();
    let line = ["export", &lab.target("pool/clone"), copy_name, "--force"];
    lab.volume(&line).assert().success();
    assert!(same(&original, &copy));

    lab.volume(&["delete", &target, "--yes"])
        .assert()
        .code(7)
        .stderr(contains("has snapshots").and(contains("monday")));
    lab.volume(&["snapshot", "rollback", &snapshot])
        .assert()
        .code(2)
        .stderr(contains("nobody can be asked").and(contains("--yes")));
    let rolled = lab.json(&["snapshot", "rollback", &snapshot, "--yes"]);
    assert_eq!(rolled["name"], "pool/v");
    lab.volume(&["export", &target, copy_name, "--force"])
        .assert()
        .success();
    assert!(same(&original, &copy));
    let deleted = lab.json(&["snapshot", "delete", &snapshot, "--yes"]);
    assert_eq!(deleted["deleted"], "pool/v@monday");
    lab.volume(&["snapshot", "delete", &snapshot, "--yes"])
        .assert()
        .code(6)
        .stderr(contains("no snapshot pool/v@monday"));
}

#[test]
fn a_node_is_listed_by_itself() {
    let lab = Lab::new();
    let node = |json: bool| {
        let mut command = Command::cargo_bin("neonsan").unwrap();
        command.args(["node", "list", "--api", &lab.control.to_string()]);
        if json {
            command.arg("--json");
        }
        command.timeout(Duration::from_secs(60)).output().unwrap()
    };
    let table = String::from_utf8(node(false).stdout).unwrap();
    assert!(
        table.contains(&lab.data.to_string()) && table.contains("this one"),
        "{table}"
    );
    let list: serde_json::Value = serde_json::from_slice(&node(true).stdout).unwrap();
    assert_eq!(list["nodes"][0]["state"], "ok");
    assert_eq!(list["nodes"][0]["addresses"][0], lab.data.to_string());
}

/// The command in a file system where `/run/neonsan` is the directory `run` of the lab, and without any
/// network.
fn on_this_machine(run: &std::path::Path, before: &[&str], words: &[&str]) -> Command {
    let script = "mount -t tmpfs tmpfs /run && mkdir /run/neonsan && \
                  mount --bind \"$1\" /run/neonsan && shift && exec \"$@\"";
    // In a chroot, whose root is no mount, unshare cannot make mounts private; that of the lab is in
    // private mounts as a whole.
    let works = std::process::Command::new("unshare")
        .args(["--mount", "true"])
        .output();
    let mounts: &[&str] = match works.unwrap().status.success() {
        true => &["--mount"],
        false => &["--mount", "--propagation", "unchanged"],
    };
    let mut command = Command::new("unshare");
    command
        .args(mounts)
        .args(["--net", "sh", "-c", script, "sh"]);
    command.arg(run).args(before);
    command
        .arg(assert_cmd::cargo::cargo_bin("neonsan"))
        .args(words);
    command
}

#[test]
fn the_node_of_this_machine_is_asked_at_its_socket() {
    let lab = Lab::new();
    let run = lab.path("run");
    lab.volume(&["create", "p/v", "--size", "1M"])
        .assert()
        .success();
    on_this_machine(&run, &[], &["volume", "list"])
        .assert()
        .success()
        .stdout(contains("p/v"));
    on_this_machine(&run, &[], &["node", "list"])
        .assert()
        .success();
    for target in [
        "p/v",
        "neonsan://127.0.0.1/p/v",
        "neonsan://localhost:9/p/v",
        "neonsan://[::1]/p/v",
    ] {
        on_this_machine(&run, &[], &["volume", "info", target])
            .assert()
            .success()
            .stdout(contains("p/v"));
    }
    // The socket is this machine's and no other's.
    on_this_machine(&run, &[], &["volume", "info", "neonsan://192.0.2.1/p/v"])
        .assert()
        .code(8)
        .stderr(contains("192.0.2.1:9667"));
    // Who may not use it does not end up at another node.
    let nobody = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    on_this_machine(&run, &nobody, &["volume", "list"])
        .assert()
        .failure()
        .stderr(contains("/run/neonsan/control.sock").and(contains("run the command as root")));
    // Where nobody listens, both ways are named.
    let empty = lab.path("empty");
    std::fs::create_dir(&empty).unwrap();
    on_this_machine(&empty, &[], &["volume", "list"])
        .assert()
        .code(8)
        .stderr(contains("/run/neonsan/control.sock").and(contains("127.0.0.1:9667")));
}

#[test]
fn a_copy_gets_an_identity_of_its_own() {
    let lab = Lab::new();
    let (original, copy) = (lab.target("pool/a"), lab.target("pool/b"));
    lab.volume(&["create", &original, "--size", "1M"])
        .assert()
        .success();
    let id = lab.json(&["info", &original])["id"].clone();
    let pool = lab.path("volumes/pool");
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([pool.join("a"), pool.join("b")])
        .status();
    assert!(copied.unwrap().success());
    // Both are listed, with a word on both.
    lab.volume(&["list"])
        .assert()
        .success()
        .stdout(contains("pool/a").and(contains("pool/b")))
        .stderr(contains("pool/a: ").and(contains("pool/b: ")))
        .stderr(contains("same identity").and(contains("volume adopt")));
    lab.volume(&["export", &copy, lab.path("image").to_str().unwrap()])
        .assert()
        .failure()
        .stderr(contains("same identity"));
    lab.volume(&["adopt", &copy])
        .assert()
        .success()
        .stdout(contains("pool/b: its identity is"));
    assert_eq!(lab.json(&["info", &original])["id"], id);
    assert_ne!(lab.json(&["info", &copy])["id"], id);
    lab.volume(&["list"])
        .assert()
        .success()
        .stderr(contains("identity").not());
    lab.volume(&["export", &copy, lab.path("image").to_str().unwrap()])
        .assert()
        .success();
    lab.volume(&["adopt", &lab.target("pool/none")])
        .assert()
        .code(6);
}

/// What `neonsan __complete` offers behind these words, of which the last is being written.
fn offered(lab: &Lab, words: &[&str]) -> Vec<String> {
    let config = lab.path("complete.toml");
    let text = format!(
        "api = \"{}\"\nnodes = [\"node1\", \"{}\"]\n",
        lab.control, lab.data
    );
    std::fs::write(&config, text).unwrap();
    let mut command = assert_cmd::Command::cargo_bin("neonsan").unwrap();
    command
        .args(["__complete", "neonsan", "--config"])
        .arg(config);
    let output = command.args(words).output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    let text = String::from_utf8(output.stdout).unwrap();
    let word = |line: &str| line.split('\t').next().unwrap().to_owned();
    text.lines().map(word).collect()
}

#[test]
fn volumes_snapshots_nodes_and_engines_are_completed_by_name() {
    let lab = Lab::new();
    for volume in ["vm/disk0", "vm/disk1", "other/x"] {
        let create = [
            "create",
            &lab.target(volume),
            "--size",
            "1M",
            "--engine",
            "mem",
        ];
        lab.volume(&create).assert().success();
    }
    for name in ["monday", "tuesday"] {
        let snapshot = lab.target(&format!("vm/disk0@{name}"));
        lab.volume(&["snapshot", "create", &snapshot])
            .assert()
            .success();
    }
    let offered = |words: &[&str]| offered(&lab, words);
    assert_eq!(
        offered(&["volume", "info", "vm/"]),
        ["vm/disk0", "vm/disk1"]
    );
    assert_eq!(offered(&["volume", "delete", "o"]), ["other/x"]);
    let all = offered(&["attach", ""]);
    assert!(
        all.contains(&"vm/disk1".to_owned()) && all.contains(&"neonsan://".to_owned()),
        "{all:?}"
    );
    let hosts = offered(&["attach", "neonsan://"]);
    assert_eq!(hosts[0], "neonsan://node1/");
    assert!(
        hosts.contains(&format!("neonsan://{}/", lab.data)),
        "{hosts:?}"
    );
    // Of the host that is written, by the API that is named.
    let api = lab.control.to_string();
    let begun = format!("neonsan://{}/vm/disk1", lab.data);
    assert_eq!(
        offered(&["volume", "--api", &api, "info", &begun]),
        [begun.as_str()]
    );
    assert_eq!(
        offered(&["volume", "snapshot", "delete", "vm/disk0@"]),
        ["vm/disk0@monday", "vm/disk0@tuesday"]
    );
    assert_eq!(offered(&["attach", "vm/disk0@t"]), ["vm/disk0@tuesday"]);
    assert_eq!(offered(&["volume", "clone", "vm/disk1"]), ["vm/disk1@"]);
    assert_eq!(
        offered(&["volume", "clone", "vm/disk0@monday", "v"]),
        ["vm/"]
    );
    assert_eq!(offered(&["volume", "list", "v"]), ["vm"]);
    let create = ["volume", "create", "vm/new", "--engine", ""];
    assert_eq!(offered(&create), ["main", "mem"]);
    assert!(offered(&["attach", "vm/disk0", "--node", "n"]).contains(&"node1".to_owned()));
    assert_eq!(
        offered(&["volume", "list", "--api=http://node"]),
        ["--api=http://node1"]
    );
}

#[test]
fn completion_does_not_wait_for_a_node_that_does_not_answer() {
    // It takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let api = silent.local_addr().unwrap().to_string();
    let begun = std::time::Instant::now();
    let mut command = assert_cmd::Command::cargo_bin("neonsan").unwrap();
    command.args([
        "__complete",
        "neonsan",
        "volume",
        "--api",
        &api,
        "info",
        "p",
    ]);
    command.assert().success().stdout("").stderr("");
    assert!(begun.elapsed() < Duration::from_secs(5));
    // What needs no node is there nevertheless, also with a config file that is wrong.
    let mut command = assert_cmd::Command::cargo_bin("neonsan").unwrap();
    command.args([
        "__complete",
        "neonsan",
        "--config",
        "/nonexistent",
        "volume",
        "res",
    ]);
    command.assert().success().stdout(contains("resize\t"));
}
