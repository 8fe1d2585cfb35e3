// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The NeonSAN storage node.
//!
//! Threads, and who owns what:
//!
//! * *workers* (`data`): connections, their engine queues, buffers;
//! * *hub* (`hub`): the gates, which say who holds a volume, and the open
//!   volumes;
//! * *control* (`control`): a small tokio runtime for HTTP and signals, with
//!   threads for engine calls that block;
//! * helper threads of the hub, one while a volume is being opened.
//!
//! Workers and hub talk by messages. Nothing on the I/O path takes a lock that
//! another connection takes.

// They panic where nothing can be written: see `say`.
#![cfg_attr(not(test), deny(clippy::print_stdout, clippy::print_stderr))]

mod access;
pub mod config;
mod control;
mod data;
mod ending;
mod engines;
mod health;
mod hub;
mod init;
mod listen;
mod log_limit;
mod metrics;
mod node;
mod own_host;
mod patience;
mod peers;
pub mod program;
mod reload;
mod remembered;
mod say;
mod service;
mod shared;

pub use node::{run, NodeError};
