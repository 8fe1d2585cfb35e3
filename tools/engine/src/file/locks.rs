// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Locks on ranges of a volume whose blocks are smaller than its storage's.
//!
//! A 512-byte write on storage of 4096-byte blocks reads a block, changes an
//! eighth of it and writes it back. A write that gets in between would be
//! undone, so on such volumes, and on them alone, every changing request
//! locks the blocks it touches. Waiters are served in order of arrival, as
//! far as their ranges meet, so none starves.
//!
//! The mutex is held for a scan of the requests in flight, never during I/O,
//! and no other lock is taken under it but a waiter's mailbox.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{eventfd, EventfdFlags};

use crate::{Error, Result};

/// Bytes from `start` to before `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Range {
    fn meets(&self, other: &Range) -> bool {
        self.start < other.end && other.start < self.end
    }
}

/// Where a queue is told that its requests may go on: locks they waited for are
/// their own now, or nobody else can have taken the error of their flush.
#[derive(Debug)]
pub(super) struct Mailbox {
    /// Slots of the queue whose requests may go on.
    granted: Mutex<Vec<u32>>,
    /// Counts up when `granted` is added to.
    signal: OwnedFd,
}

impl Mailbox {
    pub(super) fn new() -> Result<Arc<Self>> {
        let signal = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| Error::os(e, "cannot make an eventfd"))?;
        Ok(Arc::new(Self {
            granted: Mutex::default(),
            signal,
        }))
    }

    /// Takes the slots granted since the last call, and resets the signal.
    pub(super) fn take(&self, into: &mut Vec<u32>) {
        // First, so that what is posted from here on signals again. It fails
        // when there was no signal, which is as good.
        let _ = rustix::io::read(&self.signal, &mut [0; 8]);
        let mut granted = self.granted.lock().unwrap_or_else(PoisonError::into_inner);
        into.append(&mut granted);
    }

    /// The eventfd: readable when there is something to take.
    pub(super) fn signal(&self) -> BorrowedFd<'_> {
        self.signal.as_fd()
    }

    /// The request in this slot may go on.
    pub(super) fn post(&self, slot: u32) {
        self.granted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(slot);
        self.wake();
    }

    /// Makes the queue look at what it holds back.
    pub(super) fn wake(&self) {
        // Fails only when the counter is at its end, where it is readable.
        let _ = rustix::io::write(&self.signal, &1u64.to_ne_bytes());
    }
}

#[derive(Debug)]
struct Waiter {
    range: Range,
    slot: u32,
    mailbox: Arc<Mailbox>,
}

#[derive(Debug, Default)]
struct State {
    held: Vec<Range>,
    waiting: VecDeque<Waiter>,
}

impl State {
    /// Hands ranges to those who wait for them, as far as nothing is in their way any more.
    fn grant(&mut self) {
        let State { held, waiting } = self;
        let mut index = 0;
        while index < waiting.len() {
            let range = waiting[index].range;
            let free = !held.iter().any(|h| h.meets(&range))
                && !waiting.iter().take(index).any(|w| w.range.meets(&range));
            if !free {
                index += 1;
                continue;
            }
            held.push(range);
            if let Some(waiter) = waiting.remove(index) {
                waiter.mailbox.post(waiter.slot);
            }
        }
    }
}

/// The locks of one volume.
#[derive(Debug, Default)]
pub(super) struct RangeLocks {
    state: Mutex<State>,
}

impl RangeLocks {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the range if nothing before it meets it. Else `false`, and the
    /// slot comes to the mailbox when the range has become its own.
    pub(super) fn acquire(&self, range: Range, slot: u32, mailbox: &Arc<Mailbox>) -> bool {
        let mut state = self.state();
        let free = !state.held.iter().any(|held| held.meets(&range))
            && !state.waiting.iter().any(|w| w.range.meets(&range));
        if free {
            state.held.push(range);
        } else {
            state.waiting.push_back(Waiter {
                range,
                slot,
                mailbox: Arc::clone(mailbox),
            });
        }
        free
    }

    /// Gives a range back that is held, and hands it to those who waited.
    pub(super) fn release(&self, range: Range) {
        let mut state = self.state();
        if let Some(index) = state.held.iter().position(|held| *held == range) {
            state.held.swap_remove(index);
        }
        state.grant();
    }

    /// Whoever waits through this mailbox waits no more. What was handed to it before is in the
    /// mailbox.
    pub(super) fn leave(&self, mailbox: &Arc<Mailbox>) {
        let mut state = self.state();
        state.waiting.retain(|w| !Arc::ptr_eq(&w.mailbox, mailbox));
        state.grant();
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> Range {
        Range { start, end }
    }

    #[test]
    fn ranges_that_do_not_meet_are_independent() {
        let locks = RangeLocks::default();
        let mailbox = Mailbox::new().unwrap();
        assert!(locks.acquire(range(0, 10), 0, &mailbox));
        assert!(locks.acquire(range(10, 20), 1, &mailbox));
    }

    #[test]
    fn who_leaves_is_in_nobodys_way() {
        let locks = RangeLocks::default();
        let (one, other) = (Mailbox::new().unwrap(), Mailbox::new().unwrap());
        let mut granted = Vec::new();
        assert!(locks.acquire(range(0, 10), 0, &one));
        assert!(!locks.acquire(range(0, 30), 1, &other));
        assert!(!locks.acquire(range(20, 25), 2, &one));
        locks.leave(&other);
        one.take(&mut granted);
        assert_eq!(granted, [2], "it waited for the one that left");
        locks.release(range(0, 10));
        locks.release(range(20, 25));
        other.take(&mut granted);
        assert_eq!(granted, [2]);
        assert!(locks.state().held.is_empty() && locks.state().waiting.is_empty());
    }

    #[test]
    fn waiters_are_served_in_order_and_none_starves() {
        let locks = RangeLocks::default();
        let mailbox = Mailbox::new().unwrap();
        let mut granted = Vec::new();
        assert!(locks.acquire(range(0, 10), 0, &mailbox));
        assert!(!locks.acquire(range(5, 30), 1, &mailbox));
        // Free by itself, but the waiter before it wants it too.
        assert!(!locks.acquire(range(20, 25), 2, &mailbox));
        locks.release(range(0, 10));
        mailbox.take(&mut granted);
        assert_eq!(granted, [1]);
        locks.release(range(5, 30));
        mailbox.take(&mut granted);
        assert_eq!(granted, [1, 2]);
        locks.release(range(20, 25));
        assert!(locks.state().held.is_empty() && locks.state().waiting.is_empty());
    }
}
