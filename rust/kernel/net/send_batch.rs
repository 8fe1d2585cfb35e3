// SPDX-License-Identifier: GPL-2.0

//! Many pieces of memory, sent in one call.
//!
//! C headers: `include/linux/bvec.h`, `include/linux/socket.h` (`MSG_SPLICE_PAGES`).

use super::TcpSocket;
use crate::{
    block::{
        bio::SegmentCursor,
        mq::{Operations, RequestOp, RequestRef},
    },
    mm::PageArray,
};
use kernel::prelude::*;
use neonsan_bindings as bindings;

/// How a batch is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SendFlags(u32);

impl SendFlags {
    const BASE: SendFlags = SendFlags(bindings::MSG_DONTWAIT | bindings::MSG_NOSIGNAL);

    fn with(self, flag: u32, on: bool) -> SendFlags {
        if on {
            SendFlags(self.0 | flag)
        } else {
            self
        }
    }

    pub(super) fn as_raw(self) -> c_int {
        self.0 as c_int
    }
}

/// How much a batch has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchSize {
    /// Pieces of memory in one call to the socket.
    pub pieces: usize,
    /// Requests in one call to the socket.
    pub requests: usize,
    /// Headers in the ring. A place is written again after so many others: the far side must have
    /// read it by then, or it reads the newer bytes.
    pub headers: usize,
    /// Bytes of a header. A page holds a whole number of them.
    pub header_bytes: usize,
    /// Bytes of the longest request that can be sent from a copy; zero: none can.
    pub copy_bytes: usize,
}

/// A message of which only a part is in the batch.
enum Current<T: Operations> {
    /// The memory of a request.
    Request(SegmentCursor<T>),
    /// The copy of one, from the first of these bytes to the second.
    Copy(usize, usize),
}

/// A request whose memory is in the batch.
struct Held<T: Operations> {
    /// `None` once it was let go.
    rq: Option<RequestRef<T>>,
    /// It has left entirely when so many bytes of the batch have.
    end: usize,
}

/// Messages that go to a socket with as few calls as possible, and of which any part may have been
/// sent already: headers, and the memory of requests behind theirs.
///
/// Pages of requests are spliced: the network takes them in place. Where one of them cannot be
/// (memory of the slab allocator), or where there are only headers, the bytes are copied.
///
/// The batch owns what it describes: the ring of headers, and a reference to each request until its
/// last byte is with the socket, and no longer. So a request that is answered ends at once, however
/// much of the batch still waits for room behind it. What the socket has taken it keeps by references
/// of its own to the pages.
///
/// # Invariants
///
/// - `sent` entries of `bvecs` have left entirely, and `offset` bytes of the next; `len` bytes are
///   left, and `gone` have left since the batch was empty.
/// - Every entry of `bvecs` that has not left entirely is in `headers` or `copy`, or in the memory of a
///   request in `held` or of `current`.
pub struct SendBatch<T: Operations> {
    bvecs: KVVec<bindings::bio_vec>,
    sent: usize,
    offset: usize,
    len: usize,
    gone: usize,
    /// The requests of which the last piece is in the batch, in the order of their ends.
    held: KVVec<Held<T>>,
    /// So many of them have been let go.
    let_go: usize,
    current: Option<Current<T>>,
    headers: PageArray,
    /// Room for the copy of one request.
    copy: PageArray,
    /// The copy is in the batch, or about to be.
    has_copy: bool,
    size: BatchSize,
    /// Where the next header goes.
    next_header: usize,
    /// There is memory that is worth splicing.
    has_segments: bool,
    /// All memory may be spliced.
    may_splice: bool,
}

// SAFETY: The memory that is described belongs to the batch and is not bound to a thread, nor are the
// requests.
unsafe impl<T: Operations> Send for SendBatch<T> {}

