// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Delayed work on a queue that is gone when the function returns, before the work is due.
//!
//! error: E0515

use kernel::{
    impl_has_delayed_work,
    prelude::*,
    sync::Arc,
    workqueue::{DelayedWork, WorkItem},
};
use neonsan_kernel::workqueue::{DelayedOn, OwnedQueue};

#[pin_data]
pub struct Item {
    name: &'static CStr,
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

impl DelayedOn<0> for Item {
    fn queue(&self) -> &OwnedQueue {
        match &OwnedQueue::new_unbound(self.name) {
            Ok(queue) => queue,
            Err(_) => panic!(),
        }
    }
}
