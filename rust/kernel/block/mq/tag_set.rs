// SPDX-License-Identifier: GPL-2.0

//! Tag sets.
//!
//! C header: `include/linux/blk-mq.h` (`struct blk_mq_tag_set`).

use super::{operations::OperationsVTable, request::RequestDataWrapper, Operations};
use core::marker::PhantomData;
use kernel::{
    error::to_result,
    prelude::*,
    time::{msecs_to_jiffies, Msecs},
    types::{ForeignOwnable, Opaque, ScopeGuard},
};
use neonsan_bindings as bindings;

/// How a tag set behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(u32);

impl Flags {
    /// [`Operations::queue_rq`] may sleep.
    pub const BLOCKING: Flags = Flags(bindings::BLK_MQ_F_BLOCKING);
    /// A CPU may go offline while requests of its hardware queue are in flight. Without it blk-mq
    /// waits for them, for as long as they take. Whoever sets it must be able to end a request
    /// from any CPU.
    ///
    /// Upstream named it for drivers whose requests wait for another disk (loop), and leaving out that
    /// wait is all it does (`__blk_mq_add_cpuhp` in `block/blk-mq.c`). A disk over a network has the
    /// same trouble for the same reason: its requests wait for something whose end no CPU here can
    /// bring about, and without the flag taking a CPU offline would hang for as long as a node is gone.
    pub const STACKING: Flags = Flags(bindings::BLK_MQ_F_STACKING);
    /// No I/O scheduler unless the administrator asks for one.
    pub const NO_SCHED_BY_DEFAULT: Flags = Flags(bindings::BLK_MQ_F_NO_SCHED_BY_DEFAULT);
}

impl core::ops::BitOr for Flags {
    type Output = Flags;

    fn bitor(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }
}

/// The tags and requests of a device.
///
/// # Invariants
///
/// `inner` was set up by `blk_mq_alloc_tag_set`, and its `driver_data` comes from
/// [`ForeignOwnable::into_foreign`].
#[pin_data(PinnedDrop)]
pub struct TagSet<T: Operations> {
    #[pin]
    inner: Opaque<bindings::blk_mq_tag_set>,
    _p: PhantomData<T>,
}

impl<T: Operations> TagSet<T> {
    /// Makes a tag set with `nr_hw_queues` hardware queues of `queue_depth` tags each, spread over
    /// the CPUs by blk-mq. The last [`Operations::nr_poll_queues`] of them are for polled requests.
    /// Requests that take longer than `timeout_ms` are reported to
    /// [`Operations::timeout`]; zero is blk-mq's default of 30 seconds. May sleep.
    pub fn new(
        nr_hw_queues: u32,
        queue_depth: u32,
        timeout_ms: u32,
        flags: Flags,
        data: T::TagSetData,
    ) -> impl PinInit<Self, Error> {
        // A tag must fit in 16 bits, see `Request::tag`.
        const_assert!(bindings::BLK_MQ_MAX_DEPTH <= u16::MAX as u32);
        try_pin_init!(TagSet {
            inner <- Opaque::try_ffi_init(move |slot: *mut bindings::blk_mq_tag_set| {
                let data = ScopeGuard::new_with_data(data.into_foreign(), |data| {
                    // SAFETY: It comes from `into_foreign` and the tag set was not made.
                    drop(unsafe { T::TagSetData::from_foreign(data) });
                });
                let mut set: bindings::blk_mq_tag_set = pin_init::zeroed();
                set.ops = OperationsVTable::<T>::build();
                let poll_queues = if T::HAS_POLL {
                    // SAFETY: It comes from `into_foreign` above.
                    T::nr_poll_queues(unsafe { T::TagSetData::borrow(*data) })
                } else {
                    // blk-mq would call what is not in the table.
                    0
                };
                set.nr_maps = if poll_queues > 0 { bindings::hctx_type_HCTX_MAX_TYPES } else { 1 };
                set.nr_hw_queues = nr_hw_queues;
                set.queue_depth = queue_depth;
                set.cmd_size = u32::try_from(size_of::<RequestDataWrapper<T>>())?;
                set.numa_node = bindings::NUMA_NO_NODE;
                set.timeout = u32::try_from(msecs_to_jiffies(timeout_ms as Msecs))?;
                set.flags = flags.0;
                set.driver_data = *data;
                // SAFETY: `slot` is valid for writes and pinned, and is filled in here.
                to_result(unsafe {
                    slot.write(set);
                    bindings::blk_mq_alloc_tag_set(slot)
                })?;
                data.dismiss();
                Ok::<(), Error>(())
            }),
            _p: PhantomData,
        })
    }

    pub(super) fn as_raw(&self) -> *mut bindings::blk_mq_tag_set {
        self.inner.get()
    }
}

#[pinned_drop]
impl<T: Operations> PinnedDrop for TagSet<T> {
    fn drop(self: Pin<&mut Self>) {
        let set = self.as_raw();
        // SAFETY: By the type's invariants; every disk on it is gone, since it holds a reference.
        unsafe {
            bindings::blk_mq_free_tag_set(set);
            drop(T::TagSetData::from_foreign((*set).driver_data));
        }
    }
}

// SAFETY: blk-mq synchronises what it does with the tag set; `T::TagSetData` is `Sync`.
unsafe impl<T: Operations> Sync for TagSet<T> {}
// SAFETY: As above, and `T::TagSetData` is `Send`.
unsafe impl<T: Operations> Send for TagSet<T> {}
