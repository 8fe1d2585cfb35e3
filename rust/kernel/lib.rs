// SPDX-License-Identifier: GPL-2.0

//! Safe wrappers for the parts of the kernel that upstream's `kernel` crate lacks.
//!
//! Nearly all `unsafe` of the project is in this crate. Things carry the names that
//! upstream, or the patches posted to it, give them, so that moving to upstream's
//! own is deletion.

/// What `pr_*!` of this crate prints first; `module!` defines it for the driver only.
#[allow(
    dead_code,
    reason = "only the macros name it, so a build without messages has no use of it"
)]
const __LOG_PREFIX: &[u8] = b"neonsan\0";

pub mod block;
pub mod clock;
pub mod cpu;
pub mod crc32c;
pub mod debugfs;
pub mod error;
pub mod genetlink;
pub mod mm;
pub mod module;
pub mod net;
pub mod random;
pub mod reboot;
mod skbuff;
pub mod sync;
pub mod trace;
pub mod workqueue;
