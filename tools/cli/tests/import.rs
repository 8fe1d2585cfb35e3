// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What people import and export beside plain images: other formats, partition tables for other disks,
//! pipes, odd lengths, block devices. And what is left when an import does not come to its end.

#![allow(clippy::unwrap_used)]

mod lab;

use lab::{image, loop_device, same, Lab};
use predicates::prelude::PredicateBooleanExt as _;
use predicates::str::contains;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

const MIB: usize = 1 << 20;

/// The bytes of a volume.
fn content(lab: &Lab, volume: &str) -> Vec<u8> {
    let output = lab.volume(&["export", &lab.target(volume), "-"]).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

fn create(lab: &Lab, volume: &str, words: &[&str]) -> String {
    let target = lab.target(volume);
    let line = [&["create", &target], words].concat();
    lab.volume(&line).assert().success();
    target
}

/// Whether the node has the volume.
fn exists(lab: &Lab, volume: &str) -> bool {
    let output = lab.volume(&["info", &lab.target(volume)]).output().unwrap();
    match output.status.code() {
        Some(0) => true,
        Some(6) => false,
        _ => panic!("{output:?}"),
    }
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i * 7 + i / 251) as u8 | 1).collect()
}

#[test]
fn what_is_no_raw_image_is_refused_with_the_command_that_converts_it() {
    let lab = Lab::new();
    let target = create(&lab, "pool/v", &["--size", "4M"]);
    let mut vhd = pattern(MIB);
    vhd[MIB - 512..MIB - 504].copy_from_slice(b"conectix");
    let marks: [(&str, Vec<u8>, &str); 9] = [
        (
            "qcow2",
            b"QFI\xfb\0\0\0\x03".to_vec(),
            "qemu-img convert -f qcow2 -O raw ",
        ),
        ("vmdk", b"KDMV".to_vec(), "qemu-img convert -f vmdk -O raw "),
        ("text", b"# Disk DescriptorFile\n".to_vec(), "-f vmdk"),
        ("vhdx", b"vhdxfile".to_vec(), "-f vhdx"),
        ("vhd", vhd, "-f vpc"),
        ("gz", b"\x1f\x8b\x08\0".to_vec(), "gzip -dc "),
        ("xz", b"\xfd7zXZ\0".to_vec(), "xz -dc "),
        ("zst", b"\x28\xb5\x2f\xfd".to_vec(), "zstd -dc "),
        ("zip", b"PK\x03\x04".to_vec(), "unzip -p "),
    ];
    for (name, mut bytes, advice) in marks {
        let length = bytes.len().max(4096);
        bytes.resize(length, 7);
        let file = lab.path(name);
        std::fs::write(&file, &bytes).unwrap();
        let import = ["import", &target, file.to_str().unwrap()];
        lab.volume(&import)
            .assert()
            .code(10)
            .stderr(contains("is no raw image").and(contains(advice)));
        let new = lab.target("pool/new");
        lab.volume(&["import", &new, file.to_str().unwrap(), "--create"])
            .assert()
            .code(10);
        assert!(!exists(&lab, "pool/new"), "{name}");
        // The same from a pipe; there the end cannot be looked at.
        if name != "vhd" {
            let mut stdin = lab.volume(&["import", &target, "-"]);
            stdin.write_stdin(bytes.clone()).assert().code(10);
        }
        lab.volume(&[&import[..], &["--format", "raw"]].concat())
            .assert()
            .success();
        assert!(content(&lab, "pool/v").starts_with(&bytes), "{name}");
    }
    lab.volume(&["import", &target, "x", "--format", "qcow2"])
        .assert()
        .code(2)
        .stderr(contains("possible values: raw"));
}

