// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What the hub knows of one volume.
//!
//! ```text
//!            first OPEN               opened
//!   Closed ─────────────▶ Busy ─────────────────▶ Open
//!     ▲  ▲      claim       │ cannot be opened,     │
//!     │  └──────────────────┘ end of the claim      │
//!     ├─────────────────────────────────────────────┤
//!     │     nobody holds it any more: Busy,         │ another node
//!     │     until it is closed                      │ has it
//!     └──────────────── Lost ◀──────────────────────┘
//!          all is drained
//! ```
//!
//! The gate outlives the states: it remembers who was fenced. Not so where
//! several nodes have the same volumes: then what is saved beside the volume
//! remembers, and each opening begins with it.

use std::collections::HashMap;
use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;

use neonsan_api::{ApiError, OpenMode, SessionInfo};
use neonsan_engine::{Limits, Volume, VolumeStat};
use neonsan_proto::Mode;
use neonsan_session::server::{ConnectionId, Gate, GateConfig, IntroducedAs, Remembered};
use neonsan_session::Instant;

use tokio::sync::oneshot;

use super::{record, Introduction, OpenName};
use crate::access::PeerKey;
use crate::config::Config;
use crate::shared::{hex, Budget};

/// An open volume and what is told of it.
pub struct OpenVolume {
    /// The volume.
    pub volume: Arc<dyn Volume>,
    /// Its engine's name.
    pub engine: String,
    /// The index of its engine.
    pub engine_index: usize,
    /// Other nodes may take it.
    pub is_shared: bool,
    /// What the gate of an earlier process has saved.
    pub remembered: Vec<Remembered>,
    /// Size and block sizes.
    pub stat: VolumeStat,
    /// Abilities.
    pub limits: Limits,
}

/// Whether the volume is open.
pub(super) enum State {
    /// It is not.
    Closed,
    /// It is being opened or closed, or is claimed by the control API; these wait.
    Busy { waiting: Vec<Introduction> },
    /// It is.
    Open(OpenVolume),
    /// Another node has it; requests of old connections are still in the
    /// engine, which fails them.
    Lost,
}

/// A connection which knocked at the gate.
pub(super) struct ConnectionNote {
    pub(super) session_id: [u8; 16],
    pub(super) peer: SocketAddr,
    pub(super) mode: Mode,
    pub(super) generation: u64,
    /// It opens its session; others join it.
    pub(super) opens: bool,
    /// The boot id that it was let in with, until it is told to go.
    pub(super) told: Option<[u8; 16]>,
    /// Whether its worker makes a queue before it is let in.
    pub(super) preparation: Preparation,
}

/// Where a worker is with the queue of a connection that is not let in yet; see `entering`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Preparation {
    /// It makes the queue when the connection is let in.
    None,
    /// It was asked to make it.
    Asked,
    /// It has it.
    Done,
}

/// What the gate does not know of a session.
pub(super) struct SessionNote {
    /// The name of its host, for people.
    pub(super) host_name: String,
    /// For whom it counts.
    pub(super) key: PeerKey,
    /// Its bytes in flight; shared with the workers of its connections.
    pub(super) budget: Arc<Budget>,
    /// The boot id that its last OPEN was told.
    pub(super) told: Option<[u8; 16]>,
}

