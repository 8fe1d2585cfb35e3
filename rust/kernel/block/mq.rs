// SPDX-License-Identifier: GPL-2.0

//! Multi-queue block devices (blk-mq).
//!
//! One file for each C object. A driver implements [`Operations`], makes a [`TagSet`] and builds a
//! [`GenDisk`] on it. Requests reach it as [`OwnedRequest`]: the unique right to decide how a
//! request ends. While a request is sent, others may read it through [`RequestRef`].
//!
//! C header: `include/linux/blk-mq.h`.

mod batch;
mod gen_disk;
mod limits;
mod operations;
mod request;
mod request_list;
mod request_table;
mod tag_set;

pub use batch::CompletionBatch;
pub use gen_disk::{GenDisk, GenDiskBuilder};
pub use limits::QueueLimits;
pub use operations::{Operations, TimeoutAction};
pub use request::{OwnedRequest, Request, RequestOp, RequestRef};
pub use request_list::{RequestList, Taken};
pub use request_table::RequestTable;
pub use tag_set::{Flags, TagSet};
