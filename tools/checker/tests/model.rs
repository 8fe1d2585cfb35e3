// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The rules, one by one, and at random against a disk that keeps them.
#![allow(clippy::unwrap_used)]

use neonsan_checker::block::Content;
use neonsan_checker::model::{Broken, Cache, Model, Violation};

fn version(version: u64) -> Content {
    match version {
        0 => Content::Zeroes,
        version => Content::Version { version },
    }
}

fn read(model: &mut Model, block: u64, found: Content) -> Vec<Violation> {
    let read = model.begin_read(block, 1);
    model.on_read(read, &[found])
}

/// The versions up to 9 that a read of the block may find.
fn allowed(model: &mut Model, block: u64) -> Vec<u64> {
    (0..10)
        .filter(|v| read(model, block, version(*v)).is_empty())
        .collect()
}

fn write(model: &mut Model, block: u64, fua: bool) -> u64 {
    let version = model.issue(block, 1, fua).unwrap();
    assert!(model.on_written(version, true));
    version
}

fn broken(violations: &[Violation]) -> Vec<Broken> {
    violations.iter().map(|v| v.broken).collect()
}

#[test]
fn at_least_what_was_acknowledged_and_at_most_what_was_issued() {
    let mut model = Model::new(Cache::WriteThrough, 4);
    assert_eq!(allowed(&mut model, 0), [0]);
    assert_eq!(model.issue(0, 2, false), Some(1));
    assert_eq!(allowed(&mut model, 1), [0, 1]);
    assert!(model.on_written(1, true));
    assert_eq!(allowed(&mut model, 1), [1]);
    assert_eq!(model.issue(1, 1, false), Some(2));
    assert_eq!(allowed(&mut model, 0), [1]);
    assert_eq!(allowed(&mut model, 1), [1, 2]);
}

#[test]
fn a_failed_write_may_be_there_or_not() {
    let mut model = Model::new(Cache::WriteThrough, 1);
    write(&mut model, 0, false);
    let failed = model.issue(0, 1, false).unwrap();
    assert!(model.on_written(failed, false));
    assert_eq!(allowed(&mut model, 0), [1, 2]);
    write(&mut model, 0, false);
    assert_eq!(allowed(&mut model, 0), [3]);
}

#[test]
fn one_write_at_a_time_has_a_block() {
    let mut model = Model::new(Cache::WriteThrough, 8);
    let first = model.issue(2, 3, false).unwrap();
    assert_eq!(model.issue(4, 1, false), None);
    assert!(model.issue(5, 1, false).is_some());
    assert_eq!(model.issue(7, 2, false), None, "beyond the end");
    model.on_written(first, true);
    assert!(model.issue(4, 1, false).is_some());
}

#[test]
fn a_read_may_find_what_was_there_at_any_time_while_it_lasted() {
    let mut model = Model::new(Cache::WriteThrough, 1);
    write(&mut model, 0, false);
    for found in 1..=3 {
        let mut model = Model::new(Cache::WriteThrough, 1);
        write(&mut model, 0, false);
        let slow = model.begin_read(0, 1);
        write(&mut model, 0, false);
        write(&mut model, 0, false);
        assert!(model.on_read(slow, &[version(found)]).is_empty());
        assert_eq!(allowed(&mut model, 0), [3]);
    }
    let slow = model.begin_read(0, 1);
    assert_eq!(broken(&model.on_read(slow, &[version(0)])), [Broken::Lost]);
}

#[test]
fn every_way_to_break_a_promise_has_its_name() {
    let mut model = Model::new(Cache::WriteThrough, 2);
    write(&mut model, 0, false);
    write(&mut model, 1, false);
    write(&mut model, 0, false);
    let cases = [
        (version(1), Broken::Stale),
        (version(0), Broken::Lost),
        (version(4), Broken::NeverIssued),
        (
            Content::Torn {
                oldest: 1,
                newest: 3,
            },
            Broken::Torn,
        ),
        (
            Content::Misdirected {
                block: 1,
                version: 2,
            },
            Broken::Misdirected,
        ),
        (Content::Damaged { at_byte: 0 }, Broken::Damaged),
        (Content::Foreign { seed: 1 }, Broken::Damaged),
    ];
    for (found, name) in cases {
        assert_eq!(broken(&read(&mut model, 0, found)), [name]);
    }
    assert_eq!(allowed(&mut model, 0), [3]);
}

#[test]
fn a_block_may_be_torn_only_while_it_is_written() {
    let torn = Content::Torn {
        oldest: 1,
        newest: 2,
    };
    let mut model = Model::new(Cache::WriteThrough, 1);
    write(&mut model, 0, false);
    let before = model.begin_read(0, 1);
    let second = model.issue(0, 1, false).unwrap();
    let during = model.begin_read(0, 1);
    model.on_written(second, true);
    for overlapping in [before, during] {
        assert!(model.on_read(overlapping, &[torn]).is_empty());
    }
    assert_eq!(model.torn_by_overlap(), 2);
    assert_eq!(broken(&read(&mut model, 0, torn)), [Broken::Torn]);
}

