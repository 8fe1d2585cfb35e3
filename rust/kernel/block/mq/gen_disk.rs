// SPDX-License-Identifier: GPL-2.0

//! Disks.
//!
//! C header: `include/linux/blkdev.h` (`struct gendisk`).

use super::{Operations, QueueLimits, TagSet};
use crate::module::THIS_MODULE;
use core::ffi::c_int;
use kernel::{
    error::{from_err_ptr, to_result},
    page::PAGE_SHIFT,
    prelude::*,
    str::CString,
    sync::Arc,
    time::{msecs_to_jiffies, Msecs},
    types::{ForeignOwnable, ScopeGuard},
};
use neonsan_bindings as bindings;

/// How far is read ahead at most when a disk is added. The kernel's default for a disk of which nothing is
/// known is half of it; on a network one more window is worth having: it is as much as the answer to a
/// request of the default size takes while the next is on its way.
const MAX_READ_AHEAD_BYTES: usize = 256 << 10;

/// Settles what a disk is before it is added.
pub struct GenDiskBuilder {
    limits: QueueLimits,
    capacity_sectors: u64,
    read_only: bool,
    serial: CString,
    volume: CString,
}

/// `Send` and `Sync` stand-in: the table holds only constant addresses.
struct Fops(bindings::block_device_operations);
// SAFETY: The table is constant.
unsafe impl Sync for Fops {}

/// The disk operations: all that is not done by requests is the block layer's default. While a
/// disk is open, this module cannot be removed.
static FOPS: Fops = Fops(bindings::block_device_operations {
    owner: THIS_MODULE.as_ptr(),
    open: Some(open),
    ..pin_init::zeroed()
});

/// # Safety
///
/// Called by the block layer only, for a disk of ours that is added, with its `open_mutex` held.
unsafe extern "C" fn open(disk: *mut bindings::gendisk, _mode: bindings::blk_mode_t) -> c_int {
    // SAFETY: `GenDiskBuilder::build` has set the private data, which lives as long as the disk is
    // added; `closed` is protected by `open_mutex`.
    if unsafe { (*(*disk).private_data.cast::<bindings::neonsan_disk_data>()).closed } {
        ENXIO.to_errno()
    } else {
        0
    }
}

/// What a disk's private data refers to.
struct Identity {
    /// Its address is the disk's private data.
    data: bindings::neonsan_disk_data,
    _serial: CString,
    _volume: CString,
}

impl GenDiskBuilder {
    /// A disk of this size with these limits. `serial` and `volume` are shown in sysfs, as
    /// attributes of these names.
    pub fn new(
        limits: QueueLimits,
        capacity_sectors: u64,
        serial: CString,
        volume: CString,
    ) -> Self {
        GenDiskBuilder {
            limits,
            capacity_sectors,
            read_only: false,
            serial,
            volume,
        }
    }

    /// Whether writes are refused by the block layer.
    pub fn read_only(mut self, read_only: bool) -> Self {
        self.read_only = read_only;
        self
    }

    /// Makes the disk, without showing it to anyone yet. May sleep.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the limits make no sense or the name is too long; `ENOMEM`.
    pub fn build<T: Operations>(
        self,
        name: &CStr,
        tag_set: Arc<TagSet<T>>,
        queue_data: T::QueueData,
    ) -> Result<GenDisk<T>> {
        let data = ScopeGuard::new_with_data(queue_data.into_foreign(), |data| {
            // SAFETY: It comes from `into_foreign` and no disk was made.
            drop(unsafe { T::QueueData::from_foreign(data) });
        });
        let identity = KBox::new(
            Identity {
                data: bindings::neonsan_disk_data {
                    serial: self.serial.as_char_ptr(),
                    volume: self.volume.as_char_ptr(),
                    closed: false,
                },
                _serial: self.serial,
                _volume: self.volume,
            },
            GFP_KERNEL,
        )?;
        let mut lim: bindings::queue_limits = pin_init::zeroed();
        self.limits.apply(&mut lim);
        // SAFETY: The tag set is valid; the lock class key is static.
        let disk = from_err_ptr(unsafe {
            bindings::__blk_mq_alloc_disk(
                tag_set.as_raw(),
                &mut lim,
                *data,
                kernel::static_lock_class!().as_ptr(),
            )
        })?;
        data.dismiss();
        // INVARIANT: The disk was just made, with `data` as its queue's data; its private data is
        // set below.
        let this = GenDisk {
            disk,
            added: false,
            identity: KBox::into_raw(identity),
            _tag_set: tag_set,
        };
        let name = name.to_bytes_with_nul();
        // SAFETY: The disk is not added yet, so nobody else uses it.
        unsafe {
            let slot = (*disk).disk_name.get_mut(..name.len()).ok_or(EINVAL)?;
            for (to, from) in slot.iter_mut().zip(name) {
                *to = *from;
            }
            (*disk).private_data = (&raw mut (*this.identity).data).cast();
            (*disk).fops = &FOPS.0;
            bindings::set_capacity(disk, self.capacity_sectors);
            bindings::set_disk_ro(disk, self.read_only);
        }
        this.prevent_merges(&self.limits);
        Ok(this)
    }
}

