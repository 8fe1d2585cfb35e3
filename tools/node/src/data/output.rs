// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What waits to be sent on one connection: many messages in one system call,
//! payloads straight from the buffers the engine filled.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::os::fd::BorrowedFd;

use neonsan_engine::{Buffer, BufferPool};
use neonsan_proto::{Header, HEADER_BYTES};
use rustix::io::Errno;
use rustix::net::{sendmsg, SendAncillaryBuffer, SendFlags};
use zerocopy::IntoBytes as _;

/// Pieces of one system call.
const MAX_SLICES: usize = 128;

/// Pieces of one system call where few messages wait: to fill in the long list takes longer than a
/// short message does.
const FEW_SLICES: usize = 4;

/// A message, or a part of the handshake.
enum Item {
    /// A header and its payload, whose bytes count against the budgets.
    Message {
        header: [u8; HEADER_BYTES],
        payload: Option<Buffer>,
    },
    /// Bytes as they are.
    Bytes(Vec<u8>),
}

impl Item {
    /// The two parts; the second may be empty.
    fn parts(&self) -> (&[u8], &[u8]) {
        match self {
            Item::Message { header, payload } => (header, payload.as_ref().map_or(&[], |p| &p[..])),
            Item::Bytes(bytes) => (bytes, &[]),
        }
    }

    fn len(&self) -> usize {
        let (a, b) = self.parts();
        a.len() + b.len()
    }
}

/// Messages that may wait beside the replies to requests: PONGs, events.
const SPARE_ITEMS: usize = 64;

/// What waits to be sent on one connection; owned by it.
#[derive(Default)]
pub(super) struct Output {
    items: VecDeque<Item>,
    /// Bytes of the first item that are sent already.
    sent: usize,
    /// Bytes that are not sent yet.
    waiting: u64,
    /// Requests that the client may have in flight.
    depth: usize,
}

/// What a call of [`Output::flush`] did.
pub(super) struct Flushed {
    /// Bytes that were sent.
    pub(super) sent_bytes: u64,
    /// Bytes of payloads that were sent whole: their memory is free again.
    pub(super) freed_bytes: u64,
    /// What the socket said.
    pub(super) result: Result<(), Errno>,
}

impl Output {
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The client may have so many requests in flight.
    pub(super) fn set_depth(&mut self, depth: u16) {
        self.depth = usize::from(depth);
    }

    /// More waits than a client can have asked for that takes its answers: nothing that makes
    /// answers may be received until some were sent. PONGs and refused requests count against no
    /// budget.
    pub(super) fn is_full(&self) -> bool {
        self.items.len() >= 2 * self.depth + SPARE_ITEMS
    }

    /// Bytes that wait to be sent.
    pub(super) fn waiting_bytes(&self) -> u64 {
        self.waiting
    }

    /// Adds a message. Its header is complete.
    pub(super) fn push(&mut self, header: &Header, payload: Option<Buffer>) {
        let mut bytes = [0; HEADER_BYTES];
        bytes.copy_from_slice(header.as_bytes());
        self.push_item(Item::Message {
            header: bytes,
            payload,
        });
    }

    /// Adds bytes as they are.
    pub(super) fn push_bytes(&mut self, bytes: Vec<u8>) {
        self.push_item(Item::Bytes(bytes));
    }

    fn push_item(&mut self, item: Item) {
        self.waiting += item.len() as u64;
        self.items.push_back(item);
    }

    /// Throws everything away; gives the bytes of payloads.
    pub(super) fn clear(&mut self, pool: &mut BufferPool) -> u64 {
        self.sent = 0;
        self.waiting = 0;
        let mut bytes = 0;
        for item in self.items.drain(..) {
            bytes += recycle(item, pool);
        }
        bytes
    }

    /// Sends as much as the socket takes.
    pub(super) fn flush(&mut self, socket: BorrowedFd<'_>, pool: &mut BufferPool) -> Flushed {
        let mut flushed = Flushed {
            sent_bytes: 0,
            freed_bytes: 0,
            result: Ok(()),
        };
        while !self.items.is_empty() {
            let sent = if self.items.len() <= FEW_SLICES / 2 {
                self.send::<FEW_SLICES>(socket)
            } else {
                self.send::<MAX_SLICES>(socket)
            };
            match sent {
                Ok(len) => {
                    flushed.sent_bytes += len as u64;
                    flushed.freed_bytes += self.advance(len, pool);
                }
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => break,
                Err(error) => {
                    flushed.result = Err(error);
                    break;
                }
            }
        }
        flushed
    }

    /// Gives as many messages to the socket as go into `N` pieces, with one call.
    fn send<const N: usize>(&self, socket: BorrowedFd<'_>) -> Result<usize, Errno> {
        let mut slices = [IoSlice::new(&[]); N];
        let mut count = 0;
        let mut skip = self.sent;
        for item in self.items.iter().take(N / 2) {
            let (first, second) = item.parts();
            for part in [first, second] {
                let rest = &part[skip.min(part.len())..];
                skip -= skip.min(part.len());
                if !rest.is_empty() {
                    slices[count] = IoSlice::new(rest);
                    count += 1;
                }
            }
        }
        sendmsg(
            socket,
            &slices[..count],
            &mut SendAncillaryBuffer::default(),
            SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
        )
    }

    /// Counts `len` bytes as sent; gives the bytes of finished payloads.
    fn advance(&mut self, len: usize, pool: &mut BufferPool) -> u64 {
        self.sent += len;
        self.waiting -= len as u64;
        let mut freed = 0;
        while let Some(first) = self.items.front() {
            let whole = first.len();
            if self.sent < whole {
                break;
            }
            self.sent -= whole;
            if let Some(item) = self.items.pop_front() {
                freed += recycle(item, pool);
            }
        }
        freed
    }
}

/// Gives the memory of an item back; the bytes of its payload.
fn recycle(item: Item, pool: &mut BufferPool) -> u64 {
    match item {
        Item::Message {
            payload: Some(payload),
            ..
        } => {
            let bytes = payload.len() as u64;
            pool.give(payload);
            bytes
        }
        Item::Message { payload: None, .. } | Item::Bytes(_) => 0,
    }
}