#[test]
fn the_command_that_is_advised_for_a_compressed_image_imports_it() {
    let lab = Lab::new();
    let target = create(&lab, "pool/v", &["--size", "4M"]);
    let (raw, packed) = (lab.path("an image"), lab.path("an image.gz"));
    image(&raw, 3 << 20);
    let gzip = std::process::Command::new("gzip")
        .arg("-k")
        .arg(&raw)
        .status();
    assert!(gzip.unwrap().success());
    let output = lab
        .volume(&["import", &target, packed.to_str().unwrap()])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let line = said
        .lines()
        .find_map(|line| line.split_once("on the way: "));
    let line = line.unwrap().1.split(" (with").next().unwrap();
    let program = assert_cmd::cargo::cargo_bin("neonsan");
    let path = format!("{}:{}", program.parent().unwrap().display(), env!("PATH"));
    let mut shell = std::process::Command::new("sh");
    shell.env("PATH", path).args(["-ec", line]);
    let output = shell.output().unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
    assert_eq!(
        content(&lab, "pool/v")[..3 << 20],
        std::fs::read(&raw).unwrap()
    );
}

/// An image with a GPT for disks of this block size; the copy is in the last block of `end` bytes.
fn gpt(path: &Path, block_size: usize, end: usize) {
    let mut image = vec![0; MIB];
    image[510..512].copy_from_slice(&[0x55, 0xaa]);
    image[450] = 0xee;
    image[454] = 1;
    image[458..462].copy_from_slice(&[0xff; 4]);
    image[block_size..block_size + 8].copy_from_slice(b"EFI PART");
    image[block_size + 24] = 1;
    let last = (end / block_size - 1) as u64;
    image[block_size + 32..block_size + 40].copy_from_slice(&last.to_le_bytes());
    std::fs::write(path, image).unwrap();
}

#[test]
fn a_partition_table_for_other_blocks_is_refused_for_a_new_volume_and_told_of_else() {
    let lab = Lab::new();
    let file = lab.path("image");
    let name = file.to_str().unwrap();
    for (made_for, other) in [("512", "4096"), ("4096", "512")] {
        gpt(&file, made_for.parse().unwrap(), MIB);
        let new = lab.target(&format!("pool/new{made_for}"));
        let refused = ["import", &new, name, "--create", "--block-size", other];
        lab.volume(&refused)
            .assert()
            .code(10)
            .stderr(contains(format!("--block-size {made_for}")).and(contains("GPT")));
        assert!(!exists(&lab, &format!("pool/new{made_for}")));
        let right = ["import", &new, name, "--create", "--block-size", made_for];
        lab.volume(&right)
            .assert()
            .success()
            .stderr(contains("warning").not());
        let insisted = lab.target(&format!("pool/insisted{made_for}"));
        let words = ["import", &insisted, name, "--create", "--format", "raw"];
        lab.volume(&[&words[..], &["--block-size", other]].concat())
            .assert()
            .success()
            .stderr(contains("warning").and(contains("are not found")));
        let size = ["--size", "1M", "--block-size", other];
        let old = create(&lab, &format!("pool/old{made_for}"), &size);
        lab.volume(&["import", &old, name])
            .assert()
            .success()
            .stderr(
                contains("warning").and(contains(format!("made with --block-size {made_for}"))),
            );
    }
    // Without being told a block size the command must not choose the wrong one either.
    gpt(&file, 4096, MIB);
    lab.volume(&["import", &lab.target("pool/plain"), name, "--create"])
        .assert()
        .code(10);
}

#[test]
fn a_partition_table_that_does_not_end_with_the_volume_is_told_of() {
    let lab = Lab::new();
    let file = lab.path("image");
    let name = file.to_str().unwrap();
    gpt(&file, 512, MIB);
    let larger = create(&lab, "pool/larger", &["--size", "2M"]);
    lab.volume(&["import", &larger, name])
        .assert()
        .success()
        .stderr(contains("sfdisk --relocate gpt-bak-std").and(contains("sgdisk -e")));
    // The image of a disk that was larger.
    gpt(&file, 512, 3 * MIB);
    lab.volume(&["import", &larger, name])
        .assert()
        .success()
        .stderr(contains("reaches to 3145728 bytes"));
    // One that was cut off, in a volume that has room for all of it: from a file, and from a pipe whose
    // program has failed.
    let size = ["--size", "8M"];
    let roomy = create(&lab, "pool/roomy", &size);
    let not_whole = || contains("reaches to 3145728 bytes").and(contains("is not whole"));
    lab.volume(&["import", &roomy, name])
        .assert()
        .success()
        .stderr(not_whole());
    gpt(&file, 512, 3 * MIB);
    let cut = std::fs::read(&file).unwrap();
    // Longer than what is looked at beforehand.
    let cut = [cut, vec![0; MIB]].concat();
    let mut import = lab.volume(&["import", &roomy, "-"]);
    import
        .write_stdin(cut)
        .assert()
        .success()
        .stderr(not_whole());
    // And a whole one is not suspected.
    let whole = std::fs::read(&file).unwrap();
    let whole = [whole, vec![0; 2 * MIB]].concat();
    let mut import = lab.volume(&["import", &roomy, "-"]);
    import
        .write_stdin(whole)
        .assert()
        .success()
        .stderr(contains("is not whole").not());
}

