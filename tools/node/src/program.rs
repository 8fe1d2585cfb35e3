// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The program: reads the command line and the configuration, and runs a node.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use crate::config::{read_filter, Config, LogConfig, LogFormat, DEFAULT_CONFIG, EXIT_CONFIG};
use crate::init::{self, ForgetArgs, InitArgs};
use crate::reload::{Reloader, SetFilter};
use crate::say::{answer, complain};

/// The NeonSAN storage node: serves volumes to hosts.
#[derive(Debug, Parser)]
#[command(name = "neonsan-node", version, args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Task>,
    /// The configuration file.
    #[arg(
        short,
        long,
        value_name = "FILE",
        default_value = DEFAULT_CONFIG
    )]
    config: PathBuf,
    /// Check the configuration, say what is wrong with it, and end.
    #[arg(long)]
    check: bool,
}

/// What the program does instead of serving.
#[derive(Debug, Subcommand)]
enum Task {
    /// Make a directory an engine's: once, before a node uses it.
    Init(InitArgs),
    /// Forget which engine was served at a path: another one may be there on purpose.
    Forget(ForgetArgs),
}

/// Lines of the log that may wait to be written.
const LOG_LINES: usize = 4096;

/// The log, while the node runs.
struct Log {
    /// Writes what is waiting when it goes.
    guard: WorkerGuard,
    /// Counts lines that were lost.
    lost: ErrorCounter,
    /// Sets another filter; `None` if the environment names one, which stays.
    set_filter: Option<SetFilter>,
}

fn filter_of(text: &str) -> Result<EnvFilter, String> {
    read_filter(text).map_err(|e| format!("log.filter {e}"))
}

/// Starts the log. It is written by a thread of its own as long as the guard lives: who serves volumes
/// never waits for the log, whose reader, or whose file, may wait for a volume of ours. Lines for which
/// there is no room are lost, and counted.
fn start_logs(config: &LogConfig) -> Result<Log, String> {
    let from_environment = std::env::var("NEONSAN_LOG")
        .ok()
        .filter(|text| !text.is_empty());
    let filter = filter_of(from_environment.as_deref().unwrap_or(&config.filter))?;
    let (writer, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(LOG_LINES)
        .thread_name("log")
        .finish(std::io::stderr());
    let lost = writer.error_counter();
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    let set_filter: SetFilter = match config.format {
        LogFormat::Text => {
            let builder = builder.with_target(false).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            Box::new(move |text| handle.reload(filter_of(text)?).map_err(|e| e.to_string()))
        }
        LogFormat::Json => {
            let builder = builder.json().with_filter_reloading();
            let handle = builder.reload_handle();
            builder.init();
            Box::new(move |text| handle.reload(filter_of(text)?).map_err(|e| e.to_string()))
        }
    };
    Ok(Log {
        guard,
        lost,
        set_filter: from_environment.is_none().then_some(set_filter),
    })
}

/// Runs the program; `adjust` changes what the configuration says, for the lab's own nodes.
pub fn main(adjust: fn(&mut Config)) -> ExitCode {
    let args = Args::parse();
    match &args.command {
        Some(Task::Init(args)) => return init::run(args),
        Some(Task::Forget(args)) => return init::forget(args),
        None => {}
    }
    let mut config = match Config::load(&args.config) {
        Ok(config) => config,
        Err(error) => {
            complain(format_args!(": {error}"));
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    adjust(&mut config);
    if args.check {
        let mut text = format!("{}: the configuration is good\n", args.config.display());
        let volumes = config.unready_volumes().into_iter();
        for note in config.unready_engines().into_iter().chain(volumes) {
            text += &format!("but {note}\n");
        }
        return answer(&text);
    }
    let log = match start_logs(&config.log) {
        Ok(log) => log,
        Err(error) => {
            complain(format_args!(": {error}"));
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let reloader = Reloader::new(args.config, log.set_filter);
    match crate::node::run_reloading(config, log.lost, Some(reloader)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            // What is waiting is written when the guard goes: the reason stands behind it.
            drop(log.guard);
            complain(format_args!(": {error}"));
            ExitCode::FAILURE
        }
    }
}
