// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Runs seeds of the simulation.

use clap::Parser;
use neonsan_sim::{run, run_traced, Counts, Planted, Tracing};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Mutex;
use std::time::Instant;

/// Simulates sessions of hosts and a node under faults, and checks every promise.
#[derive(Debug, Parser)]
#[command(version)]
struct Options {
    /// Run this one seed
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,

    /// Run the seeds from A up to but not including B
    #[arg(long, value_name = "A..B", value_parser = parse_range, default_value = "0..1000")]
    seeds: (u64, u64),

    /// Print every event (with --seed)
    #[arg(long, requires = "seed")]
    trace: bool,

    /// Put a fault in on purpose
    #[arg(long, value_name = "NAME", value_parser = parse_planted)]
    plant: Option<Planted>,

    /// Go on after a failure, and count them
    #[arg(long)]
    keep_going: bool,

    /// Threads; default: one per processor
    #[arg(long)]
    jobs: Option<usize>,
}

fn parse_range(text: &str) -> Result<(u64, u64), String> {
    let (from, to) = text
        .split_once("..")
        .ok_or("write it as A..B, such as 0..1000")?;
    let number = |text: &str| text.parse::<u64>().map_err(|e| format!("{text}: {e}"));
    let (from, to) = (number(from)?, number(to)?);
    if from < to {
        Ok((from, to))
    } else {
        Err("the range is empty".into())
    }
}

fn parse_planted(text: &str) -> Result<Planted, String> {
    let known = Planted::ALL.iter().find(|(name, _)| *name == text);
    known.map(|(_, planted)| *planted).ok_or_else(|| {
        let names: Vec<&str> = Planted::ALL.iter().map(|(name, _)| *name).collect();
        format!("known are {}", names.join(", "))
    })
}

/// Runs a range of seeds on several threads. Returns how many failed.
fn run_range(options: &Options, planted: Planted) -> u64 {
    let (from, to) = options.seeds;
    let jobs = options
        .jobs
        .or_else(|| std::thread::available_parallelism().ok().map(usize::from))
        .unwrap_or(1);
    let next = AtomicU64::new(from);
    let stop = AtomicBool::new(false);
    let failures = AtomicU64::new(0);
    let total = Mutex::new((0u64, Counts::default()));
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                let mut mine = (0, Counts::default());
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= to {
                        break;
                    }
                    mine.0 += 1;
                    match run(seed, planted) {
                        Ok(counts) => mine.1.add(&counts),
                        Err(failure) if options.keep_going => {
                            failures.fetch_add(1, Ordering::Relaxed);
                            println!("seed {seed}: {}", failure.what);
                        }
                        Err(failure) => {
                            failures.fetch_add(1, Ordering::Relaxed);
                            if !stop.swap(true, Ordering::Relaxed) {
                                println!("{failure}");
                            }
                        }
                    }
                }
                if let Ok(mut total) = total.lock() {
                    total.0 += mine.0;
                    total.1.add(&mine.1);
                }
            });
        }
    });
    let failures = failures.into_inner();
    if let Ok((runs, counts)) = total.into_inner() {
        println!(
            "{runs} seeds, {failures} failed, {:.1} s: {counts:?}",
            begin.elapsed().as_secs_f64()
        );
    }
    failures
}

fn main() -> ExitCode {
    let options = Options::parse();
    let planted = options.plant.unwrap_or_default();
    let failed = match options.seed {
        Some(seed) => {
            let result = if options.trace {
                run_traced(seed, planted, Tracing::Print)
            } else {
                run(seed, planted)
            };
            match result {
                Ok(counts) => {
                    println!("seed {seed}: {counts:?}");
                    false
                }
                Err(failure) => {
                    println!("{failure}");
                    true
                }
            }
        }
        None => run_range(&options, planted) > 0,
    };
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