#[test]
fn pipes_are_imported_from_and_exported_into() {
    let lab = Lab::new();
    let original = lab.path("original");
    image(&original, 20 << 20);
    let bytes = std::fs::read(&original).unwrap();
    let target = create(&lab, "pool/v", &["--size", "20M"]);
    let mut import = lab.volume(&["import", &target, "-", "--json"]);
    let output = import.write_stdin(bytes.clone()).output().unwrap();
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["size_bytes"], 20 << 20);
    assert!(content(&lab, "pool/v") == bytes);
    // Standard output is the image alone; what is said stands on standard error.
    let output = lab
        .volume(&["export", &target, "-", "--json"])
        .output()
        .unwrap();
    assert!(output.stdout == bytes);
    let told: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(told["size_bytes"], 20 << 20);
    // A file of which something was read before: it goes on from there.
    let program = assert_cmd::cargo::cargo_bin("neonsan");
    let line = "dd bs=512 count=1 of=/dev/null 2>/dev/null; exec \"$0\" volume import \"$1\" -";
    let mut shell = std::process::Command::new("sh");
    shell.args(["-ec", line]).arg(program).arg(&target);
    shell.stdin(std::fs::File::open(&original).unwrap());
    assert!(shell.status().unwrap().success());
    let now = content(&lab, "pool/v");
    assert!(now[..(20 << 20) - 512] == bytes[512..]);
    let mut import = lab.volume(&["import", &target, "-"]);
    import.write_stdin(bytes.clone()).assert().success();
    // A pipe that has a name.
    let fifo = lab.path("fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    let (to, sent) = (fifo.clone(), vec![0x5a; 3 << 20]);
    let writer = std::thread::spawn(move || std::fs::write(to, sent));
    lab.volume(&["import", &target, fifo.to_str().unwrap()])
        .assert()
        .success();
    writer.join().unwrap().unwrap();
    let now = content(&lab, "pool/v");
    assert!(now[..3 << 20] == [0x5a; 3 << 20] && now[3 << 20..] == bytes[3 << 20..]);
}

#[test]
fn a_new_volume_for_a_pipe_has_the_size_that_is_said() {
    let lab = Lab::new();
    let target = lab.target("pool/v");
    let bytes = pattern(3 * MIB);
    let import = |words: &[&str]| {
        let mut command = lab.volume(&[&["import", &target, "-", "--create"], words].concat());
        command.write_stdin(bytes.clone());
        command
    };
    import(&[]).assert().code(2).stderr(contains("--size 20G"));
    // More comes than was said.
    import(&["--size", "2M"])
        .assert()
        .code(10)
        .stderr(contains("does not fit").and(contains("deleted again")));
    assert!(!exists(&lab, "pool/v"));
    import(&["--size", "8M"]).assert().success();
    let mut expected = bytes.clone();
    expected.resize(8 * MIB, 0);
    assert!(content(&lab, "pool/v") == expected);
    // A program that failed has written nothing: that must not pass for an image.
    let mut empty = lab.volume(&["import", &target, "-"]);
    empty
        .write_stdin(Vec::new())
        .assert()
        .code(10)
        .stderr(contains("standard input is empty"));
    assert!(content(&lab, "pool/v") == expected);
}

