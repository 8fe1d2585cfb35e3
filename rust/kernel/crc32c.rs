// SPDX-License-Identifier: GPL-2.0

//! CRC-32C (Castagnoli).
//!
//! C header: `include/linux/crc32c.h`.

use neonsan_bindings as bindings;

/// The checksum as protocols use it: all ones at the start, inverted at the end. Any context.
pub fn crc32c(bytes: &[u8]) -> u32 {
    !extend(!0, bytes)
}

/// Goes on with a checksum that is not inverted yet.
pub fn extend(crc: u32, bytes: &[u8]) -> u32 {
    // SAFETY: The slice is valid for reads.
    unsafe { bindings::crc32c(crc, bytes.as_ptr().cast(), bytes.len()) }
}
