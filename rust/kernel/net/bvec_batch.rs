// SPDX-License-Identifier: GPL-2.0

//! Many pieces of memory, sent in one call.
//!
//! C headers: `include/linux/bvec.h`, `include/linux/socket.h` (`MSG_SPLICE_PAGES`).

use super::TcpSocket;
use crate::{block::bio::Segment, mm::PageArray};
use kernel::prelude::*;
use neonsan_bindings as bindings;

/// How a batch is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendFlags(u32);

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

/// An array of pieces of memory that goes to a socket with as few calls as possible, and of which
/// any part may have been sent already.
///
/// Pages of requests are spliced: the network takes them in place. Where one of them cannot be
/// (memory of the slab allocator), or where there are only headers, the bytes are copied.
///
/// The batch does not own the memory. Whoever fills it keeps the requests (by
/// [`RequestRef`](crate::block::mq::RequestRef)s or by owning them) until [`BvecBatch::clear`].
///
/// # Invariants
///
/// `sent` entries have left entirely, and `offset` bytes of the next; `len` bytes are left.
pub struct BvecBatch {
    bvecs: KVVec<bindings::bio_vec>,
    sent: usize,
    offset: usize,
    len: usize,
    /// There is memory that is worth splicing.
    has_segments: bool,
    /// All memory may be spliced.
    may_splice: bool,
}

// SAFETY: Only addresses; the memory is not bound to a thread.
unsafe impl Send for BvecBatch {}

impl BvecBatch {
    /// An empty batch with room for `capacity` pieces. May sleep.
    pub fn new(capacity: usize) -> Result<Self> {
        Ok(BvecBatch {
            bvecs: KVVec::with_capacity(capacity, GFP_KERNEL)?,
            sent: 0,
            offset: 0,
            len: 0,
            has_segments: false,
            may_splice: true,
        })
    }

    /// How many more pieces fit.
    #[inline]
    pub fn room(&self) -> usize {
        self.bvecs.capacity() - self.bvecs.len()
    }

    /// Whether there is nothing left to be sent.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets everything; the memory may be reused.
    #[inline]
    pub fn clear(&mut self) {
        self.bvecs.clear();
        self.sent = 0;
        self.offset = 0;
        self.len = 0;
        self.has_segments = false;
        self.may_splice = true;
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

    /// Adds `len` bytes at `offset` of an array of pages; they must lie in one page.
    ///
    /// # Errors
    ///
    /// `ENOSPC` if the batch is full, `EINVAL` if the range is not within one page.
    #[inline]
    pub fn push_pages(&mut self, pages: &PageArray, offset: usize, len: usize) -> Result {
        let bvec = pages.bvec(offset, len)?;
        self.push(bvec)
    }

    /// Adds a piece of a request's memory.
    ///
    /// # Errors
    ///
    /// `ENOSPC` if the batch is full.
    #[inline]
    pub fn push_segment(&mut self, segment: Segment) -> Result {
        let bvec = segment.0;
        // SAFETY: The segment describes valid pages.
        self.may_splice &= unsafe {
            bindings::sendpages_ok(bvec.bv_page, bvec.bv_len as usize, bvec.bv_offset as usize)
        };
        self.has_segments = true;
        self.push(bvec)
    }

    pub(super) fn send_to(&mut self, socket: &TcpSocket, more: bool) -> Result<bool> {
        let flags = SendFlags::BASE
            .with(
                bindings::MSG_SPLICE_PAGES,
                self.has_segments && self.may_splice,
            )
            .with(bindings::MSG_MORE, more);
        while self.len > 0 {
            let left = self.bvecs.get(self.sent..).unwrap_or_default();
            match socket.send_batch(left, self.offset, self.len, flags) {
                Ok(n) => self.advance(n),
                Err(e) if e == EAGAIN => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    /// Notes that `n` bytes have left.
    fn advance(&mut self, n: usize) {
        self.len = self.len.saturating_sub(n);
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
    }
}
