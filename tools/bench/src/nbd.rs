// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Gives connections to the kernel's nbd driver, as nbd-client does after its negotiation.

use std::fs::OpenOptions;
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsRawFd as _, RawFd};
use std::path::PathBuf;

const NBD_SET_SOCK: libc::c_ulong = 0xab00;
const NBD_SET_BLKSIZE: libc::c_ulong = 0xab01;
const NBD_DO_IT: libc::c_ulong = 0xab03;
const NBD_SET_SIZE_BLOCKS: libc::c_ulong = 0xab07;
const NBD_SET_FLAGS: libc::c_ulong = 0xab0a;
/// HAS_FLAGS, SEND_FLUSH, SEND_FUA, CAN_MULTI_CONN.
const FLAGS: libc::c_ulong = 0x1 | 0x4 | 0x8 | 0x100;
const BLOCK_BYTES: u64 = 4096;

/// Options of `nbd`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The device.
    #[arg(long, default_value = "/dev/nbd0")]
    device: PathBuf,
    /// Port of `serve --nbd`.
    #[arg(long)]
    port: u16,
    /// Connections.
    #[arg(long, default_value_t = 1)]
    connections: u32,
    /// Bytes of the volume.
    #[arg(long)]
    size: u64,
}

fn control(device: RawFd, what: libc::c_ulong, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: These calls of the nbd driver take a number.
    match unsafe { libc::ioctl(device, what, value) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Connects the device and stays while it is in use.
pub fn run(options: &Options) -> io::Result<()> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&options.device)?;
    let fd = device.as_raw_fd();
    control(fd, NBD_SET_BLKSIZE, BLOCK_BYTES)?;
    control(fd, NBD_SET_SIZE_BLOCKS, options.size / BLOCK_BYTES)?;
    control(fd, NBD_SET_FLAGS, FLAGS)?;
    let mut sockets = Vec::new();
    for _ in 0..options.connections {
        let socket = TcpStream::connect(("127.0.0.1", options.port))?;
        socket.set_nodelay(true)?;
        control(fd, NBD_SET_SOCK, socket.as_raw_fd() as libc::c_ulong)?;
        sockets.push(socket);
    }
    control(fd, NBD_DO_IT, 0)
}
