// SPDX-License-Identifier: GPL-2.0

//! Network namespaces.
//!
//! C header: `include/net/net_namespace.h`.

use core::ptr::NonNull;
use neonsan_bindings as bindings;

/// A reference to a network namespace.
///
/// # Invariants
///
/// Owns a reference to the `struct net`.
pub struct Net(NonNull<bindings::net>);

// SAFETY: Namespaces are reference counted and may be used from any thread.
unsafe impl Send for Net {}
// SAFETY: As above.
unsafe impl Sync for Net {}

impl Net {
    /// Takes a reference of its own to a namespace.
    ///
    /// # Safety
    ///
    /// `net` must be valid.
    pub(crate) unsafe fn from_raw(net: NonNull<bindings::net>) -> Self {
        // SAFETY: By the caller's promise.
        unsafe { bindings::get_net(net.as_ptr()) };
        // INVARIANT: The reference was just taken.
        Net(net)
    }

    pub(super) fn as_raw(&self) -> *mut bindings::net {
        self.0.as_ptr()
    }
}

impl PartialEq for Net {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Clone for Net {
    fn clone(&self) -> Self {
        // SAFETY: By the type's invariants.
        unsafe { bindings::get_net(self.as_raw()) };
        // INVARIANT: The reference was just taken.
        Net(self.0)
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        // SAFETY: By the type's invariants.
        unsafe { bindings::put_net(self.as_raw()) };
    }
}
