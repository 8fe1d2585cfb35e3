// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `neonsan-node`: reads the configuration and runs a storage node.

use std::process::ExitCode;

fn main() -> ExitCode {
    neonsan_node::program::main(|_| {})
}
