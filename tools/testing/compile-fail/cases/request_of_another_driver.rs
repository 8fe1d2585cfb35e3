// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A request is put into a batch of another driver, whose data beside requests is another.
//!
//! error: E0308

use kernel::prelude::*;
use neonsan_kernel::{
    block::mq::{Operations, RequestRef},
    net::SendBatch,
};

pub fn push<T: Operations, U: Operations>(
    batch: &mut SendBatch<T>,
    rq: RequestRef<U>,
) -> Result<bool> {
    batch.push_request(rq)
}
