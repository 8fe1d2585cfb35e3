// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The socket alone: messages of the sizes that I/O needs, sent by one call for a whole batch, and
//! answered by one call. What no network block device can do without.

use crate::mark::Windows;
use crate::memory::lock_all;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;

/// Options of `pingpong`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Port of `serve --fixed`.
    #[arg(long)]
    port: u16,
    /// Bytes of a request message.
    #[arg(long)]
    request: u32,
    /// Bytes of its answer.
    #[arg(long)]
    reply: u32,
    /// Messages in flight of each job.
    #[arg(long, default_value_t = 1)]
    depth: u32,
    /// Threads, each with a connection.
    #[arg(long, default_value_t = 1)]
    jobs: u32,
    /// Messages before the first window.
    #[arg(long, default_value_t = 1000)]
    warmup: u64,
    /// Messages of a window.
    #[arg(long, default_value_t = 1000)]
    window: u64,
    /// Windows.
    #[arg(long, default_value_t = 3)]
    repeats: u64,
}

fn job(options: &Options, windows: &Windows) -> io::Result<()> {
    let mut socket = TcpStream::connect(("127.0.0.1", options.port))?;
    socket.set_nodelay(true)?;
    socket.write_all(&options.request.to_le_bytes())?;
    socket.write_all(&options.reply.to_le_bytes())?;
    let out = vec![0u8; options.depth as usize * options.request as usize];
    let mut input = vec![0u8; options.depth as usize * options.reply as usize];
    while !windows.is_over() {
        socket.write_all(&out)?;
        socket.read_exact(&mut input)?;
        windows.add(u64::from(options.depth))?;
    }
    Ok(())
}

/// Runs the exchange and prints its windows.
pub fn run(options: &Options) -> io::Result<()> {
    let windows = Windows::new(options.warmup, options.window, options.repeats);
    lock_all()?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..options.jobs)
            .map(|_| scope.spawn(|| job(options, &windows)))
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
