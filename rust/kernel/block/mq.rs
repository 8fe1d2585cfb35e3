// SPDX-License-Identifier: GPL-2.0

//! Multi-queue block devices (blk-mq).
//!
//! One file for each C object. A driver implements [`Operations`], makes a [`TagSet`] and builds a
//! [`GenDisk`] on it. Requests reach it as [`OwnedRequest`]: the unique right to decide how a
//! request ends. While a request is sent, others may read it through [`RequestRef`].
//!
//! Where upstream, or the Rust block series posted to it, has the same thing, it has the same name here.
//! What differs does so on purpose:
//!
//! - [`OwnedRequest`] and [`RequestRef`] are not upstream's one `ARef<Request>`: whoever may end a request
//!   and whoever only reads it are different types, so nothing ends twice, and ending cannot fail. The
//!   series comes near to it with `Owned<Request>`; it starts requests by a call of the driver, here each
//!   that is handed over is started.
//! - [`Operations::queue_rq`] cannot refuse a request (upstream's returns `Result`): the driver owns it
//!   and ends it with the [`Status`](super::Status) that says why.
//! - [`CompletionBatch`] is the driver's own, not one that `poll` is handed: requests end in the soft
//!   interrupt that brought their replies.
//! - [`RequestLlist`] is another thing than the series' `RequestList`, and so has another name.
//!
//! C header: `include/linux/blk-mq.h`.

mod batch;
mod gen_disk;
mod limits;
mod operations;
mod request;
mod request_llist;
mod request_table;
mod tag_set;

pub use batch::CompletionBatch;
pub use gen_disk::{GenDisk, GenDiskBuilder};
pub use limits::QueueLimits;
pub use operations::{Operations, TimeoutAction};
pub use request::{OwnedRequest, Request, RequestOp, RequestRef};
pub use request_llist::{RequestLlist, Taken};
pub use request_table::RequestTable;
pub use tag_set::{Flags, TagSet};
