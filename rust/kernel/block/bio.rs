// SPDX-License-Identifier: GPL-2.0

//! The memory of requests.
//!
//! C headers: `include/linux/bio.h`, `include/linux/bvec.h`.

use super::mq::{Operations, OwnedRequest, RequestOp, RequestRef};
use crate::mm::{copy_long, PageArray};
use core::{marker::PhantomData, ptr};
use kernel::prelude::*;
use neonsan_bindings as bindings;

/// A place in the memory of a chain of bios.
///
/// # Invariants
///
/// `bio` is null or a bio of the chain; then `left` bytes of it are still to come, beginning
/// `done` bytes into `*bvec`. Whoever has a `Place` keeps the chain from ending.
struct Place {
    bio: *mut bindings::bio,
    bvec: *const bindings::bio_vec,
    done: u32,
    left: u32,
}

impl Place {
    /// # Safety
    ///
    /// `bio` must be null or the first of a chain that lives as long as the value.
    unsafe fn new(bio: *mut bindings::bio) -> Self {
        let mut this = Place {
            bio: ptr::null_mut(),
            bvec: ptr::null(),
            done: 0,
            left: 0,
        };
        // SAFETY: By the caller's promise.
        unsafe { this.enter(bio) };
        this
    }

    /// # Safety
    ///
    /// `bio` must be null or a bio of the chain.
    unsafe fn enter(&mut self, bio: *mut bindings::bio) {
        self.bio = bio;
        self.left = 0;
        if !bio.is_null() {
            // INVARIANT: This is the start of what is left of the bio.
            // SAFETY: By the caller's promise.
            unsafe {
                self.bvec = bindings::bio_bvecs(bio, &mut self.done);
                self.left = (*bio).bi_iter.bi_size;
            }
        }
    }

    /// The memory from here on as far as it is contiguous; `None` at the end of the chain.
    #[inline]
    fn bvec(&mut self) -> Option<bindings::bio_vec> {
        while self.left == 0 {
            if self.bio.is_null() {
                return None;
            }
            // SAFETY: By the type's invariants; the next one is of the same chain.
            unsafe { self.enter((*self.bio).bi_next) };
        }
        // SAFETY: By the type's invariants; the vector is not over.
        let mut bvec = unsafe { *self.bvec };
        bvec.bv_offset += self.done;
        bvec.bv_len = (bvec.bv_len - self.done).min(self.left);
        Some(bvec)
    }

    /// Goes on by `len` bytes, at most the length of [`Place::bvec`].
    #[inline]
    fn advance(&mut self, len: u32) {
        self.left -= len;
        self.done += len;
        // SAFETY: By the type's invariants. The vectors of a bio are an array, and another one
        // follows unless `left` is zero, where nothing is read any more.
        unsafe {
            if self.done >= (*self.bvec).bv_len {
                self.bvec = self.bvec.add(1);
                self.done = 0;
            }
        }
    }
}

/// A piece of memory of a request: contiguous, possibly several pages. It borrows what keeps the
/// request from ending.
///
/// # Invariants
///
/// The vector describes memory that is valid during `'a`.
pub struct Segment<'a>(bindings::bio_vec, PhantomData<&'a ()>);

impl Segment<'_> {
    /// Its length.
    #[inline]
    pub fn len_bytes(&self) -> usize {
        self.0.bv_len as usize
    }

    /// Goes on with a checksum over its bytes (see [`crate::crc32c::extend`]). Any context.
    pub fn crc32c(&self, crc: u32) -> u32 {
        // SAFETY: By the type's invariants, and the kernel maps all memory where this crate is built
        // for.
        unsafe { bindings::bvec_crc32c(crc, &self.0) }
    }
}

/// Where a piece lies in the linear map, which has all memory where this crate is built for.
///
/// # Safety
///
/// The vector must describe pages that are contiguous in the linear map.
#[inline]
unsafe fn address_of(bvec: &bindings::bio_vec) -> *mut u8 {
    // SAFETY: By the caller's promise.
    unsafe {
        bindings::page_address(bvec.bv_page)
            .cast::<u8>()
            .add(bvec.bv_offset as usize)
    }
}

