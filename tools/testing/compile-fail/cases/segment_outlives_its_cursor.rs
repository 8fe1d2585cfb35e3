// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A piece of memory is looked at when nothing keeps its request from ending any more.
//!
//! error: E0597

use neonsan_kernel::block::{
    bio::SegmentCursor,
    mq::{Operations, RequestRef},
};

pub fn checksum<T: Operations>(rq: RequestRef<T>) -> u32 {
    let segment = {
        let mut cursor = SegmentCursor::new(rq);
        cursor.next_segment()
    };
    segment.map_or(0, |segment| segment.crc32c(0))
}
