// SPDX-License-Identifier: GPL-2.0

//! The requests in flight of one hardware queue, found by their tags.

use super::{Operations, OwnedRequest, Request};
use core::{
    marker::PhantomData,
    ptr::{self, NonNull},
    // Not the kernel's: for a module each of its atomics is a call of a C function, and this is on the
    // way of every request. Acquire and release mean the same for both.
    sync::atomic::{AtomicPtr, Ordering},
};
use kernel::prelude::*;

/// Holds the [`OwnedRequest`]s that wait for an answer, each at its tag.
///
/// A tag that names no waiting request is answered with `None`: what the far side sends can never
/// reach a request that does not wait, nor end one twice. No lock; any context.
///
/// # Invariants
///
/// A pointer in `slots` comes from [`OwnedRequest::into_raw`]; the table owns that request.
pub struct RequestTable<T: Operations> {
    slots: KVVec<AtomicPtr<Request<T>>>,
    _p: PhantomData<OwnedRequest<T>>,
}

// SAFETY: Requests may change threads, and the slots are atomic.
unsafe impl<T: Operations> Send for RequestTable<T> {}
// SAFETY: As above.
unsafe impl<T: Operations> Sync for RequestTable<T> {}

impl<T: Operations> RequestTable<T> {
    /// A table for tags below `depth`. May sleep.
    pub fn new(depth: u32) -> Result<Self> {
        let mut slots = KVVec::with_capacity(depth as usize, GFP_KERNEL)?;
        for _ in 0..depth {
            slots.push(AtomicPtr::new(ptr::null_mut()), GFP_KERNEL)?;
        }
        Ok(RequestTable {
            slots,
            _p: PhantomData,
        })
    }

    /// Puts a request at its tag. Gives it back if the place is taken or does not exist.
    pub fn put(&self, rq: OwnedRequest<T>) -> Result<(), OwnedRequest<T>> {
        let Some(slot) = self.slots.get(usize::from(rq.tag())) else {
            return Err(rq);
        };
        let raw = OwnedRequest::into_raw(rq);
        slot.compare_exchange(
            ptr::null_mut(),
            raw.as_ptr(),
            Ordering::AcqRel,
            Ordering::Relaxed,
        )
        .map(|_| ())
        // SAFETY: `raw` was made just above and not stored.
        .map_err(|_| unsafe { OwnedRequest::from_raw(raw) })
    }

    /// Takes the request with this tag, if it is in the table.
    pub fn take(&self, tag: u16) -> Option<OwnedRequest<T>> {
        let slot = self.slots.get(usize::from(tag))?;
        let raw = NonNull::new(slot.swap(ptr::null_mut(), Ordering::AcqRel))?;
        // SAFETY: By the type's invariants; the swap took it out, so this happens once.
        Some(unsafe { OwnedRequest::from_raw(raw) })
    }

    /// The number of tags.
    pub fn depth(&self) -> usize {
        self.slots.len()
    }
}

impl<T: Operations> Drop for RequestTable<T> {
    fn drop(&mut self) {
        for tag in 0..self.slots.len() {
            drop(self.take(tag as u16));
        }
    }
}
