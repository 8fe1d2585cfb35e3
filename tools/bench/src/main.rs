// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What `make bench` runs inside the virtual machine, and the report made of it afterwards; and
//! the load of `tools/testing/bench/ceph`.
//!
//! - [`load`]: a fixed number of I/Os on a device, with marks for the counting plugin.
//! - [`server`]: one minimal server for NBD, NeonSAN and fixed messages, so that peers differ in
//!   nothing but their client.
//! - [`pingpong`]: the socket alone, with messages of the sizes that I/O needs.
//! - [`nbd`]: gives connections to the kernel's nbd driver without a negotiation.
//! - [`amount`]: what all loads have in common.
//! - [`through`]: I/O through a node without the driver, for the comparison with librbd.
//! - [`idle`]: what the machine does when nothing is asked of it.
//! - [`report`]: the table, the profile and `bench.json`.

mod amount;
mod idle;
mod load;
mod mark;
mod memory;
mod nbd;
mod pingpong;
mod report;
mod server;
mod through;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Programs of the benchmark; `tools/testing/bench/bench` runs them.
#[derive(Debug, Parser)]
#[command(name = "neonsan-bench", version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Do I/O on a device and mark windows of a fixed number of requests.
    Load(load::Options),
    /// Serve one volume in memory until killed; prints "listening" when ready.
    Serve(server::Options),
    /// Send messages and wait for the answers, and mark windows as `load` does.
    Pingpong(pingpong::Options),
    /// Connect an nbd device to `serve`, and stay until it is disconnected.
    Nbd(nbd::Options),
    /// Do nothing, and mark a window for it: its "requests" are seconds.
    Idle(idle::Options),
    /// Do 4 KiB requests through a node, without the driver; prints requests a second.
    Through(through::Options),
    /// Make the table, the profile and bench.json of a run.
    Report(report::Options),
}

fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Load(options) => load::run(&options),
        Command::Serve(options) => server::run(&options),
        Command::Pingpong(options) => pingpong::run(&options),
        Command::Nbd(options) => nbd::run(&options),
        Command::Idle(options) => idle::run(&options),
        Command::Through(options) => through::run(&options),
        Command::Report(options) => report::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("neonsan-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
