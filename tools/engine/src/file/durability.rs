// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Whether it may be said that what was written is durable: one answer for the
//! whole engine.
//!
//! The kernel tells of lost data once, to whoever asks first: a flush, a write, or the
//! sync of one of the engine's own files. Who asks after that hears that all is well.
//! And what one file system loses is not the loss of one volume: a disk that drops its
//! cache drops that of all. So a loss is the engine's. It counts losses, and has another
//! boot id after each. A queue belongs to the count that it was made under: once there is
//! another, it answers no flush and no write with FUA with success any more, so that its
//! client must come back, and hears of another boot id. A queue that is made then knows
//! nothing of the loss and need not: whoever uses it was told.
//!
//! A request that is told that all is well waits for those that asked at the same time, so
//! that none is answered before a loss that another one was told of: see [`super::settle`].
//!
//! # What is noted as a loss
//!
//! * a flush that fails, for whatever reason;
//! * a write, discard or zeroing, or the writing of a file of the engine's own, that
//!   fails with an error which is not about itself alone ([`tells_of_loss`]): the device
//!   went away, the file system shut itself down. Not that something cannot be opened or read;
//! * another superblock below the engine than at its start, or an error that the file
//!   system has counted, looked for when a volume is opened and when the engine's state is
//!   asked for ([`Durability::look`]).
//!
//! The new id is noted in `.boot` on a thread of its own, since the disk may be failing,
//! again and again until that works. A process that is killed before begins
//! with the old id again only if the next one finds the same superblock, without a counted
//! error, and can write there: not on ext4, XFS or btrfs that gave up, which take no writes
//! until they are mounted anew. A process that ends in order waits until the id is noted
//! ([`Durability::finish_notes`]). What remains is a disk that has one failure and is well
//! again, and a process that is killed within the moments between.
//!
//! # Locks
//!
//! `state`: held to look at the id and to change it; never during I/O, and no other lock is taken
//! under it. `noted`: held while `.boot` is written, by threads that may block; the state is
//! taken under it.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::boot::{self, hex};
use super::health;
use super::settle::Settling;
use super::witness::{self, Seen};
use crate::identity::random_id;
use crate::{Error, ErrorKind, Result};

/// How soon it is tried again to note an id.
const NOTE_AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct State {
    boot_id: [u8; 16],
    /// Somebody may rely on this id: it is that of an earlier process, or a queue was made under
    /// it.
    relied_on: bool,
    /// The superblocks below, when they were looked at last.
    seen: Seen,
    /// Those that `.boot` names. Changed under `noted` alone.
    noted_witness: Option<String>,
}

/// What `.boot` says.
#[derive(Debug)]
struct Noted {
    id: [u8; 16],
    /// The engine has stopped, and what is noted is the end.
    stopped: bool,
}

/// What is known of the data of an engine.
#[derive(Debug)]
pub(super) struct Durability {
    root: PathBuf,
    /// Which directory that is: `.boot` of another one is not written.
    place: Option<(u64, u64)>,
    /// How many losses were noted. Changed under `state` together with the id.
    losses: AtomicU64,
    /// Those who ask whether there is one.
    pub(super) settling: Settling,
    state: Mutex<State>,
    /// A thread notes the id in force, or will.
    note_is_due: AtomicBool,
    /// Held while `.boot` is written.
    noted: Mutex<Noted>,
}

/// Whether an error of a changing request says that others, which were answered, may be
/// lost: not if it is about this request alone.
pub(super) fn tells_of_loss(errno: i32) -> bool {
    !matches!(
        errno,
        // No room, no such thing, no memory; a bad block, which the disk names (ENODATA) or
        // whose checksum is wrong (EILSEQ).
        libc::ENOSPC
            | libc::EDQUOT
            | libc::EINVAL
            | libc::EOPNOTSUPP
            | libc::EFBIG
            | libc::ENOMEM
            | libc::EAGAIN
            | libc::EINTR
            | libc::ENODATA
            | libc::EILSEQ
    )
}