/// Walks over the pieces of memory of a request that is being sent, from where it stopped.
///
/// # Invariants
///
/// `place` is in the request's memory; the request is kept from ending by `rq`.
pub struct SegmentCursor<T: Operations> {
    rq: RequestRef<T>,
    place: Place,
}

// SAFETY: The bios belong to the request, which may be read from any thread.
unsafe impl<T: Operations> Send for SegmentCursor<T> {}

impl<T: Operations> SegmentCursor<T> {
    /// A cursor at the start of the request's memory.
    pub fn new(rq: RequestRef<T>) -> Self {
        // SAFETY: The request keeps its bios until it ends.
        let place = unsafe { Place::new(rq.payload()) };
        SegmentCursor { rq, place }
    }

    /// The next piece, or `None` after the last; at once for a request that carries no data.
    pub fn next_segment(&mut self) -> Option<Segment<'_>> {
        // INVARIANT: The cursor is borrowed, so the request does not end meanwhile.
        self.next_bvec().map(|bvec| Segment(bvec, PhantomData))
    }

    /// The same without the borrow: whoever takes it keeps the cursor or its request.
    #[inline]
    pub(crate) fn next_bvec(&mut self) -> Option<bindings::bio_vec> {
        let bvec = self.place.bvec()?;
        self.place.advance(bvec.bv_len);
        Some(bvec)
    }

    /// Whether nothing is left.
    pub(crate) fn is_at_end(&mut self) -> bool {
        self.place.bvec().is_none()
    }

    /// The request, to be kept until what was sent of it has left.
    pub(crate) fn into_request(self) -> RequestRef<T> {
        self.rq
    }

    /// Copies what is left into `to`, from its start on. Returns how many bytes that is.
    ///
    /// # Errors
    ///
    /// `EINVAL` if it is more than `to` has room for.
    pub(crate) fn copy_to(&mut self, to: &mut PageArray) -> Result<usize> {
        let mut at = 0;
        while let Some(bvec) = self.next_bvec() {
            let len = bvec.bv_len as usize;
            // SAFETY: The piece is valid while the request is, which the cursor keeps from ending.
            unsafe { to.copy_in(at, address_of(&bvec), len)? };
            at += len;
        }
        Ok(at)
    }
}

/// Fills the memory of a request with data that arrives piece by piece.
///
/// # Invariants
///
/// `place` is in the request's memory; the request is kept from ending by `rq`.
pub struct PayloadWriter<T: Operations> {
    rq: OwnedRequest<T>,
    place: Place,
}

// SAFETY: The bios belong to the request, which may be handled on any thread.
unsafe impl<T: Operations> Send for PayloadWriter<T> {}

impl<T: Operations> PayloadWriter<T> {
    /// A writer at the start of the request's memory. Gives the request back if it is not a read:
    /// then its memory is not to be written to.
    pub fn new(rq: OwnedRequest<T>) -> Result<Self, OwnedRequest<T>> {
        if rq.op() != RequestOp::Read {
            return Err(rq);
        }
        // SAFETY: The request keeps its bios until it ends.
        let place = unsafe { Place::new(rq.payload()) };
        Ok(PayloadWriter { rq, place })
    }

    /// Copies `data` behind what was written so far. Any context.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the request has no room for that much.
    pub fn write(&mut self, mut data: &[u8]) -> Result {
        while !data.is_empty() {
            let bvec = self.place.bvec().ok_or(EINVAL)?;
            let n = data.len().min(bvec.bv_len as usize);
            let (now, later) = data.split_at(n);
            // SAFETY: The request owns its memory and is ours; `n` bytes of it are here.
            unsafe { copy_long(address_of(&bvec), now.as_ptr(), n) };
            // No more than the piece has, which is a `u32`.
            self.place.advance(n as u32);
            data = later;
        }
        Ok(())
    }

    /// The request, to be ended.
    pub fn into_request(self) -> OwnedRequest<T> {
        self.rq
    }
}
