// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `neonsan-node-unfenced`: a node with a planted bug, for the lab.
//!
//! It lets a new connection in while requests of the one that it displaces are still in the engine.
//! What checks integrity must notice: see `Documentation/testing.rst`.

use std::process::ExitCode;

fn main() -> ExitCode {
    neonsan_node::program::main(|config| {
        eprintln!("neonsan-node-unfenced: this node does not fence: not for data that matters");
        config.without_fencing = true;
    })
}
