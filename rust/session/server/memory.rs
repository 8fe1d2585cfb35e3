// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What a gate must not forget: the sessions that may come back with writes to send again.
//!
//! A session that ended without being released may still exist on its host, cut off, with writes
//! that were never answered. It may have the volume again only if nobody that it conflicts with had
//! the volume since: otherwise those writes are older than what is stored.
//!
//! The host may well come back to another life of the node's process, so this must outlive it: a
//! node saves [`Gate::memory`](super::Gate::memory) beside the volume, durably, before a session
//! begins, and begins with [`Gate::restore`](super::Gate::restore).
//!
//! There is room for so many sessions and no more. Who can do the least harm is forgotten first; see
//! [`prune`].

use alloc::vec::Vec;
use neonsan_proto::Mode;

/// One session, as it is saved beside the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// Identity of the session.
    pub session_id: [u8; 16],
    /// Identity of its host.
    pub host_id: [u8; 16],
    /// The boot of its host; zero: not known.
    pub host_boot: u64,
    /// Who else could have the volume open.
    pub mode: Mode,
    /// How many connections it may have, if that is more than a session that begins may.
    pub max_connections: u16,
    /// [`Standing::Released`]: its generation; else zero.
    pub generation: u64,
    /// Where it stands.
    pub standing: Standing,
}

/// Where a remembered session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It holds the volume. After a restart of the node it has the linger time to come back.
    Holds,
    /// It is gone; it may have the volume again as long as nobody conflicting has it meanwhile.
    Departed,
    /// Somebody conflicting had the volume since it left. It never gets it again.
    Fenced,
    /// It ended in order. An OPEN of it that is older was on its way for long, and nobody waits for
    /// the answer: were it let in, by force, it would fence whoever has the volume now.
    Released,
}

impl Remembered {
    /// How much harm it would do to forget it; see [`prune`].
    fn weight(&self) -> u8 {
        match (self.mode, self.standing) {
            (Mode::ReadOnly, Standing::Departed | Standing::Fenced) | (_, Standing::Released) => 0,
            (Mode::ReadOnly, Standing::Holds) => 1,
            (_, Standing::Departed) => 2,
            (_, Standing::Fenced) => 3,
            (_, Standing::Holds) => MUST_STAY,
        }
    }
}

/// The weight of what is never forgotten.
const MUST_STAY: u8 = 4;

/// Released sessions that are remembered: an OPEN is not on its way for longer than they last.
const MAX_RELEASED: usize = 16;

/// Forgets sessions until there are at most `max`: first those that only read or were released, which have
/// no writes to send again, departed before present ones; then departed ones, which nobody has displaced yet;
/// then fenced ones. Of equals the one that comes first goes first. Whoever holds the volume for
/// writing stays, even if there are more than `max` of them.
pub fn prune(sessions: &mut Vec<Remembered>, max: usize) {
    for weight in 0..MUST_STAY {
        let mut excess = sessions.len().saturating_sub(max);
        if excess == 0 {
            return;
        }
        sessions.retain(|session| {
            let goes = excess > 0 && session.weight() == weight;
            excess -= usize::from(goes);
            !goes
        });
    }
}

/// The sessions that left without being released; the first to leave comes first.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    departed: Vec<Remembered>,
    version: u64,
}

impl Memory {
    /// How often anything that is to be saved has changed.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// Something that is to be saved has changed.
    pub(super) fn touch(&mut self) {
        self.version = self.version.wrapping_add(1);
    }

    /// All changes since this version were part of what was saved as it.
    pub(super) fn set_version(&mut self, version: u64) {
        self.version = version;
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = Remembered> + '_ {
        self.departed.iter().copied()
    }

    /// Whether a session must not have the volume again.
    pub(super) fn is_fenced(&self, session: &[u8; 16]) -> bool {
        self.departed
            .iter()
            .any(|d| d.session_id == *session && d.standing == Standing::Fenced)
    }

    /// The generation with which a session was released, if this one is older.
    pub(super) fn is_older_than_released(
        &self,
        session: &[u8; 16],
        generation: u64,
    ) -> Option<u64> {
        let mut known = self.departed.iter();
        let known = known.find(|d| d.session_id == *session && d.standing == Standing::Released)?;
        (generation < known.generation).then_some(known.generation)
    }

    /// How many connections a session might have when it left; zero if it is not known.
    pub(super) fn max_connections(&self, session: &[u8; 16]) -> u16 {
        let known = self.departed.iter().find(|d| d.session_id == *session);
        known.map_or(0, |d| d.max_connections)
    }

    /// A session left without being released.
    pub(super) fn depart(&mut self, session: Remembered) {
        self.touch();
        if let Some(known) = self
            .departed
            .iter_mut()
            .find(|d| d.session_id == session.session_id)
        {
            if session.standing == Standing::Fenced {
                known.standing = Standing::Fenced;
            }
            return;
        }
        self.departed.push(session);
        let is_released = |d: &Remembered| d.standing == Standing::Released;
        if self.departed.iter().filter(|d| is_released(d)).count() > MAX_RELEASED {
            if let Some(oldest) = self.departed.iter().position(is_released) {
                self.departed.remove(oldest);
            }
        }
    }

    /// There is room for so many.
    pub(super) fn fit(&mut self, room: usize) {
        prune(&mut self.departed, room);
    }

    /// A session has the volume: it is not away any more, and those that `conflicts` names have
    /// lost their claim.
    pub(super) fn enter(&mut self, session: &[u8; 16], conflicts: impl Fn(Mode) -> bool) {
        self.touch();
        self.departed.retain(|d| d.session_id != *session);
        let left = |d: &&mut Remembered| d.standing != Standing::Released && conflicts(d.mode);
        for d in self.departed.iter_mut().filter(left) {
            d.standing = Standing::Fenced;
        }
    }
}
