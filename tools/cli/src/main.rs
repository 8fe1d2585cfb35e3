// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The command line of NeonSAN. Installed as `neonsan`, and as `neonsan-attach` and
//! `neonsan-detach`, which are names of two of its commands.

// They panic where nothing can be written: a command would end half way.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod cli;
mod commands;
mod complete;
mod config;
mod device;
mod device_node;
mod error;
mod format;
mod host;
mod image;
mod netlink;
mod output;
mod partitions;
mod qemu;
mod root;
mod signals;
mod sparse;
mod target;
mod units;
mod users;

use clap::Parser as _;
use cli::{Command, Common, Neonsan, NeonsanAttach, NeonsanDetach};
use config::Config;
use error::Result;
use neonsan_uapi as uapi;
use std::path::Path;
use std::process::ExitCode;

/// The command line that was given, and the options of every command.
fn parse() -> (Common, Command) {
    let name = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&name).file_name().and_then(|name| name.to_str());
    match name {
        Some("neonsan-attach") => {
            let line = NeonsanAttach::parse();
            (line.common, Command::Attach(line.attach))
        }
        Some("neonsan-detach") => {
            let line = NeonsanDetach::parse();
            (line.common, Command::Detach(line.detach))
        }
        _ => {
            let line = Neonsan::parse();
            (line.common, line.command)
        }
    }
}

fn run(common: &Common, command: &Command) -> Result<()> {
    // Neither gives up for a config file that is wrong.
    match command {
        Command::Complete(args) => {
            complete::print(args.words.clone());
            return Ok(());
        }
        Command::Doctor(args) => return commands::doctor::run(common, args),
        _ => {}
    }
    let config = Config::load(common.config.as_deref())?;
    match command {
        Command::Attach(args) => commands::attach::run(common, &config, args),
        Command::Detach(args) => commands::detach::run(common, args),
        Command::List => commands::list::run(common),
        Command::Info(args) => commands::info::run(common, args),
        Command::Set(args) => commands::set::run(common, args),
        Command::Suspend(args) => commands::suspend::suspend(common, args),
        Command::Resume(args) => commands::suspend::resume(common, args),
        Command::Watch(args) => commands::watch::run(common, args),
        Command::Resolve(args) => commands::resolve::run(common, args),
        Command::Volume(command) => commands::volume::run(common, &config, command),
        Command::Node(command) => commands::node::run(common, &config, command),
        // Done already.
        Command::Complete(_) | Command::Doctor(_) => Ok(()),
    }
}

fn main() -> ExitCode {
    let (common, command) = parse();
    if common.json {
        output::keep_warnings();
    }
    let result = run(&common, &command);
    let warnings = output::take_warnings();
    match result {
        Ok(()) => {
            for warning in &warnings {
                output::show_warning(warning);
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            if common.json {
                output::say(&format!("{}\n", error.to_json(&warnings)));
            } else {
                output::say(&format!("neonsan: {error}\n"));
            }
            ExitCode::from(error.kind().exit_code())
        }
    }
}
