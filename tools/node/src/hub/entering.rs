// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Sessions that would begin: all that can fail comes before anybody is fenced for them.
//!
//! ```text
//!   hub      gate: is_entering ── Prepare ──►                ┌── save ── on_saved: fences, Admit
//!   worker                         makes the queue ── Prepared
//! ```
//!
//! A node that has no place for another queue, or cannot save who holds the volume, refuses the
//! newcomer, and whoever holds the volume hears nothing of it.

use std::sync::Arc;

use neonsan_proto::Status;
use neonsan_session::server::ConnectionId;
use neonsan_session::Instant;

use super::entry::{Entry, Preparation, State};
use super::{record, Hub, OpenName};
use crate::data::ToWorker;

/// How soon it is tried to save again what was taken back, and how long at most it takes until then.
/// Not often: each failure may be one by which the engine loses its boot id.
const AGAIN_MS: u64 = 10_000;
const AGAIN_AT_MOST_MS: u64 = 600_000;

impl Hub {
    /// Has the worker make ready for a connection that opens a session which begins.
    pub(super) fn prepare(&mut self, name: &OpenName, id: ConnectionId) {
        // What nobody can be kept out of is taken from nobody.
        if name.snapshot().is_some() {
            return;
        }
        let live = self.shared.live();
        let Some(entry) = self.entries.get_mut(name) else {
            return;
        };
        let State::Open(open) = &entry.state else {
            return;
        };
        let message = ToWorker::Prepare {
            id,
            volume: Arc::clone(&open.volume),
            engine_index: open.engine_index,
            depth: live.config.limits.max_depth,
        };
        if let Some(note) = entry.connections.get_mut(&id) {
            note.preparation = Preparation::Asked;
            self.tell_worker(id, message);
        }
    }

    /// The worker is ready for the connection.
    pub(super) fn prepared(&mut self, id: ConnectionId) {
        let Some(name) = self.volumes.get(&id).cloned() else {
            return;
        };
        let entry = self.entries.get_mut(&name);
        if let Some(note) = entry.and_then(|entry| entry.connections.get_mut(&id)) {
            note.preparation = Preparation::Done;
        }
        self.pump(&name);
    }

    /// Refuses those who cannot be let in since that cannot be saved. Nobody was told to go for them.
    pub(super) fn refuse_unsaved(&mut self, name: &OpenName, text: &str) {
        let now = self.shared.clock.now();
        let Some(entry) = self.entries.get_mut(name) else {
            return;
        };
        let refused = entry.gate.on_save_failed();
        if !refused.is_empty() || entry.again_ms > 0 {
            // What is on the disk now may be that they hold the volume.
            entry.save_again(now);
        }
        for id in refused {
            self.let_go(name, id);
            self.refuse(id, Status::Internal, text);
        }
    }

    /// A connection is refused. One that has a queue is known until the worker has dropped it: the
    /// queue keeps the volume open.
    pub(super) fn let_go(&mut self, name: &OpenName, id: ConnectionId) {
        let Some(entry) = self.entries.get_mut(name) else {
            return;
        };
        let note = entry.connections.get(&id);
        if note.is_none_or(|note| note.preparation == Preparation::None) {
            entry.connections.remove(&id);
            self.volumes.remove(&id);
        }
    }

    /// Saves what could not be saved before, where it is due at this time.
    pub(super) fn try_saving_again(&mut self, now: Instant) {
        let due: Vec<OpenName> = self
            .entries
            .iter_mut()
            .filter_map(|(name, entry)| {
                let is_due = entry.again_at.is_some_and(|at| at <= now);
                is_due.then(|| {
                    entry.again_at = None;
                    entry.save_failed = false;
                    name.clone()
                })
            })
            .collect();
        for name in due {
            self.pump(&name);
        }
    }
}

impl Entry {
    /// Whether a worker is still at it to make ready for a session that begins.
    pub(super) fn is_preparing(&self) -> bool {
        self.gate.entering().any(|(id, _)| {
            let note = self.connections.get(&id);
            note.is_some_and(|note| note.preparation == Preparation::Asked)
        })
    }

    /// Which version of the gate's memory is saved now that `version` is. The present one may say the
    /// same: where saving takes longer than a client waits, it has come back meanwhile, and would never
    /// be let in if each of its attempts had to be saved anew.
    pub(super) fn version_saved_as(&self, version: u64) -> u64 {
        let memory: Vec<_> = self.gate.memory().collect();
        if !self.is_preparing() && record::encode(&memory) == self.record {
            return self.gate.memory_version();
        }
        version
    }

    /// Whether a worker has a queue of the volume, or may have one.
    pub(super) fn has_queues(&self) -> bool {
        let mut notes = self.connections.values();
        notes.any(|note| note.preparation != Preparation::None)
    }

    /// Whether something waits to be saved again, though the volume is to be closed: it is tried once
    /// more, and closed whatever comes of it.
    pub(super) fn is_last_time_to_save(&mut self) -> bool {
        self.again_ms = 0;
        let waits = self.again_at.take().is_some();
        self.save_failed &= !waits;
        waits
    }

    /// What could not be saved is tried again some time, and later each time.
    fn save_again(&mut self, now: Instant) {
        self.again_ms = (self.again_ms * 2).clamp(AGAIN_MS, AGAIN_AT_MOST_MS);
        self.again_at = Some(now.after_ms(self.again_ms));
    }
}
