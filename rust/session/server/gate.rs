// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The gate of one volume on one node: who holds it, with which generation, and when a newer one
//! may begin.
//!
//! # The rule
//!
//! A connection is let in ([`GateAction::Admit`]) only when every connection that it displaces has
//! been [drained](Gate::on_drained): no request of it is in the engine any more, and none can
//! begin. That holds for a newer generation of a session, for a newer epoch of one connection, and
//! for a host that takes an exclusive volume by force.
//!
//! Nobody is displaced by a session that begins before the node has saved that it does
//! ([`Gate::on_saved`]): a node that cannot save it refuses it, and the volume stays where it was.
//!
//! # One connection
//!
//! ```text
//!   OPEN of a new session ──► 0 to be saved: see `entrance`
//!                     │ on_saved
//!                     ▼
//!   open/join ──► 1 Waiting ── all it displaces is drained: Admit ──► 2 Active
//!                     │ drain timeout, displaced itself: Refuse           │ displaced: Revoke
//!                     ▼                                                   ▼
//!                   gone ◄──────────────── on_drained ─────────────── 3 Revoked
//!                     ▲                                                   
//!                     └──────── on_drained (it was closed) ──────── 2 Active
//! ```
//!
//! A session that ended without being released may come back with writes to send again. It may
//! have the volume again only if nobody that it conflicts with had it since: otherwise those
//! writes are older than what is stored, and the answer is `Fenced`, for ever.
//!
//! # Who may take the place of a session that lost its connections
//!
//! Without force, at once: that session itself, by its next generation; and another boot of its
//! host, if both boots are known: then the kernel that had the session is gone. Everybody else waits
//! until it has lingered, and is told how long: another session of the same boot is another user of
//! the same disk, and one that does not say its boot may be.
//!
//! The gate is not on the I/O path: a connection that was admitted works without asking again,
//! until it is told to stop.

mod entrance;
mod introduction;

use entrance::Entrance;

use super::memory::{Memory, Remembered, Standing};
use crate::{CloseCause, Instant};
use alloc::vec::Vec;
use neonsan_proto::{Mode, Status};

/// The node's own name for a connection; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// Limits and times of a gate.
#[derive(Clone, Copy, Debug)]
pub struct GateConfig {
    /// Sessions on this volume; see [`Gate::set_limits`].
    pub max_sessions: usize,
    /// Connections of a session that begins. One that was let in before keeps what it had.
    pub max_connections: u16,
    /// How long a new connection waits for the ones it displaces before it is told to try again.
    pub drain_timeout_ms: u64,
    /// How long a session without any connection keeps its volume. It may be back by then, or its
    /// host with another boot; all others need force.
    pub linger_ms: u64,
    /// How many sessions the node can save: see [`Gate::memory`].
    pub max_remembered: usize,
    /// Lets a new connection in without waiting for the ones it displaces. Never set outside
    /// tests: they use it to prove that the checkers notice.
    pub without_fencing: bool,
}

/// The host that holds a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Identity of the host.
    pub host_id: [u8; 16],
    /// Its boot; zero: not known.
    pub host_boot: u64,
    /// Identity of its session.
    pub session_id: [u8; 16],
    /// Its generation.
    pub generation: u64,
    /// Who else may have the volume open.
    pub mode: Mode,
    /// Since when the session exists.
    pub since: Instant,
    /// How many connections it has.
    pub connections: usize,
}

/// Why a connection is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefuseReason {
    /// The status of the answer.
    pub status: Status,
    /// The host that is in the way, if one is.
    pub holder: Option<Holder>,
    /// `StaleGeneration`: the one in force.
    pub generation: u64,
    /// When to try again; zero: not without a change. With [`Status::HeldByOther`] the holder has
    /// no connection, and this is how long it still lingers.
    pub retry_after_ms: u32,
}

impl RefuseReason {
    fn new(status: Status) -> Self {
        RefuseReason {
            status,
            holder: None,
            generation: 0,
            retry_after_ms: 0,
        }
    }
}

/// The first answer to a connection; what follows comes from [`Gate::poll_action`], for the first
/// one of a session that begins after [`Gate::on_saved`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// It waits; [`GateAction::Admit`] or [`GateAction::Refuse`] follows, maybe at once. See
    /// [`Gate::is_entering`].
    Waiting,
    /// It is turned away, and the gate does not know it.
    Refused(RefuseReason),
}

/// What the node is to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GateAction {
    /// Answer that it is in, and begin to take its requests.
    Admit(ConnectionId),
    /// Answer that it is refused, and close it. The gate does not know it any more.
    Refuse(ConnectionId, RefuseReason),
    /// Take no new request from it, close it, wait until none of its requests is in the engine,
    /// then report [`Gate::on_drained`].
    Revoke(ConnectionId, CloseCause),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting { deadline: Instant },
    Active,
    Revoked,
}

