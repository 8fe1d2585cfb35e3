// SPDX-License-Identifier: GPL-2.0

//! Poll queues: hardware queues for requests whose submitter asks for the result instead of being
//! told (io_uring with IORING_SETUP_IOPOLL).
//!
//! The last connections of a device are its poll queues, and are like the others in all else: their
//! callbacks receive, heartbeats are answered, timeouts and recovery take their course, whether
//! anybody polls or not. A request that nobody polls for ends as soon as its reply is here; only its
//! submitter learns of it when he asks. Who polls receives what has come in his own context, and
//! asks the network device for more where it can be asked, instead of waiting for its interrupt.
//!
//! # Locks
//!
//! `link` (spin lock) stands before the socket's lock. It is held while somebody polls, so that
//! recovery, which takes the link away, waits for him: the last owner of a socket sleeps, and a
//! poller must not.

use crate::{connection::Connection, device::Device};
use kernel::{
    new_spinlock,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc, SpinLock,
    },
};
use neonsan_kernel::net::Attached;

/// What polling needs of a connection.
#[pin_data]
pub(crate) struct Polling {
    /// What can be polled. Changed by recovery only.
    #[pin]
    link: SpinLock<Option<Arc<Attached<Connection>>>>,
    /// Requests that have ended since somebody polled last. Counted by the receiving side.
    ended: Atomic<u32>,
}

impl Polling {
    /// Nothing can be polled yet.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Polling {
            link <- new_spinlock!(None, "neonsan_polling"),
            ended: Atomic::new(0),
        })
    }

    /// From now on this link is polled, or none. When it returns nobody polls another. May sleep,
    /// but not for the network.
    pub(crate) fn set_link(&self, link: Option<Arc<Attached<Connection>>>) {
        let older = core::mem::replace(&mut *self.link.lock(), link);
        // It may be the last owner: not under the lock.
        drop(older);
    }

    /// So many requests have ended. Any context.
    pub(crate) fn add_ended(&self, requests: u32) {
        self.ended.add(requests, Relaxed);
    }

    /// Receives what is there, and returns how many requests have ended since the last call. If
    /// somebody else polls, he does it. Does not sleep; process context.
    pub(crate) fn poll(&self) -> u32 {
        if let Some(link) = self.link.try_lock() {
            if let Some(link) = &*link {
                link.poll();
            }
        }
        // Most calls find nothing: they do not write.
        if self.ended.load(Relaxed) == 0 {
            return 0;
        }
        self.ended.xchg(0, Relaxed)
    }
}

impl Device {
    /// How many of the connections, the last ones, are poll queues. At least one is none. Final
    /// once the device is attached. Sleeps.
    pub(crate) fn poll_queues(&self) -> u16 {
        let others = self.session().lock().connection_count().saturating_sub(1);
        // Attach has checked the wish.
        others.min(self.params().poll_queues as u16)
    }
}
