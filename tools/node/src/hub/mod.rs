// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The hub: one thread which owns who holds which volume.
//!
//! It owns the gates and the open volumes outright, so there is no lock to
//! order. Everybody else sends it messages: workers tell of connections that
//! introduce themselves, are drained or release their session; the control API
//! claims volumes for creating, resizing and deleting them. It answers workers
//! through their mailboxes. It is not on the I/O path, and it never blocks:
//! opening a volume, which may wait for a lock, and closing it, which may wait for
//! the disk, happen on helper threads.

mod absent;
mod answers;
mod boot;
mod closing;
mod entering;
mod entry;
mod find;
mod name;
mod ownership;
mod record;
mod saving;
mod sizes;
mod stopping;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use neonsan_api::{ApiError, SessionInfo, VolumeName};
use neonsan_engine::{Error, ErrorKind, Volume};
use neonsan_proto::{Mode, Status};
use neonsan_session::server::{
    ConnectionId, GateAction, Introduced, IntroducedAs, Opening, RefuseReason,
};
use tokio::sync::oneshot;

use crate::access::{Full, PeerKey, Shares};
use crate::data::ToWorker;
use crate::shared::Shared;
pub use absent::{absent_holder, all_fenced, Absent, Observations};
pub(crate) use answers::node_address;
use answers::{refusal_for_open_error, refusal_text, OpenParameters};
use entry::{Entry, State};
pub use find::{find_engine, find_sole_engine};
pub use name::OpenName;
pub use ownership::Found;
use stopping::GOING_AWAY;

/// How often timeouts of the gates are looked at.
const TICK: Duration = Duration::from_millis(100);

fn too_many_sessions(full: Full, own: u32, total: u32) -> String {
    let limit = match full {
        Full::All => format!("it has {total}, as many as it may have (its limits.max_sessions)"),
        Full::Peer => format!(
            "this client has {own}, as many as one may have (limits.max_peer_sessions of the node)"
        ),
        Full::Reserve => format!(
            "it has {total}, this client {own} of them, and what is left of limits.max_sessions is \
             for clients that have few"
        ),
    };
    format!(
        "the node takes no more sessions: {limit}; detach a device, use another node, or raise the \
         limit"
    )
}

/// A connection that wants to be let in.
pub struct Introduction {
    /// The connection.
    pub id: ConnectionId,
    /// What it asks.
    pub introduced: Introduced,
    /// Where it comes from.
    pub peer: SocketAddr,
    /// For whom its session counts.
    pub key: PeerKey,
}

/// What the hub is told.
pub enum ToHub {
    /// A connection has introduced itself.
    Introduce(Box<Introduction>),
    /// Its worker has the queue that [`ToWorker::Prepare`] asked for.
    Prepared(ConnectionId),
    /// None of its requests is in an engine any more, and none can begin.
    Drained(ConnectionId),
    /// Its client ended the session in order; [`ToHub::Drained`] follows.
    Release(ConnectionId),
    /// A helper thread has tried to open a volume.
    Opened {
        /// Its name.
        name: OpenName,
        /// How it went.
        result: neonsan_engine::Result<Found>,
    },
    /// A helper thread has tried to save what a gate must not forget.
    Saved {
        /// The volume.
        name: OpenName,
        /// The version of the gate's memory.
        version: u64,
        /// How it went.
        result: neonsan_engine::Result<()>,
    },
    /// A helper thread has closed a volume.
    Closed(OpenName),
    /// Keep everybody away from a volume that nobody holds.
    Claim {
        /// Its name.
        name: OpenName,
        /// Whether that is so now.
        reply: oneshot::Sender<Result<(), ApiError>>,
    },
    /// End of a claim.
    Unclaim {
        /// Its name.
        name: OpenName,
        /// The volume is gone: forget who had it.
        forget: bool,
    },
    /// The volume if it is open, to make it larger.
    OpenVolume {
        /// Its name.
        name: OpenName,
        /// The volume.
        reply: oneshot::Sender<Option<Arc<dyn Volume>>>,
    },
    /// An open volume has another size: tell its sessions.
    Resized(OpenName),
    /// Who holds what.
    Sessions {
        /// One volume with its snapshots, or all.
        name: Option<VolumeName>,
        /// The sessions.
        reply: oneshot::Sender<Vec<SessionInfo>>,
    },
    /// The node will stop in so many milliseconds: let nobody in, tell
    /// everybody.
    GoingAway(u32),
    /// The time is up: end all sessions.
    RevokeAll,
    /// End the thread.
    Stop,
}