/// A disk, shown to the world after [`GenDisk::add`].
///
/// Dropping it takes it away: what is written but not yet sent is sent first, unless the disk was
/// marked dead, and opened files get errors from then on. May sleep, for as long as requests are
/// in flight.
///
/// # Invariants
///
/// - `disk` comes from `__blk_mq_alloc_disk` with a queue data of `T`; it is added if `added`.
/// - `identity` comes from [`KBox::into_raw`], and the disk's private data is its `data`.
pub struct GenDisk<T: Operations> {
    disk: *mut bindings::gendisk,
    added: bool,
    identity: *mut Identity,
    _tag_set: Arc<TagSet<T>>,
}

// SAFETY: The block layer synchronises what can be done with a disk.
unsafe impl<T: Operations> Send for GenDisk<T> {}
// SAFETY: As above.
unsafe impl<T: Operations> Sync for GenDisk<T> {}

impl<T: Operations> GenDisk<T> {
    /// Shows the disk to the world. Its partitions are read at once, so requests must work. May
    /// sleep.
    pub fn add(&mut self) -> Result {
        if self.added {
            return Err(EBUSY);
        }
        // SAFETY: By the type's invariants the disk is complete and not added yet.
        to_result(unsafe { bindings::device_add_disk_with_attributes(self.disk) })?;
        // INVARIANT: It is added.
        self.added = true;
        self.bound_read_ahead();
        Ok(())
    }

    /// The block layer reads ahead twice the optimal I/O size, which is right for what rotates. Where
    /// that size is large since a volume is cut into large objects, as in a Ceph cluster, a small read
    /// of a mapped file would cost megabytes.
    fn bound_read_ahead(&self) {
        let pages = self.read_ahead_pages();
        self.set_read_ahead_pages(pages.min(MAX_READ_AHEAD_BYTES >> PAGE_SHIFT));
    }

    fn read_ahead_pages(&self) -> usize {
        // SAFETY: By the type's invariants; a disk has its `bdi` from the beginning.
        unsafe { bindings::disk_read_ahead_pages(self.disk) }
    }

    fn set_read_ahead_pages(&self, pages: usize) {
        // SAFETY: As above.
        unsafe { bindings::set_disk_read_ahead_pages(self.disk, pages) };
    }

    fn queue(&self) -> *mut bindings::request_queue {
        // SAFETY: By the type's invariants; a disk keeps its queue.
        unsafe { (*self.disk).queue }
    }

    /// How many times the disk and its partitions are open now. Only a hint unless opening is
    /// prevented.
    pub fn openers(&self) -> u32 {
        // SAFETY: By the type's invariants.
        unsafe { bindings::disk_openers(self.disk) }
    }

    /// Makes every attempt to open the disk fail with `ENXIO` from now on, if it is not open now.
    /// Otherwise returns how many times it is; somebody who is opening it, which may wait for
    /// requests, counts as well. Any process context.
    pub fn close_if_unused(&self) -> Result<(), u32> {
        // SAFETY: By the type's invariants; `closed` is protected by `open_mutex`, as is the count
        // of openers.
        unsafe {
            if !bindings::trylock_disk_open(self.disk) {
                return Err(bindings::disk_openers(self.disk).max(1));
            }
            let openers = bindings::disk_openers(self.disk);
            if openers == 0 {
                (*self.identity).data.closed = true;
            }
            bindings::unlock_disk_open(self.disk);
            match openers {
                0 => Ok(()),
                openers => Err(openers),
            }
        }
    }

