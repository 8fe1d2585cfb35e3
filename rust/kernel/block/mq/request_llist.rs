// SPDX-License-Identifier: GPL-2.0

//! A queue of requests without a lock.
//!
//! C header: `include/linux/llist.h`.

use super::{request::RequestDataWrapper, Operations, OwnedRequest};
use core::{marker::PhantomData, ptr::NonNull};
use kernel::types::Opaque;
use neonsan_bindings as bindings;

/// A queue of requests: any number of CPUs add, one at a time takes everything.
///
/// Adding neither sleeps nor waits nor allocates: the link lies in the request.
///
/// Not the `RequestList` of the posted Rust block series: that is the list of requests that the block
/// layer hands over at once (`queue_rqs`), owned by one thread.
///
/// # Invariants
///
/// Every node in the list is the `link` of the private area of a request of `T`, and the list owns
/// the [`OwnedRequest`] of it.
pub struct RequestLlist<T: Operations> {
    head: Opaque<bindings::llist_head>,
    _p: PhantomData<OwnedRequest<T>>,
}

// SAFETY: `llist` may be used from several CPUs at once, and requests may change threads.
unsafe impl<T: Operations> Send for RequestLlist<T> {}
// SAFETY: As above.
unsafe impl<T: Operations> Sync for RequestLlist<T> {}

impl<T: Operations> RequestLlist<T> {
    /// An empty list.
    pub fn new() -> Self {
        RequestLlist {
            head: Opaque::zeroed(),
            _p: PhantomData,
        }
    }

    /// Adds a request; true if the list was empty. Any context. A full memory barrier.
    pub fn push(&self, rq: OwnedRequest<T>) -> bool {
        let rq = OwnedRequest::into_raw(rq);
        let wrapper = super::Request::<T>::wrapper_ptr(rq.as_ptr().cast());
        // SAFETY: The wrapper is valid as long as the driver owns the request, and since the
        // `OwnedRequest` is unique nothing else uses its link.
        unsafe {
            let link = Opaque::cast_into(&raw const (*wrapper).link);
            bindings::llist_add(link, self.head.get())
        }
    }

    /// Whether nothing was added since the last [`RequestLlist::take`].
    pub fn is_empty(&self) -> bool {
        // SAFETY: The head is valid.
        unsafe { bindings::llist_empty(self.head.get()) }
    }

    /// Takes everything, the oldest first.
    pub fn take(&self) -> Taken<T> {
        Taken {
            // SAFETY: The head is valid.
            next: unsafe { bindings::llist_take_fifo(self.head.get()) },
            _p: PhantomData,
        }
    }
}

impl<T: Operations> Default for RequestLlist<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T: Operations> Drop for RequestLlist<T> {
    fn drop(&mut self) {
        drop(self.take());
    }
}

/// The requests taken from a [`RequestLlist`], the oldest first. What is left over when this is
/// dropped ends with an error.
///
/// # Invariants
///
/// As for [`RequestLlist`], for the nodes from `next` on.
pub struct Taken<T: Operations> {
    next: *mut bindings::llist_node,
    _p: PhantomData<OwnedRequest<T>>,
}

// SAFETY: Owns requests, which may change threads.
unsafe impl<T: Operations> Send for Taken<T> {}

impl<T: Operations> Taken<T> {
    /// Nothing.
    pub const fn empty() -> Self {
        Taken {
            next: core::ptr::null_mut(),
            _p: PhantomData,
        }
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.next.is_null()
    }
}

impl<T: Operations> Iterator for Taken<T> {
    type Item = OwnedRequest<T>;

    fn next(&mut self) -> Option<OwnedRequest<T>> {
        let link = NonNull::new(self.next)?;
        // SAFETY: By the type's invariants the node is valid and ours.
        self.next = unsafe { (*link.as_ptr()).next };
        let link = Opaque::cast_from(link.as_ptr());
        // SAFETY: By the type's invariants the node is the `link` of a wrapper, and the wrapper is
        // the private area of a request.
        unsafe {
            let wrapper = kernel::container_of!(link, RequestDataWrapper<T>, link);
            // As `blk_mq_rq_from_pdu`: right before it.
            let rq = wrapper.cast_mut().cast::<bindings::request>().sub(1);
            Some(OwnedRequest::from_raw(NonNull::new(rq)?.cast()))
        }
    }
}

impl<T: Operations> Drop for Taken<T> {
    fn drop(&mut self) {
        for rq in self.by_ref() {
            drop(rq);
        }
    }
}
