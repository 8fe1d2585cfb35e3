// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Delayed work whose value names no queue, so nothing says that one lives as long.
//!
//! error: E0277
//! says: DelayedOn

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

pub fn begin(item: Arc<Item>) {
    OwnedQueue::mod_delayed::<_, 0>(item, 10);
}
