// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Memory is added to a batch without what keeps it.
//!
//! error: E0308

use kernel::prelude::*;
use neonsan_kernel::{
    block::{bio::SegmentCursor, mq::Operations},
    net::SendBatch,
};

pub fn push<T: Operations>(
    batch: &mut SendBatch<T>,
    cursor: &mut SegmentCursor<T>,
) -> Result<bool> {
    match cursor.next_segment() {
        Some(segment) => batch.push_request(segment),
        None => Ok(true),
    }
}
