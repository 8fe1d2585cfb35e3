// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Delayed work queued past its value's own queue, on one that may go before the work is due.
//!
//! error: E0599
//! says: enqueue_delayed

use kernel::{
    impl_has_delayed_work,
    prelude::*,
    sync::Arc,
    workqueue::{DelayedWork, WorkItem},
};
use neonsan_kernel::workqueue::OwnedQueue;

#[pin_data]
pub struct Item {
    #[pin]
    work: DelayedWork<Item, 0>,
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self, 0> for Item { self.work }
}

impl WorkItem<0> for Item {
    type Pointer = Arc<Item>;

    fn run(_: Arc<Item>) {}
}

pub fn begin(queue: OwnedQueue, item: Arc<Item>) {
    let _ = queue.enqueue_delayed::<_, 0>(item, 10);
}
