// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `neonsan-node-faulty`: a node whose engines fail on demand, for the lab.
//!
//! Faults are asked for with `PUT /v1/test-faults` of the control API.

use std::process::ExitCode;

fn main() -> ExitCode {
    neonsan_node::program::main(|_| {})
}
