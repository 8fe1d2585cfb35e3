// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Holds back what changes a volume, for the moment in which it is copied.
//!
//! Each queue counts its own changing requests, so that queues share no cache
//! line that is written while they work. Whoever freezes the volume sets the
//! flag, then waits until all counts are zero; a queue counts a request first,
//! then looks at the flag. So of the two at least one sees the other, and a
//! request is either waited for or held back.
//!
//! A request that hangs would let all the others wait for it. So the volume is frozen
//! for a moment only, and when a request has not ended by then the others go on before
//! it is tried again.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::locks::Mailbox;
use crate::{Error, ErrorKind, Result};

/// How often the counts are looked at.
const LOOK: Duration = Duration::from_millis(1);

/// How long requests are held back at a time for those that have not ended.
const ATTEMPT: Duration = Duration::from_millis(500);

/// How long they go on between two attempts.
const PAUSE: Duration = Duration::from_secs(1);

/// The changing requests of one queue.
#[derive(Debug)]
pub(super) struct Writers {
    /// Begun and not ended. Written by the queue, read by who freezes.
    begun: AtomicUsize,
    /// Where the queue is told that the volume is not frozen any more.
    mailbox: Arc<Mailbox>,
}

/// The flag of a volume, and its queues.
#[derive(Debug, Default)]
pub(super) struct Freeze {
    /// Written by who freezes, who has `freezing` locked from the first attempt to the last.
    frozen: AtomicBool,
    /// Taken before `queues`.
    freezing: Mutex<()>,
    /// Locked for a look only, since queues are made and dropped by threads
    /// whose other queues the freeze may be waiting for.
    queues: Mutex<Vec<Arc<Writers>>>,
}

/// The volume is frozen as long as this is there.
pub(super) struct Frozen<'a> {
    // It goes on before another one may freeze it.
    _thaw: Thaw<'a>,
    _freezing: MutexGuard<'a, ()>,
}

impl Freeze {
    fn queues(&self) -> MutexGuard<'_, Vec<Arc<Writers>>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a queue, which looks into its mailbox when it holds requests back.
    pub(super) fn join(&self, mailbox: &Arc<Mailbox>) -> Arc<Writers> {
        let writers = Arc::new(Writers {
            begun: AtomicUsize::new(0),
            mailbox: Arc::clone(mailbox),
        });
        self.queues().push(Arc::clone(&writers));
        writers
    }

    /// Removes a queue.
    pub(super) fn leave(&self, writers: &Arc<Writers>) {
        self.queues().retain(|w| !Arc::ptr_eq(w, writers));
    }

    /// Begins a changing request; `false`: it must be held back.
    pub(super) fn enter(&self, writers: &Writers) -> bool {
        writers.begun.fetch_add(1, Ordering::SeqCst);
        let entered = !self.frozen.load(Ordering::SeqCst);
        if !entered {
            writers.begun.fetch_sub(1, Ordering::SeqCst);
        }
        entered
    }

    /// A changing request has ended.
    pub(super) fn exit(&self, writers: &Writers) {
        writers.begun.fetch_sub(1, Ordering::SeqCst);
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::SeqCst)
    }

    /// Waits until no changing request is under way, and lets none begin. Holds requests back for
    /// half a second at a time at most, until that.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Busy`] if that takes longer than `patience`; at once if another one is at it.
    pub(super) fn hold(&self, patience: Duration) -> Result<Frozen<'_>> {
        self.hold_in_pieces(patience, ATTEMPT)
    }

    fn hold_in_pieces(&self, patience: Duration, attempt: Duration) -> Result<Frozen<'_>> {
        let freezing = match self.freezing.try_lock() {
            Ok(freezing) => freezing,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                return Err(Error::new(
                    ErrorKind::Busy,
                    "another snapshot of the volume is being taken: try again when it is done",
                ));
            }
        };
        let deadline = Instant::now() + patience;
        loop {
            // It thaws whatever happens from here on.
            let thaw = Thaw(self);
            self.frozen.store(true, Ordering::SeqCst);
            let end = (Instant::now() + attempt).min(deadline);
            if self.are_idle(end) {
                return Ok(Frozen {
                    _thaw: thaw,
                    _freezing: freezing,
                });
            }
            drop(thaw);
            if Instant::now() + PAUSE >= deadline {
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!(
                        "writes to the volume did not end within {} s: is its disk stuck?",
                        patience.as_secs()
                    ),
                ));
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Waits until no changing request is under way; `false` if that is not so by then.
    fn are_idle(&self, end: Instant) -> bool {
        let busy = |writers: &Arc<Writers>| writers.begun.load(Ordering::SeqCst) > 0;
        while self.queues().iter().any(busy) {
            if Instant::now() >= end {
                return false;
            }
            std::thread::sleep(LOOK);
        }
        true
    }
}

/// Ends a freeze when it goes.
struct Thaw<'a>(&'a Freeze);

impl Drop for Thaw<'_> {
    fn drop(&mut self) {
        self.0.frozen.store(false, Ordering::SeqCst);
        for writers in &*self.0.queues() {
            writers.mailbox.wake();
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_frozen_volume_waits_for_requests_and_lets_none_begin() {
        let freeze = Freeze::default();
        let mailbox = Mailbox::new().unwrap();
        let writers = freeze.join(&mailbox);
        assert!(freeze.enter(&writers));
        let error = freeze.hold(Duration::from_millis(5)).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert!(freeze.enter(&writers), "not frozen after the failure");
        freeze.exit(&writers);
        let long = Duration::from_secs(20);
        std::thread::scope(|scope| {
            let holder = scope.spawn(|| drop(freeze.hold_in_pieces(long, long).unwrap()));
            while !freeze.is_frozen() {
                std::thread::yield_now();
            }
            assert!(!freeze.enter(&writers));
            assert!(!holder.is_finished());
            freeze.exit(&writers);
            holder.join().unwrap();
        });
        assert!(freeze.enter(&writers));
        freeze.exit(&writers);
        freeze.leave(&writers);
        assert!(freeze.queues().is_empty());
    }

    #[test]
    fn a_request_that_hangs_does_not_hold_up_the_others_all_the_time() {
        let freeze = &Freeze::default();
        let mailbox = Mailbox::new().unwrap();
        let [hangs, works] = [(); 2].map(|()| freeze.join(&mailbox));
        assert!(freeze.enter(&hangs));
        std::thread::scope(|scope| {
            let patience = Duration::from_secs(20);
            let holder = scope.spawn(move || freeze.hold(patience).map(drop));
            while !freeze.is_frozen() {
                std::thread::yield_now();
            }
            // A second one has no place behind the first.
            assert_eq!(freeze.hold(patience).err().unwrap().kind(), ErrorKind::Busy);
            assert!(!holder.is_finished(), "it waited for the first");
            for _ in 0..2 {
                while !freeze.enter(&works) {
                    assert!(!holder.is_finished(), "it waited for the one that hangs");
                    std::thread::sleep(LOOK);
                }
                freeze.exit(&works);
                while !freeze.is_frozen() && !holder.is_finished() {
                    std::thread::sleep(LOOK);
                }
            }
            freeze.exit(&hangs);
            holder.join().unwrap().unwrap();
        });
        assert!(freeze.enter(&works));
    }
}