impl<T: Operations> SendBatch<T> {
    /// An empty batch. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub fn new(size: BatchSize) -> Result<Self> {
        Ok(SendBatch {
            bvecs: KVVec::with_capacity(size.pieces, GFP_KERNEL)?,
            sent: 0,
            offset: 0,
            len: 0,
            gone: 0,
            held: KVVec::with_capacity(size.requests, GFP_KERNEL)?,
            let_go: 0,
            current: None,
            headers: PageArray::new(size.headers * size.header_bytes)?,
            copy: PageArray::new(size.copy_bytes)?,
            has_copy: false,
            size,
            next_header: 0,
            has_segments: false,
            may_splice: true,
        })
    }

    /// How many more pieces fit.
    #[inline]
    fn room(&self) -> usize {
        self.size.pieces - self.bvecs.len()
    }

    /// Whether a header and a first piece of memory fit.
    #[inline]
    pub fn has_room(&self) -> bool {
        self.room() >= 2 && self.held.len() < self.size.requests
    }

    /// Whether there is nothing left to be sent, a rest of a request left out.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the rest of a request must follow before any other message, see
    /// [`SendBatch::push_rest`].
    #[inline]
    pub fn is_amid_request(&self) -> bool {
        self.current.is_some()
    }

    /// Forgets everything, and lets go of all requests.
    pub fn clear(&mut self) {
        self.current = None;
        self.start_over();
    }

    #[inline]
    fn start_over(&mut self) {
        self.bvecs.clear();
        self.sent = 0;
        self.offset = 0;
        self.len = 0;
        self.gone = 0;
        self.held.clear();
        self.let_go = 0;
        self.has_segments = false;
        self.may_splice = true;
        self.has_copy = matches!(self.current, Some(Current::Copy(..)));
    }

    #[inline]
    fn push(&mut self, bvec: bindings::bio_vec) -> Result {
        let len = bvec.bv_len as usize;
        // Neighbours in one page, such as headers without payload between, become one piece; not
        // the piece of which a part may have left.
        if self.bvecs.len() > self.sent + usize::from(self.offset > 0) {
            if let Some(last) = self.bvecs.last_mut() {
                if last.bv_page == bvec.bv_page && last.bv_offset + last.bv_len == bvec.bv_offset {
                    last.bv_len += bvec.bv_len;
                    self.len += len;
                    return Ok(());
                }
            }
        }
        self.bvecs.push_within_capacity(bvec).map_err(|_| ENOSPC)?;
        self.len += len;
        Ok(())
    }

    /// Adds a header: the next place of the ring.
    ///
    /// # Errors
    ///
    /// `ENOSPC` if the batch is full, `EINVAL` if the header is longer than was said.
    #[inline]
    pub fn push_header(&mut self, header: &[u8]) -> Result {
        if header.len() > self.size.header_bytes {
            return Err(EINVAL);
        }
        let place = self.next_header * self.size.header_bytes;
        self.next_header += 1;
        if self.next_header >= self.size.headers {
            self.next_header = 0;
        }
        self.headers.write(place, header)?;
        let bvec = self.headers.bvec(place, header.len())?;
        self.push(bvec)
    }

    /// Adds the memory of a request, as much as fits; true if that was all. Otherwise
    /// [`SendBatch::push_rest`] goes on when what is here has been sent.
    ///
    /// # Errors
    ///
    /// `EBUSY` amid another request, `ENOSPC` if the batch is full.
    #[inline]
    pub fn push_request(&mut self, rq: RequestRef<T>) -> Result<bool> {
        if self.current.is_some() {
            return Err(EBUSY);
        }
        if self.held.len() >= self.size.requests {
            return Err(ENOSPC);
        }
        self.current = Some(Current::Request(SegmentCursor::new(rq)));
        self.push_rest()
    }

    /// Whether [`SendBatch::copy`] can copy a request of this length, once the batch is empty.
    #[inline]
    pub fn has_room_for_copy(&self, len: usize) -> bool {
        len <= self.size.copy_bytes
    }

    /// Whether a copy is in the batch: there is no room for another before that has left.
    #[inline]
    pub fn has_copy(&self) -> bool {
        self.has_copy
    }

    /// Copies the data of a request, whose owner may be changing it, and returns the checksum of the
    /// copy (CRC-32C, not inverted at the end). [`SendBatch::push_rest`] adds it, which must come
    /// before any other message but its header. Allocates nothing.
    ///
    /// # Errors
    ///
    /// `EBUSY` if a copy is in the batch, `EINVAL` if there is no room for that much or the request
    /// is not a write: the memory of any other is not for the far side.
    pub fn copy(&mut self, rq: RequestRef<T>) -> Result<u32> {
        if self.has_copy || self.current.is_some() {
            return Err(EBUSY);
        }
        if rq.op() != RequestOp::Write {
            return Err(EINVAL);
        }
        let len = SegmentCursor::new(rq).copy_to(&mut self.copy)?;
        self.has_copy = true;
        self.current = Some(Current::Copy(0, len));
        Ok(self.copy.crc32c(len))
    }

    /// Goes on with the request that did not fit, if there is one; true if nothing of it is left.
    ///
    /// # Errors
    ///
    /// `ENOSPC` if the batch is full.
    #[inline]
    pub fn push_rest(&mut self) -> Result<bool> {
        let mut cursor = match self.current.take() {
            None => return Ok(true),
            Some(Current::Copy(at, end)) => return self.push_copy(at, end),
            Some(Current::Request(cursor)) => cursor,
        };
        while self.room() > 0 {
            // INVARIANT: The piece is the memory of a request that is put into `current` or `held`
            // below, whatever happens in between.
            let Some(bvec) = cursor.next_bvec() else {
                return self.hold(cursor);
            };
            // SAFETY: The cursor's pieces describe valid pages.
            self.may_splice &= unsafe {
                bindings::sendpages_ok(bvec.bv_page, bvec.bv_len as usize, bvec.bv_offset as usize)
            };
            self.has_segments = true;
            if let Err(e) = self.push(bvec) {
                self.current = Some(Current::Request(cursor));
                return Err(e);
            }
        }
        if cursor.is_at_end() {
            // Its last piece took the last place. Nothing more of it would be sent, ever, so nothing
            // but the end of this batch lets go of it.
            return self.hold(cursor);
        }
        self.current = Some(Current::Request(cursor));
        Ok(false)
    }

    /// Keeps a request, all of whose pieces are in the batch, until they have left.
    #[inline]
    fn hold(&mut self, cursor: SegmentCursor<T>) -> Result<bool> {
        let held = Held {
            end: self.gone + self.len,
            rq: Some(cursor.into_request()),
        };
        match self.held.push_within_capacity(held) {
            Ok(()) => Ok(true),
            Err(held) => {
                // Nothing may be described that is not held. There was room when it began.
                self.clear();
                drop(held);
                Err(ENOSPC)
            }
        }
    }

    /// Adds the bytes `at..end` of the copy, as many as fit. They are never spliced: the network copies
    /// them in its turn, so the place is free when the batch has left.
    #[cold]
    fn push_copy(&mut self, mut at: usize, end: usize) -> Result<bool> {
        self.may_splice = false;
        while let Some(bvec) = self.copy.bvec_until(at, end) {
            if self.room() == 0 {
                self.current = Some(Current::Copy(at, end));
                return Ok(false);
            }
            at += bvec.bv_len as usize;
            self.push(bvec)?;
        }
        Ok(true)
    }

    pub(super) fn send_to(&mut self, socket: &TcpSocket) -> Result<bool> {
        let flags = SendFlags::BASE
            .with(
                bindings::MSG_SPLICE_PAGES,
                self.has_segments && self.may_splice,
            )
            // Only amid a request it is certain that more follows at once.
            .with(bindings::MSG_MORE, self.is_amid_request());
        while self.len > 0 {
            let left = self.bvecs.get(self.sent..).unwrap_or_default();
            // SAFETY: By the type's invariants the pieces that are left are memory of the batch's own
            // or of requests that it keeps from ending.
            match unsafe { socket.send_pieces(left, self.offset, self.len, flags) } {
                Ok(n) => self.advance(n),
                Err(e) if e == EAGAIN => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// Notes that `n` bytes have left, and lets go of the requests that have left with them.
    #[inline]
    fn advance(&mut self, n: usize) {
        self.len = self.len.saturating_sub(n);
        if self.len == 0 {
            // INVARIANT: All entries have left.
            return self.start_over();
        }
        self.gone += n;
        let mut offset = self.offset + n;
        while let Some(bvec) = self.bvecs.get(self.sent) {
            let len = bvec.bv_len as usize;
            if offset < len {
                break;
            }
            offset -= len;
            self.sent += 1;
        }
        self.offset = offset;
        // INVARIANT: All entries of these requests have left.
        while let Some(held) = self.held.get_mut(self.let_go) {
            if held.end > self.gone {
                break;
            }
            // An answered request ends here.
            held.rq = None;
            self.let_go += 1;
        }
    }
}
