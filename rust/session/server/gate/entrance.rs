// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Sessions that would begin. Whom one displaces is not touched before the node has saved that it
//! holds the volume: a session that was told that it is fenced gives up for good, and if the other
//! then failed to come in, nobody would have the volume.
//!
//! ```text
//!   OPEN of a new session ──► Entrance ── on_saved ──► the session begins, those that it displaces
//!                                 │                    are over, its connection is Waiting
//!                                 │ on_save_failed, drain timeout, revoked, on_drained
//!                                 ▼
//!                               gone, as if it had never asked
//! ```
//!
//! [`Gate::memory`] is what it will be when all entrances have been passed. What could change
//! whether one may be passed stays out until it is decided: see [`Gate::must_try_again`].

use super::{Connection, ConnectionId, Gate, GateAction, Session, State};
use crate::{CloseCause, Instant};
use alloc::vec::Vec;
use neonsan_proto::Status;

/// A session that begins as soon as that is saved.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entrance {
    /// Its first connection.
    pub(super) id: ConnectionId,
    pub(super) session: Session,
    pub(super) epoch: u64,
    /// The memory has it from this version on.
    pub(super) version: u64,
    /// It takes the volume from whoever has it.
    pub(super) forced: bool,
    pub(super) deadline: Instant,
    /// It is to be turned away for this.
    pub(super) due: Option<CloseCause>,
}

impl Gate {
    /// Whether the connection is the first of a session that begins when that is saved.
    pub fn is_entering(&self, id: ConnectionId) -> bool {
        self.entrances.iter().any(|e| e.id == id)
    }

    /// The sessions that begin as soon as that is saved, with their first connections.
    pub fn entering(&self) -> impl Iterator<Item = (ConnectionId, [u8; 16])> + '_ {
        self.entrances.iter().map(|e| (e.id, e.session.id))
    }

    /// [`Gate::memory`] is stored durably as it was when [`Gate::memory_version`] was `version`.
    /// Sessions that are part of that begin now.
    ///
    /// What has changed since does not keep them out: nobody who conflicts with them can have begun
    /// meanwhile, so those whom they displace are stored as fenced. Otherwise a few who come and go
    /// while storing is slow would keep each other out for ever.
    pub fn on_saved(&mut self, version: u64, now: Instant) {
        let is_all = version == self.memory_version();
        self.pass_entrances(version, now);
        if is_all {
            // What is saved says so already.
            self.memory.set_version(version);
        }
    }

    /// [`Gate::memory`] could not be stored: no session begins that waits for it. Gives their
    /// connections, which are to be refused; the gate does not know them any more. What storing
    /// has left behind may say that they were let in: save again.
    pub fn on_save_failed(&mut self) -> Vec<ConnectionId> {
        let refused: Vec<ConnectionId> = self.entrances.drain(..).map(|e| e.id).collect();
        if !refused.is_empty() {
            self.memory.touch();
        }
        refused
    }

    /// Whether somebody who could otherwise come in must try again, since it conflicts with a session
    /// of which it is not decided yet whether it begins. One that holds the volume has nothing to
    /// wait for if it is taken by force: that does not depend on what it does.
    pub(super) fn must_try_again(&self, session: &Session, holds: bool) -> bool {
        self.entrances.iter().any(|e| {
            let forced = holds && e.forced;
            let conflicts = e.session.mode.conflicts_with(session.mode);
            e.session.id == session.id || (conflicts && !forced)
        })
    }

    /// Passes those that the memory had in this version.
    pub(super) fn pass_entrances(&mut self, version: u64, now: Instant) {
        let (left, passed): (Vec<Entrance>, Vec<Entrance>) = core::mem::take(&mut self.entrances)
            .into_iter()
            .partition(|e| e.due.is_some() || e.version > version);
        self.entrances = left;
        for entrance in &passed {
            self.begin_session(entrance, now);
        }
    }

    fn begin_session(&mut self, entrance: &Entrance, now: Instant) {
        let Entrance { session, .. } = *entrance;
        let displaced: Vec<[u8; 16]> = self
            .sessions
            .iter()
            .filter(|s| !s.over && s.mode.conflicts_with(session.mode))
            .map(|s| s.id)
            .collect();
        for id in displaced {
            self.end_session(&id, CloseCause::Fenced);
        }
        let had = self.memory.max_connections(&session.id);
        self.memory
            .enter(&session.id, |mode| mode.conflicts_with(session.mode));
        self.sessions.push(Session {
            since: now,
            max_connections: had.max(session.max_connections),
            ..session
        });
        self.make_room();
        self.connections.push(Connection {
            id: entrance.id,
            session_id: session.id,
            index: 0,
            generation: session.generation,
            state: State::Waiting {
                deadline: now.after_ms(self.config.drain_timeout_ms),
            },
            due: None,
        });
        self.note_epoch(session.id, 0, entrance.epoch);
    }

    /// Takes back what a connection that is gone has asked for. False: it is of no entrance.
    pub(super) fn forget_entrance(&mut self, id: ConnectionId) -> bool {
        let Some(at) = self.entrances.iter().position(|e| e.id == id) else {
            return false;
        };
        self.entrances.swap_remove(at);
        self.memory.touch();
        true
    }

    /// None of those that wait for it begins, for this cause.
    pub fn revoke_entrances(&mut self, cause: CloseCause) {
        for entrance in &mut self.entrances {
            entrance.due = Some(cause);
            self.memory.touch();
        }
    }

    /// Turns away the next one that has waited for too long, or is not to begin.
    pub(super) fn refuse_entrance(&mut self, now: Instant) -> Option<GateAction> {
        let is_due = |e: &Entrance| e.due.is_some() || e.deadline <= now;
        let entrance = *self.entrances.iter().find(|e| is_due(e))?;
        self.forget_entrance(entrance.id);
        let mut reason = super::RefuseReason::new(Status::Draining);
        match entrance.due {
            Some(cause) => reason.status = super::refusal_of(cause),
            None => reason.retry_after_ms = 1000,
        }
        Some(GateAction::Refuse(entrance.id, reason))
    }
}
