// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Delayed work on a queue that its value owns: this compiles.

use kernel::{
    impl_has_delayed_work, new_delayed_work,
    prelude::*,
    sync::Arc,
    workqueue::{DelayedWork, WorkItem},
};
use neonsan_kernel::workqueue::{DelayedOn, OwnedQueue};

#[pin_data]
pub struct Item {
    queue: OwnedQueue,
    #[pin]
    work: DelayedWork<Item, 0>,
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self, 0> for Item { self.work }
}

impl DelayedOn<0> for Item {
    fn queue(&self) -> &OwnedQueue {
        &self.queue
    }
}

impl WorkItem<0> for Item {
    type Pointer = Arc<Item>;

    fn run(_: Arc<Item>) {}
}

pub fn begin() -> Result {
    let queue = OwnedQueue::new_unbound(c"example")?;
    let item = Arc::pin_init(
        pin_init!(Item { queue, work <- new_delayed_work!("example") }),
        GFP_KERNEL,
    )?;
    OwnedQueue::mod_delayed::<_, 0>(item, 10);
    Ok(())
}
