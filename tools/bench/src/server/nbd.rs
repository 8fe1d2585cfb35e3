// SPDX-License-Identifier: GPL-2.0 OR MIT

//! NBD with simple replies, after the negotiation.

use super::{Command, Protocol};
use crate::memory::Region;
use std::io;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;

/// One connection.
#[derive(Default)]
pub struct Nbd {
    /// Names the request last parsed.
    cookie: [u8; 8],
}

fn field<const N: usize>(header: &[u8], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&header[at..at + N]);
    field
}

impl Protocol for Nbd {
    fn header_bytes(&self) -> usize {
        28
    }

    fn parse(&mut self, header: &[u8]) -> io::Result<Command> {
        if u32::from_be_bytes(field(header, 0)) != REQUEST_MAGIC {
            return Err(io::Error::other("no NBD request"));
        }
        self.cookie = field(header, 8);
        let offset = u64::from_be_bytes(field(header, 16));
        let len = u32::from_be_bytes(field(header, 24));
        Ok(match u16::from_be_bytes(field(header, 6)) {
            CMD_READ => Command::Read { offset, len },
            CMD_WRITE => Command::Write { offset, len },
            CMD_DISC => Command::Close,
            _ => Command::Other,
        })
    }

    fn reply(&mut self, _: &Command, _: &Region, to: &mut [u8]) -> io::Result<usize> {
        to[..4].copy_from_slice(&REPLY_MAGIC.to_be_bytes());
        to[8..16].copy_from_slice(&self.cookie);
        Ok(16)
    }
}
