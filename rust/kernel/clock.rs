// SPDX-License-Identifier: GPL-2.0

//! A cheap clock.
//!
//! C header: `include/linux/jiffies.h`.

use neonsan_bindings as bindings;

/// Milliseconds since some time around boot, in steps of a timer tick (1 to 10 ms). Never goes
/// back. Any context.
#[inline]
pub fn coarse_monotonic_ms() -> u64 {
    // SAFETY: Only reads the clock.
    unsafe { bindings::jiffies_ms() }
}
