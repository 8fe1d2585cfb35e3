// SPDX-License-Identifier: GPL-2.0

//! Packets.
//!
//! C header: `include/linux/skbuff.h`.

use core::marker::PhantomData;
use kernel::types::Opaque;
use neonsan_bindings as bindings;

/// A packet in the receive queue of a socket.
///
/// # Invariants
///
/// Valid for as long as the reference that the receive callback got.
#[repr(transparent)]
pub(crate) struct SkBuff(Opaque<bindings::sk_buff>);

impl SkBuff {
    /// # Safety
    ///
    /// `skb` must be valid during `'a`.
    pub(crate) unsafe fn from_raw<'a>(skb: *mut bindings::sk_buff) -> &'a Self {
        // SAFETY: By the caller's promise; the type is transparent.
        unsafe { &*skb.cast() }
    }

    /// The bytes from `offset` to `offset + len`, in pieces as they lie in memory. Any context;
    /// nothing may sleep while there are pieces.
    pub(crate) fn pieces(&self, offset: u32, len: u32) -> Pieces<'_> {
        let mut state = pin_init::zeroed();
        // SAFETY: The packet is valid.
        unsafe {
            bindings::skb_prepare_seq_read(
                self.0.get(),
                offset,
                offset.saturating_add(len),
                &mut state,
            )
        };
        Pieces {
            state,
            done: 0,
            len,
            _packet: PhantomData,
        }
    }
}

/// See [`SkBuff::pieces`].
///
/// # Invariants
///
/// `state` was prepared for a packet that is valid during `'a`; `done` bytes of `len` were read.
pub(crate) struct Pieces<'a> {
    state: bindings::skb_seq_state,
    done: u32,
    len: u32,
    _packet: PhantomData<&'a SkBuff>,
}

impl Pieces<'_> {
    /// The next piece; `None` after the last, and where a packet's memory cannot be read.
    pub(crate) fn next_piece(&mut self) -> Option<&[u8]> {
        let left = self.len.checked_sub(self.done)?;
        if left == 0 {
            return None;
        }
        let mut data = core::ptr::null();
        // SAFETY: By the type's invariants.
        let n = unsafe { bindings::skb_seq_read(self.done, &mut data, &mut self.state) };
        let n = n.min(left);
        if n == 0 {
            return None;
        }
        self.done += n;
        // SAFETY: The call says that so many bytes are there, until it is called again.
        Some(unsafe { core::slice::from_raw_parts(data, n as usize) })
    }
}

impl Drop for Pieces<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type's invariants; what was mapped last is given back.
        unsafe { bindings::skb_abort_seq_read(&mut self.state) };
    }
}
