// SPDX-License-Identifier: GPL-2.0 OR MIT
//! One suite for all engines: what the crate's documentation promises.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{engines, run, run_all, spec, volume_name, Subject};
use neonsan_engine::{Buffer, BufferPool, ErrorKind, Op, Volume};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

fn filled(len: usize, byte: u8) -> Buffer {
    let mut buffer = Buffer::zeroed(len).unwrap();
    buffer.fill(byte);
    buffer
}

fn write(offset: u64, len: usize, byte: u8) -> Op {
    Op::Write {
        offset,
        buffer: filled(len, byte),
        fua: false,
        atomic: false,
    }
}

fn read(offset: u64, len: usize) -> Op {
    Op::Read {
        offset,
        buffer: Buffer::zeroed(len).unwrap(),
    }
}

fn zeroes(offset: u64, len: u32) -> Op {
    Op::WriteZeroes {
        offset,
        len,
        fua: false,
        no_unmap: false,
    }
}

fn kind(result: Result<Option<Buffer>, neonsan_engine::Error>) -> ErrorKind {
    result.unwrap_err().kind()
}

/// Opens a new volume and makes a queue of it.
fn fresh(subject: &Subject, logical: u32, size: u64) -> Arc<dyn Volume> {
    let name = volume_name("p/v");
    let _ = subject.engine.delete(&name);
    subject.engine.create(&name, &spec(size, logical)).unwrap();
    subject.engine.open(&name).unwrap()
}

#[test]
fn a_new_volume_is_zeroes_and_as_asked() {
    for subject in engines() {
        let volume = fresh(&subject, 512, 1 << 20);
        let stat = volume.stat();
        assert_eq!(stat.size_bytes, 1 << 20, "{}", subject.label);
        assert_eq!(stat.logical_block_size, 512);
        let mut queue = volume.queue(4).unwrap();
        let data = run(&mut *queue, read(0, 1 << 20)).unwrap().unwrap();
        assert!(data.iter().all(|&b| b == 0), "{}", subject.label);
    }
}

#[test]
fn bad_ranges_are_refused_by_kind() {
    for subject in engines() {
        let volume = fresh(&subject, 4096, 1 << 20);
        let limits = volume.limits();
        let mut queue = Arc::clone(&volume).queue(4).unwrap();
        let mut fails = |op| kind(run(&mut *queue, op));
        assert_eq!(fails(read(512, 4096)), ErrorKind::Misaligned);
        assert_eq!(fails(read(0, 512)), ErrorKind::Misaligned);
        assert_eq!(fails(write(1 << 20, 4096, 1)), ErrorKind::OutOfRange);
        assert_eq!(fails(zeroes((1 << 20) - 4096, 8192)), ErrorKind::OutOfRange);
        assert_eq!(fails(zeroes(u64::MAX - 4095, 8192)), ErrorKind::OutOfRange);
        assert_eq!(fails(zeroes(0, 0)), ErrorKind::OutOfRange);
        let atomic = |offset, len| Op::Write {
            offset,
            buffer: filled(len, 1),
            fua: false,
            atomic: true,
        };
        assert_eq!(fails(atomic(0, 12288)), ErrorKind::AtomicLimit);
        assert_eq!(fails(atomic(4096, 8192)), ErrorKind::AtomicLimit);
        let too_long = limits.max_io_bytes as usize + 4096;
        drop(queue);
        volume.resize(64 << 20).unwrap();
        let mut queue = volume.queue(4).unwrap();
        assert_eq!(
            kind(run(&mut *queue, read(0, too_long))),
            ErrorKind::TooLarge
        );
    }
}

#[test]
fn volumes_can_be_made_listed_resized_and_deleted() {
    for subject in engines() {
        let engine = &subject.engine;
        let name = volume_name("pool.a/vm-1");
        assert_eq!(engine.stat(&name).unwrap_err().kind(), ErrorKind::NotFound);
        let made = engine.create(&name, &spec(8192, 512)).unwrap();
        assert_eq!(
            engine.create(&name, &spec(8192, 512)).unwrap_err().kind(),
            ErrorKind::AlreadyExists
        );
        assert_eq!(engine.stat(&name).unwrap(), made);
        assert_eq!(engine.list().unwrap(), std::slice::from_ref(&name));
        assert_eq!(engine.load_record(&name).unwrap(), None);
        let volume = engine.open(&name).unwrap();
        for record in [&b"first"[..], b"", b"third"] {
            engine.save_record(&name, record).unwrap();
            assert_eq!(engine.load_record(&name).unwrap().unwrap(), record);
        }
        assert_eq!(engine.delete(&name).unwrap_err().kind(), ErrorKind::Busy);
        assert_eq!(engine.open(&name).err().unwrap().kind(), ErrorKind::Busy);

        let mut queue = Arc::clone(&volume).queue(1).unwrap();
        run(&mut *queue, write(4096, 4096, 9)).unwrap();
        volume.resize(16384).unwrap();
        run(&mut *queue, write(12288, 4096, 9)).unwrap();
        assert_eq!(volume.resize(4608).unwrap_err().kind(), ErrorKind::Busy);
        drop(queue);
        volume.resize(4608).unwrap();
        assert_eq!(volume.resize(0).unwrap_err().kind(), ErrorKind::BadSize);
        assert_eq!(volume.resize(4609).unwrap_err().kind(), ErrorKind::BadSize);
        volume.resize(16384).unwrap();
        let mut queue = Arc::clone(&volume).queue(1).unwrap();
        let data = run(&mut *queue, read(4096, 12288)).unwrap().unwrap();
        assert!(data[..512].iter().all(|&b| b == 9), "{}", subject.label);
        assert!(
            data[512..].iter().all(|&b| b == 0),
            "{}: what was cut off comes back as zeroes",
            subject.label
        );
        drop((queue, volume));
        assert_eq!(engine.stat(&name).unwrap().size_bytes, 16384);
        engine.delete(&name).unwrap();
        assert_eq!(engine.list().unwrap(), []);
        let again = engine.create(&name, &spec(8192, 512)).unwrap();
        assert_ne!(again.id, made.id);
    }
}