/// One volume, open or not.
pub(super) struct Entry {
    pub(super) gate: Gate,
    without_fencing: bool,
    pub(super) state: State,
    /// It was open once, so the gate may have something to remember.
    pub(super) was_open: bool,
    /// The version of the gate's memory that is saved beside the volume.
    pub(super) saved_version: u64,
    /// A helper thread is saving it. Nobody changes the volume meanwhile.
    pub(super) saving: bool,
    /// A helper thread is closing the volume; whoever wants it waits.
    pub(super) closing: bool,
    /// What it saves, or has saved last since the volume was opened; else nothing.
    pub(super) record: Vec<u8>,
    /// It could not be saved; tried again when somebody is to be let in.
    pub(super) save_failed: bool,
    /// When it is tried again in any case, since what is on the disk may be what was taken back.
    pub(super) again_at: Option<Instant>,
    /// How long it was until then the last time; 0 after a success.
    pub(super) again_ms: u64,
    /// What is still to be saved when the node has ended all sessions, if that is something else.
    pub(super) last_record: Option<Vec<u8>>,
    /// Claims that are decided as soon as it is saved, or the volume is closed.
    pub(super) claims: Vec<oneshot::Sender<Result<(), ApiError>>>,
    pub(super) connections: HashMap<ConnectionId, ConnectionNote>,
    pub(super) session_notes: HashMap<[u8; 16], SessionNote>,
}

fn gate_config(config: &Config, without_fencing: bool) -> GateConfig {
    GateConfig {
        max_sessions: config.limits.max_sessions as usize,
        max_connections: config.limits.max_session_connections,
        drain_timeout_ms: u64::from(config.timeouts.drain_ms),
        linger_ms: u64::from(config.timeouts.session_linger_ms),
        max_remembered: record::MAX_SESSIONS,
        without_fencing,
    }
}

impl Entry {
    pub(super) fn new(config: &Config, without_fencing: bool) -> Self {
        Self {
            gate: Gate::new(gate_config(config, without_fencing)),
            without_fencing,
            state: State::Closed,
            was_open: false,
            saved_version: 0,
            saving: false,
            closing: false,
            record: Vec::new(),
            save_failed: false,
            again_at: None,
            again_ms: 0,
            last_record: None,
            claims: Vec::new(),
            connections: HashMap::new(),
            session_notes: HashMap::new(),
        }
    }

    /// The limits of a reload are for sessions that begin afterwards.
    pub(super) fn set_limits(&mut self, config: &Config) {
        let GateConfig {
            max_sessions,
            max_connections,
            ..
        } = gate_config(config, self.without_fencing);
        self.gate.set_limits(max_sessions, max_connections);
    }

    fn change_state(&mut self, state: State) -> Vec<Introduction> {
        match mem::replace(&mut self.state, state) {
            State::Busy { waiting } => waiting,
            State::Closed | State::Open(_) | State::Lost => Vec::new(),
        }
    }

    /// The volume was opened; gives those who waited for it.
    pub(super) fn become_open(
        &mut self,
        volume: OpenVolume,
        config: &Config,
        now: Instant,
    ) -> Vec<Introduction> {
        if !self.was_open || volume.is_shared {
            let remembered = volume.remembered.iter().copied();
            let config = gate_config(config, self.without_fencing);
            self.gate = Gate::restore(config, remembered, now);
            self.saved_version = self.gate.memory_version();
            self.save_failed = false;
        }
        self.was_open = true;
        self.record.clear();
        self.change_state(State::Open(volume))
    }

    /// Another node has taken the volume: nobody holds it here, and nothing is
    /// saved any more. Gives the connections that are to be closed.
    pub(super) fn become_lost(&mut self, config: &Config) -> Vec<ConnectionId> {
        self.change_state(State::Lost);
        self.gate = Gate::new(gate_config(config, self.without_fencing));
        self.saved_version = self.gate.memory_version();
        self.again_at = None;
        self.connections.keys().copied().collect()
    }

    /// A gate with what is saved beside a volume that is not open here.
    pub(super) fn gate_from(config: &Config, remembered: Vec<Remembered>, now: Instant) -> Gate {
        Gate::restore(gate_config(config, false), remembered, now)
    }

    /// Nobody holds the volume: gives what is to be closed, if it is open.
    pub(super) fn begin_closing(&mut self) -> Option<OpenVolume> {
        let busy = State::Busy {
            waiting: Vec::new(),
        };
        match mem::replace(&mut self.state, busy) {
            State::Open(volume) => {
                self.closing = true;
                Some(volume)
            }
            State::Closed | State::Busy { .. } | State::Lost => None,
        }
    }

