// SPDX-License-Identifier: GPL-2.0

//! What upstream's `kernel::sync` has in this form from 7.3 on, under its names.
//!
//! Kbuild sets `neonsan_before_7_3` for older kernels. When these are served no longer, this module is
//! upstream's.

use kernel::sync::barrier;

#[cfg(neonsan_before_7_3)]
mod spinlock_irq;

#[cfg(neonsan_before_7_3)]
pub use self::spinlock_irq::{SpinLockIrq, SpinLockIrqBackend};
#[cfg(neonsan_before_7_3)]
pub use crate::new_spinlock_irq;
#[cfg(not(neonsan_before_7_3))]
pub use kernel::{new_spinlock_irq, sync::SpinLockIrq};

/// A full memory barrier between CPUs. (Upstream's takes which kind of barrier from 7.3 on.)
#[inline(always)]
pub fn smp_mb() {
    #[cfg(neonsan_before_7_3)]
    barrier::smp_mb();
    #[cfg(not(neonsan_before_7_3))]
    barrier::smp_mb(barrier::Full);
}
