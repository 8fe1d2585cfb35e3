// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Volumes that become larger while they are open.

use super::answers::OpenParameters;
use super::entry::State;
use super::{Hub, OpenName};
use crate::data::ToWorker;

impl Hub {
    /// Finds the volumes whose size somebody has changed in the storage that
    /// nodes share.
    pub(super) fn look_for_sizes(&mut self) {
        let changed: Vec<OpenName> = self
            .entries
            .iter()
            .filter(|(_, entry)| match &entry.state {
                State::Open(open) => {
                    open.is_shared && open.volume.size_bytes() != open.stat.size_bytes
                }
                State::Closed | State::Busy { .. } | State::Lost => false,
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in changed {
            self.resized(&name);
        }
    }

    pub(super) fn resized(&mut self, name: &OpenName) {
        if let Some(State::Open(open)) = self.entries.get_mut(name).map(|e| &mut e.state) {
            open.stat.size_bytes = open.volume.size_bytes();
        }
        let Some(entry) = self.entries.get(name) else {
            return;
        };
        let State::Open(open) = &entry.state else {
            return;
        };
        let size_bytes = open.stat.size_bytes;
        tracing::info!(volume = %name, size_bytes, "volume resized");
        for (id, note) in &entry.connections {
            let parameters = OpenParameters {
                open,
                mode: note.mode,
                generation: note.generation,
                max_connections: entry.gate.max_connections(&note.session_id),
                boot_id: note.told.unwrap_or_default(),
            };
            let (_, geometry) = parameters.reply(&self.shared);
            self.tell_worker(
                *id,
                ToWorker::Resized {
                    id: *id,
                    geometry,
                    size_bytes,
                },
            );
        }
    }
}
