// SPDX-License-Identifier: GPL-2.0 OR MIT

//! One minimal server for several protocols.
//!
//! A thread for each connection: one call receives what is there, every whole request in it is
//! carried out in memory, one call sends all the answers, payloads from where they lie. So two
//! protocols differ in their headers and in what their clients make of them, and in nothing else.

mod fixed;
mod nbd;
mod neonsan;
mod send;

use crate::memory::{lock_all, Region};
use send::Batch;
use std::io::{self, Read as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

/// Received by one call at most.
const INPUT_BYTES: usize = 256 << 10;

/// Stack of a connection's thread. All memory is locked, and there may be a thousand of them.
const STACK_BYTES: usize = 128 << 10;

/// What `advertise` must be a multiple of, so that no request crosses the end of the memory.
const LONGEST_REQUEST_BYTES: u64 = 1 << 20;

/// Options of `serve`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Port for NBD clients that expect no negotiation.
    #[arg(long)]
    nbd: Option<u16>,
    /// Port for NeonSAN clients: the volume bench/volume.
    #[arg(long)]
    neonsan: Option<u16>,
    /// Port for `pingpong`.
    #[arg(long)]
    fixed: Option<u16>,
    /// Bytes of memory that the volume lies in.
    #[arg(long, default_value_t = 64 << 20)]
    size: u64,
    /// Bytes that a NeonSAN volume says it has: its memory is repeated that often. The size of the
    /// memory unless told otherwise.
    #[arg(long)]
    advertise: Option<u64>,
}

/// What a message of a client asks for.
pub enum Command {
    /// The bytes of a range.
    Read {
        /// Its first byte.
        offset: u64,
        /// Its length.
        len: u32,
    },
    /// A range is to be written; its bytes follow.
    Write {
        /// Its first byte.
        offset: u64,
        /// Its length.
        len: u32,
    },
    /// Something that needs nothing but an answer.
    Other,
    /// The connection ends.
    Close,
}

/// A protocol, on one connection.
pub trait Protocol: Sized {
    /// Bytes of the header in front of every message of a client.
    fn header_bytes(&self) -> usize;

    /// Reads a header, and remembers what [`Protocol::reply`] needs of it.
    fn parse(&mut self, header: &[u8]) -> io::Result<Command>;

    /// The header of the answer to the last message parsed. Returns how many bytes of `to` it
    /// takes.
    fn reply(&mut self, command: &Command, memory: &Region, to: &mut [u8]) -> io::Result<usize>;
}

/// A write whose bytes are arriving.
struct Incoming {
    command: Command,
    offset: u64,
    left: usize,
}

fn answer<P: Protocol>(
    protocol: &mut P,
    command: &Command,
    memory: &Region,
    batch: &mut Batch,
    socket: &TcpStream,
) -> io::Result<()> {
    if batch.is_full() {
        batch.send(socket)?;
    }
    batch.header(|to| protocol.reply(command, memory, to))?;
    if let Command::Read { offset, len } = command {
        batch.payload(memory.slice(*offset, *len as usize)?);
    }
    Ok(())
}

/// Serves a connection until its client ends it.
fn serve<P: Protocol>(mut protocol: P, mut socket: &TcpStream, memory: &Region) -> io::Result<()> {
    let mut input = vec![0; INPUT_BYTES];
    let mut batch = Batch::new();
    let (mut start, mut end) = (0, 0);
    let mut incoming: Option<Incoming> = None;
    loop {
        let n = socket.read(&mut input[end..])?;
        if n == 0 {
            return Ok(());
        }
        end += n;
        loop {
            let have = &input[start..end];
            if let Some(write) = &mut incoming {
                let n = have.len().min(write.left);
                memory.write(write.offset, &have[..n])?;
                write.offset += n as u64;
                write.left -= n;
                start += n;
                if write.left > 0 {
                    break;
                }
                if let Some(write) = incoming.take() {
                    answer(&mut protocol, &write.command, memory, &mut batch, socket)?;
                }
                continue;
            }
            let header_bytes = protocol.header_bytes();
            if have.len() < header_bytes {
                break;
            }
            let command = protocol.parse(&have[..header_bytes])?;
            start += header_bytes;
            match command {
                Command::Write { offset, len } => {
                    incoming = Some(Incoming {
                        command,
                        offset,
                        left: len as usize,
                    });
                }
                Command::Close => return Ok(()),
                Command::Read { .. } | Command::Other => {
                    answer(&mut protocol, &command, memory, &mut batch, socket)?;
                }
            }
        }
        // Less than a header is left.
        input.copy_within(start..end, 0);
        end -= start;
        start = 0;
        batch.send(socket)?;
    }
}

fn listen(
    port: Option<u16>,
    memory: &Arc<Region>,
    serve: fn(&TcpStream, &Region) -> io::Result<()>,
) -> io::Result<()> {
    let Some(port) = port else {
        return Ok(());
    };
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    let memory = Arc::clone(memory);
    std::thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let memory = Arc::clone(&memory);
            let connection = move || {
                let result = socket
                    .set_nodelay(true)
                    .and_then(|()| serve(&socket, &memory));
                if let Err(error) = result {
                    eprintln!("neonsan-bench: a connection ended: {error}");
                }
            };
            let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
            if let Err(error) = thread.spawn(connection) {
                eprintln!("neonsan-bench: a connection cannot be served: {error}");
            }
        }
    });
    Ok(())
}

/// Serves until killed.
pub fn run(options: &Options) -> io::Result<()> {
    if options.size == 0 || options.size % LONGEST_REQUEST_BYTES != 0 {
        return Err(io::Error::other("the size must be a multiple of 1 MiB"));
    }
    let memory = Arc::new(Region::new(options.size as usize)?);
    lock_all()?;
    listen(options.nbd, &memory, |socket, memory| {
        serve(nbd::Nbd::default(), socket, memory)
    })?;
    listen(options.fixed, &memory, |socket, memory| {
        serve(fixed::Fixed::accept(socket)?, socket, memory)
    })?;
    if let Some(port) = options.neonsan {
        neonsan::set_size(options.advertise.unwrap_or(options.size));
        listen(Some(port), &memory, |socket, memory| {
            serve(neonsan::Neonsan::accept(socket)?, socket, memory)
        })?;
    }
    println!("listening");
    loop {
        std::thread::park();
    }
}
