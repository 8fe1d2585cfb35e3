// SPDX-License-Identifier: GPL-2.0

//! What a driver implements, and the C table made of it.
//!
//! C header: `include/linux/blk-mq.h` (`struct blk_mq_ops`).

use super::{request::RequestDataWrapper, OwnedRequest, Request};
use core::{convert::Infallible, marker::PhantomData, ptr::NonNull};
use kernel::{
    error::{from_result, VTABLE_DEFAULT_ERROR},
    prelude::*,
    types::ForeignOwnable, //
};
use neonsan_bindings as bindings;

/// What `T` gives when it is borrowed.
pub(super) type ForeignBorrowed<'a, T> = <T as ForeignOwnable>::Borrowed<'a>;

/// What to do about a request that takes too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeoutAction {
    /// The driver has ended it, or will very soon.
    Done,
    /// Let it run for another period.
    ResetTimer,
}

/// A driver of a multi-queue block device. As upstream's trait of this name a `#[vtable]`: what is not
/// implemented is not in the C table.
///
/// Requests are not refused here: the driver owns each one it is given, and ends it with an error
/// if that is what must happen.
#[vtable]
pub trait Operations: Sized + 'static {
    /// Data beside each request. Made when the tag set is, dropped with it.
    type RequestData: Sync + Send;

    /// Data of the device's queue.
    type QueueData: ForeignOwnable + Sync + Send;

    /// Data of each hardware queue.
    type HwData: ForeignOwnable + Sync + Send;

    /// Data of the tag set, from which the hardware queues' data is made.
    type TagSetData: ForeignOwnable + Sync + Send;

    /// Initialises the data beside one request.
    fn new_request_data() -> impl PinInit<Self::RequestData, Infallible>;

    /// How many of the tag set's hardware queues, the last ones, are for polled requests only.
    /// Asked while the tag set is made, and the same all its life.
    fn nr_poll_queues(tag_set_data: ForeignBorrowed<'_, Self::TagSetData>) -> u32;

    /// Makes the data of the hardware queue with this index.
    fn init_hctx(
        tag_set_data: ForeignBorrowed<'_, Self::TagSetData>,
        index: u32,
    ) -> Result<Self::HwData>;

    /// A request to carry out. With `is_last` false more follow at once, and either the last of
    /// them or [`Operations::commit_rqs`] says that it is time to send. May sleep if the tag set
    /// says [`Flags::BLOCKING`](super::Flags::BLOCKING).
    fn queue_rq(
        hw_data: ForeignBorrowed<'_, Self::HwData>,
        queue_data: ForeignBorrowed<'_, Self::QueueData>,
        rq: OwnedRequest<Self>,
        is_last: bool,
    );

    /// No more requests follow for now, though the last one did not say so.
    fn commit_rqs(
        _hw_data: ForeignBorrowed<'_, Self::HwData>,
        _queue_data: ForeignBorrowed<'_, Self::QueueData>,
    ) {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// The request with `tag` of this hardware queue was started longer ago than the tag set's
    /// timeout. It may end while this runs; a driver that wants it must find it in its own books.
    /// Process context.
    fn timeout(
        _hw_data: ForeignBorrowed<'_, Self::HwData>,
        _queue_data: ForeignBorrowed<'_, Self::QueueData>,
        _tag: u16,
    ) -> TimeoutAction {
        build_error!(VTABLE_DEFAULT_ERROR)
    }

    /// Somebody waits for polled requests of this hardware queue: finishes what can be finished.
    /// Returns how many requests have ended since the last call, in whatever context. Must not
    /// sleep: the caller is in an RCU critical section.
    fn poll(_hw_data: ForeignBorrowed<'_, Self::HwData>) -> u32 {
        build_error!(VTABLE_DEFAULT_ERROR)
    }
}

/// Spreads the hardware queues over the CPUs: the last `poll_queues` of them for polled requests, if
/// there is a map for these, and the others for all the rest.
fn map_queues(set: &mut bindings::blk_mq_tag_set, poll_queues: u32) {
    let maps = set.nr_maps as usize;
    let has_poll_map = maps > bindings::hctx_type_HCTX_TYPE_POLL as usize;
    let poll_queues = if has_poll_map { poll_queues } else { 0 };
    let others = set.nr_hw_queues.saturating_sub(poll_queues);
    for (kind, map) in set.map.iter_mut().enumerate().take(maps) {
        (map.nr_queues, map.queue_offset) = match kind as u32 {
            bindings::hctx_type_HCTX_TYPE_DEFAULT => (others, 0),
            bindings::hctx_type_HCTX_TYPE_POLL => (poll_queues, others),
            // Reads go where writes go.
            _ => (0, 0),
        };
        if map.nr_queues > 0 {
            // SAFETY: The map has room for every CPU.
            unsafe { bindings::blk_mq_map_queues(map) };
        }
    }
}

/// The C table of a driver.
pub(super) struct OperationsVTable<T: Operations>(PhantomData<T>);

impl<T: Operations> OperationsVTable<T> {
    const VTABLE: bindings::blk_mq_ops = bindings::blk_mq_ops {
        queue_rq: Some(Self::queue_rq_callback),
        commit_rqs: if T::HAS_COMMIT_RQS {
            Some(Self::commit_rqs_callback)
        } else {
            None
        },
        timeout: if T::HAS_TIMEOUT {
            Some(Self::timeout_callback)
        } else {
            None
        },
        init_hctx: Some(Self::init_hctx_callback),
        exit_hctx: Some(Self::exit_hctx_callback),
        init_request: Some(Self::init_request_callback),
        exit_request: Some(Self::exit_request_callback),
        map_queues: Some(Self::map_queues_callback),
        poll: if T::HAS_POLL {
            Some(Self::poll_callback)
        } else {
            None
        },
        ..pin_init::zeroed()
    };

    pub(super) const fn build() -> &'static bindings::blk_mq_ops {
        &Self::VTABLE
    }

    /// # Safety
    ///
    /// Between `init_hctx_callback` and `exit_hctx_callback` of `hctx`, and while its disk lives.
    unsafe fn borrow<'a>(
        hctx: *mut bindings::blk_mq_hw_ctx,
    ) -> (
        ForeignBorrowed<'a, T::HwData>,
        ForeignBorrowed<'a, T::QueueData>,
    ) {
        // SAFETY: `init_hctx_callback` has set `driver_data`, `GenDiskBuilder::build` the queue's
        // data; both are freed only after the queue is frozen and gone.
        unsafe {
            (
                T::HwData::borrow((*hctx).driver_data),
                T::QueueData::borrow((*(*hctx).queue).queuedata),
            )
        }
    }

    /// # Safety
    ///
    /// Called by blk-mq only.
    unsafe extern "C" fn queue_rq_callback(
        hctx: *mut bindings::blk_mq_hw_ctx,
        bd: *const bindings::blk_mq_queue_data,
    ) -> bindings::blk_status_t {
        // SAFETY: blk-mq passes valid pointers and gives the request to the driver.
        let (rq, is_last) = unsafe { ((*bd).rq, (*bd).last) };
        // SAFETY: As above; the queue is live.
        unsafe {
            let (hw_data, queue_data) = Self::borrow(hctx);
            let rq = OwnedRequest::<T>::start(NonNull::new_unchecked(rq));
            T::queue_rq(hw_data, queue_data, rq, is_last);
        }
        bindings::BLK_STS_OK
    }

    /// # Safety
    ///
    /// Called by blk-mq only.
    unsafe extern "C" fn commit_rqs_callback(hctx: *mut bindings::blk_mq_hw_ctx) {
        // SAFETY: The queue is live.
        let (hw_data, queue_data) = unsafe { Self::borrow(hctx) };
        T::commit_rqs(hw_data, queue_data);
    }

    /// # Safety
    ///
    /// Called by blk-mq only.
    unsafe extern "C" fn timeout_callback(
        rq: *mut bindings::request,
    ) -> bindings::blk_eh_timer_return {
        // SAFETY: blk-mq holds a reference of its own, so the `struct request` and its hardware
        // queue are valid, though the driver may be ending the request.
        let ((hw_data, queue_data), tag) =
            unsafe { (Self::borrow((*rq).mq_hctx), (*rq).tag as u16) };
        match T::timeout(hw_data, queue_data, tag) {
            TimeoutAction::Done => bindings::blk_eh_timer_return_BLK_EH_DONE,
            TimeoutAction::ResetTimer => bindings::blk_eh_timer_return_BLK_EH_RESET_TIMER,
        }
    }

    /// # Safety
    ///
    /// Called by blk-mq only, for a tag set made by `TagSet<T>`.
    unsafe extern "C" fn map_queues_callback(set: *mut bindings::blk_mq_tag_set) {
        // SAFETY: `TagSet::new` has set the data; the tag set is being made, and has as many maps
        // as it says.
        unsafe {
            let poll_queues = T::nr_poll_queues(T::TagSetData::borrow((*set).driver_data));
            map_queues(&mut *set, poll_queues);
        }
    }

    /// # Safety
    ///
    /// Called by blk-mq only.
    unsafe extern "C" fn poll_callback(
        hctx: *mut bindings::blk_mq_hw_ctx,
        _batch: *mut bindings::io_comp_batch,
    ) -> c_int {
        // SAFETY: The queue is live.
        let (hw_data, _) = unsafe { Self::borrow(hctx) };
        c_int::try_from(T::poll(hw_data)).unwrap_or(c_int::MAX)
    }

    /// # Safety
    ///
    /// Called by blk-mq only; `tag_set_data` is the tag set's `driver_data`.
    unsafe extern "C" fn init_hctx_callback(
        hctx: *mut bindings::blk_mq_hw_ctx,
        tag_set_data: *mut c_void,
        index: c_uint,
    ) -> c_int {
        from_result(|| {
            // SAFETY: `TagSet::new` has set it.
            let tag_set_data = unsafe { T::TagSetData::borrow(tag_set_data) };
            let data = T::init_hctx(tag_set_data, index)?;
            // SAFETY: `hctx` is being made, nobody else uses it.
            unsafe { (*hctx).driver_data = data.into_foreign() };
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// Called by blk-mq only, once after `init_hctx_callback`.
    unsafe extern "C" fn exit_hctx_callback(hctx: *mut bindings::blk_mq_hw_ctx, _index: c_uint) {
        // SAFETY: `init_hctx_callback` has set it; no request runs any more.
        drop(unsafe { T::HwData::from_foreign((*hctx).driver_data) });
    }

    /// # Safety
    ///
    /// Called by blk-mq only, for a tag set made by `TagSet<T>`.
    unsafe extern "C" fn init_request_callback(
        _set: *mut bindings::blk_mq_tag_set,
        rq: *mut bindings::request,
        _index: c_uint,
        _numa_node: c_int,
    ) -> c_int {
        // SAFETY: The tag set's `cmd_size` makes room for the wrapper behind the request.
        unsafe {
            RequestDataWrapper::<T>::init(Request::<T>::wrapper_ptr(rq), T::new_request_data());
        }
        0
    }

    /// # Safety
    ///
    /// Called by blk-mq only, once after `init_request_callback`.
    unsafe extern "C" fn exit_request_callback(
        _set: *mut bindings::blk_mq_tag_set,
        rq: *mut bindings::request,
        _index: c_uint,
    ) {
        // SAFETY: `init_request_callback` has initialised it, and the request is idle.
        unsafe { core::ptr::drop_in_place(Request::<T>::wrapper_ptr(rq)) };
    }
}
