// SPDX-License-Identifier: GPL-2.0

//! A spin lock that is held with interrupts disabled, for kernels whose `kernel` crate has none.
//!
//! C header: `include/linux/spinlock.h` (`spin_lock_irqsave`).

use kernel::{
    prelude::*,
    sync::lock::{spinlock::SpinLockBackend, Backend, Lock},
};
use neonsan_bindings as bindings;

/// Creates a [`SpinLockIrq`] initialiser with a lock class of its own.
#[macro_export]
macro_rules! new_spinlock_irq {
    ($inner:expr $(, $name:literal)? $(,)?) => {
        $crate::sync::SpinLockIrq::new(
            $inner,
            ::kernel::optional_name!($($name)?),
            ::kernel::static_lock_class!(),
        )
    };
}

/// A spin lock that is held with the interrupts of its CPU disabled.
///
/// What [`Lock::lock`] finds of them is what they are again when its guard is dropped. So guards that
/// one thread holds at the same time are dropped in the reverse order, as a scope does; upstream's,
/// which counts, has no such rule.
pub type SpinLockIrq<T> = Lock<T, SpinLockIrqBackend>;

/// The kernel's `spinlock_t`, locked by `spin_lock_irqsave`.
pub struct SpinLockIrqBackend;

/// The C lock, as this module's bindings know it: the same type.
fn raw(ptr: *mut <SpinLockBackend as Backend>::State) -> *mut bindings::spinlock_t {
    ptr.cast()
}

// SAFETY: The underlying `spinlock_t` ensures mutual exclusion. `relock` is the default, which locks.
unsafe impl Backend for SpinLockIrqBackend {
    type State = <SpinLockBackend as Backend>::State;
    /// Whether interrupts were enabled before, as C keeps it.
    type GuardState = c_ulong;

    unsafe fn init(
        ptr: *mut Self::State,
        name: *const c_char,
        key: *mut kernel::bindings::lock_class_key,
    ) {
        // SAFETY: The same requirements as this function's.
        unsafe { SpinLockBackend::init(ptr, name, key) }
    }

    #[inline]
    unsafe fn lock(ptr: *mut Self::State) -> Self::GuardState {
        // SAFETY: The lock was initialised, says the caller.
        unsafe { bindings::spin_lock_irqsave(raw(ptr)) }
    }

    #[inline]
    unsafe fn try_lock(ptr: *mut Self::State) -> Option<Self::GuardState> {
        let mut flags = 0;
        // SAFETY: The lock was initialised, says the caller; `flags` is valid for writes.
        unsafe { bindings::spin_trylock_irqsave(raw(ptr), &mut flags) }.then_some(flags)
    }

    #[inline]
    unsafe fn unlock(ptr: *mut Self::State, guard_state: &Self::GuardState) {
        // SAFETY: The caller owns the lock, and the state comes from when it was locked.
        unsafe { bindings::spin_unlock_irqrestore(raw(ptr), *guard_state) }
    }

    unsafe fn assert_is_held(ptr: *mut Self::State) {
        // SAFETY: The same requirements as this function's.
        unsafe { SpinLockBackend::assert_is_held(ptr) }
    }
}
