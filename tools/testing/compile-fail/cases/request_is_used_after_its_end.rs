// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A request is asked for its length after it was ended.
//!
//! error: E0382

use neonsan_kernel::block::{
    mq::{Operations, OwnedRequest},
    Status,
};

pub fn end<T: Operations>(rq: OwnedRequest<T>) -> u32 {
    rq.end(Status::OK);
    rq.len_bytes()
}
