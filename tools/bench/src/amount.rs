// SPDX-License-Identifier: GPL-2.0 OR MIT

//! How much is done, and by how many threads: the same for every kind of load.

use crate::mark::Windows;
use crate::memory::lock_all;
use std::io;

/// Options that all loads have.
#[derive(Debug, clap::Args)]
pub struct Amount {
    /// Requests or messages in flight of each job.
    #[arg(long, default_value_t = 1)]
    pub depth: u32,
    /// Threads, each with a ring or a connection of its own.
    #[arg(long, default_value_t = 1)]
    pub jobs: u32,
    /// Requests before the first window.
    #[arg(long, default_value_t = 1000)]
    warmup: u64,
    /// Requests of a window.
    #[arg(long, default_value_t = 1000)]
    window: u64,
    /// Windows.
    #[arg(long, default_value_t = 3)]
    repeats: u64,
}

impl Amount {
    /// Runs `job` in each thread, with its number, until all windows are over, and prints them.
    pub fn run(&self, job: impl Fn(u32, &Windows) -> io::Result<()> + Sync) -> io::Result<()> {
        let windows = Windows::new(self.warmup, self.window, self.repeats);
        lock_all()?;
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..self.jobs)
                .map(|index| {
                    let (job, windows) = (&job, &windows);
                    scope.spawn(move || job(index, windows))
                })
                .collect();
            for thread in threads {
                thread
                    .join()
                    .map_err(|_| io::Error::other("a job panicked"))??;
            }
            io::Result::Ok(())
        })?;
        windows.print();
        Ok(())
    }
}