    /// No request reaches the driver from now on: they wait in the block layer. When this returns,
    /// no call of [`Operations::queue_rq`] is under way. Calls nest with [`GenDisk::unquiesce`].
    /// May sleep.
    pub fn quiesce(&self) {
        // SAFETY: By the type's invariants.
        unsafe { bindings::blk_mq_quiesce_queue(self.queue()) };
    }

    /// Ends one [`GenDisk::quiesce`]: what waits reaches the driver. May sleep.
    pub fn unquiesce(&self) {
        // SAFETY: By the type's invariants.
        unsafe { bindings::blk_mq_unquiesce_queue(self.queue()) };
    }

    /// The size in sectors of 512 bytes.
    pub fn capacity_sectors(&self) -> u64 {
        // SAFETY: By the type's invariants.
        unsafe { bindings::get_capacity(self.disk) }
    }

    /// Changes the size and tells user space. May sleep.
    pub fn set_capacity_and_notify(&self, sectors: u64) {
        // SAFETY: By the type's invariants.
        unsafe { bindings::set_capacity_and_notify(self.disk, sectors) };
    }

    /// Changes after how long requests are reported to [`Operations::timeout`]; for requests that
    /// start from now on.
    pub fn set_request_timeout(&self, timeout_ms: u32) {
        let jiffies = msecs_to_jiffies(timeout_ms as Msecs);
        let jiffies = u32::try_from(jiffies).unwrap_or(u32::MAX);
        // SAFETY: By the type's invariants.
        unsafe { bindings::blk_queue_rq_timeout(self.queue(), jiffies) };
    }

    /// The block layer merges adjacent atomic writes as long as the sum is not above the limit, and
    /// looks at neither power of two nor alignment then, on which devices with the limits of an
    /// atomic write(2) insist. There is no way to keep it from that but to merge nothing.
    fn prevent_merges(&self, limits: &QueueLimits) {
        if limits.atomic_unit_max > limits.atomic_unit_min {
            // SAFETY: By the type's invariants.
            unsafe { bindings::blk_queue_flag_set(bindings::QUEUE_FLAG_NOMERGES, self.queue()) };
        }
    }

    /// Changes the limits of the live queue: waits for the requests in flight. How far is read ahead stays
    /// what it was, perhaps set by somebody. May sleep.
    pub fn set_limits(&self, limits: &QueueLimits) -> Result {
        self.prevent_merges(limits);
        let read_ahead;
        // SAFETY: By the type's invariants; start and commit are paired and hold the lock between.
        let result = unsafe {
            let mut lim = bindings::queue_limits_start_update(self.queue());
            // The block layer raises it with the limits, and never lowers it.
            read_ahead = self.read_ahead_pages();
            limits.apply(&mut lim);
            to_result(bindings::queue_limits_commit_update_frozen(
                self.queue(),
                &mut lim,
            ))
        };
        self.set_read_ahead_pages(read_ahead);
        result
    }

    /// From now on every new request fails, and removal does not try to write anything back.
    /// May sleep.
    pub fn mark_dead(&self) {
        // SAFETY: By the type's invariants.
        unsafe { bindings::blk_mark_disk_dead(self.disk) };
    }
}

impl<T: Operations> Drop for GenDisk<T> {
    fn drop(&mut self) {
        // SAFETY: By the type's invariants. After `del_gendisk` no request runs, so nothing
        // borrows the queue's data any more; `put_disk` gives up our reference to the disk.
        unsafe {
            let data = (*self.queue()).queuedata;
            if self.added {
                bindings::del_gendisk(self.disk);
            }
            bindings::put_disk(self.disk);
            drop(T::QueueData::from_foreign(data));
            // Nobody opens a disk that is not added, or looks at its attributes.
            drop(KBox::from_raw(self.identity));
        }
    }
}
