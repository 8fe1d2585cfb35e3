// SPDX-License-Identifier: GPL-2.0

//! Random numbers.
//!
//! C header: `include/linux/random.h`.

use neonsan_bindings as bindings;

/// Fills `bytes` with random ones fit for cryptography. Any context.
pub fn fill(bytes: &mut [u8]) {
    // SAFETY: The slice is valid for writes.
    unsafe { bindings::get_random_bytes(bytes.as_mut_ptr().cast(), bytes.len()) };
}