#[test]
fn what_is_no_image_at_all_is_refused() {
    let lab = Lab::new();
    let target = create(&lab, "pool/v", &["--size", "1M"]);
    for (file, said) in [
        ("/dev/zero", "is a character device"),
        ("/", "is a directory"),
    ] {
        lab.volume(&["import", &target, file])
            .assert()
            .code(2)
            .stderr(contains(said));
    }
}

#[test]
fn a_reader_that_goes_away_is_told_of_in_one_line() {
    let lab = Lab::new();
    let target = create(&lab, "pool/v", &["--size", "32M"]);
    let mut export = lab.program(&["export", &target, "-"]);
    let mut child = export
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 100]).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("has ended before the image"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn odd_lengths_keep_the_rest_of_the_last_block_or_fill_a_new_one_with_zeroes() {
    let lab = Lab::new();
    let (file, full) = (lab.path("odd"), lab.path("full"));
    std::fs::write(&full, vec![0xa5; 2 << 20]).unwrap();
    for block_size in [512, 4096] {
        let size = block_size.to_string();
        let words = ["--size", "2M", "--block-size", &size];
        let old = create(&lab, &format!("pool/old{size}"), &words);
        for length in [1, 511, 512, 513, 4095, 4097, 1_474_561] {
            for zeroes in [false, true] {
                let bytes = match zeroes {
                    true => vec![0; length],
                    false => pattern(length),
                };
                std::fs::write(&file, &bytes).unwrap();
                lab.volume(&["import", &old, full.to_str().unwrap()])
                    .assert()
                    .success();
                lab.volume(&["import", &old, file.to_str().unwrap()])
                    .assert()
                    .success();
                let mut expected = bytes.clone();
                expected.resize(2 << 20, 0xa5);
                let found = content(&lab, &format!("pool/old{size}"));
                assert!(found == expected, "{length} bytes, blocks of {size}");
            }
            let new = format!("pool/new{size}-{length}");
            let target = lab.target(&new);
            std::fs::write(&file, pattern(length)).unwrap();
            let import = ["import", &target, file.to_str().unwrap(), "--create"];
            lab.volume(&[&import[..], &["--block-size", &size]].concat())
                .assert()
                .success();
            let mut expected = pattern(length);
            expected.resize(length.next_multiple_of(block_size), 0);
            assert!(content(&lab, &new) == expected, "{length}, {size}");
        }
    }
    std::fs::write(&file, "").unwrap();
    for words in [&[][..], &["--create"]] {
        let target = lab.target("pool/empty");
        let import = ["import", &target, file.to_str().unwrap()];
        lab.volume(&[&import[..], words].concat())
            .assert()
            .code(10)
            .stderr(contains("is empty"));
    }
}

/// How long nothing comes or is taken: long enough for a connection on which nobody answers to be given
/// up, which takes ten seconds.
const SILENCE: Duration = Duration::from_secs(25);

/// A program that gives a connection up when it hears nothing for ten seconds. It has two, through a relay
/// that counts how many were made.
fn watched(lab: &Lab, word: &str) -> (std::process::Command, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = format!("neonsan://{}/pool/v", listener.local_addr().unwrap());
    let (node, made) = (lab.data, Arc::new(AtomicUsize::new(0)));
    let count = made.clone();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            count.fetch_add(1, Ordering::Relaxed);
            through(client, node);
        }
    });
    let config = lab.path("watched.toml");
    std::fs::write(
        &config,
        "host-id = \"00112233-4455-6677-8899-aabbccddeeff\"\n[timeouts]\nloss = \"60s\"\n\
         heartbeat-interval = \"1s\"\nheartbeat-timeout = \"10s\"\n",
    )
    .unwrap();
    let mut program = std::process::Command::new(assert_cmd::cargo::cargo_bin("neonsan"));
    program.arg("--config").arg(&config);
    program.args([
        "volume",
        "--api",
        &lab.control.to_string(),
        word,
        &target,
        "-",
    ]);
    (program, made)
}

