// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Answers that go out with one call.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd as _;

/// Answers of one call.
const MAX_ANSWERS: usize = 256;

/// Longest header of an answer.
const HEADER_ROOM: usize = 32;

/// Headers and payloads that wait to be sent.
pub struct Batch {
    /// Never grows: the pieces point into it.
    headers: Vec<[u8; HEADER_ROOM]>,
    pieces: Vec<libc::iovec>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Batch {
            headers: Vec::with_capacity(MAX_ANSWERS),
            pieces: Vec::with_capacity(2 * MAX_ANSWERS),
        }
    }

    /// Whether there is no room for another answer.
    pub fn is_full(&self) -> bool {
        self.headers.len() == MAX_ANSWERS
    }

    /// Adds a header, of which `fill` says the length. The batch must not be full.
    pub fn header(&mut self, fill: impl FnOnce(&mut [u8]) -> io::Result<usize>) -> io::Result<()> {
        let mut header = [0; HEADER_ROOM];
        let len = fill(&mut header)?;
        if len == 0 {
            return Ok(());
        }
        assert!(!self.is_full());
        self.headers.push(header);
        if let Some(header) = self.headers.last_mut() {
            self.pieces.push(libc::iovec {
                iov_base: header.as_mut_ptr().cast(),
                iov_len: len,
            });
        }
        Ok(())
    }

    /// Adds a payload, which must stay where it is until the batch is sent.
    pub fn payload(&mut self, payload: libc::iovec) {
        self.pieces.push(payload);
    }

    /// Sends everything.
    pub fn send(&mut self, socket: &TcpStream) -> io::Result<()> {
        let mut at = 0;
        while at < self.pieces.len() {
            let pieces = &mut self.pieces[at..];
            // SAFETY: All zero is a valid value of this structure.
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            message.msg_iov = pieces.as_mut_ptr();
            message.msg_iovlen = pieces.len();
            // SAFETY: The pieces are valid: headers lie in `headers`, payloads where their caller
            // promised to leave them.
            let n = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL) };
            let mut n = usize::try_from(n).map_err(|_| io::Error::last_os_error())?;
            for piece in pieces {
                if n < piece.iov_len {
                    // SAFETY: Within the piece.
                    piece.iov_base = unsafe { piece.iov_base.cast::<u8>().add(n) }.cast();
                    piece.iov_len -= n;
                    break;
                }
                n -= piece.iov_len;
                at += 1;
            }
        }
        self.pieces.clear();
        self.headers.clear();
        Ok(())
    }
}
