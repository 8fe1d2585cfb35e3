// SPDX-License-Identifier: GPL-2.0

//! Requests.
//!
//! C header: `include/linux/blk-mq.h`.

use super::{CompletionBatch, Operations};
use crate::block::Status;
use core::{
    marker::PhantomData,
    mem::{ManuallyDrop, MaybeUninit},
    ops::Deref,
    ptr::NonNull,
};
use kernel::{
    prelude::*,
    sync::atomic::{Acquire, Atomic, Relaxed, Release},
    types::Opaque,
};
use neonsan_bindings as bindings;

/// A request of the block layer.
///
/// # Ownership
///
/// 0. The block layer owns the request; nothing in Rust refers to it. The count of references in
///    [`RequestDataWrapper`] is 0.
/// 1. The driver owns it through its one [`OwnedRequest`]. The count is 1.
/// 2. The same, and `n` [`RequestRef`]s read it. The count is `1 + n`.
/// 3. The driver has ended it ([`OwnedRequest::end`]) while `n` [`RequestRef`]s still read it. The
///    count is `n`; whoever drops the last one hands the request to the block layer (state 0).
///
/// # Invariants
///
/// - The `struct request` was initialised by `init_request` of [`Operations`]' table, so its
///   private data is a valid [`RequestDataWrapper`], and it lives as long as its tag set.
/// - A reference to a `Request` exists only in the states 1 to 3.
#[repr(transparent)]
pub struct Request<T: Operations>(Opaque<bindings::request>, PhantomData<T>);

/// What lies in the private area of each `struct request`.
pub(super) struct RequestDataWrapper<T: Operations> {
    /// The references, see the states of [`Request`].
    references: Atomic<u32>,
    /// How the request ends: a `blk_status_t`. Written by the owner before it gives up its
    /// reference, read by whoever drops the last reference.
    status: Atomic<u32>,
    /// Links the request in a [`RequestLlist`](super::RequestLlist), which then owns it.
    pub(super) link: Opaque<bindings::llist_node>,
    /// The driver's own.
    data: T::RequestData,
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestOp {
    /// Read into the request's pages.
    Read,
    /// Write the request's pages.
    Write,
    /// Make completed writes durable.
    Flush,
    /// The content is no longer needed.
    Discard,
    /// Must read as zeroes afterwards.
    WriteZeroes,
    /// Anything else, by its number.
    Other(u32),
}

impl<T: Operations> RequestDataWrapper<T> {
    /// Initialises the private area of a request.
    ///
    /// # Safety
    ///
    /// `slot` must be valid for writes and stay where it is.
    pub(super) unsafe fn init(slot: *mut Self, data: impl PinInit<T::RequestData>) {
        // SAFETY: The caller says that `slot` is valid for writes.
        unsafe {
            (&raw mut (*slot).references).write(Atomic::new(0));
            (&raw mut (*slot).status).write(Atomic::new(0));
            (&raw mut (*slot).link).write(Opaque::zeroed());
        }
        // SAFETY: As above. The data never moves, and lives until it is dropped in place; the
        // reference, whose lifetime is longer than that, does not leave this function.
        let data_slot: &'static mut MaybeUninit<T::RequestData> =
            unsafe { &mut *(&raw mut (*slot).data).cast() };
        // The safe door, which every kernel has: the method behind it is named otherwise before 7.3.
        match data_slot.write_pin_init(data) {
            Ok(_) => {}
            Err(never) => match never {},
        }
    }
}

impl<T: Operations> Request<T> {
    pub(crate) fn as_raw(&self) -> *mut bindings::request {
        self.0.get()
    }

    pub(super) fn wrapper_ptr(rq: *mut bindings::request) -> *mut RequestDataWrapper<T> {
        const {
            assert!(
                align_of::<RequestDataWrapper<T>>() <= align_of::<bindings::request>(),
                "the data beside a request is aligned as the request is, and no further"
            );
        }
        // As `blk_mq_rq_to_pdu`: right behind the request.
        rq.wrapping_add(1).cast()
    }

    pub(super) fn wrapper(&self) -> &RequestDataWrapper<T> {
        // SAFETY: By the type's invariants the private area is initialised and lives as long as
        // the request.
        unsafe { &*Self::wrapper_ptr(self.as_raw()) }
    }

    /// The driver's data of this request.
    pub fn data(&self) -> &T::RequestData {
        &self.wrapper().data
    }