/// Carries a connection on to the node.
fn through(client: TcpStream, node: std::net::SocketAddr) {
    let node = TcpStream::connect(node).unwrap();
    for (mut from, mut to) in [
        (client.try_clone().unwrap(), node.try_clone().unwrap()),
        (node, client),
    ] {
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(std::net::Shutdown::Both);
        });
    }
}

#[test]
fn a_pipe_that_is_silent_for_long_costs_no_connection() {
    let lab = Lab::new();
    create(&lab, "pool/v", &["--size", "8M"]);
    let (mut import, made) = watched(&lab, "import");
    let mut child = import
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let bytes = pattern(4 * MIB);
    stdin.write_all(&bytes[..2 * MIB + 77]).unwrap();
    std::thread::sleep(SILENCE);
    stdin.write_all(&bytes[2 * MIB + 77..]).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(content(&lab, "pool/v")[..4 * MIB] == bytes);
    assert_eq!(
        made.load(Ordering::Relaxed),
        2,
        "connections were made anew"
    );
}

#[test]
fn a_reader_that_is_slow_costs_no_connection() {
    let lab = Lab::new();
    let file = lab.path("image");
    let bytes = pattern(48 * MIB);
    std::fs::write(&file, &bytes).unwrap();
    let target = lab.target("pool/v");
    let import = ["import", &target, file.to_str().unwrap(), "--create"];
    lab.volume(&import).assert().success();
    let (mut export, made) = watched(&lab, "export");
    let mut child = export
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut first = [0; 4096];
    stdout.read_exact(&mut first).unwrap();
    std::thread::sleep(SILENCE);
    let mut rest = Vec::new();
    stdout.read_to_end(&mut rest).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(first == bytes[..4096] && rest == bytes[4096..]);
    assert_eq!(
        made.load(Ordering::Relaxed),
        2,
        "connections were made anew"
    );
}

#[test]
fn a_virtual_disk_from_a_pipe_whose_mark_is_at_its_end_is_told_of() {
    let lab = Lab::new();
    let target = create(&lab, "pool/v", &["--size", "4M"]);
    let mut bytes = pattern(3 * MIB + 512);
    bytes[3 * MIB..3 * MIB + 8].copy_from_slice(b"conectix");
    lab.volume(&["import", &target, "-"])
        .write_stdin(bytes)
        .assert()
        .success()
        .stderr(contains("warning").and(contains("VHD")));
}

/// An import into a new volume that has sent 3 MiB and waits for more.
fn waiting_import(lab: &Lab, volume: &str) -> std::process::Child {
    let target = lab.target(volume);
    let mut import = lab.program(&["import", &target, "-", "--create", "--size", "8M"]);
    let mut child = import
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stdin = child.stdin.as_mut().unwrap();
    stdin.write_all(&pattern(3 * MIB)).unwrap();
    // The second piece has reached the node.
    lab::wait_for("the import to write", || {
        exists(lab, volume)
            && lab.json(&["info", &target])["allocated_bytes"].as_u64() >= Some(MIB as u64)
    });
    child
}

#[test]
fn a_signal_removes_the_volume_that_an_import_has_made() {
    let lab = Lab::new();
    for signal in ["INT", "TERM", "HUP"] {
        let child = waiting_import(&lab, "pool/v");
        lab::send(signal, &child);
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(130), "{said}");
        assert!(said.contains("is deleted again"), "{said}");
        assert!(!exists(&lab, "pool/v"), "{signal}");
    }
}

/// A way to a node whose every answer takes a second longer.
fn slowly(node: std::net::SocketAddr) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut node = TcpStream::connect(node).unwrap();
            let (mut from, mut to) = (client.try_clone().unwrap(), node.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            std::thread::spawn(move || {
                let mut answer = vec![0; 1 << 16];
                while let Ok(length @ 1..) = node.read(&mut answer) {
                    std::thread::sleep(Duration::from_secs(1));
                    if client.write_all(&answer[..length]).is_err() {
                        break;
                    }
                }
            });
        }
    });
    address
}

