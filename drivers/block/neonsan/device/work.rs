// SPDX-License-Identifier: GPL-2.0

//! The work of a device: where it is queued, and how it comes to an end.

use super::{Device, CHANGE_WORK, CONTROL_WORK, TIMER_WORK};
use crate::recovery;
use kernel::{sync::Arc, workqueue::WorkItem};
use neonsan_kernel::workqueue::{DelayedOn, OwnedQueue};

impl Device {
    /// Calls `enqueue` with the work queue of everything that the device's requests depend on and that
    /// does not wait for the network, unless the device's work is over. Any context.
    pub(crate) fn enqueue(&self, enqueue: impl FnOnce(&OwnedQueue)) {
        let at_rest = self.at_rest.lock();
        if !*at_rest {
            enqueue(&self.queue);
        }
    }

    /// The same with the work queue of making connections.
    pub(crate) fn enqueue_connecting(&self, enqueue: impl FnOnce(&OwnedQueue)) {
        let at_rest = self.at_rest.lock();
        if !*at_rest {
            enqueue(&self.connecting);
        }
    }

    /// Lets the control machine look at what there is. Any context.
    pub(crate) fn wake(self: &Arc<Self>) {
        self.enqueue(|queue| {
            // If it is queued already, it will see what there is.
            let _ = queue.enqueue::<_, CONTROL_WORK>(self.clone());
        });
    }

    /// Lets the control machine look again after this time. Any context.
    pub(crate) fn wake_after_ms(self: &Arc<Self>, ms: u64) {
        let delay = kernel::time::msecs_to_jiffies(u32::try_from(ms).unwrap_or(u32::MAX));
        self.enqueue(|_| OwnedQueue::mod_delayed::<_, TIMER_WORK>(self.clone(), delay));
    }

    /// From now on no work of the device is queued, whoever wants it; waits until none runs or is
    /// queued. Every connection must have come to rest, and the disk be gone. May sleep, but not for
    /// the network.
    ///
    /// So the last owner of a device, whose work queues go with it, is never work of these queues,
    /// which would wait for itself; and no work is left when the module goes.
    pub(crate) fn finish_work(self: &Arc<Self>) {
        *self.at_rest.lock() = true;
        OwnedQueue::cancel_delayed_sync::<_, TIMER_WORK>(self);
        // Not in the loop's head, which would hold the lock while the loop waits.
        let count = self.session.lock().connection_count();
        for i in 0..count {
            if let Some(connection) = self.connection(i) {
                connection.cancel_work();
            }
        }
        self.changes.flush();
        self.connecting.flush();
        self.queue.flush();
    }

    /// Lets the disk follow what is known of the volume, and the timeouts. Any context.
    pub(crate) fn look_for_changes(self: &Arc<Self>) {
        let at_rest = self.at_rest.lock();
        if !*at_rest {
            // If it is queued already, it will see what there is.
            let _ = self.changes.enqueue::<_, CHANGE_WORK>(self.clone());
        }
    }
}

impl WorkItem<CONTROL_WORK> for Device {
    type Pointer = Arc<Device>;

    fn run(this: Arc<Device>) {
        recovery::run(&this);
    }
}

impl DelayedOn<TIMER_WORK> for Device {
    fn queue(&self) -> &OwnedQueue {
        &self.queue
    }
}

impl WorkItem<TIMER_WORK> for Device {
    type Pointer = Arc<Device>;

    fn run(this: Arc<Device>) {
        this.wake();
    }
}

impl WorkItem<CHANGE_WORK> for Device {
    type Pointer = Arc<Device>;

    fn run(this: Arc<Device>) {
        this.apply_changes();
    }
}