#[test]
fn what_was_flushed_stays() {
    let mut model = Model::new(Cache::Volatile, 2);
    write(&mut model, 0, false);
    let flush = model.begin_flush();
    write(&mut model, 0, false);
    assert!(model.on_flushed(flush, true).is_empty());
    // The second write came after the flush began.
    let lost = read(&mut model, 0, version(0));
    assert_eq!(broken(&lost), [Broken::Lost]);
    assert!(read(&mut model, 0, version(1)).is_empty());
    assert_eq!(model.unreported_losses(), 1);
    let next = model.begin_flush();
    assert!(model.on_flushed(next, false).is_empty());
    assert_eq!(allowed(&mut model, 0), [1, 2]);
}

#[test]
fn a_loss_that_no_flush_reports_is_a_broken_promise() {
    let mut model = Model::new(Cache::Volatile, 1);
    write(&mut model, 0, false);
    let early = model.begin_flush();
    assert!(read(&mut model, 0, version(0)).is_empty());
    // This one began before the loss was seen.
    assert!(model.on_flushed(early, true).is_empty());
    let late = model.begin_flush();
    let silent = model.on_flushed(late, true);
    assert_eq!(broken(&silent), [Broken::LossNotReported]);
    assert!(model.on_flushed(late, true).is_empty(), "only once");
}

#[test]
fn a_failed_flush_reports_every_loss_before_it() {
    let mut model = Model::new(Cache::Volatile, 2);
    write(&mut model, 0, false);
    write(&mut model, 1, true);
    assert!(read(&mut model, 0, version(0)).is_empty());
    let flush = model.begin_flush();
    assert!(model.on_flushed(flush, false).is_empty());
    let flush = model.begin_flush();
    assert!(model.on_flushed(flush, true).is_empty());
    // A write with FUA is not concerned.
    assert_eq!(allowed(&mut model, 1), [2]);
    // What is written after it counts again.
    write(&mut model, 0, false);
    let flush = model.begin_flush();
    assert!(model.on_flushed(flush, true).is_empty());
    assert_eq!(allowed(&mut model, 0), [3]);
}

#[test]
fn a_read_that_a_failed_flush_overtook_may_find_either() {
    let mut model = Model::new(Cache::Volatile, 1);
    write(&mut model, 0, false);
    let slow = model.begin_read(0, 1);
    let flush = model.begin_flush();
    model.on_flushed(flush, false);
    assert!(model.on_read(slow, &[version(0)]).is_empty());
    assert_eq!(model.unreported_losses(), 0);
}

#[test]
fn the_end_of_another_flush_is_waited_for() {
    let mut model = Model::new(Cache::Volatile, 1);
    write(&mut model, 0, false);
    for reported in [true, false] {
        let reporting = model.begin_flush();
        assert!(read(&mut model, 0, version(0)).is_empty());
        let other = model.begin_flush();
        assert!(model.on_flushed(other, true).is_empty());
        if reported {
            assert!(model.on_flushed(reporting, false).is_empty());
            write(&mut model, 0, false);
        } else {
            // The other flush made the block durable, so what it finds now is plainly lost.
            assert!(model.on_flushed(reporting, true).is_empty());
            let next = model.begin_flush();
            let silent = model.on_flushed(next, true);
            assert_eq!(broken(&silent), [Broken::LossNotReported]);
        }
    }
}

#[test]
fn a_write_that_a_failed_flush_overtook_does_not_count() {
    let mut model = Model::new(Cache::Volatile, 1);
    let slow = model.issue(0, 1, false).unwrap();
    let flush = model.begin_flush();
    model.on_flushed(flush, false);
    model.on_written(slow, true);
    assert_eq!(allowed(&mut model, 0), [0, 1]);
}

/// A disk that is right, in memory: what is stored, and what of it would survive.
struct RightDisk {
    now: Vec<u64>,
    stable: Vec<u64>,
    lost: bool,
}

#[test]
fn a_right_disk_is_never_accused_and_a_wrong_one_is() {
    let mut caught = 0;
    for seed in 0..400u64 {
        let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut random = |bound: u64| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x % bound
        };
        let lies = seed % 4 == 3;
        let mut model = Model::new(Cache::Volatile, 6);
        let mut disk = RightDisk {
            now: vec![0; 6],
            stable: vec![0; 6],
            lost: false,
        };
        let mut found = Vec::new();
        for _ in 0..300 {
            let block = random(6);
            match random(10) {
                0..=3 => {
                    let fua = random(4) == 0;
                    let written = model.issue(block, 1, fua).unwrap();
                    let ok = random(12) != 0;
                    if ok || random(2) == 0 {
                        disk.now[block as usize] = written;
                        if fua {
                            disk.stable[block as usize] = written;
                        }
                    }
                    model.on_written(written, ok);
                }
                4 => {
                    let flush = model.begin_flush();
                    let ok = !disk.lost;
                    disk.lost = false;
                    if ok {
                        disk.stable.clone_from(&disk.now);
                    }
                    found.extend(model.on_flushed(flush, ok));
                }
                5 if random(8) == 0 => {
                    disk.now.clone_from(&disk.stable);
                    disk.lost = !lies;
                }
                _ => {
                    let value = version(disk.now[block as usize]);
                    found.extend(read(&mut model, block, value));
                }
            }
        }
        if lies {
            caught += usize::from(!found.is_empty());
        } else {
            assert_eq!(found, [], "seed {seed}");
        }
    }
    assert!(caught >= 70, "only {caught} of 100 liars were caught");
}
