// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The end of all sessions, when the node stops.
//!
//! It is not for good: what is saved goes on to say who holds the volumes, so that they can come back
//! first. But somebody whose session was to begin, and does not any more, holds nothing. That may be
//! what is being saved at this moment, so it is saved over.

use neonsan_proto::Status;
use neonsan_session::CloseCause;

use super::entry::Entry;
use super::{record, Hub, Introduction, OpenName};

/// What a node that stops says to who wants to be let in.
pub(super) const GOING_AWAY: &str = "the node is stopping: use another, or wait until it is back";

impl Hub {
    /// Ends all sessions.
    pub(super) fn revoke_all(&mut self) {
        self.refuse_waiting();
        let names: Vec<OpenName> = self.entries.keys().cloned().collect();
        for name in &names {
            if let Some(entry) = self.entries.get_mut(name) {
                entry.gate.revoke_entrances(CloseCause::GoingAway);
            }
            self.pump(name);
            if let Some(entry) = self.entries.get_mut(name) {
                entry.settle_last_record();
            }
        }
        self.revoked_all = true;
        for name in &names {
            if let Some(entry) = self.entries.get_mut(name) {
                entry.gate.revoke_all(CloseCause::GoingAway);
            }
            self.pump(name);
        }
    }

    /// Turns away those who wait for a volume to be opened, however long that takes.
    fn refuse_waiting(&mut self) {
        let waiting: Vec<Introduction> = self
            .entries
            .values_mut()
            .flat_map(Entry::take_waiting)
            .collect();
        for introduction in waiting {
            self.refuse(introduction.id, Status::GoingAway, GOING_AWAY);
        }
    }
}

impl Entry {
    /// The node is about to end all sessions: if what is saved is not as it is before that, it is to be.
    fn settle_last_record(&mut self) {
        if self.gate.memory_version() != self.saved_version {
            let memory: Vec<_> = self.gate.memory().collect();
            self.last_record = Some(record::encode(&memory));
        }
    }
}
