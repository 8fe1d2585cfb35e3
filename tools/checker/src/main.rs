// SPDX-License-Identifier: GPL-2.0 OR MIT

//! `neonsan-checker`: the command line.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use neonsan_checker::disk::{Disk, FileDisk};
use neonsan_checker::load::{Load, Plan};
use neonsan_checker::log::{Log, Start};
use neonsan_checker::model::{Cache, Model};
use neonsan_checker::report::Report;
use neonsan_checker::verify::verify;
use tokio::signal::unix::{signal, SignalKind};

const AFTER_HELP: &str = "\
Exit codes:
   0  no request failed, and every block held what it must
   1  it could not be checked: disk, log, or too few resources
   2  wrong usage
   3  the disk broke its promise: a block was stale, lost, torn, misdirected or
      damaged, or a loss was not reported
   4  requests failed (not with --tolerate-errors); otherwise as 0";

/// Write to a disk, know what it must hold whatever happens to it, and look
///
/// DESTROYS what is on the disk. It must read as zeroes at first, as a new volume does.
#[derive(Debug, Parser)]
#[command(name = "neonsan-checker", version, after_help = AFTER_HELP, max_term_width = 100)]
#[command(subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write and read until SIGTERM, SIGINT or the time's end; check every read
    Run(Run),
    /// Flush, read every block, and compare it with the log
    Verify(Verify),
}

#[derive(Debug, Args)]
struct Common {
    /// A block device or a file
    target: PathBuf,

    /// What was issued and acknowledged; not on the disk under test
    #[arg(long, value_name = "FILE")]
    log: PathBuf,

    /// Print the result as JSON
    #[arg(long)]
    json: bool,

    /// Requests that fail are no reason to exit with 4
    #[arg(long)]
    tolerate_errors: bool,
}

/// What an acknowledged write means on the disk.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum CacheMode {
    /// It stays, whatever happens
    WriteThrough,
    /// It stays once it was flushed; a loss makes a flush fail
    Volatile,
}

#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    common: Common,

    /// What an acknowledged write means
    #[arg(long, value_enum, default_value = "write-through")]
    cache: CacheMode,

    /// Go on with a log and a disk of an earlier run
    #[arg(long)]
    resume: bool,

    /// End after that many seconds [default: only by a signal]
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,

    /// Use the first N bytes; a file is made that long
    #[arg(long, value_name = "BYTES", default_value_t = 32 << 20)]
    size: u64,

    /// Logical block size [default: the device's; 4096 for a file]
    #[arg(long, value_name = "BYTES")]
    block_size: Option<u32>,

    /// Threads that write
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..=256))]
    writers: u16,

    /// Threads that read
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(0..=256))]
    readers: u16,

    /// Longest request
    #[arg(long, value_name = "BYTES", default_value_t = 65536)]
    max_extent: u32,

    /// Of a hundred requests of a writer, how many are flushes
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u8).range(0..=100))]
    flush_percent: u8,

    /// Of a hundred writes, how many have FUA
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u8).range(0..=100))]
    fua_percent: u8,

    /// Of a hundred requests, how many go to the first 128 KiB
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u8).range(0..=100))]
    hot_percent: u8,

    /// Pause of each thread between two requests
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pause_ms: u64,

    /// Identity of the run, and where its random numbers begin [default: the time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

#[derive(Debug, Args)]
struct Verify {
    #[command(flatten)]
    common: Common,

    /// Do not flush first
    #[arg(long)]
    no_flush: bool,
}

fn check_sizes(start: &Start, max_extent: u32) -> Result<(), String> {
    let block = start.block_bytes;
    if !block.is_power_of_two() || !(512..=65536).contains(&block) {
        return Err(format!("a block size of {block} bytes is not possible"));
    }
    if start.blocks == 0 || max_extent < block {
        return Err("the disk and the longest request must have room for a block".to_owned());
    }
    Ok(())
}

fn open_log(
    args: &Run,
    disk: &FileDisk,
) -> Result<(Log, Start, Model), Box<dyn std::error::Error>> {
    if args.resume {
        let (log, start, model) = Log::open(&args.common.log)?;
        if u64::from(start.block_bytes) * start.blocks > disk.size_bytes() {
            return Err("the disk is smaller than it was".into());
        }
        return Ok((log, start, model));
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let start = Start {
        seed: args.seed.unwrap_or(now.as_nanos() as u64),
        block_bytes: disk.block_bytes(),
        blocks: disk.size_bytes() / u64::from(disk.block_bytes()),
        cache: match args.cache {
            CacheMode::WriteThrough => Cache::WriteThrough,
            CacheMode::Volatile => Cache::Volatile,
        },
    };
    check_sizes(&start, args.max_extent)?;
    let log = Log::create(&args.common.log, start)?;
    Ok((log, start, Model::new(start.cache, start.blocks)))
}

/// Waits for a signal or the time's end.
fn wait(seconds: Option<u64>, stop: &AtomicBool) -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let until =
            tokio::time::Instant::now() + Duration::from_secs(seconds.unwrap_or(u32::MAX.into()));
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
            }
            // The threads stop by themselves when the log cannot be written.
            if stop.load(Ordering::Relaxed) || tokio::time::Instant::now() >= until {
                break;
            }
        }
        Ok(())
    })
}

fn run(args: &Run) -> Result<Report, Box<dyn std::error::Error>> {
    let disk = FileDisk::open(&args.common.target, args.block_size, Some(args.size))?;
    let books = open_log(args, &disk)?;
    let plan = Plan {
        writers: args.writers,
        readers: args.readers,
        max_extent_bytes: args.max_extent,
        flush_percent: args.flush_percent,
        fua_percent: args.fua_percent,
        hot_percent: args.hot_percent,
        pause: Duration::from_millis(args.pause_ms),
    };
    let stop = Arc::new(AtomicBool::new(false));
    let load = Load::start(
        Arc::new(disk) as Arc<dyn Disk>,
        books,
        plan,
        Arc::clone(&stop),
    )?;
    wait(args.seconds, &stop)?;
    stop.store(true, Ordering::Relaxed);
    Ok(load.finish()?.1)
}

fn verify_log(args: &Verify) -> Result<Report, Box<dyn std::error::Error>> {
    let log: &Path = &args.common.log;
    let (_log, start, mut model) = Log::open(log)?;
    let size = u64::from(start.block_bytes) * start.blocks;
    let disk = FileDisk::open(&args.common.target, Some(start.block_bytes), None)?;
    if disk.size_bytes() < size {
        return Err(format!("the disk has {} bytes and had {size}", disk.size_bytes()).into());
    }
    Ok(verify(&disk, &start, &mut model, !args.no_flush))
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let (common, result) = match &cli.command {
        Command::Run(args) => (&args.common, run(args)),
        Command::Verify(args) => (&args.common, verify_log(args)),
    };
    let report = match result {
        Ok(report) => report,
        Err(error) => {
            let target = common.target.display();
            eprintln!("neonsan-checker: {target}: {error}");
            return ExitCode::FAILURE;
        }
    };
    if common.json {
        match serde_json::to_string_pretty(&report) {
            Ok(text) => println!("{text}"),
            Err(error) => {
                eprintln!("neonsan-checker: {error}");
                return ExitCode::FAILURE;
            }
        }
    } else {
        println!("{report}");
    }
    if report.broken > 0 {
        ExitCode::from(3)
    } else if report.failures() > 0 && !common.tolerate_errors {
        ExitCode::from(4)
    } else {
        ExitCode::SUCCESS
    }
}