/// The hub. Owned by its thread.
pub struct Hub {
    shared: Arc<Shared>,
    entries: HashMap<OpenName, Entry>,
    /// Which volume a connection was let to.
    volumes: HashMap<ConnectionId, OpenName>,
    /// The node ends all sessions, but not for good: what becomes of them is not saved.
    revoked_all: bool,
}

impl Hub {
    /// A hub without volumes.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            entries: HashMap::new(),
            volumes: HashMap::new(),
            revoked_all: false,
        }
    }

    /// Works until [`ToHub::Stop`] comes.
    pub fn run(mut self, messages: &Receiver<ToHub>) {
        let mut next_tick = self.shared.clock.now().after_ms(TICK.as_millis() as u64);
        loop {
            match messages.recv_timeout(TICK) {
                Ok(ToHub::Stop) => return self.finish_saving(messages),
                Err(RecvTimeoutError::Disconnected) => return,
                Ok(message) => self.handle(message),
                Err(RecvTimeoutError::Timeout) => {}
            }
            let now = self.shared.clock.now();
            if now >= next_tick {
                next_tick = now.after_ms(TICK.as_millis() as u64);
                self.tick();
            }
        }
    }

    fn tick(&mut self) {
        self.shared.metrics.hub_beat();
        self.look_for_losses();
        self.look_for_lost_writes();
        self.look_for_sizes();
        let now = self.shared.clock.now();
        self.try_saving_again(now);
        let due: Vec<OpenName> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.gate.poll_timeout().is_some_and(|at| at <= now))
            .map(|(name, _)| name.clone())
            .collect();
        for name in due {
            if let Some(entry) = self.entries.get_mut(&name) {
                entry.gate.handle_timeout(now);
            }
            self.pump(&name);
        }
        let sessions = self
            .entries
            .values()
            .map(|e| e.gate.holders().count())
            .sum();
        self.shared.metrics.set_sessions(sessions);
    }

    fn handle(&mut self, message: ToHub) {
        let now = self.shared.clock.now();
        match message {
            ToHub::Introduce(introduction) => self.introduce(*introduction),
            ToHub::Prepared(id) => self.prepared(id),
            ToHub::Drained(id) => self.drained(id),
            ToHub::Release(id) => {
                if let Some(name) = self.volumes.get(&id).cloned() {
                    if let Some(entry) = self.entries.get_mut(&name) {
                        entry.gate.on_release(id);
                    }
                    self.pump(&name);
                }
            }
            ToHub::Opened { name, result } => self.opened(&name, result),
            ToHub::Saved {
                name,
                version,
                result,
            } => self.saved(&name, version, result),
            ToHub::Closed(name) => self.closed(&name),
            ToHub::Claim { name, reply } => self.decide_claim(name, reply),
            ToHub::Unclaim { name, forget } => self.unclaim(&name, forget),
            ToHub::OpenVolume { name, reply } => {
                let volume = self.entries.get(&name).and_then(Entry::volume);
                let _ = reply.send(volume);
            }
            ToHub::Resized(name) => self.resized(&name),
            ToHub::Sessions { name, reply } => {
                let sessions = self
                    .entries
                    .iter()
                    .filter(|(n, _)| name.as_ref().is_none_or(|name| name == n.volume()))
                    .flat_map(|(n, entry)| entry.sessions(n, now))
                    .collect();
                let _ = reply.send(sessions);
            }
            ToHub::GoingAway(left_ms) => {
                self.shared.going_away.store(true, Ordering::Relaxed);
                for mailbox in &self.shared.mailboxes {
                    mailbox.post(ToWorker::GoingAway(left_ms));
                }
            }
            ToHub::RevokeAll => self.revoke_all(),
            // Handled by `run`.
            ToHub::Stop => {}
        }
    }

    fn tell_worker(&self, id: ConnectionId, message: ToWorker) {
        // Ids are given out so that this finds the connection's worker.
        let count = self.shared.mailboxes.len() as u64;
        if let Some(mailbox) = self.shared.mailboxes.get((id.0 % count) as usize) {
            mailbox.post(message);
        }
    }

    fn refuse(&self, id: ConnectionId, status: Status, text: impl Into<String>) {
        self.tell_worker(
            id,
            ToWorker::Refuse {
                id,
                status,
                refusal: neonsan_proto::Refusal::default(),
                text: text.into(),
            },
        );
    }

    fn introduce(&mut self, introduction: Introduction) {
        let id = introduction.id;
        let request = &introduction.introduced.request;
        let asked = match request.volume() {
            Ok(name) => name,
            Err(error) => return self.refuse(id, Status::BadName, error.to_string()),
        };
        let name = match OpenName::asked(&asked) {
            Ok(name) => name,
            Err(error) => return self.refuse(id, Status::BadName, format!("{error}")),
        };
        if name.snapshot().is_some() && request.mode() != Mode::ReadOnly {
            let text = format!("the snapshot {name} can only be read: attach it read-only");
            return self.refuse(id, Status::OpenedReadOnly, text);
        }
        if self.shared.is_going_away() {
            return self.refuse(id, Status::GoingAway, GOING_AWAY);
        }
        let is_open = introduction.introduced.kind == IntroducedAs::Open;
        match self.entries.get_mut(&name).map(|entry| &mut entry.state) {
            Some(State::Busy { waiting }) => waiting.push(introduction),
            Some(State::Lost) => self.refuse(id, Status::NotOwner, ownership::lost_text(&name)),
            Some(State::Open(_)) => self.knock(&name, introduction),
            Some(State::Closed) if !is_open => self.knock(&name, introduction),
            None if !is_open => self.refuse(
                id,
                Status::UnknownSession,
                "the node does not know the session (was it restarted?): open it again",
            ),
            Some(State::Closed) | None => {
                let live = self.shared.live();
                let config = &live.config;
                let entry = self
                    .entries
                    .entry(name.clone())
                    .or_insert_with(|| Entry::new(config, Self::without_fencing(config)));
                let asks = introduction.introduced;
                entry.state = State::Busy {
                    waiting: vec![introduction],
                };
                self.begin_opening(name, id, asks);
            }
        }
    }

    /// Whether this is the program that does not fence, with which the lab sees
    /// that its checkers notice.
    fn without_fencing(_config: &crate::config::Config) -> bool {
        #[cfg(feature = "test-faults")]
        let without = _config.without_fencing;
        #[cfg(not(feature = "test-faults"))]
        let without = false;
        without
    }

    /// Opens the volume on a helper thread, which answers with
    /// [`ToHub::Opened`].
    fn begin_opening(&mut self, name: OpenName, id: ConnectionId, asks: Introduced) {
        let shared = Arc::clone(&self.shared);
        let for_thread = name.clone();
        let spawned = thread::Builder::new()
            .name("open-volume".to_owned())
            .spawn(move || {
                let result = ownership::find(&shared, &for_thread, id, &asks);
                shared.tell_hub(ToHub::Opened {
                    name: for_thread,
                    result,
                });
            });
        if let Err(error) = spawned {
            let result = Err(Error::os(error, "cannot start a thread"));
            self.opened(&name, result);
        }
    }

    fn opened(&mut self, name: &OpenName, result: neonsan_engine::Result<Found>) {
        let Some(entry) = self.entries.get_mut(name) else {
            return;
        };
        match result {
            Ok(Found::Elsewhere { asked, reason }) => {
                let waiting = entry.become_closed();
                if !entry.was_open {
                    self.entries.remove(name);
                }
                self.answer_from_elsewhere(name, asked, &reason, waiting);
            }
            Ok(Found::Here(volume)) => {
                tracing::info!(volume = %name, engine = volume.engine, "volume opened");
                let now = self.shared.clock.now();
                let waiting = entry.become_open(*volume, &self.shared.live().config, now);
                for introduction in waiting {
                    self.introduce(introduction);
                }
                // Whoever waited may be gone.
                self.pump(name);
            }
            Err(error) => {
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::NoSuchSnapshot
                ) {
                    let kind = ("no such volume or snapshot", "");
                    if self.shared.log_limits.admits(kind, self.shared.clock.now()) {
                        tracing::info!(volume = %name, "no such volume or snapshot");
                    }
                } else {
                    tracing::warn!(volume = %name, %error, "cannot open the volume");
                }
                let waiting = entry.become_closed();
                if !entry.was_open {
                    self.entries.remove(name);
                }
                let (status, text) = refusal_for_open_error(name, &error);
                for introduction in waiting {
                    self.refuse(introduction.id, status, text.clone());
                }
            }
        }
    }

    /// Passes an introduction to the gate of its volume, which is open, or
    /// which nobody holds.
    fn knock(&mut self, name: &OpenName, introduction: Introduction) {
        let now = self.shared.clock.now();
        let id = introduction.id;
        let Introduced { kind, request, .. } = introduction.introduced;
        if kind == IntroducedAs::Join && !self.is_current(name, &request.session_id) {
            return self.refuse(id, Status::UnknownSession, boot::OPEN_AGAIN);
        }
        let live = self.shared.live();
        let (own, total) = self.count_sessions(introduction.key);
        let Some(entry) = self.entries.get_mut(name) else {
            return;
        };
        let is_new = kind == IntroducedAs::Open
            && !entry
                .gate
                .holders()
                .any(|h| h.session_id == request.session_id);
        if let Some(full) = is_new
            .then(|| Shares::of_sessions(&live.config.limits).full(own, total))
            .flatten()
        {
            let text = too_many_sessions(full, own, total);
            return self.refuse(id, Status::TooManySessions, text);
        }
        entry.set_limits(&live.config);
        match entry.gate.introduce(id, kind, &request, now) {
            Opening::Waiting => {
                entry.note(&introduction, &live.config);
                self.volumes.insert(id, name.clone());
                if entry.gate.is_entering(id) {
                    self.prepare(name, id);
                }
                self.pump(name);
            }
            Opening::Refused(reason) => {
                self.refuse_by_gate(name, id, &reason);
                // A refused open may have opened a volume that nobody holds.
                self.pump(name);
            }
        }
    }

    /// The sessions that count for a peer, and all.
    fn count_sessions(&self, key: PeerKey) -> (u32, u32) {
        let (mut own, mut all) = (0, 0);
        for entry in self.entries.values() {
            let entering = entry.gate.entering().map(|(_, session)| session);
            let holding = entry.gate.holders().map(|holder| holder.session_id);
            for session_id in holding.chain(entering) {
                all += 1;
                let note = entry.session_notes.get(&session_id);
                own += u32::from(note.is_some_and(|note| note.key == key));
            }
        }
        (own, all)
    }

    fn refuse_by_gate(&self, name: &OpenName, id: ConnectionId, reason: &RefuseReason) {
        let Some(entry) = self.entries.get(name) else {
            return;
        };
        let (refusal, text) = refusal_text(name, reason, entry, &self.shared.clock);
        let kind = ("refused", reason.status.name());
        if self.shared.log_limits.admits(kind, self.shared.clock.now()) {
            tracing::info!(volume = %name, connection = id.0, status = reason.status.name(), %text, "refused");
        }
        self.tell_worker(
            id,
            ToWorker::Refuse {
                id,
                status: reason.status,
                refusal,
                text,
            },
        );
    }

    fn drained(&mut self, id: ConnectionId) {
        let now = self.shared.clock.now();
        match self.volumes.remove(&id) {
            Some(name) => {
                if let Some(entry) = self.entries.get_mut(&name) {
                    entry.connections.remove(&id);
                    entry.gate.on_drained(id, now);
                }
                self.pump(&name);
            }
            // It may still wait for its volume to be opened.
            None => {
                for entry in self.entries.values_mut() {
                    entry.stop_waiting(id);
                }
            }
        }
    }

    /// Carries out what the gate of a volume has decided, and closes the
    /// volume when nobody is left.
    fn pump(&mut self, name: &OpenName) {
        let now = self.shared.clock.now();
        if let Some(entry) = self.entries.get_mut(name) {
            // Readers of what nobody changes need not be kept out, so nothing of them is saved.
            if name.snapshot().is_some() {
                entry.saved_version = entry.gate.memory_version();
                entry.gate.on_saved(entry.saved_version, now);
            }
        }
        loop {
            let Some(entry) = self.entries.get_mut(name) else {
                return;
            };
            let Some(action) = entry.gate.poll_action(now) else {
                break;
            };
            match action {
                // It was saved when its session began that it is in.
                GateAction::Admit(id) => self.admit(name, id),
                GateAction::Refuse(id, reason) => {
                    self.let_go(name, id);
                    self.refuse_by_gate(name, id, &reason);
                }
                GateAction::Revoke(id, cause) => {
                    self.tell_worker(id, ToWorker::Revoke { id, cause });
                }
            }
        }
        self.save(name);
        if let Some(entry) = self.entries.get_mut(name) {
            entry.forget_ended_sessions();
            let unused = match entry.state {
                State::Open(_) => entry.gate.is_unused() && !entry.has_queues(),
                State::Lost => entry.connections.is_empty(),
                State::Closed | State::Busy { .. } => false,
            };
            if unused && !entry.saving {
                if entry.is_last_time_to_save() {
                    return self.save(name);
                }
                match entry.begin_closing() {
                    Some(volume) => self.begin_closing(name, volume),
                    None => self.closed(name),
                }
            }
        }
    }

    fn admit(&mut self, name: &OpenName, id: ConnectionId) {
        let Some(boot_id) = self.boot_id_for(name, id) else {
            return self.turn_away(name, id);
        };
        let Some((entry, note)) = self
            .entries
            .get(name)
            .and_then(|entry| Some((entry, entry.connections.get(&id)?)))
        else {
            return;
        };
        let (State::Open(open), Some(session)) =
            (&entry.state, entry.session_notes.get(&note.session_id))
        else {
            // Sessions exist only while their volume is open.
            tracing::error!(volume = %name, "a connection was admitted to a closed volume");
            return self.refuse(id, Status::Internal, "the volume is not open");
        };
        let parameters = OpenParameters {
            open,
            mode: note.mode,
            generation: note.generation,
            max_connections: entry.gate.max_connections(&note.session_id),
            boot_id,
        };
        let (reply, geometry) = parameters.reply(&self.shared);
        self.tell_worker(
            id,
            ToWorker::Admit {
                id,
                volume: Arc::clone(&open.volume),
                name: name.clone(),
                engine_index: open.engine_index,
                reply: Box::new(reply),
                geometry,
                read_only: parameters.is_read_only(),
                budget: Arc::clone(&session.budget),
            },
        );
    }
}
