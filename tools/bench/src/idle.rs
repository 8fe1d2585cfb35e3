// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What the machine does when nothing is asked of it: heartbeats and timers.

use crate::mark::Windows;
use std::io;
use std::time::Duration;

/// Options of `idle`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Seconds of a window.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Windows.
    #[arg(long, default_value_t = 2)]
    repeats: u64,
}

/// Sleeps, and prints its windows. A first one is the warm-up.
pub fn run(options: &Options) -> io::Result<()> {
    let windows = Windows::new(options.seconds, options.seconds, options.repeats);
    while !windows.is_over() {
        std::thread::sleep(Duration::from_secs(options.seconds));
        windows.add(options.seconds)?;
    }
    windows.print();
    Ok(())
}
