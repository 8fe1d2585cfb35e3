// SPDX-License-Identifier: GPL-2.0 OR MIT
//! A killed process cannot write into its successor's volume: the lock of the
//! data file lasts until the last write in flight has ended.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{file_options, run, spec, volume_name};
use neonsan_engine::file::FileEngine;
use neonsan_engine::{Buffer, Engine, ErrorKind, Op, Request};

/// Names the directory to the child.
const CHILD_DIR: &str = "NEONSAN_TEST_KILLED_NODE";

const SIZE: u64 = 64 << 20;

/// The part of the child: writes as much as it can until it is killed.
#[test]
fn child_that_writes_until_it_is_killed() {
    let Some(dir) = std::env::var_os(CHILD_DIR) else {
        return;
    };
    let engine = FileEngine::open(file_options(Path::new(&dir))).unwrap();
    let mut queue = engine.open(&volume_name("p/v")).unwrap().queue(64).unwrap();
    let mut completions = Vec::new();
    let mut next = 0u64;
    println!("writing");
    loop {
        while queue.in_flight() < 64 {
            let mut buffer = Buffer::zeroed(1 << 20).unwrap();
            buffer.fill(next as u8 | 1);
            queue.submit(Request {
                token: next,
                op: Op::Write {
                    offset: (next << 20) % SIZE,
                    buffer,
                    fua: true,
                    atomic: false,
                },
            });
            next += 1;
        }
        queue.kick();
        queue.reap(&mut completions);
        completions.clear();
    }
}

#[test]
fn a_killed_node_cannot_write_into_its_successors_volume() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let name = volume_name("p/v");
    let mut options = file_options(dir.path());
    options.lock_wait = Duration::from_secs(60);
    FileEngine::open(options.clone())
        .unwrap()
        .create(&name, &spec(SIZE, 4096))
        .unwrap();
    for _ in 0..3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "child_that_writes_until_it_is_killed",
                "--nocapture",
            ])
            .env(CHILD_DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while !lines.next().unwrap().unwrap().contains("writing") {}
        std::thread::sleep(Duration::from_millis(300));
        let busy = FileEngine::open(file_options(dir.path())).unwrap_err();
        assert_eq!(busy.kind(), ErrorKind::Busy);

        child.kill().unwrap();
        let engine = FileEngine::open(options.clone()).unwrap();
        let mut queue = engine.open(&name).unwrap().queue(64).unwrap();
        // All of the volume is ours now: what we write stays.
        for i in 0..SIZE >> 20 {
            let op = Op::WriteZeroes {
                offset: i << 20,
                len: 1 << 20,
                fua: false,
                no_unmap: true,
            };
            run(&mut *queue, op).unwrap();
        }
        std::thread::sleep(Duration::from_millis(200));
        child.wait().unwrap();
        for i in 0..SIZE >> 20 {
            let op = Op::Read {
                offset: i << 20,
                buffer: Buffer::zeroed(1 << 20).unwrap(),
            };
            let data = run(&mut *queue, op).unwrap().unwrap();
            assert!(
                data.iter().all(|&b| b == 0),
                "a write from the past at {i} MiB"
            );
        }
    }
}
