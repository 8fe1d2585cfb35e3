// SPDX-License-Identifier: GPL-2.0 OR MIT
//! A request of the file engine between its beginning and its end.
//!
//! A request is done in steps, one entry of the ring at a time:
//!
//! ```text
//!            ┌────────────┐ granted
//!  submit ──▶│  WaitLock  │────┐        (changing requests on volumes with
//!    │       └────────────┘    │         smaller blocks than the storage's)
//!    └─────────────────────────▼
//!  Read, Write:        ┌▶ Direct ────────────────┐
//!                      ├▶ BlockRead ─▶ BlockWrite┤ next piece, or done
//!                      └◀────────────────────────┘
//!  Discard, zeroes:    Punch ─▶ ZeroRange ─▶ written out like a Write
//!                      (to the next where the file system cannot)
//!  Flush, and zeroes with FUA at their end:  Sync ─▶ Settle ─▶ done
//! ```
//!
//! *Settle* waits until nobody else can have taken the error that was the
//! flush's; see [`super::durability`].

use super::locks::Range;
use super::settle::Asking;
use crate::{Buffer, Op};

/// The step in which a request is; see the diagram above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Waits for its range.
    WaitLock,
    /// The ring moves this many bytes from or to the request's own memory.
    Direct(u32),
    /// The ring reads the storage's block with the next bytes into `block`.
    BlockRead,
    /// The ring writes `block` back, with this many new bytes.
    BlockWrite(u32),
    /// The file system punches a hole.
    Punch,
    /// The file system zeroes the range.
    ZeroRange,
    /// The file system puts everything on stable storage.
    Sync,
    /// It says that it has; others that asked at the same time may have heard
    /// something else.
    Settle,
}

/// A request between `submit` and its completion.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) token: u64,
    pub(super) op: Op,
    pub(super) step: Step,
    /// Next byte to do, and the end: absolute.
    pub(super) at: u64,
    pub(super) end: u64,
    /// Held until the end.
    pub(super) lock: Option<Range>,
    /// Counted by `writers`: it may change the volume.
    pub(super) entered: bool,
    /// One block of the storage, if a part of it is needed.
    pub(super) block: Option<Buffer>,
    /// Present while the ring has a step that the kernel may tell of a loss.
    pub(super) asking: Option<Asking>,
    /// How often in a row the system has put its step off.
    pub(super) retries: u32,
}

impl Work {
    /// Whether what it changes must be durable at its end.
    pub(super) fn is_fua(&self) -> bool {
        matches!(
            self.op,
            Op::Write { fua: true, .. } | Op::WriteZeroes { fua: true, .. }
        )
    }

    /// Whether the ring writes with `RWF_DSYNC`.
    pub(super) fn is_dsync(&self) -> bool {
        matches!(self.step, Step::Direct(_) | Step::BlockWrite(_)) && self.is_fua()
    }

    /// The address of its block, which is there when a part of one is needed.
    pub(super) fn block_address(&self) -> *mut u8 {
        self.block
            .as_ref()
            .map_or(std::ptr::null_mut(), Buffer::address)
    }
}
