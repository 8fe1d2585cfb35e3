// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Who was told that all is well waits for those who asked at the same time.
//!
//! Two requests can ask at the same time, on queues of two threads, of two volumes: one
//! is told of the failure, the other that all is well, and the second answer may be seen
//! first. So each request that asks has a number from before it begins until its
//! result was seen, and who was told that all is well waits for the results of
//! all that have a number by then. No request waits for an answer, so none waits
//! for itself.
//!
//! They wait for those on their own superblock alone: another file system tells its
//! errors to those who ask it, and one that hangs must not hold up the flushes of all
//! others. So where several file systems are on one disk that has lost its cache, and
//! tells of it by one failing flush, a flush of another one that was answered in the
//! same moment may be told that all is well; the loss is noted then, and that session
//! closed, like all of the engine.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::locks::Mailbox;
use super::witness;

/// Which file system of the kernel, as long as it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Superblock(Arc<str>);

impl Superblock {
    /// That on which a directory is.
    pub(super) fn of(dir: &Path) -> Self {
        // Each subvolume of a btrfs has a device number of its own.
        let name = witness::btrfs_superblock(dir).unwrap_or_else(|| {
            let device = fs::metadata(dir).map_or(0, |metadata| metadata.dev());
            device.to_string()
        });
        Self(name.into())
    }
}

/// A request that asks, between its beginning and its result.
#[derive(Debug)]
pub(super) struct Asking {
    number: u64,
    at: Superblock,
}

/// A request that was told that all is well.
#[derive(Debug)]
struct Waiter {
    /// Goes on when all numbers below this are gone that ask the same.
    until: u64,
    at: Superblock,
    slot: u32,
    mailbox: Arc<Mailbox>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    asking: Vec<(u64, Superblock)>,
    waiting: Vec<Waiter>,
}

impl State {
    /// All numbers below this are gone that ask `at`.
    fn settled(&self, at: &Superblock) -> u64 {
        let asking = self.asking.iter().filter(|(_, other)| other == at);
        asking.map(|(number, _)| *number).min().unwrap_or(self.next)
    }
}

/// The requests of an engine that ask, and those that wait for them.
///
/// The mutex is held to note a number or take it away, never during I/O, and no other lock is taken
/// under it but a waiter's mailbox.
#[derive(Debug, Default)]
pub(super) struct Settling(Mutex<State>);

impl Settling {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request begins that the kernel may tell of a loss.
    pub(super) fn ask(&self, at: &Superblock) -> Asking {
        let mut state = self.state();
        let number = state.next;
        state.next += 1;
        state.asking.push((number, at.clone()));
        Asking {
            number,
            at: at.clone(),
        }
    }

    /// Its result was seen, and noted if it tells of a loss.
    pub(super) fn told(&self, asking: Asking) {
        let mut state = self.state();
        state.asking.retain(|(number, _)| *number != asking.number);
        if state.waiting.is_empty() {
            return;
        }
        let settled = state.settled(&asking.at);
        state.waiting.retain(|waiter| {
            let goes_on = waiter.at == asking.at && waiter.until <= settled;
            if goes_on {
                waiter.mailbox.post(waiter.slot);
            }
            !goes_on
        });
    }

    /// A request was told that all is well. `true`: nobody who asked the same at the same
    /// time can have heard anything else. If not, the slot comes to the mailbox
    /// when that is so.
    pub(super) fn settle(&self, at: &Superblock, slot: u32, mailbox: &Arc<Mailbox>) -> bool {
        let mut state = self.state();
        if !state.asking.iter().any(|(_, other)| other == at) {
            return true;
        }
        let until = state.next;
        state.waiting.push(Waiter {
            until,
            at: at.clone(),
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

    fn granted(mailbox: &Mailbox) -> Vec<u32> {
        let mut granted = Vec::new();
        mailbox.take(&mut granted);
        granted
    }

    fn at(name: &str) -> Superblock {
        Superblock(name.into())
    }

    #[test]
    fn a_flush_that_went_well_waits_for_those_that_may_have_taken_its_error() {
        let settling = Settling::default();
        let here = at("here");
        let (one, other) = (Mailbox::new().unwrap(), Mailbox::new().unwrap());
        let [first, second, third] = [(); 3].map(|()| settling.ask(&here));
        // The second was told that all is well, and is seen first.
        settling.told(second);
        assert!(!settling.settle(&here, 7, &one));
        // Whoever asks later has nothing to do with it.
        let later = settling.ask(&here);
        settling.told(third);
        assert!(!settling.settle(&here, 8, &other));
        settling.told(first);
        assert_eq!(granted(&one), [7]);
        assert!(
            granted(&other).is_empty(),
            "`later` asked before it was settled"
        );
        settling.told(later);
        assert_eq!(granted(&other), [8]);
        assert!(settling.settle(&here, 9, &one), "nobody asks");
    }

    #[test]
    fn nobody_waits_for_another_file_system() {
        let settling = Settling::default();
        let (here, there) = (at("here"), at("there"));
        let mailbox = Mailbox::new().unwrap();
        let hangs = settling.ask(&there);
        assert!(settling.settle(&here, 1, &mailbox));
        let asking = settling.ask(&here);
        assert!(!settling.settle(&here, 2, &mailbox));
        assert!(!settling.settle(&there, 3, &mailbox));
        settling.told(asking);
        assert_eq!(granted(&mailbox), [2]);
        settling.told(hangs);
        assert_eq!(granted(&mailbox), [3]);
    }

    #[test]
    fn who_leaves_is_not_told_any_more() {
        let settling = Settling::default();
        let here = at("here");
        let mailbox = Mailbox::new().unwrap();
        let asking = settling.ask(&here);
        assert!(!settling.settle(&here, 1, &mailbox));
        settling.leave(&mailbox);
        settling.told(asking);
        assert!(granted(&mailbox).is_empty());
    }

    #[test]
    fn directories_of_one_file_system_are_the_same_superblock() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("below");
        fs::create_dir(&below).unwrap();
        assert_eq!(Superblock::of(dir.path()), Superblock::of(&below));
        assert_ne!(
            Superblock::of(dir.path()),
            Superblock::of(Path::new("/proc"))
        );
    }
}