#[derive(Clone, Copy, Debug)]
struct Connection {
    id: ConnectionId,
    session_id: [u8; 16],
    index: u16,
    generation: u64,
    state: State,
    due: Option<CloseCause>,
}

#[derive(Clone, Copy, Debug)]
struct Session {
    id: [u8; 16],
    host_id: [u8; 16],
    /// The boot of its host; zero: not known.
    host_boot: u64,
    mode: Mode,
    generation: u64,
    since: Instant,
    /// Since when it has no connection at all.
    empty_since: Option<Instant>,
    /// How many connections it may have: not fewer than when it began, since a device that was made
    /// for them cannot do with fewer.
    max_connections: u16,
    /// Another host took the volume, or it ended: it goes when its connections have.
    over: bool,
}

/// The gate of one volume.
#[derive(Clone, Debug)]
pub struct Gate {
    config: GateConfig,
    sessions: Vec<Session>,
    connections: Vec<Connection>,
    /// Sessions that begin as soon as that is saved.
    entrances: Vec<Entrance>,
    /// Highest epoch seen of each connection of each session: (session, index, epoch).
    epochs: Vec<([u8; 16], u16, u64)>,
    /// Sessions that are gone without having been released.
    memory: Memory,
}

impl Gate {
    /// A gate that nobody has ever passed.
    pub fn new(config: GateConfig) -> Self {
        Gate {
            config,
            sessions: Vec::new(),
            connections: Vec::new(),
            entrances: Vec::new(),
            epochs: Vec::new(),
            memory: Memory::default(),
        }
    }

    /// The gate of a volume that had one in an earlier life of the node's process, with what
    /// [`Gate::memory`] gave then. A session that held the volume has the linger time to open it
    /// again; its connections are gone.
    pub fn restore(
        config: GateConfig,
        remembered: impl IntoIterator<Item = Remembered>,
        now: Instant,
    ) -> Self {
        let mut gate = Gate::new(config);
        for session in remembered {
            match session.standing {
                Standing::Departed | Standing::Fenced | Standing::Released => {
                    gate.memory.depart(session);
                }
                Standing::Holds => gate.sessions.push(Session {
                    id: session.session_id,
                    host_id: session.host_id,
                    host_boot: session.host_boot,
                    mode: session.mode,
                    // Whatever it joins is from before the restart: it must open again.
                    generation: 0,
                    since: now,
                    empty_since: Some(now),
                    max_connections: session.max_connections.max(config.max_connections),
                    over: false,
                }),
            }
        }
        gate.make_room();
        gate
    }

    /// Sets limits for sessions that begin from now on. Those that are there keep what they have.
    pub fn set_limits(&mut self, max_sessions: usize, max_connections: u16) {
        self.config.max_sessions = max_sessions;
        self.config.max_connections = max_connections;
    }

    /// What must outlive the node's process; see [`Remembered`]: at most
    /// [`max_remembered`](GateConfig::max_remembered) sessions. Save it durably whenever
    /// [`Gate::memory_version`] is another than when it was saved last, and say so with
    /// [`Gate::on_saved`]: sessions that begin wait for that. Nothing else does: whoever is
    /// admitted is of a session that was saved when it began.
    pub fn memory(&self) -> alloc::vec::IntoIter<Remembered> {
        // As it is when they have begun.
        let mut gate = self.clone();
        gate.pass_entrances(self.memory_version(), Instant(0));
        let remembered: Vec<Remembered> = gate.remembered().collect();
        remembered.into_iter()
    }

