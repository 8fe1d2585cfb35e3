// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Thousands of seeds, and seeds that once failed.

use neonsan_sim::{run, run_traced, Counts, Planted, Tracing};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Mutex;

/// Runs seeds on all processors; panics with the first failure.
fn run_all(from: u64, to: u64) -> Counts {
    let next = AtomicU64::new(from);
    let total = Mutex::new(Counts::default());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= to {
                    break;
                }
                match run(seed, Planted::Nothing) {
                    Ok(counts) => total.lock().expect("no test panics with it").add(&counts),
                    Err(failure) => panic!("{failure}"),
                }
            });
        }
    });
    total.into_inner().expect("no test panics with it")
}

#[test]
fn every_promise_is_kept() {
    let counts = run_all(0, 2000);
    println!("{counts:?}");
    // The runs are worth something: all that is checked has happened often.
    assert!(counts.requests > 200_000);
    assert!(counts.errors > 1_000);
    assert!(counts.losses > 5_000);
    assert!(counts.resends > 5_000);
    assert!(counts.failed_flushes > 300);
    assert!(counts.fenced > 500);
    assert!(counts.moves > 200);
}

#[test]
fn a_seed_is_always_the_same_run() {
    for seed in 0..20 {
        let first = run(seed, Planted::Nothing).expect("a good seed");
        let traced = run_traced(seed, Planted::Nothing, Tracing::Keep(10));
        assert_eq!(first, traced.expect("the same good seed"));
    }
    let first = (0..100)
        .find_map(|seed| run(seed, Planted::NoFencing).err())
        .expect("a planted fault");
    let second = run(first.seed, Planted::NoFencing).expect_err("the same planted fault");
    assert_eq!(first.what, second.what);
    assert_eq!(first.events, second.events);
}

/// A loss timeout below what joining takes: the session was opened anew for ever.
#[test]
fn a_seed_that_failed_once_does_not_again() {
    for seed in [91_545] {
        if let Err(failure) = run(seed, Planted::Nothing) {
            panic!("{failure}");
        }
    }
}