#[test]
fn impossible_sizes_are_refused() {
    for subject in engines() {
        let name = volume_name("p/bad");
        for spec in [
            spec(0, 512),
            spec(513, 512),
            spec(512, 4096),
            spec(1 << 20, 256),
            spec(1 << 20, 8192),
            spec(1 << 20, 1000),
            spec(u64::MAX - 511, 512),
        ] {
            let error = subject.engine.create(&name, &spec).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::BadSize, "{spec:?}");
        }
        assert_eq!(subject.engine.list().unwrap(), []);
    }
}

#[test]
fn discarded_space_is_freed_and_reads_as_zeroes() {
    for subject in engines() {
        let volume = fresh(&subject, 512, 4 << 20);
        if volume.limits().max_discard_bytes == 0 {
            continue;
        }
        let mut queue = Arc::clone(&volume).queue(4).unwrap();
        for i in 0..4 {
            run(&mut *queue, write(i << 20, 1 << 20, 5)).unwrap();
        }
        run(&mut *queue, Op::Flush).unwrap();
        let name = volume_name("p/v");
        let allocated = || subject.engine.stat(&name).unwrap().allocated_bytes;
        assert!(allocated() >= 4 << 20);
        let discard = Op::Discard {
            offset: 512,
            len: (3 << 20) - 1024,
        };
        run(&mut *queue, discard).unwrap();
        assert!(allocated() <= (2 << 20), "{}", subject.label);
        let data = run(&mut *queue, read(0, 1024)).unwrap().unwrap();
        assert_eq!((data[511], data[512]), (5, 0), "{}", subject.label);
    }
}

#[test]
fn many_requests_at_once_all_complete_once() {
    for subject in engines() {
        let volume = fresh(&subject, 512, 16 << 20);
        // More requests than the queue is deep.
        let mut queue = volume.queue(8).unwrap();
        let ops = (0..200u64)
            .map(|i| write(i * 8192, 8192, i as u8))
            .collect();
        let results = run_all(&mut *queue, ops);
        assert_eq!(results.len(), 200);
        assert!(results.into_iter().all(|r| r.is_ok()));
        assert_eq!(queue.in_flight(), 0);
        for i in 0..200u64 {
            let data = run(&mut *queue, read(i * 8192, 8192)).unwrap().unwrap();
            assert!(data.iter().all(|&b| b == i as u8), "{}", subject.label);
        }
    }
}

#[test]
fn neighbours_of_small_writes_survive_when_several_queues_write() {
    // Each thread owns every fourth 512-byte block, so that each 4096-byte
    // block is written by all of them all the time.
    const BLOCKS: u64 = 64;
    const THREADS: u64 = 4;
    for subject in engines() {
        let volume = fresh(&subject, 512, BLOCKS * 512);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let volume = Arc::clone(&volume);
                scope.spawn(move || {
                    let mut queue = volume.queue(16).unwrap();
                    for round in 1..=20u8 {
                        let ops = (0..BLOCKS)
                            .filter(|b| b % THREADS == thread)
                            .map(|b| write(b * 512, 512, round + 50 * thread as u8))
                            .collect();
                        for result in run_all(&mut *queue, ops) {
                            result.unwrap();
                        }
                    }
                });
            }
        });
        let mut queue = volume.queue(1).unwrap();
        let data = run(&mut *queue, read(0, (BLOCKS * 512) as usize))
            .unwrap()
            .unwrap();
        for (i, block) in data.chunks(512).enumerate() {
            let expected = 20 + 50 * (i as u8 % THREADS as u8);
            assert!(
                block.iter().all(|&b| b == expected),
                "{}: block {i}",
                subject.label
            );
        }
    }
}

