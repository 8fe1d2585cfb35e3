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

/// While it lives, what this process allocates does not start I/O.
pub struct NoIoScope {
    flags: c_uint,
    /// The flag belongs to the process.
    _not_send: PhantomData<*mut ()>,
}

impl NoIoScope {
    /// Begins. Scopes nest.
    pub fn enter() -> Self {
        NoIoScope {
            // SAFETY: Process context, and undone by `drop`.
            flags: unsafe { bindings::memalloc_noio_save() },
            _not_send: PhantomData,
        }
    }
}

impl Drop for NoIoScope {
    fn drop(&mut self) {
        // SAFETY: Pairs with `enter`, in the same process.
        unsafe { bindings::memalloc_noio_restore(self.flags) };
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

    /// Describes a range within one page for sending.
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