    fn remembered(&self) -> impl Iterator<Item = Remembered> + '_ {
        let holders = |writes: bool| {
            self.sessions
                .iter()
                .filter(move |s| !s.over && (s.mode != Mode::ReadOnly) == writes)
                .map(|s| s.remembered(Standing::Holds))
        };
        // The memory leaves room for those who write; who only reads can be left out.
        self.memory
            .iter()
            .chain(holders(true))
            .chain(holders(false))
            .take(self.config.max_remembered)
    }

    /// Forgets what there is no room for beside those who hold the volume for writing.
    fn make_room(&mut self) {
        let writers = self
            .sessions
            .iter()
            .filter(|s| !s.over && s.mode != Mode::ReadOnly)
            .count();
        self.memory
            .fit(self.config.max_remembered.saturating_sub(writers));
    }

    /// Changes whenever [`Gate::memory`] does.
    pub fn memory_version(&self) -> u64 {
        self.memory.version()
    }

    /// Every session that holds the volume.
    pub fn holders(&self) -> impl Iterator<Item = Holder> + '_ {
        self.sessions
            .iter()
            .filter(|s| !s.over)
            .map(|s| self.holder(s))
    }

    fn holder(&self, session: &Session) -> Holder {
        Holder {
            host_id: session.host_id,
            host_boot: session.host_boot,
            session_id: session.id,
            generation: session.generation,
            mode: session.mode,
            since: session.since,
            connections: self
                .connections
                .iter()
                .filter(|c| c.session_id == session.id && c.state == State::Active)
                .count(),
        }
    }

    /// Whether nobody holds the volume and nothing of anybody is left: it may be deleted.
    pub fn is_unused(&self) -> bool {
        self.sessions.is_empty() && self.connections.is_empty() && self.entrances.is_empty()
    }

    /// How many connections a session may have, or could have if it began now.
    pub fn max_connections(&self, session: &[u8; 16]) -> u16 {
        let known = self.sessions.iter().find(|s| s.id == *session);
        known.map_or(self.config.max_connections, |s| s.max_connections)
    }

    fn session_mut(&mut self, id: &[u8; 16]) -> Option<&mut Session> {
        self.sessions.iter_mut().find(|s| s.id == *id)
    }

    fn last_epoch(&self, session: &[u8; 16], index: u16) -> u64 {
        self.epochs
            .iter()
            .find(|(s, i, _)| s == session && *i == index)
            .map_or(0, |(_, _, epoch)| *epoch)
    }

    fn note_epoch(&mut self, session: [u8; 16], index: u16, epoch: u64) {
        match self
            .epochs
            .iter_mut()
            .find(|(s, i, _)| *s == session && *i == index)
        {
            Some(entry) => entry.2 = entry.2.max(epoch),
            None => self.epochs.push((session, index, epoch)),
        }
    }

    fn revoke_session(&mut self, id: &[u8; 16], cause: CloseCause) {
        for c in self.connections.iter_mut().filter(|c| c.session_id == *id) {
            c.revoke(cause);
        }
    }

    fn end_session(&mut self, id: &[u8; 16], cause: CloseCause) {
        self.revoke_session(id, cause);
        if let Some(session) = self.session_mut(id) {
            session.over = true;
        }
        let standing = match cause {
            CloseCause::Fenced => Standing::Fenced,
            CloseCause::Released => Standing::Released,
            _ => Standing::Departed,
        };
        let known = self.sessions.iter().find(|s| s.id == *id);
        // The first OPEN of a session has no older one that could still be on its way, and one that
        // reads takes nothing from anybody.
        let counts = |s: &&Session| {
            standing != Standing::Released || (s.generation > 1 && s.mode != Mode::ReadOnly)
        };
        match known.filter(counts).map(|s| s.remembered(standing)) {
            Some(session) => self.memory.depart(session),
            None => self.memory.touch(),
        }
        self.make_room();
        self.sweep();
    }

    /// The client ended its session in order: the volume is free when its requests are out.
    pub fn on_release(&mut self, id: ConnectionId) {
        if let Some(c) = self.connections.iter().find(|c| c.id == id) {
            if c.state == State::Active {
                let session = c.session_id;
                self.end_session(&session, CloseCause::Released);
            }
        }
    }

    /// Ends every session, for a node that stops or a volume that must go.
    pub fn revoke_all(&mut self, cause: CloseCause) {
        self.revoke_entrances(cause);
        let ids: Vec<[u8; 16]> = self.sessions.iter().map(|s| s.id).collect();
        for id in ids {
            self.end_session(&id, cause);
        }
    }

    /// None of the connection's requests is in the engine any more, and none can begin: it was
    /// revoked, or it was closed by either end.
    pub fn on_drained(&mut self, id: ConnectionId, now: Instant) {
        if self.forget_entrance(id) {
            return;
        }
        let Some(at) = self.connections.iter().position(|c| c.id == id) else {
            return;
        };
        let gone = self.connections.swap_remove(at);
        let left = self
            .connections
            .iter()
            .any(|c| c.session_id == gone.session_id);
        if !left {
            if let Some(session) = self.session_mut(&gone.session_id) {
                session.empty_since = Some(now);
            }
        }
        self.sweep();
    }

    /// Forgets sessions that are over and have no connection left.
    fn sweep(&mut self) {
        let connections = &self.connections;
        self.sessions
            .retain(|s| !s.over || connections.iter().any(|c| c.session_id == s.id));
        let sessions = &self.sessions;
        self.epochs
            .retain(|(id, _, _)| sessions.iter().any(|s| s.id == *id));
    }

    /// Whether a waiting connection still has something in its way.
    fn must_wait(&self, waiting: &Connection) -> bool {
        if self.config.without_fencing {
            return false;
        }
        let Some(session) = self.sessions.iter().find(|s| s.id == waiting.session_id) else {
            return false;
        };
        self.connections.iter().any(|other| {
            if other.id == waiting.id {
                return false;
            }
            if other.session_id == waiting.session_id {
                // Everything of an older generation, and older connections of the same index.
                return other.state == State::Revoked
                    && (other.generation < waiting.generation || other.index == waiting.index);
            }
            let over = self.sessions.iter().find(|s| s.id == other.session_id);
            over.is_some_and(|s| s.over && s.mode.conflicts_with(session.mode))
        })
    }

    /// When [`Gate::handle_timeout`] is to be called next at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let waiting = self.connections.iter().filter_map(|c| match c.state {
            State::Waiting { deadline } => Some(deadline),
            State::Active | State::Revoked => None,
        });
        let lingering = self.sessions.iter().filter_map(|s| {
            s.empty_since
                .map(|since| since.after_ms(self.config.linger_ms))
        });
        let entering = self.entrances.iter().map(|e| e.deadline);
        waiting.chain(lingering).chain(entering).min()
    }

    /// Ends sessions that lingered long enough. Waiting connections are timed out by
    /// [`Gate::poll_action`].
    pub fn handle_timeout(&mut self, now: Instant) {
        let linger_ms = self.config.linger_ms;
        let lingered_out: Vec<[u8; 16]> = self
            .sessions
            .iter()
            .filter(|s| {
                !s.over
                    && s.empty_since
                        .is_some_and(|at| now.since_ms(at) >= linger_ms)
            })
            .map(|s| s.id)
            .collect();
        for id in lingered_out {
            self.end_session(&id, CloseCause::HeartbeatTimeout);
        }
        self.sweep();
    }

    /// The next thing to do; `None` when there is nothing.
    pub fn poll_action(&mut self, now: Instant) -> Option<GateAction> {
        // Revocations first: admissions wait for what they cause.
        let mut refused = None;
        for (at, c) in self.connections.iter_mut().enumerate() {
            let Some(cause) = c.due.take() else { continue };
            match c.state {
                State::Waiting { .. } => {
                    refused = Some((at, refusal_of(cause)));
                    break;
                }
                State::Active | State::Revoked => {
                    c.state = State::Revoked;
                    return Some(GateAction::Revoke(c.id, cause));
                }
            }
        }
        if let Some((at, status)) = refused {
            return Some(self.refuse_waiting(at, status, 0, now));
        }
        if let Some(refused) = self.refuse_entrance(now) {
            return Some(refused);
        }
        for at in 0..self.connections.len() {
            let Some(c) = self.connections.get(at).copied() else {
                break;
            };
            let State::Waiting { deadline } = c.state else {
                continue;
            };
            if !self.must_wait(&c) {
                if let Some(c) = self.connections.get_mut(at) {
                    c.state = State::Active;
                    return Some(GateAction::Admit(c.id));
                }
            }
            if deadline <= now {
                return Some(self.refuse_waiting(at, Status::Draining, 1000, now));
            }
        }
        None
    }

    fn refuse_waiting(
        &mut self,
        at: usize,
        status: Status,
        retry_after_ms: u32,
        now: Instant,
    ) -> GateAction {
        let c = self.connections.swap_remove(at);
        let mut reason = RefuseReason::new(status);
        reason.retry_after_ms = retry_after_ms;
        let left = self
            .connections
            .iter()
            .any(|other| other.session_id == c.session_id);
        if let Some(session) = self.session_mut(&c.session_id) {
            reason.generation = session.generation;
            if !left {
                session.empty_since = Some(now);
            }
        }
        self.sweep();
        GateAction::Refuse(c.id, reason)
    }
}

impl Session {
    fn remembered(&self, standing: Standing) -> Remembered {
        Remembered {
            session_id: self.id,
            host_id: self.host_id,
            host_boot: self.host_boot,
            mode: self.mode,
            max_connections: self.max_connections,
            generation: match standing {
                Standing::Released => self.generation,
                Standing::Holds | Standing::Departed | Standing::Fenced => 0,
            },
            standing,
        }
    }
}

impl Connection {
    fn revoke(&mut self, cause: CloseCause) {
        match self.state {
            State::Waiting { .. } => self.due = Some(cause),
            State::Active => {
                // The state changes at once, so that nobody is let in between this and the
                // caller's poll.
                self.state = State::Revoked;
                self.due = Some(cause);
            }
            State::Revoked => {}
        }
    }
}

/// What a connection that was displaced before it was let in is told.
fn refusal_of(cause: CloseCause) -> Status {
    match cause {
        CloseCause::Fenced => Status::Fenced,
        CloseCause::GoingAway => Status::GoingAway,
        CloseCause::Released => Status::UnknownSession,
        _ => Status::StaleGeneration,
    }
}