    /// What is asked for.
    pub fn op(&self) -> RequestOp {
        // SAFETY: The driver owns the request, so its fields are stable.
        match unsafe { (*self.as_raw()).cmd_flags } & bindings::REQ_OP_MASK {
            bindings::req_op_REQ_OP_READ => RequestOp::Read,
            bindings::req_op_REQ_OP_WRITE => RequestOp::Write,
            bindings::req_op_REQ_OP_FLUSH => RequestOp::Flush,
            bindings::req_op_REQ_OP_DISCARD => RequestOp::Discard,
            bindings::req_op_REQ_OP_WRITE_ZEROES => RequestOp::WriteZeroes,
            other => RequestOp::Other(other),
        }
    }

    fn has_flag(&self, flag: bindings::blk_opf_t) -> bool {
        // SAFETY: The driver owns the request, so its fields are stable.
        unsafe { (*self.as_raw()).cmd_flags & flag != 0 }
    }

    /// The write must be durable before the request ends.
    pub fn is_fua(&self) -> bool {
        self.has_flag(bindings::REQ_FUA)
    }

    /// The write must happen whole or not at all.
    pub fn is_atomic(&self) -> bool {
        self.has_flag(bindings::REQ_ATOMIC)
    }

    /// A write of zeroes must keep the space allocated.
    pub fn is_no_unmap(&self) -> bool {
        self.has_flag(bindings::REQ_NOUNMAP)
    }

    /// First sector (512 bytes) of the range.
    pub fn sector(&self) -> u64 {
        // SAFETY: The driver owns the request, so its fields are stable.
        unsafe { (*self.as_raw()).__sector }
    }

    /// Bytes of the range.
    pub fn len_bytes(&self) -> u32 {
        // SAFETY: The driver owns the request, so its fields are stable.
        unsafe { (*self.as_raw()).__data_len }
    }

    /// The tag: unique among the started requests of its hardware queue.
    pub fn tag(&self) -> u16 {
        // SAFETY: The driver owns the request, so its fields are stable.
        // A tag set's depth is below 65536 (`BLK_MQ_MAX_DEPTH` is 10240).
        unsafe { (*self.as_raw()).tag as u16 }
    }

    /// The first bio of the data that the request carries, or null if it carries none. The bios of
    /// other requests (DISCARD, WRITE_ZEROES) have a size and no memory.
    pub(crate) fn payload(&self) -> *mut bindings::bio {
        match self.op() {
            // SAFETY: The driver owns the request, so its fields are stable.
            RequestOp::Read | RequestOp::Write => unsafe { (*self.as_raw()).bio },
            _ => core::ptr::null_mut(),
        }
    }

    /// Gives up one reference; the last one hands the request to the block layer.
    ///
    /// # Safety
    ///
    /// The caller must own a reference and not use the request afterwards.
    unsafe fn put(rq: *mut bindings::request, batch: Option<&mut CompletionBatch>) {
        // SAFETY: The caller owns a reference, so this is not yet state 0.
        let wrapper = unsafe { &*Self::wrapper_ptr(rq) };
        // Release: our reads come before the request's end. Acquire, below: the reads of all
        // others do too, and we see the status.
        if wrapper.references.fetch_sub(1, Release) != 1 {
            return;
        }
        wrapper.references.load(Acquire);
        let status = Status::from_raw(wrapper.status.load(Relaxed) as bindings::blk_status_t);
        match batch {
            // SAFETY: The driver owns the request and the last reference to it is gone.
            Some(batch) => unsafe { batch.add(rq, status) },
            // SAFETY: As above.
            None => unsafe { bindings::blk_mq_end_request(rq, status.as_raw()) },
        }
    }
}

// SAFETY: What is reachable through `&Request` is constant while the driver owns the request, or
// atomic, or `T::RequestData`, which is `Sync`.
unsafe impl<T: Operations> Sync for Request<T> {}
// SAFETY: As for `Sync`; a request is not bound to a thread.
unsafe impl<T: Operations> Send for Request<T> {}

/// The one owner of a request: who has it decides how the request ends.
///
/// Dropping it ends the request with [`Status::IOERR`], so that no request can be forgotten.
///
/// # Invariants
///
/// The request is in state 1 or 2, and this is its only `OwnedRequest`.
pub struct OwnedRequest<T: Operations>(NonNull<Request<T>>);

// SAFETY: A request may be ended and read from any thread.
unsafe impl<T: Operations> Send for OwnedRequest<T> {}
// SAFETY: A shared reference gives only `&Request`, which is `Sync`.
unsafe impl<T: Operations> Sync for OwnedRequest<T> {}

impl<T: Operations> OwnedRequest<T> {
    /// Takes over a request from the block layer and starts it: state 0 → 1.
    ///
    /// # Safety
    ///
    /// The block layer must have handed `rq` to the driver just now (`queue_rq`).
    pub(super) unsafe fn start(rq: NonNull<bindings::request>) -> Self {
        // SAFETY: The tag set has initialised the private area.
        let wrapper = unsafe { &*Request::<T>::wrapper_ptr(rq.as_ptr()) };
        wrapper.status.store(Status::IOERR.as_raw().into(), Relaxed);
        wrapper.references.store(1, Release);
        // SAFETY: The driver owns the request and has not started it yet.
        unsafe { bindings::blk_mq_start_request(rq.as_ptr()) };
        // INVARIANT: The count was just set to 1.
        OwnedRequest(rq.cast())
    }

