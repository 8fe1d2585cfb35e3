// SPDX-License-Identifier: GPL-2.0

//! Memory.
//!
//! C headers: `include/linux/sched/mm.h`, `include/linux/gfp.h`.

use core::{marker::PhantomData, ptr::NonNull};
use kernel::prelude::*;
use neonsan_bindings as bindings;

/// While it lives, what this process allocates neither starts I/O nor waits for it, and may come
/// from the reserves: for code that writes dirty pages depend on.
pub struct NoReclaimScope {
    flags: c_uint,
    /// The flag belongs to the process.
    _not_send: PhantomData<*mut ()>,
}

impl NoReclaimScope {
    /// Begins. Scopes nest.
    #[inline]
    pub fn enter() -> Self {
        NoReclaimScope {
            // SAFETY: Process context, and undone by `drop`.
            flags: unsafe { bindings::memalloc_noreclaim_save() },
            _not_send: PhantomData,
        }
    }
}

impl Drop for NoReclaimScope {
    fn drop(&mut self) {
        // SAFETY: Pairs with `enter`, in the same process.
        unsafe { bindings::memalloc_noreclaim_restore(self.flags) };
    }
}

/// Whole pages, addressed as one array of bytes, that may be given to the network in place.
///
/// # Invariants
///
/// Owns a reference to each page; the pages are in the kernel's linear map.
pub struct PageArray {
    pages: KVec<NonNull<bindings::page>>,
}

// SAFETY: Pages are not bound to a thread.
unsafe impl Send for PageArray {}
// SAFETY: A shared reference gives no access to the content.
unsafe impl Sync for PageArray {}

impl PageArray {
    /// Zeroed pages for at least `len` bytes. May sleep.
    pub fn new(len: usize) -> Result<Self> {
        let count = len.div_ceil(bindings::PAGE_SIZE);
        let mut this = PageArray {
            pages: KVec::with_capacity(count, GFP_KERNEL)?,
        };
        for _ in 0..count {
            // SAFETY: A plain allocation of a page of the linear map.
            let page = unsafe { bindings::alloc_page(bindings::GFP_KERNEL | bindings::__GFP_ZERO) };
            this.pages
                .push(NonNull::new(page).ok_or(ENOMEM)?, GFP_KERNEL)?;
        }
        Ok(this)
    }

    /// The page and the offset in it of a range, which must lie within one page.
    #[inline]
    fn locate(&self, offset: usize, len: usize) -> Result<(NonNull<bindings::page>, usize)> {
        let page = *self.pages.get(offset / bindings::PAGE_SIZE).ok_or(EINVAL)?;
        let offset = offset % bindings::PAGE_SIZE;
        if len > bindings::PAGE_SIZE - offset {
            return Err(EINVAL);
        }
        Ok((page, offset))
    }

    /// Overwrites a range within one page.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the range is not within one page of the array.
    #[inline]
    pub fn write(&mut self, offset: usize, data: &[u8]) -> Result {
        let (page, offset) = self.locate(offset, data.len())?;
        // SAFETY: The page is ours and mapped; the range was checked. The network may read it at
        // the same time, which `&mut self` does not exclude: it only copies bytes, and the peer
        // has no use for those that change (see the driver's transmitter).
        unsafe {
            let to = bindings::page_address(page.as_ptr())
                .cast::<u8>()
                .add(offset);
            core::ptr::copy_nonoverlapping(data.as_ptr(), to, data.len());
        }
        Ok(())
    }

