// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What becomes of sessions when their engine has another boot id: its storage may
//! have lost what it had answered and not synced.
//!
//! The engine answers no flush with success on a queue from before, whatever volume it is
//! of. That is not enough: a client with unflushed writes may not flush, and one whose
//! flush failed must come to know what it is about. So every connection that was let in with
//! the old id is closed, when its requests are answered, and no connection joins a session
//! that was opened with the old id. The client opens its session again, is told the new id,
//! and fails its next flush if it has anything to lose (`client::Durability`).
//!
//! A client must not hear of the new id while a connection with the old one lives: an
//! answer on that one, which the client takes for a later one, could be of a write that is
//! lost. Hence no JOIN.
//!
//! Between the answer of an OPEN and the making of the queue that serves it the id may
//! change once more: the worker, which makes the queue, compares
//! (`data::connection`), and a queue that was made before goes with the id that was told.

use neonsan_proto::Status;
use neonsan_session::server::ConnectionId;
use neonsan_session::CloseCause;

use super::entry::State;
use super::{Hub, OpenName};
use crate::data::ToWorker;

/// What a connection is told that would join a session from before.
pub(super) const OPEN_AGAIN: &str =
    "the node's storage may have lost answered writes since the session was opened: open it again";

impl Hub {
    /// The boot id in force of the engine that has an open volume.
    fn boot_id_of(&self, name: &OpenName) -> Option<[u8; 16]> {
        match &self.entries.get(name)?.state {
            State::Open(open) => Some(self.shared.engines[open.engine_index].engine.boot_id()),
            State::Closed | State::Busy { .. } | State::Lost => None,
        }
    }

    /// Whether nothing was lost since the session was opened, if it was.
    pub(super) fn is_current(&self, name: &OpenName, session_id: &[u8; 16]) -> bool {
        let notes = self.entries.get(name).map(|entry| &entry.session_notes);
        let told = notes.and_then(|notes| notes.get(session_id)?.told);
        told.is_none() || told == self.boot_id_of(name)
    }

    /// The boot id that an admitted connection is told. `None`: it joins a session that was opened
    /// with another one.
    pub(super) fn boot_id_for(&mut self, name: &OpenName, id: ConnectionId) -> Option<[u8; 16]> {
        let boot_id = self.boot_id_of(name).unwrap_or_default();
        let entry = self.entries.get_mut(name)?;
        let note = entry.connections.get_mut(&id)?;
        let session = entry.session_notes.get_mut(&note.session_id)?;
        if note.opens {
            session.told = Some(boot_id);
        }
        note.told = Some(boot_id);
        (session.told == Some(boot_id)).then_some(boot_id)
    }

    /// Refuses a connection that the gate has admitted.
    pub(super) fn turn_away(&mut self, name: &OpenName, id: ConnectionId) {
        let now = self.shared.clock.now();
        self.volumes.remove(&id);
        if let Some(entry) = self.entries.get_mut(name) {
            entry.connections.remove(&id);
            entry.gate.on_drained(id, now);
        }
        self.refuse(id, Status::UnknownSession, OPEN_AGAIN);
    }

    /// Finds the connections that were let in before their engine may have lost writes, and has
    /// them closed.
    pub(super) fn look_for_lost_writes(&mut self) {
        let names: Vec<OpenName> = self.entries.keys().cloned().collect();
        for name in names {
            let Some(boot_id) = self.boot_id_of(&name) else {
                continue;
            };
            let Some(entry) = self.entries.get_mut(&name) else {
                continue;
            };
            let mut stale = Vec::new();
            for (id, note) in &mut entry.connections {
                if note.told.is_some_and(|told| told != boot_id) {
                    note.told = None;
                    stale.push(*id);
                }
            }
            if stale.is_empty() {
                continue;
            }
            tracing::warn!(
                volume = %name, connections = stale.len(),
                "the volume's engine may have lost answered writes: its sessions must be opened again"
            );
            for id in stale {
                let cause = CloseCause::WritesLost;
                self.tell_worker(id, ToWorker::Revoke { id, cause });
            }
        }
    }
}
