// SPDX-License-Identifier: GPL-2.0

//! The driver's clock: the session machines take time as a parameter.

use neonsan_session::Instant;

/// Now, in steps of a timer tick.
pub(crate) fn now() -> Instant {
    Instant(neonsan_kernel::clock::coarse_monotonic_ms())
}