/// An operation in units of blocks, for the comparison with a model.
#[derive(Clone, Debug)]
enum Step {
    Read(u16, u16),
    Write(u16, u16, u8, bool),
    Zero(u16, u16, bool, bool),
    Discard(u16, u16),
    Flush,
    Grow(u16),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = || (0u16..256, 1u16..40);
    let step = prop_oneof![
        4 => range().prop_map(|(a, n)| Step::Read(a, n)),
        5 => (range(), any::<u8>(), any::<bool>())
            .prop_map(|((a, n), byte, fua)| Step::Write(a, n, byte, fua)),
        2 => (range(), any::<bool>(), any::<bool>())
            .prop_map(|((a, n), fua, keep)| Step::Zero(a, n, fua, keep)),
        2 => range().prop_map(|(a, n)| Step::Discard(a, n)),
        1 => Just(Step::Flush),
        1 => (1u16..32).prop_map(Step::Grow),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..40)
}

/// Runs the steps on an engine and on a `Vec<u8>`.
fn compare(subject: &Subject, logical: u32, steps: &[Step]) -> Result<(), TestCaseError> {
    let block = u64::from(logical);
    let name = volume_name("p/model");
    // A child process that another test starts has its files open for a moment.
    let begun = Instant::now();
    while let Err(error) = subject.engine.delete(&name) {
        if error.kind() == ErrorKind::NotFound {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{error}");
        std::thread::sleep(Duration::from_millis(10));
    }
    // An odd number of blocks, so that the end lies within a block of the
    // storage.
    let mut model = vec![0u8; 203 * block as usize];
    subject
        .engine
        .create(&name, &spec(model.len() as u64, logical))
        .unwrap();
    let mut volume = subject.engine.open(&name).unwrap();
    let mut queue = Arc::clone(&volume).queue(4).unwrap();
    let mut pool = BufferPool::new(1 << 20);
    let can_discard = volume.limits().max_discard_bytes > 0;
    for step in steps {
        let span = |a: u16, n: u16| {
            let start = u64::from(a) * block;
            let end = start + u64::from(n) * block;
            (end <= model.len() as u64).then_some((start, end))
        };
        match *step {
            Step::Read(a, n) => {
                let Some((start, end)) = span(a, n) else {
                    continue;
                };
                let buffer = pool.take((end - start) as usize).unwrap();
                let op = Op::Read {
                    offset: start,
                    buffer,
                };
                let data = run(&mut *queue, op).unwrap().unwrap();
                prop_assert_eq!(&data[..], &model[start as usize..end as usize]);
                pool.give(data);
            }
            Step::Write(a, n, byte, fua) => {
                let Some((start, end)) = span(a, n) else {
                    continue;
                };
                let mut buffer = pool.take((end - start) as usize).unwrap();
                for (i, b) in buffer.iter_mut().enumerate() {
                    *b = byte.wrapping_add((i / 512) as u8);
                }
                model[start as usize..end as usize].copy_from_slice(&buffer);
                let op = Op::Write {
                    offset: start,
                    buffer,
                    fua,
                    atomic: false,
                };
                pool.give(run(&mut *queue, op).unwrap().unwrap());
            }
            Step::Zero(a, n, fua, no_unmap) => {
                let Some((start, end)) = span(a, n) else {
                    continue;
                };
                model[start as usize..end as usize].fill(0);
                let op = Op::WriteZeroes {
                    offset: start,
                    len: (end - start) as u32,
                    fua,
                    no_unmap,
                };
                run(&mut *queue, op).unwrap();
            }
            Step::Discard(a, n) => {
                let Some((start, end)) = span(a, n) else {
                    continue;
                };
                if !can_discard {
                    continue;
                }
                model[start as usize..end as usize].fill(0);
                let op = Op::Discard {
                    offset: start,
                    len: (end - start) as u32,
                };
                run(&mut *queue, op).unwrap();
            }
            Step::Flush => {
                run(&mut *queue, Op::Flush).unwrap();
            }
            Step::Grow(n) => {
                model.resize(model.len() + usize::from(n) * block as usize, 0);
                volume.resize(model.len() as u64).unwrap();
            }
            Step::Reopen => {
                drop(queue);
                drop(volume);
                volume = subject.engine.open(&name).unwrap();
                queue = Arc::clone(&volume).queue(4).unwrap();
            }
        }
    }
    for (i, expected) in model.chunks(1 << 20).enumerate() {
        let op = read((i as u64) << 20, expected.len());
        let data = run(&mut *queue, op).unwrap().unwrap();
        prop_assert!(data[..] == *expected, "the whole differs at the end");
    }
    Ok(())
}

#[test]
fn engines_do_what_a_vec_does() {
    for subject in engines() {
        for logical in [512, 4096] {
            let mut runner = TestRunner::new(Config {
                cases: subject.cases,
                failure_persistence: None,
                ..Config::default()
            });
            runner
                .run(&steps(), |steps| compare(&subject, logical, &steps))
                .unwrap_or_else(|e| panic!("{} {logical}: {e}", subject.label));
        }
    }
}
