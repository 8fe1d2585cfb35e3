// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Holds back what changes a volume, for the moment in which it is copied.
//!
//! Each queue counts its own changing requests, so that queues share no cache
//! line that is written while they work. Whoever freezes the volume sets the
//! flag, then waits until all counts are zero; a queue counts a request first,
//! then looks at the flag. So of the two at least one sees the other, and a
//! request is either waited for or held back.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::locks::Mailbox;
use crate::{Error, ErrorKind, Result};

/// How often the counts are looked at.
const LOOK: Duration = Duration::from_millis(1);

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
    /// Written by who freezes, who has `freezing` locked as long as it is set.
    frozen: AtomicBool,
    /// Taken before `queues`.
    freezing: Mutex<()>,
    /// Locked for a look only, since queues are made and dropped by threads
    /// whose other queues the freeze may be waiting for.
    queues: Mutex<Vec<Arc<Writers>>>,
}

/// The volume is frozen as long as this is there.
pub(super) struct Frozen<'a> {
    freeze: &'a Freeze,
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

    /// Waits until no changing request is under way, and lets none begin.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Busy`] if that takes longer than `patience`.
    pub(super) fn hold(&self, patience: Duration) -> Result<Frozen<'_>> {
        let freezing = self.freezing.lock();
        let frozen = Frozen {
            _freezing: freezing.unwrap_or_else(PoisonError::into_inner),
            freeze: self,
        };
        self.frozen.store(true, Ordering::SeqCst);
        let deadline = Instant::now() + patience;
        let busy = |writers: &Arc<Writers>| writers.begun.load(Ordering::SeqCst) > 0;
        while self.queues().iter().any(busy) {
            if Instant::now() >= deadline {
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!(
                        "writes to the volume did not end within {} s: is its disk stuck?",
                        patience.as_secs()
                    ),
                ));
            }
            std::thread::sleep(LOOK);
        }
        Ok(frozen)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.freeze.frozen.store(false, Ordering::SeqCst);
        for writers in &*self.freeze.queues() {
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
        std::thread::scope(|scope| {
            let holder = scope.spawn(|| drop(freeze.hold(Duration::from_secs(20)).unwrap()));
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
}
