// SPDX-License-Identifier: GPL-2.0

//! Ending several requests together.
//!
//! C header: `include/linux/blk-mq.h` (`struct io_comp_batch`).

use crate::block::Status;
use neonsan_bindings as bindings;

/// Requests that end together: their tags and time stamps are handled once for all.
///
/// What was added ends when the batch is flushed or dropped, at the latest at the end of the
/// receive run that it belongs to.
///
/// # Invariants
///
/// The list of `inner` holds only requests that the driver owns and nothing else refers to.
pub struct CompletionBatch {
    inner: bindings::io_comp_batch,
}

// SAFETY: The requests in the list are owned by it and not bound to a thread.
unsafe impl Send for CompletionBatch {}

impl CompletionBatch {
    /// An empty batch.
    pub fn new() -> Self {
        CompletionBatch {
            inner: pin_init::zeroed(),
        }
    }

    /// Adds a request, or ends it at once if it cannot be batched.
    ///
    /// # Safety
    ///
    /// The driver must own `rq`, and the caller the last reference to it, which it gives up.
    pub(super) unsafe fn add(&mut self, rq: *mut bindings::request, status: Status) {
        // SAFETY: By the caller's promise; the list is valid by the type's invariants.
        unsafe {
            if !bindings::blk_mq_add_to_batch(rq, &mut self.inner, !status.is_ok()) {
                bindings::blk_mq_end_request(rq, status.as_raw());
            }
        }
    }

    /// Ends what was added. Any context.
    pub fn flush(&mut self) {
        if !self.inner.req_list.head.is_null() {
            // SAFETY: By the type's invariants; the call empties the list.
            unsafe { bindings::blk_mq_end_request_batch(&mut self.inner) };
            self.inner = pin_init::zeroed();
        }
    }
}

impl Default for CompletionBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for CompletionBatch {
    fn drop(&mut self) {
        self.flush();
    }
}
