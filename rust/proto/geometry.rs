// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Size, limits and abilities of a volume.

use crate::{Capabilities, MAX_PAYLOAD_BYTES};
use core::fmt;
use zerocopy::little_endian::{U32, U64};
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The size of a [`Geometry`] on the wire.
pub const GEOMETRY_BYTES: usize = 64;

/// Size, limits and abilities of a volume. All sizes are in bytes.
///
/// The fields are public and unchecked: a reader calls [`Geometry::check`] before use.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct Geometry {
    /// Size of the volume; a multiple of the logical block size.
    pub size_bytes: U64,
    /// The unit of addressing: every range is a multiple of it. 512 to 4096, a power of two.
    pub logical_block_size: U32,
    /// The unit that the engine writes without reading first, and never tears; a power of two,
    /// at least the logical block size, at most 64 KiB.
    pub physical_block_size: U32,
    /// Smallest request without a penalty; zero: same as the physical block size.
    pub io_min_bytes: U32,
    /// Best size of a request; zero: unknown.
    pub io_opt_bytes: U32,
    /// Longest READ and WRITE; at least 64 KiB, at most [`MAX_PAYLOAD_BYTES`].
    pub max_io_bytes: U32,
    /// Unit in which discards take effect; zero without DISCARD.
    pub discard_granularity: U32,
    /// Longest DISCARD; zero without DISCARD.
    pub max_discard_bytes: U32,
    /// Longest WRITE_ZEROES; zero without WRITE_ZEROES.
    pub max_write_zeroes_bytes: U32,
    /// Smallest atomic write; zero without ATOMIC.
    pub atomic_unit_min_bytes: U32,
    /// Largest atomic write; zero without ATOMIC.
    pub atomic_unit_max_bytes: U32,
    /// An atomic write must not cross a multiple of this; zero: no boundary.
    pub atomic_boundary_bytes: U32,
    /// [`Capabilities`].
    pub capabilities: U32,
    /// Zero.
    pub reserved: U64,
}

const _: () = assert!(core::mem::size_of::<Geometry>() == GEOMETRY_BYTES);

/// The field of a [`Geometry`] that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeometryError {
    /// The name of the field.
    pub field: &'static str,
}

impl fmt::Display for GeometryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the volume's {} makes no sense", self.field)
    }
}

impl Geometry {
    /// The smallest `max_io_bytes` that a node may state.
    pub const MIN_MAX_IO_BYTES: u32 = 64 * 1024;

    /// The largest size: what a kernel with 64-bit signed file offsets can address.
    pub const MAX_SIZE_BYTES: u64 = i64::MAX as u64;

    /// The abilities of the volume.
    pub fn capabilities(&self) -> Capabilities {
        Capabilities(self.capabilities.get())
    }

    /// Checks every field against the rules of the protocol document.
    pub fn check(&self) -> Result<(), GeometryError> {
        let lbs = self.logical_block_size.get();
        let pbs = self.physical_block_size.get();
        let caps = self.capabilities();
        let multiple = |value: u32| value % lbs == 0;
        let bad = |field| Err(GeometryError { field });

        if !lbs.is_power_of_two() || !(512..=4096).contains(&lbs) {
            return bad("logical block size");
        }
        if !pbs.is_power_of_two() || pbs < lbs || pbs > 64 * 1024 {
            return bad("physical block size");
        }
        let size = self.size_bytes.get();
        if size == 0 || size > Self::MAX_SIZE_BYTES || size % u64::from(lbs) != 0 {
            return bad("size");
        }
        if !multiple(self.io_min_bytes.get()) {
            return bad("smallest I/O size");
        }
        if !multiple(self.io_opt_bytes.get()) {
            return bad("best I/O size");
        }
        let max_io = self.max_io_bytes.get();
        if !(Self::MIN_MAX_IO_BYTES..=MAX_PAYLOAD_BYTES).contains(&max_io) || !multiple(max_io) {
            return bad("longest I/O size");
        }
        let granularity = self.discard_granularity.get();
        let max_discard = self.max_discard_bytes.get();
        if caps.contains(Capabilities::DISCARD) {
            if granularity == 0 || !granularity.is_power_of_two() || !multiple(granularity) {
                return bad("discard granularity");
            }
            if max_discard < granularity || max_discard % granularity != 0 {
                return bad("longest discard");
            }
        } else if granularity != 0 || max_discard != 0 {
            return bad("discard limit (without the ability)");
        }
        let max_zeroes = self.max_write_zeroes_bytes.get();
        if caps.contains(Capabilities::WRITE_ZEROES) {
            if max_zeroes < lbs || !multiple(max_zeroes) {
                return bad("longest write-zeroes");
            }
        } else if max_zeroes != 0 {
            return bad("write-zeroes limit (without the ability)");
        }
        self.check_atomic(lbs, max_io)
    }

    fn check_atomic(&self, lbs: u32, max_io: u32) -> Result<(), GeometryError> {
        let (min, max) = (
            self.atomic_unit_min_bytes.get(),
            self.atomic_unit_max_bytes.get(),
        );
        let boundary = self.atomic_boundary_bytes.get();
        let sane = if self.capabilities().contains(Capabilities::ATOMIC) {
            min.is_power_of_two()
                && max.is_power_of_two()
                && lbs <= min
                && min <= max
                && max <= max_io
                && (boundary == 0 || (boundary.is_power_of_two() && boundary >= max))
        } else {
            min == 0 && max == 0 && boundary == 0
        };
        if sane {
            Ok(())
        } else {
            Err(GeometryError {
                field: "atomic write limit",
            })
        }
    }
}
