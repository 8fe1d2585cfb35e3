// SPDX-License-Identifier: GPL-2.0

//! Being told that the machine is about to go down.
//!
//! C header: `include/linux/reboot.h`.

use core::{cell::UnsafeCell, ffi::c_int, marker::PhantomData};
use kernel::{error::to_result, prelude::*};
use neonsan_bindings as bindings;

/// What is done before the machine restarts, halts or is switched off.
pub trait Shutdown: 'static {
    /// The machine goes down when this, and the others who are told, have returned. Processes
    /// still run, devices still work. May sleep, but the machine waits for it.
    fn shutdown();
}

/// A static that is told, once it is [registered](Notifier::register).
pub struct Notifier<T: Shutdown> {
    block: UnsafeCell<bindings::notifier_block>,
    _told: PhantomData<fn() -> T>,
}

// SAFETY: Only the kernel touches the block, under its own lock.
unsafe impl<T: Shutdown> Sync for Notifier<T> {}

impl<T: Shutdown> Notifier<T> {
    /// A notifier that nobody knows of yet.
    pub const fn new() -> Self {
        Notifier {
            block: UnsafeCell::new(bindings::notifier_block {
                notifier_call: Some(notify::<T>),
                // Before those who stop the network.
                priority: c_int::MAX,
                ..pin_init::zeroed()
            }),
            _told: PhantomData,
        }
    }

    /// Makes it known until what this returns is dropped. May sleep.
    ///
    /// # Errors
    ///
    /// `EEXIST` if it is known already.
    pub fn register(&'static self) -> Result<Registration> {
        let block = self.block.get();
        // SAFETY: The block is static and complete, and the kernel refuses one that it knows.
        to_result(unsafe { bindings::register_reboot_notifier(block) })?;
        // INVARIANT: It was just registered.
        Ok(Registration { block })
    }
}

impl<T: Shutdown> Default for Notifier<T> {
    fn default() -> Self {
        Notifier::new()
    }
}

/// # Safety
///
/// Called by the kernel only.
unsafe extern "C" fn notify<T: Shutdown>(
    _block: *mut bindings::notifier_block,
    _action: c_ulong,
    _data: *mut c_void,
) -> c_int {
    T::shutdown();
    bindings::NOTIFY_DONE as c_int
}

/// A notifier that is known. Dropping waits for a call that runs.
///
/// # Invariants
///
/// `block` is registered, and static.
pub struct Registration {
    block: *mut bindings::notifier_block,
}

// SAFETY: The kernel does its own locking.
unsafe impl Send for Registration {}
// SAFETY: As above.
unsafe impl Sync for Registration {}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: By the invariant. It fails only for a block that is not registered.
        unsafe { bindings::unregister_reboot_notifier(self.block) };
    }
}
