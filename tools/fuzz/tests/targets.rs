// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Replays the committed corpus through every target, and then a short seeded random run.
//! `NEONSAN_FUZZ_SECONDS` makes the random run longer, `NEONSAN_FUZZ_SEED` repeats one.

use neonsan_fuzz::random::Random;
use neonsan_fuzz::targets::{Target, TARGETS};
use std::path::Path;
use std::time::{Duration, Instant};

fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target.name);
    let mut files: Vec<(String, Vec<u8>)> = std::fs::read_dir(&dir)
        .unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
        .map(|entry| {
            let path = entry.expect("a directory entry").path();
            let bytes = std::fs::read(&path).expect("a readable file");
            (path.display().to_string(), bytes)
        })
        .collect();
    files.sort();
    files
}

#[test]
fn the_corpus_replays() {
    for target in TARGETS {
        let files = corpus(target);
        assert!(
            files.len() >= 10,
            "{} has {} files",
            target.name,
            files.len()
        );
        assert!(
            files.len() <= 200,
            "{} has {} files",
            target.name,
            files.len()
        );
        for (path, bytes) in files {
            println!("{path}");
            (target.run)(&bytes);
        }
    }
}

#[test]
fn random_changes_of_the_corpus_break_no_promise() {
    let seconds = std::env::var("NEONSAN_FUZZ_SECONDS").ok();
    let seed = std::env::var("NEONSAN_FUZZ_SEED").ok();
    let first: u64 = seed.as_deref().map_or(1, |s| s.parse().expect("a number"));
    for target in TARGETS {
        let mut inputs: Vec<Vec<u8>> = corpus(target).into_iter().map(|(_, b)| b).collect();
        inputs.extend((target.seeds)());
        let begun = Instant::now();
        for n in 0.. {
            // The same number of runs each time, unless a time is asked for.
            let enough = match &seconds {
                Some(s) => begun.elapsed() >= Duration::from_secs(s.parse().expect("a number")),
                None => n >= 4_000,
            };
            if enough || (seed.is_some() && n > 0) {
                break;
            }
            let seed = first + n;
            let mut random = Random::new(seed);
            let mut bytes = inputs[random.below(inputs.len())].clone();
            random.mutate(&mut bytes);
            let run = std::panic::catch_unwind(|| (target.run)(&bytes));
            assert!(
                run.is_ok(),
                "{}: NEONSAN_FUZZ_SEED={seed}: {bytes:02x?}",
                target.name
            );
        }
    }
}