#[test]
fn a_signal_while_the_new_volume_is_opened_removes_it_too() {
    let lab = Lab::new();
    let file = lab.path("image");
    std::fs::write(&file, pattern(MIB)).unwrap();
    let target = format!("neonsan://{}/pool/v", slowly(lab.data));
    let words = ["import", &target, file.to_str().unwrap(), "--create"];
    let child = lab.program(&words).stderr(Stdio::piped()).spawn().unwrap();
    // The node has opened it, and the command has not heard of that yet.
    lab::wait_for("the node to open the volume", || {
        exists(&lab, "pool/v")
            && lab.json(&["info", &lab.target("pool/v")])["sessions"]
                .as_array()
                .is_some_and(|sessions| !sessions.is_empty())
    });
    lab::send("INT", &child);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("is deleted again"), "{said}");
    assert!(!exists(&lab, "pool/v"));
}

#[test]
fn an_input_that_fails_removes_the_volume_that_an_import_has_made() {
    let lab = Lab::new();
    let target = lab.target("pool/v");
    // A file that ends earlier than it says while it is read: the reader of a directory of /proc cannot
    // be had for that, so the file is cut while the import waits for the node.
    let (file, held) = (lab.path("image"), TcpListener::bind("127.0.0.1:0").unwrap());
    std::fs::write(&file, pattern(4 * MIB)).unwrap();
    let relayed = format!("neonsan://{}/pool/v", held.local_addr().unwrap());
    let mut import = lab.program(&["import", &relayed, file.to_str().unwrap(), "--create"]);
    let child = import.stderr(Stdio::piped()).spawn().unwrap();
    let node = lab.data;
    let (client, _) = held.accept().unwrap();
    std::fs::OpenOptions::new()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(5000)
        .unwrap();
    std::thread::spawn(move || {
        let mut next = Some(client);
        while let Some(client) = next {
            through(client, node);
            next = held.accept().ok().map(|(client, _)| client);
        }
    });
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("became shorter") && said.contains("is deleted again"),
        "{said}"
    );
    assert!(!exists(&lab, "pool/v"));
    // No node takes data: nothing was written, and nothing stays.
    let nobody = format!("neonsan://{}/pool/v", lab::free_address());
    lab.volume(&["import", &nobody, file.to_str().unwrap(), "--create"])
        .assert()
        .code(8)
        .stderr(contains("is deleted again"));
    assert!(!exists(&lab, "pool/v"));
    // One that was there before stays.
    create(&lab, "pool/v", &["--size", "1M"]);
    lab.volume(&["import", &target, file.to_str().unwrap(), "--create"])
        .assert()
        .code(7);
    assert!(exists(&lab, "pool/v"));
}

#[test]
fn a_volume_whose_import_was_killed_does_not_look_whole() {
    let lab = Lab::new();
    let mut child = waiting_import(&lab, "pool/v");
    child.kill().unwrap();
    child.wait().unwrap();
    let found = content(&lab, "pool/v");
    // Its partition table or file system would begin here.
    assert!(found[..MIB].iter().all(|byte| *byte == 0));
    assert!(found[MIB..2 * MIB] == pattern(3 * MIB)[MIB..2 * MIB]);
}

