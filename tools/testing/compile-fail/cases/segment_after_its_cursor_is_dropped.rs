// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The reference to a request is given up while a piece of its memory is still in use.
//!
//! error: E0505

use neonsan_kernel::block::{
    bio::SegmentCursor,
    mq::{Operations, RequestRef},
};

pub fn checksum<T: Operations>(rq: RequestRef<T>) -> u32 {
    let mut cursor = SegmentCursor::new(rq);
    let segment = cursor.next_segment();
    drop(cursor);
    segment.map_or(0, |segment| segment.crc32c(0))
}
