// SPDX-License-Identifier: GPL-2.0

//! Packets.
//!
//! C header: `include/linux/skbuff.h`.

use kernel::{error::to_result, prelude::*, types::Opaque};
use neonsan_bindings as bindings;

/// A packet in the receive queue of a socket.
///
/// # Invariants
///
/// Valid for as long as the reference that the receive callback got.
#[repr(transparent)]
pub struct SkBuff(Opaque<bindings::sk_buff>);

impl SkBuff {
    /// # Safety
    ///
    /// `skb` must be valid during `'a`.
    pub(crate) unsafe fn from_raw<'a>(skb: *mut bindings::sk_buff) -> &'a Self {
        // SAFETY: By the caller's promise; the type is transparent.
        unsafe { &*skb.cast() }
    }

    /// Copies bytes from `offset` on. Any context.
    ///
    /// # Errors
    ///
    /// `EFAULT` if the packet has fewer bytes.
    pub fn copy_bits(&self, offset: usize, to: &mut [u8]) -> Result {
        let (offset, len) = (c_int::try_from(offset)?, c_int::try_from(to.len())?);
        // SAFETY: `to` is valid for that many bytes; the call checks the packet's length.
        to_result(unsafe {
            bindings::skb_copy_bits(self.0.get(), offset, to.as_mut_ptr().cast(), len)
        })
    }

    /// Copies `len` bytes from `offset` on into the memory that `iter` describes, and goes on with
    /// their checksum if there is one.
    ///
    /// # Safety
    ///
    /// `iter` must be valid, and so must the memory that it describes.
    pub(crate) unsafe fn copy_to_iter(
        &self,
        offset: usize,
        iter: *mut bindings::iov_iter,
        len: usize,
        crc: Option<&mut u32>,
    ) -> Result {
        let (offset, len) = (c_int::try_from(offset)?, c_int::try_from(len)?);
        // SAFETY: The packet is valid; so is `iter` by the caller's promise.
        to_result(unsafe {
            match crc {
                None => bindings::skb_copy_datagram_iter(self.0.get(), offset, iter, len),
                Some(crc) => bindings::skb_copy_and_crc32c_datagram_iter(
                    self.0.get(),
                    offset,
                    iter,
                    len,
                    crc,
                ),
            }
        })
    }
}
