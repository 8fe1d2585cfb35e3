// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Atomics: loom's when the model checker runs, else the real ones.
//!
//! The kernel prefers its own `kernel::sync::atomic`. Core's are used here since this crate is also
//! compiled without a kernel; on x86-64 and arm64 they compile to the same instructions, and no
//! word here is shared with C code, so the two memory models never meet.

#[cfg(not(loom))]
pub(crate) use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};
