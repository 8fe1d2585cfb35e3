// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The socket alone: messages of the sizes that I/O needs, sent by one call for a whole batch, and
//! answered by one call. What no network block device can do without.

use crate::amount::Amount;
use crate::mark::Windows;
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
    #[command(flatten)]
    amount: Amount,
}

fn job(options: &Options, windows: &Windows) -> io::Result<()> {
    let mut socket = TcpStream::connect(("127.0.0.1", options.port))?;
    socket.set_nodelay(true)?;
    socket.write_all(&options.request.to_le_bytes())?;
    socket.write_all(&options.reply.to_le_bytes())?;
    let out = vec![0u8; options.amount.depth as usize * options.request as usize];
    let mut input = vec![0u8; options.amount.depth as usize * options.reply as usize];
    while !windows.is_over() {
        socket.write_all(&out)?;
        socket.read_exact(&mut input)?;
        windows.add(u64::from(options.amount.depth))?;
    }
    Ok(())
}

/// Runs the exchange and prints its windows.
pub fn run(options: &Options) -> io::Result<()> {
    options.amount.run(|_, windows| job(options, windows))
}
