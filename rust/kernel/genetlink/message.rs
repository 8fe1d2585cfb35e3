// SPDX-License-Identifier: GPL-2.0

//! Writing messages.

use core::marker::PhantomData;
use core::mem::ManuallyDrop;
use core::ptr::NonNull;
use kernel::alloc::AllocError;
use kernel::error::to_result;
use kernel::prelude::*;
use neonsan_bindings as bindings;

/// Room for an event: a few numbers and texts of up to 255 bytes.
pub(super) const EVENT_BYTES: usize = 2048;

/// A socket buffer for netlink messages.
///
/// # Invariants
///
/// `skb` is valid and owned by this.
pub struct NetlinkSkBuff {
    skb: NonNull<bindings::sk_buff>,
}

impl NetlinkSkBuff {
    /// A buffer with room for `bytes` of messages.
    pub(super) fn new(bytes: usize, gfp: bindings::gfp_t) -> Result<Self, AllocError> {
        // SAFETY: Takes two numbers.
        let skb = unsafe { bindings::nlmsg_new(bytes, gfp) };
        // INVARIANT: The new buffer is ours.
        NonNull::new(skb)
            .map(|skb| NetlinkSkBuff { skb })
            .ok_or(AllocError)
    }

    /// Writes one message of `family`, which must be valid. On an error the buffer is as before.
    pub(super) fn write(
        &mut self,
        portid: u32,
        seq: u32,
        family: *const bindings::genl_family,
        flags: u32,
        cmd: u8,
        build: impl FnOnce(&mut GenlMsg<'_>) -> Result,
    ) -> Result {
        // SAFETY: The buffer is valid and this borrows it exclusively.
        unsafe { write_message(self.skb, portid, seq, family, flags, cmd, build) }
    }

    /// Gives the buffer away.
    pub(super) fn into_raw(self) -> *mut bindings::sk_buff {
        ManuallyDrop::new(self).skb.as_ptr()
    }
}

impl Drop for NetlinkSkBuff {
    fn drop(&mut self) {
        // SAFETY: By the invariant it is ours, and nobody uses it any more.
        unsafe { bindings::nlmsg_free(self.skb.as_ptr()) };
    }
}

/// Writes one message at the end of a buffer. On an error the buffer is as before.
///
/// # Errors
///
/// `EMSGSIZE` if there is no room, and what `build` returns.
///
/// # Safety
///
/// `skb` and `family` must be valid, and nobody else may use `skb` meanwhile.
pub(super) unsafe fn write_message(
    skb: NonNull<bindings::sk_buff>,
    portid: u32,
    seq: u32,
    family: *const bindings::genl_family,
    flags: u32,
    cmd: u8,
    build: impl FnOnce(&mut GenlMsg<'_>) -> Result,
) -> Result {
    // SAFETY: By the requirements of this function.
    let header =
        unsafe { bindings::genlmsg_put(skb.as_ptr(), portid, seq, family, flags as c_int, cmd) };
    if header.is_null() {
        return Err(EMSGSIZE);
    }
    // INVARIANT: Valid and not used by others while the message lives.
    let built = build(&mut GenlMsg {
        skb,
        _skb: PhantomData,
    });
    match built {
        // SAFETY: `header` was put into this buffer above.
        Ok(()) => unsafe { bindings::genlmsg_end(skb.as_ptr(), header) },
        // SAFETY: As above.
        Err(_) => unsafe { bindings::genlmsg_cancel(skb.as_ptr(), header) },
    }
    built
}

/// A message being written.
///
/// Every method fails with `EMSGSIZE` when the buffer has no room for the attribute.
///
/// # Invariants
///
/// `skb` is valid, and only this uses it.
pub struct GenlMsg<'a> {
    skb: NonNull<bindings::sk_buff>,
    _skb: PhantomData<&'a mut bindings::sk_buff>,
}

impl GenlMsg<'_> {
    fn put(&mut self, kind: u16, payload: &[u8]) -> Result {
        // The length of an attribute is 16 bits wide and includes its header.
        if payload.len() > usize::from(u16::MAX) - 4 {
            return Err(EMSGSIZE);
        }
        // SAFETY: By the invariant; the payload is read for its length.
        to_result(unsafe {
            bindings::nla_put(
                self.skb.as_ptr(),
                kind.into(),
                payload.len() as c_int,
                payload.as_ptr().cast(),
            )
        })
    }

    /// A `u16` in host byte order.
    pub fn put_u16(&mut self, kind: u16, value: u16) -> Result {
        self.put(kind, &value.to_ne_bytes())
    }

    /// A `u32` in host byte order.
    pub fn put_u32(&mut self, kind: u16, value: u32) -> Result {
        self.put(kind, &value.to_ne_bytes())
    }

    /// A `u64` in host byte order, for an attribute of type u64.
    pub fn put_u64(&mut self, kind: u16, value: u64) -> Result {
        self.put(kind, &value.to_ne_bytes())
    }

    /// A number for an attribute of type uint: 4 bytes when they are enough, else 8.
    pub fn put_uint(&mut self, kind: u16, value: u64) -> Result {
        match u32::try_from(value) {
            Ok(value) => self.put_u32(kind, value),
            Err(_) => self.put_u64(kind, value),
        }
    }

    /// Bytes as they are.
    pub fn put_bytes(&mut self, kind: u16, value: &[u8]) -> Result {
        self.put(kind, value)
    }

    /// An attribute without a value.
    pub fn put_flag(&mut self, kind: u16) -> Result {
        self.put(kind, &[])
    }

    /// A text, with the zero byte that netlink wants behind it.
    pub fn put_str(&mut self, kind: u16, value: &str) -> Result {
        // The zero goes into the padding or behind it: reserve both, then fill them.
        let bytes = value.as_bytes();
        let len = bytes.len() + 1;
        if len > usize::from(u16::MAX) - 4 {
            return Err(EMSGSIZE);
        }
        // SAFETY: By the invariant.
        let attribute =
            unsafe { bindings::nla_reserve(self.skb.as_ptr(), kind.into(), len as c_int) };
        if attribute.is_null() {
            return Err(EMSGSIZE);
        }
        // SAFETY: `nla_reserve` made room for the attribute's header and `len` bytes behind it,
        // which nobody else refers to.
        unsafe {
            let payload = attribute.add(1).cast::<u8>();
            payload.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            payload.add(bytes.len()).write(0);
        }
        Ok(())
    }

    /// An attribute that holds what `build` writes. On an error nothing of it stays.
    pub fn nest(&mut self, kind: u16, build: impl FnOnce(&mut Self) -> Result) -> Result {
        // SAFETY: By the invariant.
        let start = unsafe { bindings::nla_nest_start(self.skb.as_ptr(), kind.into()) };
        if start.is_null() {
            return Err(EMSGSIZE);
        }
        let built = build(self).and_then(|()| {
            // SAFETY: `start` is a nest of this buffer that was not ended. Fails if the nest has
            // become longer than its 16-bit length can say.
            let ended = unsafe { bindings::nla_nest_end(self.skb.as_ptr(), start) };
            if ended < 0 {
                Err(EMSGSIZE)
            } else {
                Ok(())
            }
        });
        if built.is_err() {
            // SAFETY: As above; this takes the nest back out of the buffer.
            unsafe { bindings::nla_nest_cancel(self.skb.as_ptr(), start) };
        }
        built
    }
}
