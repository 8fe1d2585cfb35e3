// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What a gate must not forget is saved beside its volume before anybody is
//! let in, or fenced, by what was decided; and claims, which wait for that.
//!
//! Saving syncs a file, so a helper thread does it, one at a time for each
//! volume. A session that begins does so when it is saved: see `entering`. A
//! connection of one that has begun waits for nothing, whatever else is to be
//! saved: a host must not lose its volume to the attempt of another.

use std::sync::mpsc::Receiver;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant as StdInstant};

use neonsan_api::{ApiError, ErrorCode};
use neonsan_engine::{Error, ErrorKind};
use neonsan_session::server::Remembered;
use neonsan_session::Instant;
use tokio::sync::oneshot;

use super::entry::{Entry, State};
use super::{answers, record, Hub, OpenName, ToHub};

/// How long a node that stops waits for what is being saved.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

impl Hub {
    /// Saves the memory of a volume's gate if it has changed.
    pub(super) fn save(&mut self, name: &OpenName) {
        let Some(entry) = self.entries.get_mut(name) else {
            return;
        };
        if entry.saving {
            return;
        }
        let version = entry.gate.memory_version();
        if version == entry.saved_version || entry.is_preparing() {
            return;
        }
        let State::Open(open) = &entry.state else {
            return;
        };
        let engine = Arc::clone(&self.shared.engines[open.engine_index].engine);
        // A node that stops ends all sessions, but not for good: what is saved
        // says that they hold their volumes, so that they can come back first.
        // Until then a session may be released, and its volume is free.
        let bytes = if self.revoked_all {
            match entry.last_record.take() {
                Some(bytes) if bytes != entry.record => bytes,
                Some(_) | None => return,
            }
        } else if entry.save_failed && entry.gate.entering().next().is_none() {
            return;
        } else {
            let sessions: Vec<Remembered> = entry.gate.memory().collect();
            record::encode(&sessions)
        };
        if bytes == entry.record {
            return self.saved(name, version, Ok(()));
        }
        entry.saving = true;
        entry.record.clone_from(&bytes);
        let shared = Arc::clone(&self.shared);
        let for_thread = name.clone();
        let spawned = thread::Builder::new()
            .name("save-record".to_owned())
            .spawn(move || {
                let result = engine.save_record(for_thread.volume(), &bytes);
                shared.tell_hub(ToHub::Saved {
                    name: for_thread,
                    version,
                    result,
                });
            });
        if let Err(error) = spawned {
            let result = Err(Error::os(error, "cannot start a thread"));
            self.saved(name, version, result);
        }
    }

    /// Goes on after saving.
    pub(super) fn saved(
        &mut self,
        name: &OpenName,
        version: u64,
        result: neonsan_engine::Result<()>,
    ) {
        let now = self.shared.clock.now();
        let Some(entry) = self.entries.get_mut(name) else {
            return;
        };
        entry.saving = false;
        match result {
            Ok(()) => {
                let version = entry.version_saved_as(version);
                entry.saved_version = version;
                entry.save_failed = false;
                entry.again_at = None;
                entry.again_ms = 0;
                entry.gate.on_saved(version, now);
            }
            Err(error) if error.kind() == ErrorKind::NotOwner => self.lose(name),
            Err(error) => {
                tracing::error!(volume = %name, %error, "cannot save who holds the volume");
                let text = format!("the node cannot save who holds the volume: {error}");
                entry.save_failed = true;
                entry.record.clear();
                // Nobody is let in who would be unknown after a restart.
                self.refuse_unsaved(name, &text);
            }
        }
        self.pump(name);
        let Some(entry) = self.entries.get_mut(name) else {
            return;
        };
        if !entry.saving && !entry.closing {
            for reply in std::mem::take(&mut entry.claims) {
                self.decide_claim(name.clone(), reply);
            }
        }
    }

    /// Waits for what is being saved, and closed, when the node ends. What could not be saved is tried once more:
    /// what is on the disk may be that somebody has a volume who was not let in.
    pub(super) fn finish_saving(&mut self, messages: &Receiver<ToHub>) {
        self.try_saving_again(Instant(u64::MAX));
        let deadline = StdInstant::now() + STOP_PATIENCE;
        let is_at_it = |entry: &Entry| entry.saving || entry.closing;
        while self.entries.values().any(is_at_it) {
            let left = deadline.saturating_duration_since(StdInstant::now());
            match messages.recv_timeout(left) {
                Ok(message) => self.handle(message),
                Err(_) => {
                    tracing::error!(
                        "what was being saved or closed when the node stopped is not done"
                    );
                    return;
                }
            }
        }
    }

    /// Decides on a claim, at once or when nothing is being saved.
    pub(super) fn decide_claim(
        &mut self,
        name: OpenName,
        reply: oneshot::Sender<Result<(), ApiError>>,
    ) {
        if let Some(entry) = self.entries.get_mut(&name) {
            if entry.saving || entry.closing {
                entry.claims.push(reply);
                return;
            }
        }
        let result = self.claim(name.clone());
        // The one who asked may be gone, and cannot unclaim then.
        if let Err(Ok(())) = reply.send(result) {
            self.unclaim(&name, false);
        }
    }

    fn claim(&mut self, name: OpenName) -> Result<(), ApiError> {
        let now = self.shared.clock.now();
        let config = &self.shared.config;
        let entry = self
            .entries
            .entry(name.clone())
            .or_insert_with(|| Entry::new(config, Self::without_fencing(config)));
        match &entry.state {
            State::Closed => {
                entry.state = State::Busy {
                    waiting: Vec::new(),
                };
                Ok(())
            }
            State::Busy { .. } => Err(ApiError::new(
                ErrorCode::Busy,
                format!("the volume {name} is being opened or changed right now"),
            )
            .with_hint("try again in a moment")),
            State::Open(_) | State::Lost => {
                Err(answers::held_error(&name, &entry.sessions(&name, now)))
            }
        }
    }

    pub(super) fn unclaim(&mut self, name: &OpenName, forget: bool) {
        let Some(entry) = self.entries.get_mut(name) else {
            return;
        };
        let waiting = entry.become_closed();
        if forget || !entry.was_open {
            self.entries.remove(name);
        }
        for introduction in waiting {
            self.introduce(introduction);
        }
    }
}
