// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Messages of fixed sizes, for the socket alone.

use super::{Command, Protocol};
use crate::memory::Region;
use std::io::{self, Read as _};
use std::net::TcpStream;

/// How much of an answer counts as its header.
const REPLY_HEADER_BYTES: u32 = 32;

/// One connection.
pub struct Fixed {
    request: u32,
    reply: u32,
}

impl Fixed {
    /// Reads the two sizes that a client begins with.
    pub fn accept(mut socket: &TcpStream) -> io::Result<Self> {
        let mut sizes = [[0; 4]; 2];
        for size in &mut sizes {
            socket.read_exact(size)?;
        }
        let [request, reply] = sizes.map(u32::from_le_bytes);
        if request < REPLY_HEADER_BYTES || reply < REPLY_HEADER_BYTES {
            return Err(io::Error::other("messages have at least 32 bytes"));
        }
        Ok(Fixed { request, reply })
    }
}

impl Protocol for Fixed {
    fn header_bytes(&self) -> usize {
        REPLY_HEADER_BYTES as usize
    }

    fn parse(&mut self, _: &[u8]) -> io::Result<Command> {
        Ok(if self.request > REPLY_HEADER_BYTES {
            Command::Write {
                offset: 0,
                len: self.request - REPLY_HEADER_BYTES,
            }
        } else if self.reply > REPLY_HEADER_BYTES {
            Command::Read {
                offset: 0,
                len: self.reply - REPLY_HEADER_BYTES,
            }
        } else {
            Command::Other
        })
    }

    fn reply(&mut self, _: &Command, _: &Region, _: &mut [u8]) -> io::Result<usize> {
        Ok(REPLY_HEADER_BYTES as usize)
    }
}