    /// Gives up the value without ending the request. Undone by [`OwnedRequest::from_raw`].
    pub(super) fn into_raw(this: Self) -> NonNull<Request<T>> {
        ManuallyDrop::new(this).0
    }

    /// # Safety
    ///
    /// `rq` must come from [`OwnedRequest::into_raw`], once.
    pub(super) unsafe fn from_raw(rq: NonNull<Request<T>>) -> Self {
        // INVARIANT: That of the value which was turned into `rq`.
        OwnedRequest(rq)
    }

    /// A further reference for reading. The request does not end before it is dropped.
    pub fn share(&self) -> RequestRef<T> {
        self.wrapper().references.fetch_add(1, Relaxed);
        // INVARIANT: The count says so.
        RequestRef(self.0)
    }

    /// Ends the request, at once or when the last [`RequestRef`] is dropped. Any context.
    pub fn end(self, status: Status) {
        self.wrapper().status.store(status.as_raw().into(), Relaxed);
        let rq = Self::into_raw(self);
        // SAFETY: `self` owned one reference.
        unsafe { Request::<T>::put(rq.as_ptr().cast(), None) };
    }

    /// Like [`OwnedRequest::end`], but together with the others of `batch`, which is cheaper.
    pub fn end_batched(self, status: Status, batch: &mut CompletionBatch) {
        self.wrapper().status.store(status.as_raw().into(), Relaxed);
        let rq = Self::into_raw(self);
        // SAFETY: `self` owned one reference.
        unsafe { Request::<T>::put(rq.as_ptr().cast(), Some(batch)) };
    }
}

impl<T: Operations> Deref for OwnedRequest<T> {
    type Target = Request<T>;

    fn deref(&self) -> &Request<T> {
        // SAFETY: By the type's invariants.
        unsafe { self.0.as_ref() }
    }
}

impl<T: Operations> Drop for OwnedRequest<T> {
    fn drop(&mut self) {
        self.wrapper()
            .status
            .store(Status::IOERR.as_raw().into(), Relaxed);
        // SAFETY: `self` owns one reference, which goes away with it.
        unsafe { Request::<T>::put(self.0.as_ptr().cast(), None) };
    }
}

/// A reader of a request that keeps it from ending, for instance while its pages are sent.
///
/// # Invariants
///
/// The request is in state 2 or 3, and this is one of the counted references.
pub struct RequestRef<T: Operations>(NonNull<Request<T>>);

// SAFETY: A request may be read, and its last reference dropped, on any thread.
unsafe impl<T: Operations> Send for RequestRef<T> {}
// SAFETY: A shared reference gives only `&Request`, which is `Sync`.
unsafe impl<T: Operations> Sync for RequestRef<T> {}

impl<T: Operations> Deref for RequestRef<T> {
    type Target = Request<T>;

    fn deref(&self) -> &Request<T> {
        // SAFETY: By the type's invariants.
        unsafe { self.0.as_ref() }
    }
}

impl<T: Operations> Drop for RequestRef<T> {
    fn drop(&mut self) {
        // SAFETY: `self` owns one reference, which goes away with it.
        unsafe { Request::<T>::put(self.0.as_ptr().cast(), None) };
    }
}
