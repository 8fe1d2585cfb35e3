// SPDX-License-Identifier: GPL-2.0

//! From what a volume says to what the block layer is told.

use crate::uapi;
use neonsan_kernel::block::{mq::QueueLimits, SECTOR_SIZE};
use neonsan_proto::{Capabilities, Features, Geometry};
use neonsan_session::client;

/// Most separate pieces of memory in a request. Sending takes any number in turns.
const MAX_SEGMENTS: u16 = 1024;

/// Longest read or write where payloads have checksums. A write whose data changes while it is sent is
/// sent again from a copy, and each connection has room for one that long from the beginning: dirty
/// pages may depend on it.
const MAX_CHECKSUMMED_BYTES: u32 = 1 << 20;

/// How much room a connection needs for the copy of a request, if these checksums are wished for.
pub(crate) fn copy_bytes(checksums: u32) -> usize {
    if checksums & uapi::checksum::PAYLOAD != 0 {
        MAX_CHECKSUMMED_BYTES as usize
    } else {
        0
    }
}

/// The longest read or write.
fn max_hw_bytes(geometry: &Geometry, features: Features) -> u32 {
    let max_io_bytes = geometry.max_io_bytes.get();
    if features.contains(Features::PAYLOAD_CRC) {
        max_io_bytes.min(MAX_CHECKSUMMED_BYTES)
    } else {
        max_io_bytes
    }
}

/// Alignment of buffers: the data is copied or taken by the network, which needs none, but odd
/// addresses make copying slow.
const DMA_ALIGNMENT_MASK: u32 = 3;

/// The limits of a device for a volume with this geometry, checked by the session machine.
pub(crate) fn queue_limits(geometry: &Geometry, features: Features) -> QueueLimits {
    let caps = geometry.capabilities();
    let logical = geometry.logical_block_size.get();
    let physical = geometry.physical_block_size.get();
    let io_min = geometry.io_min_bytes.get();
    QueueLimits {
        logical_block_size: logical,
        physical_block_size: physical,
        io_min: if io_min == 0 { physical } else { io_min },
        io_opt: geometry.io_opt_bytes.get(),
        max_hw_bytes: max_hw_bytes(geometry, features),
        max_segments: MAX_SEGMENTS,
        max_segment_bytes: u32::MAX,
        dma_alignment: DMA_ALIGNMENT_MASK,
        discard_granularity: geometry.discard_granularity.get(),
        max_discard_bytes: geometry.max_discard_bytes.get(),
        max_write_zeroes_bytes: geometry.max_write_zeroes_bytes.get(),
        atomic_unit_min: geometry.atomic_unit_min_bytes.get(),
        atomic_unit_max: geometry.atomic_unit_max_bytes.get(),
        atomic_boundary: geometry.atomic_boundary_bytes.get(),
        write_cache: caps.contains(Capabilities::VOLATILE_CACHE),
        fua: caps.contains(Capabilities::FUA),
        rotational: caps.contains(Capabilities::ROTATIONAL),
        stable_writes: features.contains(Features::PAYLOAD_CRC),
    }
}

/// The size of a volume in sectors.
pub(crate) fn capacity_sectors(size_bytes: u64) -> u64 {
    size_bytes / u64::from(SECTOR_SIZE)
}

/// The first thing in which `new` breaks what the device was told, if there is one.
pub(crate) fn broken_promise(old: &Geometry, new: &Geometry) -> Option<&'static str> {
    if old.logical_block_size != new.logical_block_size {
        return Some("logical block size");
    }
    client::broken_promise(old, new)
}