    /// The volume is closed, or could not be opened; gives those who waited.
    pub(super) fn become_closed(&mut self) -> Vec<Introduction> {
        self.change_state(State::Closed)
    }

    /// The connection was closed before its volume was open.
    pub(super) fn stop_waiting(&mut self, id: ConnectionId) {
        if let State::Busy { waiting } = &mut self.state {
            waiting.retain(|introduction| introduction.id != id);
        }
    }

    /// Those who wait for the volume to be opened, who wait no longer.
    pub(super) fn take_waiting(&mut self) -> Vec<Introduction> {
        match &mut self.state {
            State::Busy { waiting } => mem::take(waiting),
            State::Closed | State::Open(_) | State::Lost => Vec::new(),
        }
    }

    pub(super) fn volume(&self) -> Option<Arc<dyn Volume>> {
        match &self.state {
            State::Open(open) => Some(Arc::clone(&open.volume)),
            State::Closed | State::Busy { .. } | State::Lost => None,
        }
    }

    /// Remembers what the gate does not.
    pub(super) fn note(&mut self, introduction: &Introduction, config: &Config) {
        let request = &introduction.introduced.request;
        self.connections.insert(
            introduction.id,
            ConnectionNote {
                session_id: request.session_id,
                peer: introduction.peer,
                mode: request.mode(),
                generation: request.generation.get(),
                opens: introduction.introduced.kind == IntroducedAs::Open,
                told: None,
                preparation: Preparation::None,
            },
        );
        self.session_notes
            .entry(request.session_id)
            .or_insert_with(|| SessionNote {
                host_name: request.host_name().to_owned(),
                key: introduction.key,
                budget: Arc::new(Budget::new(config.limits.max_session_in_flight_bytes)),
                told: None,
            });
    }

    pub(super) fn forget_ended_sessions(&mut self) {
        let connections = &self.connections;
        let gate = &self.gate;
        self.session_notes.retain(|id, _| {
            gate.holders().any(|h| h.session_id == *id)
                || connections.values().any(|c| c.session_id == *id)
        });
    }

    /// The name of a session's host: what it calls itself, and its identity.
    pub(super) fn host(&self, session_id: &[u8; 16], host_id: &[u8; 16]) -> String {
        match self.session_notes.get(session_id) {
            Some(note) if !note.host_name.is_empty() => {
                format!("{} ({})", note.host_name, hex(host_id))
            }
            _ => hex(host_id),
        }
    }

    /// From where a session is connected; one address of several.
    pub(super) fn peer(&self, session_id: &[u8; 16]) -> Option<SocketAddr> {
        let mut connections = self.connections.values();
        let connection = connections.find(|c| c.session_id == *session_id)?;
        Some(connection.peer)
    }

    /// Who holds the volume.
    pub(super) fn sessions(&self, name: &OpenName, now: Instant) -> Vec<SessionInfo> {
        self.gate
            .holders()
            .map(|holder| SessionInfo {
                volume: name.volume().clone(),
                snapshot: name.snapshot().map(|s| s.snapshot().to_owned()),
                id: hex(&holder.session_id),
                host: self.host(&holder.session_id, &holder.host_id),
                mode: match holder.mode {
                    Mode::Exclusive => OpenMode::Exclusive,
                    Mode::Shared => OpenMode::Shared,
                    Mode::ReadOnly => OpenMode::ReadOnly,
                    Mode::Unknown(_) => OpenMode::Other,
                },
                generation: holder.generation,
                connections: self
                    .connections
                    .values()
                    .filter(|c| c.session_id == holder.session_id)
                    .map(|c| c.peer.to_string())
                    .collect(),
                age_s: now.since_ms(holder.since) / 1000,
            })
            .collect()
    }
}
