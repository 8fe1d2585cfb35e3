// SPDX-License-Identifier: GPL-2.0

//! CRC-32C for the protocol, by the kernel's implementation.

/// The checksum of some bytes.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    neonsan_kernel::crc32c::crc32c(bytes)
}