    /// Overwrites the bytes from `offset` on with those at `from`, which others may be writing to at
    /// the same time: then what is here afterwards is some mixture, but does not change any more.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the array has not so many bytes there.
    ///
    /// # Safety
    ///
    /// `from` must be valid for reads of `len` bytes, and not lie in the array.
    pub(crate) unsafe fn copy_in(
        &mut self,
        mut offset: usize,
        mut from: *const u8,
        mut len: usize,
    ) -> Result {
        while len > 0 {
            let n = len.min(bindings::PAGE_SIZE - offset % bindings::PAGE_SIZE);
            let (page, in_page) = self.locate(offset, n)?;
            // SAFETY: The page is ours and mapped, and has `n` bytes there; `from` by the caller's
            // promise.
            unsafe {
                let to = bindings::page_address(page.as_ptr())
                    .cast::<u8>()
                    .add(in_page);
                copy_long(to, from, n);
                from = from.add(n);
            }
            offset += n;
            len -= n;
        }
        Ok(())
    }

    /// Describes the bytes from `offset` on as far as they lie in one page and before `end`; `None`
    /// if that is nothing.
    pub(crate) fn bvec_until(&self, offset: usize, end: usize) -> Option<bindings::bio_vec> {
        let in_page = bindings::PAGE_SIZE - offset % bindings::PAGE_SIZE;
        let len = end.checked_sub(offset)?.min(in_page);
        if len == 0 {
            return None;
        }
        self.bvec(offset, len).ok()
    }

    /// The checksum of the first `len` bytes (see [`crate::crc32c::extend`]), not inverted.
    pub(crate) fn crc32c(&self, len: usize) -> u32 {
        let (mut crc, mut at) = (!0, 0);
        while let Some(bvec) = self.bvec_until(at, len) {
            at += bvec.bv_len as usize;
            // SAFETY: The page is ours and mapped.
            crc = unsafe { bindings::bvec_crc32c(crc, &bvec) };
        }
        crc
    }

    /// Describes a range within one page for sending.
    #[inline]
    pub(crate) fn bvec(&self, offset: usize, len: usize) -> Result<bindings::bio_vec> {
        let (page, offset) = self.locate(offset, len)?;
        let mut bvec: bindings::bio_vec = pin_init::zeroed();
        bvec.bv_page = page.as_ptr();
        // Both are at most a page.
        bvec.bv_len = len as c_uint;
        bvec.bv_offset = offset as c_uint;
        Ok(bvec)
    }
}

impl Drop for PageArray {
    fn drop(&mut self) {
        for page in &self.pages {
            // SAFETY: By the type's invariants. The network may hold references of its own.
            unsafe { bindings::put_page(page.as_ptr()) };
        }
    }
}

/// From this length on the start of a string instruction is worth its while.
#[cfg(CONFIG_X86_64)]
const LONG_BYTES: usize = 256;

/// Copies bytes of the linear map that do not overlap.
///
/// Where the CPU has fast short string instructions, `memcpy` is one. Where it lacks them,
/// `memcpy` is a loop of 13 instructions for 32 bytes, made for short pieces; for long ones
/// `copy_page` and copies to user space take a string instruction by words, and so does this.
///
/// # Safety
///
/// `from` must be valid for reads of `len` bytes, `to` for writes.
// Not inline, so that a profile tells copying from the rest.
#[inline(never)]
pub(crate) unsafe fn copy_long(to: *mut u8, from: *const u8, len: usize) {
    #[cfg(CONFIG_X86_64)]
    // SAFETY: By the caller's promise; the words are within `len`, and the rest is what is left.
    unsafe {
        if len >= LONG_BYTES && !bindings::cpu_has_fast_short_rep_mov() {
            // The compiler's instrumentation does not see what an instruction does.
            #[cfg(CONFIG_KASAN)]
            bindings::instrument_copy(to.cast(), from.cast(), len);
            let (to_rest, from_rest): (*mut u8, *const u8);
            core::arch::asm!(
                "rep movsq",
                inout("rcx") len / 8 => _,
                inout("rdi") to => to_rest,
                inout("rsi") from => from_rest,
                options(nostack, preserves_flags),
            );
            core::ptr::copy_nonoverlapping(from_rest, to_rest, len % 8);
            return;
        }
    }
    // SAFETY: By the caller's promise.
    unsafe { core::ptr::copy_nonoverlapping(from, to, len) };
}
