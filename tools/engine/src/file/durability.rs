// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Whether it may be said of a volume that what was written is durable.
//!
//! The kernel tells of lost data once, to whoever asks first: a flush, or a
//! write with FUA. Who asks after that hears that all is well. So a failure is
//! the volume's, not the request's: from then on nothing of it is durable, until
//! it has been closed; and the engine gets another boot id, so that a client
//! which comes back after that does not believe that nothing happened.
//!
//! Two requests can ask at the same time, on queues of two threads: one is told
//! of the failure, the other that all is well, and the second answer may be seen
//! first. So each request that asks has a number from before it begins until its
//! result was seen, and who was told that all is well waits for the results of
//! all that have a number by then. No request waits for an answer, so none waits
//! for itself.
//!
//! The mutex is held to note a number or take it away, never during I/O, and no
//! other lock is taken under it but a waiter's mailbox.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::boot::BootId;
use super::locks::Mailbox;

/// A request that asks, between its beginning and its result.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asking(u64);

/// A request that was told that all is well.
#[derive(Debug)]
struct Waiter {
    /// Goes on when all numbers below this are gone.
    until: u64,
    slot: u32,
    mailbox: Arc<Mailbox>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    /// The numbers of those who ask.
    asking: Vec<u64>,
    waiting: Vec<Waiter>,
}

impl State {
    /// All numbers below this are gone.
    fn settled(&self) -> u64 {
        self.asking.iter().copied().min().unwrap_or(self.next)
    }
}

/// What is known of one open volume.
#[derive(Debug)]
pub(super) struct Durability {
    boot_id: Arc<BootId>,
    /// Something was lost. Set once, by whoever is told.
    broken: AtomicBool,
    state: Mutex<State>,
}

/// Whether an error of a write with FUA says that earlier writes may be lost:
/// not if it is about this write alone.
pub(super) fn tells_of_loss(errno: i32) -> bool {
    !matches!(
        errno,
        libc::ENOSPC | libc::EDQUOT | libc::EINVAL | libc::EOPNOTSUPP
    )
}

impl Durability {
    pub(super) fn new(boot_id: Arc<BootId>) -> Self {
        Self {
            boot_id,
            broken: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether anything that was written may be lost.
    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// A request begins that the kernel may tell of a loss.
    pub(super) fn ask(&self) -> Asking {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.asking.push(number);
        Asking(number)
    }

    /// Its result was seen: it tells of a loss or not.
    pub(super) fn told(&self, asking: Asking, loss: bool) {
        if loss && !self.broken.swap(true, Ordering::AcqRel) {
            self.boot_id.forget();
        }
        let mut state = self.state();
        state.asking.retain(|number| *number != asking.0);
        if state.waiting.is_empty() {
            return;
        }
        let settled = state.settled();
        state.waiting.retain(|waiter| {
            let goes_on = waiter.until <= settled;
            if goes_on {
                waiter.mailbox.post(waiter.slot);
            }
            !goes_on
        });
    }

    /// A request was told that all is well. `true`: nobody who asked at the same
    /// time can have heard anything else. If not, the slot comes to the mailbox
    /// when that is so.
    pub(super) fn settle(&self, slot: u32, mailbox: &Arc<Mailbox>) -> bool {
        let mut state = self.state();
        if state.asking.is_empty() {
            return true;
        }
        let until = state.next;
        state.waiting.push(Waiter {
            until,
            slot,
            mailbox: Arc::clone(mailbox),
        });
        false
    }

    /// Whoever waits through this mailbox waits no more.
    pub(super) fn leave(&self, mailbox: &Arc<Mailbox>) {
        self.state()
            .waiting
            .retain(|waiter| !Arc::ptr_eq(&waiter.mailbox, mailbox));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn durability(dir: &std::path::Path) -> Durability {
        Durability::new(Arc::new(BootId::load(dir).unwrap()))
    }

    #[test]
    fn a_flush_that_went_well_waits_for_those_that_may_have_taken_its_error() {
        let dir = tempfile::tempdir().unwrap();
        let volume = durability(dir.path());
        let (one, other) = (Mailbox::new().unwrap(), Mailbox::new().unwrap());
        let mut granted = Vec::new();
        let [first, second, third] = [volume.ask(), volume.ask(), volume.ask()];
        // The second was told that all is well, and is seen first.
        volume.told(second, false);
        assert!(!volume.settle(7, &one));
        // Whoever asks later has nothing to do with it.
        let later = volume.ask();
        volume.told(third, false);
        assert!(!volume.settle(8, &other));
        volume.told(first, true);
        one.take(&mut granted);
        assert_eq!(granted, [7]);
        assert!(volume.is_broken());
        granted.clear();
        other.take(&mut granted);
        assert!(granted.is_empty(), "`later` asked before it was settled");
        volume.told(later, false);
        other.take(&mut granted);
        assert_eq!(granted, [8]);
        assert!(volume.settle(9, &one), "nobody asks");
    }

    #[test]
    fn who_leaves_is_not_told_any_more() {
        let dir = tempfile::tempdir().unwrap();
        let volume = durability(dir.path());
        let mailbox = Mailbox::new().unwrap();
        let asking = volume.ask();
        assert!(!volume.settle(1, &mailbox));
        volume.leave(&mailbox);
        volume.told(asking, false);
        let mut granted = Vec::new();
        mailbox.take(&mut granted);
        assert!(granted.is_empty());
    }

    #[test]
    fn a_loss_gives_the_engine_another_boot_id() {
        let dir = tempfile::tempdir().unwrap();
        let boot_id = Arc::new(BootId::load(dir.path()).unwrap());
        let volume = Durability::new(Arc::clone(&boot_id));
        let before = boot_id.get();
        volume.told(volume.ask(), false);
        assert_eq!(boot_id.get(), before);
        volume.told(volume.ask(), true);
        let after = boot_id.get();
        assert_ne!(after, before);
        volume.told(volume.ask(), true);
        assert_eq!(boot_id.get(), after, "one loss, one new id");
    }

    #[test]
    fn a_full_disk_loses_nothing() {
        for errno in [libc::ENOSPC, libc::EDQUOT, libc::EINVAL, libc::EOPNOTSUPP] {
            assert!(!tells_of_loss(errno));
        }
        for errno in [libc::EIO, libc::EROFS, libc::ENODEV, libc::ETIMEDOUT] {
            assert!(tells_of_loss(errno));
        }
    }
}
