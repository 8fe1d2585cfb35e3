// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Data beside a request that wants to be aligned further than the request itself is.
//!
//! error: E0080
//! says: aligned as the request is

use core::convert::Infallible;
use kernel::{prelude::*, sync::Arc};
use neonsan_kernel::block::mq::{Flags, Operations, OwnedRequest, TagSet, TimeoutAction};

module! {
    type: Example,
    name: "example",
    authors: ["The NeonSAN developers"],
    description: "A module, since a table of operations has one as its owner",
    license: "GPL",
}

pub struct Example;

impl kernel::Module for Example {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Example)
    }
}

pub struct Driver;

#[repr(align(64))]
pub struct Data {
    number: u64,
}

#[vtable]
impl Operations for Driver {
    type RequestData = Data;
    type QueueData = ();
    type HwData = ();
    type TagSetData = ();

    fn new_request_data() -> impl PinInit<Data, Infallible> {
        init!(Data { number: 0 })
    }

    fn nr_poll_queues((): ()) -> u32 {
        0
    }

    fn init_hctx((): (), _index: u32) -> Result {
        Ok(())
    }

    fn queue_rq((): (), (): (), rq: OwnedRequest<Driver>, _is_last: bool) {
        drop(rq);
    }

    fn commit_rqs((): (), (): ()) {}

    fn timeout((): (), (): (), _tag: u16) -> TimeoutAction {
        TimeoutAction::Done
    }

    fn poll((): ()) -> u32 {
        0
    }
}

pub fn make() -> Result<Arc<TagSet<Driver>>> {
    Arc::pin_init(TagSet::new(1, 1, 0, Flags::BLOCKING, ()), GFP_KERNEL)
}
