// SPDX-License-Identifier: GPL-2.0

//! What a device can do.
//!
//! C header: `include/linux/blkdev.h` (`struct queue_limits`).

use crate::block::SECTOR_SIZE;
use neonsan_bindings as bindings;

/// The limits and abilities of a device, in bytes. Zero in an optional limit: the device lacks it.
///
/// The block layer checks them when they are set, and refuses what makes no sense with `EINVAL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// The unit of addressing. 512 to the page size, a power of two.
    pub logical_block_size: u32,
    /// The unit that the device writes without reading first and never tears.
    pub physical_block_size: u32,
    /// Smallest request without a penalty.
    pub io_min: u32,
    /// Best size of a request; zero: unknown.
    pub io_opt: u32,
    /// Longest read or write.
    pub max_hw_bytes: u32,
    /// Most separate pieces of memory in a request.
    pub max_segments: u16,
    /// Longest piece of memory in a request.
    pub max_segment_bytes: u32,
    /// Mask of address bits of a buffer that must be zero.
    pub dma_alignment: u32,
    /// Unit in which discards take effect.
    pub discard_granularity: u32,
    /// Longest discard; zero: no discard.
    pub max_discard_bytes: u32,
    /// Longest write of zeroes; zero: no such command.
    pub max_write_zeroes_bytes: u32,
    /// Smallest atomic write; zero: none.
    pub atomic_unit_min: u32,
    /// Longest atomic write; zero: none. Where atomic writes of more than one size are offered the block
    /// layer merges no requests, see [`GenDisk::set_limits`](super::GenDisk::set_limits).
    pub atomic_unit_max: u32,
    /// What an atomic write must not cross; zero: no boundary.
    pub atomic_boundary: u32,
    /// Writes are volatile until flushed.
    pub write_cache: bool,
    /// A single write can be made durable without a flush.
    pub fua: bool,
    /// Seeks are slow.
    pub rotational: bool,
    /// Pages must not change while they are written (for checksums).
    pub stable_writes: bool,
}

impl QueueLimits {
    /// Writes these limits over those of a queue.
    pub(super) fn apply(&self, lim: &mut bindings::queue_limits) {
        let sectors = |bytes: u32| bytes / SECTOR_SIZE;
        lim.logical_block_size = self.logical_block_size;
        lim.physical_block_size = self.physical_block_size;
        lim.io_min = self.io_min;
        lim.io_opt = self.io_opt;
        lim.max_hw_sectors = sectors(self.max_hw_bytes);
        lim.max_segments = self.max_segments;
        lim.max_segment_size = self.max_segment_bytes;
        lim.dma_alignment = self.dma_alignment;
        lim.discard_granularity = self.discard_granularity;
        lim.max_hw_discard_sectors = sectors(self.max_discard_bytes);
        lim.max_write_zeroes_sectors = sectors(self.max_write_zeroes_bytes);
        lim.atomic_write_hw_max = self.atomic_unit_max;
        lim.atomic_write_hw_unit_min = self.atomic_unit_min;
        lim.atomic_write_hw_unit_max = self.atomic_unit_max;
        lim.atomic_write_hw_boundary = self.atomic_boundary;
        for (on, feature) in [
            (self.write_cache, bindings::BLK_FEAT_WRITE_CACHE),
            (self.fua, bindings::BLK_FEAT_FUA),
            (self.rotational, bindings::BLK_FEAT_ROTATIONAL),
            (self.stable_writes, bindings::BLK_FEAT_STABLE_WRITES),
            (self.atomic_unit_max != 0, bindings::BLK_FEAT_ATOMIC_WRITES),
        ] {
            if on {
                lim.features |= feature;
            } else {
                lim.features &= !feature;
            }
        }
    }
}
