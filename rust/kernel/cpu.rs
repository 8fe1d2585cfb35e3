// SPDX-License-Identifier: GPL-2.0

//! Processors.
//!
//! C header: `include/linux/cpumask.h`.

use neonsan_bindings as bindings;

/// How many CPUs are online now. A hint: they come and go.
pub fn num_online() -> u32 {
    // SAFETY: Only reads a counter.
    unsafe { bindings::num_online_cpus() }
}