/// Whether an error of a call that changes the engine's own files does: a list of what
/// does, since most errors of calls with names are about these.
fn of_a_call_tells_of_loss(errno: i32) -> bool {
    matches!(
        errno,
        libc::EIO
            | libc::EROFS
            | libc::ENODEV
            | libc::ENXIO
            | libc::EUCLEAN
            | libc::ESHUTDOWN
            | libc::ENOLINK
            | libc::EREMOTEIO
            | libc::ETIMEDOUT
            | libc::ESTALE
    )
}

/// Device and inode of a directory that is there.
fn place_of(root: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(root).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

impl Durability {
    pub(super) fn new(root: PathBuf, beginning: boot::Beginning) -> Self {
        Self {
            place: place_of(&root),
            root,
            losses: AtomicU64::new(0),
            settling: Settling::default(),
            noted: Mutex::new(Noted {
                id: beginning.id,
                stopped: false,
            }),
            state: Mutex::new(State {
                boot_id: beginning.id,
                relied_on: beginning.kept,
                noted_witness: beginning.seen.clone().whole().ok(),
                seen: beginning.seen,
            }),
            note_is_due: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn in_boot_file(&self) -> MutexGuard<'_, Noted> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The boot id in force.
    pub(super) fn boot_id(&self) -> [u8; 16] {
        self.state().boot_id
    }

    /// How many losses there were.
    pub(super) fn losses(&self) -> u64 {
        self.losses.load(Ordering::Acquire)
    }

    /// A queue is made: the count that it belongs to.
    pub(super) fn join(&self) -> u64 {
        let mut state = self.state();
        state.relied_on = true;
        self.losses()
    }

    /// What was answered may be lost: the engine has another boot id from now on.
    pub(super) fn lose(self: &Arc<Self>, why: &str) {
        let (old, new) = {
            let mut state = self.state();
            if !state.relied_on {
                // Nobody has heard of this id, so nobody can lose anything under it.
                return;
            }
            let old = state.boot_id;
            // Without random numbers, whatever is another one.
            state.boot_id = random_id().unwrap_or_else(|_| old.map(|byte| byte.wrapping_add(1)));
            state.relied_on = false;
            self.losses.fetch_add(1, Ordering::AcqRel);
            (old, state.boot_id)
        };
        tracing::error!(
            root = %self.root.display(), old_boot_id = hex(old), boot_id = hex(new), %why,
            "what was answered and not flushed may be lost: the engine has another boot id, and \
             every host that uses a volume of it is told; look at the kernel's log, then check \
             the data"
        );
        self.note();
    }

    /// Refuses when another directory has come to the engine's place: its `.boot` is another
    /// engine's.
    fn check_place(&self) -> Result<()> {
        match place_of(&self.root) == self.place {
            true => Ok(()),
            false => Err(health::not_the_place(&self.root)),
        }
    }

    /// Notes the id in force on a thread of its own. Never blocks.
    fn note(self: &Arc<Self>) {
        if self.note_is_due.swap(true, Ordering::AcqRel) {
            // The thread that is at it looks at the id again when it is done.
            return;
        }
        let engine = Arc::downgrade(self);
        let spawned = std::thread::Builder::new()
            .name("note-boot-id".to_owned())
            .spawn(move || note_until_done(&engine));
        if let Err(error) = spawned {
            tracing::error!(%error, "cannot start a thread");
            self.note_is_due.store(false, Ordering::Release);
        }
    }

    /// Tries once to note the id in force. `true`: there is nothing more to do.
    fn try_to_note(&self, is_first: bool) -> bool {
        let mut noted = self.in_boot_file();
        if noted.stopped {
            return true;
        }
        let id = self.boot_id();
        let written = match noted.id == id {
            true => Ok(()),
            false => self.write(&mut noted, id, false),
        };
        if let Err(error) = written {
            if is_first {
                tracing::error!(
                    %error,
                    "the new boot id cannot be noted yet: before another node uses the directory, \
                     mount its file system anew or boot the machine"
                );
            }
            return false;
        }
        self.note_is_due.store(false, Ordering::Release);
        // Another one may have come before that: its thread is this one, or a new one.
        self.boot_id() == id || self.note_is_due.swap(true, Ordering::AcqRel)
    }

    /// Everything that was answered is synced, and nobody is served any more: notes so, durably.
    ///
    /// # Errors
    ///
    /// When it cannot be noted; then the next process has another id unless the file system is
    /// the same.
    pub(super) fn note_stopped(&self) -> Result<()> {
        let mut noted = self.in_boot_file();
        self.write(&mut noted, self.boot_id(), true)
    }

    /// Writes `.boot`, with the superblocks that were there at the last look: if others have come
    /// since, the next process must notice that.
    fn write(&self, noted: &mut Noted, id: [u8; 16], stopped: bool) -> Result<()> {
        self.check_place()?;
        let witness = self.state().seen.clone().whole().ok();
        boot::note(&self.root, id, witness.as_deref(), stopped)?;
        *noted = Noted { id, stopped };
        self.state().noted_witness = witness;
        Ok(())
    }

    /// Waits until the id in force is noted, trying to, for ever if need be: a process that ends
    /// before leaves the one that was lost to the next.
    pub(super) fn finish_notes(&self) {
        let mut is_first = true;
        loop {
            {
                let noted = self.in_boot_file();
                if noted.stopped || noted.id == self.boot_id() {
                    return;
                }
            }
            if !is_first {
                std::thread::sleep(NOTE_AGAIN);
            }
            self.try_to_note(false);
            is_first = false;
        }
    }

    /// Looks whether the file systems below are those that they were, and well. Notes those that have
    /// come, as a pool of its own: from here on it would matter to the next process if they went.
    /// Blocks.
    ///
    /// # Errors
    ///
    /// When that cannot be told at the moment, or not noted: then nobody may be served who is not yet.
    pub(super) fn look(self: &Arc<Self>) -> Result<()> {
        let seen = witness::see(&self.root).map_err(|why| {
            Error::new(
                ErrorKind::NoResources,
                format!(
                    "it cannot be told whether the file systems are those that they were: {why}"
                ),
            )
        })?;
        let now = seen.known.clone();
        let then = std::mem::replace(&mut self.state().seen, seen).known;
        if !witness::is_there(&then, &now) {
            self.lose(&format!(
                "the file system was mounted anew or unmounted below the node, or has met an error \
                 (it was `{then}`, and is `{now}`)"
            ));
            return Ok(());
        }
        self.note_what_has_come()
    }

    /// Notes the superblocks below if there are more than `.boot` says.
    fn note_what_has_come(&self) -> Result<()> {
        let has_come = {
            let state = self.state();
            match (&state.noted_witness, &state.seen) {
                // A process that is killed keeps no id; a pool that has gone since may be the reason.
                (None, _) => false,
                (Some(_), now) if now.missing.is_some() => true,
                (Some(then), now) => *then != now.known && witness::is_there(then, &now.known),
            }
        };
        if !has_come {
            return Ok(());
        }
        let mut noted = self.in_boot_file();
        match noted.stopped {
            true => Ok(()),
            false => self.write(&mut noted, self.boot_id(), false),
        }
    }

    /// Looks at the result of a call that changes the engine's own files: whether a write or a sync
    /// of one failed. That one cannot be opened, looked up or read says nothing of what was written,
    /// nor that a file system takes no changes that took none before.
    pub(super) fn noted<T>(self: &Arc<Self>, result: Result<T>) -> Result<T> {
        if let Err(error) = &result {
            if error.errno_of_write().is_some_and(of_a_call_tells_of_loss) {
                self.lose(&error.to_string());
            }
        }
        result
    }

    /// Why a durable answer is refused to a queue that belongs to another count.
    pub(super) fn check(&self, joined: u64, name: &str) -> Result<()> {
        if self.losses() == joined {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Io,
            format!("the storage of {name} had an error before, so what was written may be lost"),
        ))
    }
}

/// Notes the id in force until that works, or the engine is gone.
fn note_until_done(engine: &Weak<Durability>) {
    let mut is_first = true;
    while let Some(engine) = engine.upgrade() {
        if engine.try_to_note(is_first) {
            return;
        }
        drop(engine);
        is_first = false;
        std::thread::sleep(NOTE_AGAIN);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_an_earlier_process_has_told_is_not_kept_after_a_loss() {
        let dir = tempfile::tempdir().unwrap();
        let first = durability(dir.path());
        let id = first.boot_id();
        first.note_stopped().unwrap();
        let second = durability(dir.path());
        assert_eq!(second.boot_id(), id);
        second.lose("before anybody is back");
        assert_ne!(second.boot_id(), id);
    }

    fn durability(dir: &std::path::Path) -> Arc<Durability> {
        let beginning = boot::begin(dir).unwrap();
        Arc::new(Durability::new(dir.to_owned(), beginning))
    }

    #[test]
    fn a_loss_gives_the_engine_another_id_for_this_process_and_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let engine = durability(dir.path());
        let before = engine.boot_id();
        engine.lose("nobody has heard of the id");
        assert_eq!(engine.boot_id(), before);
        let joined = engine.join();
        engine.check(joined, "p/v").unwrap();
        engine.lose("a test");
        let after = engine.boot_id();
        assert_ne!(after, before, "at once");
        assert!(engine.check(joined, "p/v").is_err());
        // What fails with the same loss is no other loss.
        engine.lose("the next request of those that were under way");
        assert_eq!((engine.boot_id(), engine.losses()), (after, 1));
        let joined = engine.join();
        engine.check(joined, "p/v").unwrap();
        engine.lose("another test");
        assert_eq!(engine.losses(), 2);
        let last = engine.boot_id();
        while engine.note_is_due.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        let next = boot::begin(dir.path()).unwrap();
        assert_ne!(next.id, before);
        if next.seen.missing.is_none() {
            assert_eq!(next.id, last, "killed, on the same file system");
        }
    }

    #[test]
    fn an_id_that_cannot_be_noted_is_noted_when_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let engine = durability(dir.path());
        // In the way of the file's replacement.
        let obstacle = dir.path().join(".boot.new");
        std::fs::create_dir(&obstacle).unwrap();
        engine.finish_notes();
        engine.join();
        engine.lose("a test");
        assert!(!engine.try_to_note(true));
        let noted = || engine.in_boot_file().id == engine.boot_id();
        std::thread::scope(|scope| {
            let end = scope.spawn(|| engine.finish_notes());
            std::thread::sleep(Duration::from_millis(100));
            assert!(!end.is_finished() && !noted());
            std::fs::remove_dir(&obstacle).unwrap();
            end.join().unwrap();
        });
        assert!(noted());
        assert_eq!(boot::begin(dir.path()).unwrap().kept, {
            // On a file system that has no witness a process that was killed keeps none.
            engine.state().noted_witness.is_some()
        });
        engine.note_stopped().unwrap();
        assert_eq!(boot::begin(dir.path()).unwrap().id, engine.boot_id());
    }

    #[test]
    fn another_superblock_below_is_a_loss() {
        let dir = tempfile::tempdir().unwrap();
        let engine = durability(dir.path());
        if engine.state().seen.known.is_empty() {
            eprintln!("SKIP another_superblock_below_is_a_loss: no witness");
            return;
        }
        engine.join();
        engine.look().unwrap();
        assert_eq!(engine.losses(), 0);
        engine.state().seen.known = "ext4 sda1 1 errors 0".to_owned();
        engine.look().unwrap();
        assert_eq!(engine.losses(), 1);
        engine.join();
        engine.look().unwrap();
        assert_eq!(engine.losses(), 1, "told once");
    }

    #[test]
    fn errors_that_are_about_one_request_lose_nothing() {
        for errno in [libc::ENOSPC, libc::EDQUOT, libc::EINVAL, libc::ENODATA] {
            assert!(!tells_of_loss(errno));
        }
        for errno in [libc::EIO, libc::EROFS, libc::ENODEV, libc::EUCLEAN] {
            assert!(tells_of_loss(errno) && of_a_call_tells_of_loss(errno));
        }
        assert!(tells_of_loss(libc::ETIMEDOUT));
        assert!(!of_a_call_tells_of_loss(libc::ENOENT));
    }
}
