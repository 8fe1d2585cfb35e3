// SPDX-License-Identifier: GPL-2.0

//! The memory of requests.
//!
//! C headers: `include/linux/bio.h`, `include/linux/bvec.h`.

use super::mq::{Operations, OwnedRequest, RequestRef};
use crate::skbuff::SkBuff;
use core::ptr;
use kernel::{prelude::*, types::Opaque};
use neonsan_bindings as bindings;

/// Walks over the pieces of memory of a request that is being sent, from where it stopped.
///
/// # Invariants
///
/// `bio` is null or a bio of the request, and `iter` points into it; the request is kept from
/// ending by `rq`.
pub struct SegmentCursor<T: Operations> {
    rq: RequestRef<T>,
    bio: *mut bindings::bio,
    iter: bindings::bvec_iter,
}

// SAFETY: The bios belong to the request, which may be read from any thread.
unsafe impl<T: Operations> Send for SegmentCursor<T> {}

/// A piece of memory of a request: contiguous, possibly several pages. It is valid while the
/// [`SegmentCursor`] it came from, or another reference to the request, is.
pub struct Segment(pub(crate) bindings::bio_vec);

impl Segment {
    /// Its length.
    pub fn len_bytes(&self) -> usize {
        self.0.bv_len as usize
    }

    /// Goes on with a checksum over its bytes (see [`crate::crc32c::extend`]). Any context.
    pub fn crc32c(&self, crc: u32) -> u32 {
        // SAFETY: The piece is valid while its request is, and the kernel maps all memory where
        // this crate is built for.
        unsafe { bindings::bvec_crc32c(crc, &self.0) }
    }
}

impl<T: Operations> SegmentCursor<T> {
    /// A cursor at the start of the request's memory.
    pub fn new(rq: RequestRef<T>) -> Self {
        let bio = rq.first_bio();
        let mut this = SegmentCursor {
            rq,
            bio: ptr::null_mut(),
            iter: pin_init::zeroed(),
        };
        this.enter(bio);
        this
    }

    fn enter(&mut self, bio: *mut bindings::bio) {
        self.bio = bio;
        if !bio.is_null() {
            // SAFETY: `bio` is one of the request's.
            self.iter = unsafe { bindings::bio_iter(bio) };
        }
    }

    /// The next piece, or `None` after the last.
    pub fn next_segment(&mut self) -> Option<Segment> {
        while !self.bio.is_null() {
            if self.iter.bi_size > 0 {
                // SAFETY: By the type's invariants.
                return Some(Segment(unsafe {
                    bindings::bio_next_bvec(self.bio, &mut self.iter)
                }));
            }
            // SAFETY: By the type's invariants; the chain is that of the request.
            let next = unsafe { (*self.bio).bi_next };
            self.enter(next);
        }
        None
    }

    /// The request, to be kept until what was sent of it has left.
    pub fn into_request(self) -> RequestRef<T> {
        self.rq
    }
}

/// Fills the memory of a request with data that arrives piece by piece.
///
/// # Invariants
///
/// `bio` is null or a bio of the request, and `iter` describes what is left of it.
pub struct PayloadWriter<T: Operations> {
    rq: OwnedRequest<T>,
    bio: *mut bindings::bio,
    iter: Opaque<bindings::iov_iter>,
}

// SAFETY: The bios belong to the request, which may be handled on any thread.
unsafe impl<T: Operations> Send for PayloadWriter<T> {}

impl<T: Operations> PayloadWriter<T> {
    /// A writer at the start of the request's memory.
    pub fn new(rq: OwnedRequest<T>) -> Self {
        let bio = rq.first_bio();
        let mut this = PayloadWriter {
            rq,
            bio: ptr::null_mut(),
            iter: Opaque::zeroed(),
        };
        this.enter(bio);
        this
    }

    fn enter(&mut self, bio: *mut bindings::bio) {
        self.bio = bio;
        if !bio.is_null() {
            // SAFETY: `bio` is one of the request's and keeps its vectors while we own it.
            unsafe { bindings::iov_iter_bio(self.iter.get(), bindings::ITER_DEST, bio) };
        }
    }

    /// Copies `len` bytes at `offset` of a packet behind what was written so far, and goes on with
    /// their checksum if there is one (see [`crate::crc32c::extend`]). Any context.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the request has no room for that much, `EFAULT` if the packet is shorter.
    pub fn write_from(
        &mut self,
        skb: &SkBuff,
        mut offset: usize,
        mut len: usize,
        mut crc: Option<&mut u32>,
    ) -> Result {
        while len > 0 {
            if self.bio.is_null() {
                return Err(EINVAL);
            }
            // SAFETY: By the type's invariants.
            let here = unsafe { bindings::iov_iter_count(self.iter.get()) }.min(len);
            if here == 0 {
                // SAFETY: By the type's invariants; the chain is that of the request.
                let next = unsafe { (*self.bio).bi_next };
                self.enter(next);
                continue;
            }
            // SAFETY: By the type's invariants.
            unsafe { skb.copy_to_iter(offset, self.iter.get(), here, crc.as_deref_mut())? };
            offset += here;
            len -= here;
        }
        Ok(())
    }

    /// The request, to be ended.
    pub fn into_request(self) -> OwnedRequest<T> {
        self.rq
    }
}
