// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What a host relies on once it was told the limits and abilities of a volume.

use crate::CloseCause;
use neonsan_proto::{Capabilities, Geometry};

/// Whether a device of `device_bytes` goes on with its volume when that has `volume_bytes`.
///
/// A device grows with its volume. It does not shrink by itself, be it that the volume was shrunk while
/// the host was away or while it looked on: behind the new end lie data of a file system that is mounted,
/// and what reads or writes there would fail from one moment to the next. So it waits, like one that is
/// lost, until a person has accepted just this size (`accepted_bytes`), or the volume has grown again.
pub const fn check_size(
    device_bytes: u64,
    volume_bytes: u64,
    accepted_bytes: Option<u64>,
) -> Result<(), CloseCause> {
    let is_accepted = match accepted_bytes {
        Some(bytes) => bytes == volume_bytes,
        None => false,
    };
    if volume_bytes >= device_bytes || is_accepted {
        Ok(())
    } else {
        Err(CloseCause::VolumeShrunk(volume_bytes))
    }
}

/// The first thing in which `new` promises less than `old` did, or asks more, if there is one.
///
/// Requests that were made for the old promise may be waiting, and users of the disk were told of
/// it: to whoever breaks it nothing may be sent. Size and logical block size have rules of their
/// own and are not looked at; what is only advice (preferred sizes, discard granularity) may change.
pub fn broken_promise(old: &Geometry, new: &Geometry) -> Option<&'static str> {
    let (had, has) = (old.capabilities(), new.capabilities());
    // A host that was told of no cache sends no FLUSH.
    let gained = has.difference(had);
    if gained.contains(Capabilities::VOLATILE_CACHE) {
        return Some("write cache (there was none before)");
    }
    if gained.contains(Capabilities::READ_ONLY) {
        return Some("ability to write (it is read-only now)");
    }
    let relied_on = Capabilities::FUA
        .union(Capabilities::DISCARD)
        .union(Capabilities::WRITE_ZEROES)
        .union(Capabilities::ATOMIC);
    if !has.contains(had.intersection(relied_on)) {
        return Some("ability (fewer than before)");
    }
    if new.max_io_bytes.get() < old.max_io_bytes.get() {
        return Some("longest I/O size (smaller than before)");
    }
    if new.max_discard_bytes.get() < old.max_discard_bytes.get() {
        return Some("longest discard (smaller than before)");
    }
    if new.max_write_zeroes_bytes.get() < old.max_write_zeroes_bytes.get() {
        return Some("longest write-zeroes (smaller than before)");
    }
    if had.contains(Capabilities::ATOMIC) {
        let boundary = |g: &Geometry| match g.atomic_boundary_bytes.get() {
            0 => u32::MAX,
            bytes => bytes,
        };
        if new.atomic_unit_max_bytes.get() < old.atomic_unit_max_bytes.get()
            || new.atomic_unit_min_bytes.get() > old.atomic_unit_min_bytes.get()
            || boundary(new) < boundary(old)
        {
            return Some("limits of atomic writes (narrower than before)");
        }
    }
    None
}