#[test]
fn a_block_device_is_written_only_if_nobody_uses_it_and_the_volume_fits() {
    let lab = Lab::new();
    let original = lab.path("original");
    image(&original, 8 << 20);
    let target = lab.target("pool/v");
    let import = ["import", &target, original.to_str().unwrap(), "--create"];
    lab.volume(&import).assert().success();
    let backing = lab.path("backing");
    std::fs::write(&backing, vec![0xa5; 8 << 20]).unwrap();
    let Some(device) = loop_device(&backing) else {
        return;
    };
    let name = device.path.to_str().unwrap();
    let export = ["export", &target, name];
    lab.volume(&export)
        .assert()
        .code(7)
        .stderr(contains("--force"));
    let export = ["export", &target, name, "--force"];
    // Held as a mount holds it.
    let exclusive = rustix::fs::OFlags::EXCL.bits() as i32;
    let mut options = std::fs::OpenOptions::new();
    let holder = options
        .read(true)
        .custom_flags(exclusive)
        .open(&device.path);
    let holder = holder.unwrap();
    lab.volume(&export)
        .assert()
        .code(7)
        .stderr(contains("is in use").and(contains("lsblk")));
    drop(holder);
    assert!(std::fs::read(&backing).unwrap() == vec![0xa5; 8 << 20]);
    // Zeroes are given back to what is thin, and read as that.
    lab.volume(&export).assert().success();
    assert!(same(&original, &backing));
    let allocated = std::fs::metadata(&backing).unwrap().blocks() * 512;
    assert!(allocated < 4 << 20, "{allocated} bytes are allocated");
    drop(device);

    let small = lab.path("small");
    std::fs::write(&small, vec![0xa5; 4 << 20]).unwrap();
    let Some(device) = loop_device(&small) else {
        return;
    };
    lab.volume(&["export", &target, device.path.to_str().unwrap(), "--force"])
        .assert()
        .code(11)
        .stderr(contains("too small").and(contains("nothing was written")));
    let file = std::fs::File::open(&small).unwrap();
    let mut first = vec![0; 4 << 20];
    file.read_exact_at(&mut first, 0).unwrap();
    assert!(first == vec![0xa5; 4 << 20]);
}

/// What nothing can be written to.
fn full() -> std::fs::File {
    std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap()
}

#[test]
fn what_cannot_be_said_ends_no_command_half_way() {
    let lab = Lab::new();
    let target = lab.target("pool/v");
    let file = lab.path("file");
    std::fs::write(&file, pattern(MIB)).unwrap();
    let run = |words: &[&str]| {
        let mut command = lab.program(words);
        command.stderr(full()).stdout(full());
        command.status().unwrap().code()
    };
    let import = ["import", &target, file.to_str().unwrap(), "--create"];
    assert_eq!(run(&import), Some(0));
    assert_eq!(content(&lab, "pool/v"), pattern(MIB));
    assert_eq!(run(&import), Some(7), "it is there already");
    assert_eq!(run(&["info", &lab.target("pool/none")]), Some(6));
    // What was asked for is not there.
    assert_eq!(run(&["info", &target]), Some(1));
    assert_eq!(run(&["export", &target, "-"]), Some(11));
}

#[test]
fn an_image_is_not_thrown_away_because_standard_output_is_closed() {
    let lab = Lab::new();
    let target = create(&lab, "pool/v", &["--size", "1M"]);
    let export = ["export", &target, "-"];
    let program = lab.program(&export);
    let mut closed = std::process::Command::new("sh");
    closed.args(["-c", "exec \"$0\" \"$@\" >&-"]);
    closed.arg(program.get_program()).args(program.get_args());
    let output = closed.stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("standard output is closed"), "{said}");
    // On purpose it may be.
    let null = std::fs::File::options().write(true).open("/dev/null");
    let status = lab.program(&export).stdout(null.unwrap()).status();
    assert_eq!(status.unwrap().code(), Some(0));
}

#[test]
fn a_volume_that_is_overwritten_in_part_is_said_to_be() {
    let lab = Lab::new();
    let target = create(&lab, "pool/v", &["--size", "2M"]);
    let spoiled = contains("overwritten in part");
    let mut too_much = lab.volume(&["import", &target, "-"]);
    let too_much = too_much.write_stdin(pattern(2 * MIB + 1)).assert();
    too_much.code(10).stderr(spoiled.clone());
    // Of a file its size is known before, and nothing is written.
    let file = lab.path("file");
    std::fs::write(&file, pattern(2 * MIB + 1)).unwrap();
    lab.volume(&["import", &target, file.to_str().unwrap()])
        .assert()
        .code(10)
        .stderr(spoiled.clone().not());
    let mut new = lab.volume(&[
        "import",
        &lab.target("pool/new"),
        "-",
        "--create",
        "--size",
        "2M",
    ]);
    let new = new.write_stdin(pattern(2 * MIB + 1)).assert();
    new.code(10).stderr(spoiled.not());
    assert!(!exists(&lab, "pool/new"));
}
