// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The control machine of one device: which connection to make when, what to stop, what to resend.
//!
//! It is not on the I/O path. The caller owns it (one mutex, or one task), feeds it what happened
//! (`on_*`, [`Session::handle_timeout`]) and then does what [`Session::poll_action`] says until
//! that returns `None`.
//!
//! # The session
//!
//! ```text
//!  1 Opening ──── on_opened(0) ────► 2 Live ──┐
//!      ▲                               │      │ one connection lost: it alone is stopped,
//!      │ node lost the session,        │◄─────┘ drained and joined again
//!      │ or has fallen silent, or one  ▼
//!      │ cannot be joined and ──── 3 Reopening: every connection is being stopped and drained
//!      └── none is left, or its loss timeout is over
//!
//!  any ── fenced, or another volume ──► 4 Failed              any ── close() ──► 5 Closed
//! ```
//!
//! # One connection
//!
//! ```text
//!  1 Idle ── its time came: Connect ──► 2 Connecting ── on_opened: Resume ──► 3 Live
//!    ▲                                       │                                  │
//!    │◄────────── on_connect_failed ─────────┘                                  │
//!    │                                                                          │
//!    └────── on_drained ────── 4 Stopping ◄── on_lost, timeout, reopening: Stop ─┘
//! ```
//!
//! A connection leaves `Stopping` only when the caller says that neither its transmitting nor its
//! receiving side touches a request any more ([`Session::on_drained`]); only then are requests
//! parked, and sent again after the next `Resume`. Every state but `Live`, `Failed` and `Closed`
//! has a deadline or ends with a call of ours that cannot block on the network.
//!
//! # Why a resend never brings an old byte back
//!
//! The node answers an OPEN of a newer generation, and a JOIN of a newer epoch, only when nothing
//! older can touch the volume any more. A request that is sent again was never answered, so no
//! newer write to the same block was ordered after it.

mod nodes;
mod timers;

use super::terms::{
    Action, Config, ConnectKind, ConnectionState, Notice, SessionState, Used, SHRUNK_RETRY_MS,
    STILL_LOST_FIRST_MS, UNLISTED,
};
use crate::{Backoff, CloseCause, Generation, Instant, Timeouts};
use core::borrow::BorrowMut;
use neonsan_proto::Status;

/// The most connections that a session may have.
pub const MAX_CONNECTIONS: usize = neonsan_proto::MAX_CONNECTIONS as usize;

/// What the machine keeps of one connection: opaque, only its place is the caller's to give.
/// `due_*` are actions not yet polled.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    state: ConnectionState,
    since: Instant,
    /// When the last try to make it began.
    tried_at: Instant,
    epoch: u64,
    heard_at: Instant,
    pinged_at: Option<Instant>,
    /// Since when it has been lost, or could be joined again; `None` while it is live, and before it
    /// was.
    lost_at: Option<Instant>,
    backoff: Backoff,
    last_cause: Option<CloseCause>,
    due_connect: Option<ConnectKind>,
    due_stop: Option<CloseCause>,
    due_resume: bool,
    due_ping: bool,
}

impl Connection {
    fn new(seed: u64) -> Self {
        Connection {
            state: ConnectionState::Idle { retry_at: None },
            since: Instant(0),
            tried_at: Instant(0),
            epoch: 0,
            heard_at: Instant(0),
            pinged_at: None,
            lost_at: None,
            backoff: Backoff::new(seed),
            last_cause: None,
            due_connect: None,
            due_stop: None,
            due_resume: false,
            due_ping: false,
        }
    }

    fn enter(&mut self, state: ConnectionState, now: Instant) {
        self.state = state;
        self.since = now;
        self.due_connect = None;
        self.due_resume = false;
        self.due_ping = false;
    }
}

impl Default for Connection {
    fn default() -> Self {
        Connection::new(0)
    }
}

/// The control machine of one device. `S` holds its connections: an array inside it, or memory of
/// the caller's choice where the stack is small.
#[derive(Debug)]
pub struct Session<S = [Connection; MAX_CONNECTIONS]> {
    config: Config,
    state: SessionState,
    generation: Generation,
    /// Index of the node in use or to be tried next; [`UNLISTED`] for one that is in use only.
    node: u16,
    /// How many connections the session has: one until the node said how many it may have.
    count: usize,
    connections: S,
    /// Since when no connection is live, if the device was usable before.
    lost_since: Option<Instant>,
    /// When people are told next that it still has none; right while `lost_since` is there.
    told_lost_at: Instant,
    /// Requests fail since the loss timeout passed.
    failing: bool,
    was_usable: bool,
    due_fail: Option<CloseCause>,
    due_notice: Option<Notice>,
    due_still_lost: Option<Notice>,
}

// Made in the caller's frame: not in a kernel, whose stacks are small.
#[cfg(not(MODULE))]
impl Session {
    /// A machine that begins to open its session at the first [`Session::poll_action`]. It is
    /// about 12 KiB large: see [`Session::with_storage`].
    pub fn new(config: Config, now: Instant) -> Self {
        Session::with_storage(config, [Connection::new(0); MAX_CONNECTIONS], now)
    }
}

impl<S: BorrowMut<[Connection]>> Session<S> {
    /// Like [`Session::new`], with the connections in `connections`: the session has at most as
    /// many as there is room for, which must be at least one.
    pub fn with_storage(config: Config, mut connections: S, now: Instant) -> Self {
        for (i, connection) in connections.borrow_mut().iter_mut().enumerate() {
            let spread = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            *connection = Connection::new(config.seed ^ spread);
            connection.epoch = config.used.epoch;
        }
        let mut session = Session {
            config,
            state: SessionState::Opening,
            generation: config.used.generation,
            node: 0,
            count: 1,
            connections,
            lost_since: None,
            told_lost_at: now,
            failing: false,
            was_usable: false,
            due_fail: None,
            due_notice: None,
            due_still_lost: None,
        };
        session.schedule(0, now);
        session
    }

    // ---- what the caller asks ----

    /// Where the session is.
    pub fn state(&self) -> SessionState {
        self.state
    }

    /// The generation in force, or being opened.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// Index of the node in use or to be tried next; [`UNLISTED`] for one that the caller's list had
    /// before and has no more.
    pub fn node(&self) -> u16 {
        self.node
    }

    /// How far the session has counted, for the one who resumes it.
    pub fn used(&self) -> Used {
        let epochs = self.connections.borrow().iter().map(|c| c.epoch);
        Used {
            generation: self.generation,
            epoch: epochs.max().unwrap_or(0),
        }
    }

    /// How many connections the session has; right once it was live.
    pub fn connection_count(&self) -> u16 {
        self.count as u16
    }

    /// Whether every connection is in force.
    pub fn is_usable(&self) -> bool {
        self.state == SessionState::Live
            && self
                .active()
                .iter()
                .all(|c| c.state == ConnectionState::Live)
    }

    /// Since when no connection is in force, if one was before.
    pub fn lost_since(&self) -> Option<Instant> {
        self.lost_since
    }

    /// Whether requests fail at once, since the loss timeout passed.
    pub fn is_failing(&self) -> bool {
        self.failing
    }

    /// Where a connection is, since when, and why it was lost last.
    pub fn connection(
        &self,
        connection: u16,
    ) -> Option<(ConnectionState, Instant, Option<CloseCause>)> {
        self.active()
            .get(usize::from(connection))
            .map(|c| (c.state, c.since, c.last_cause))
    }

    /// The named timeouts in force.
    pub fn timeouts(&self) -> &Timeouts {
        &self.config.timeouts
    }

    /// Changes the named timeouts; running ones are counted by the new values.
    pub fn set_timeouts(&mut self, timeouts: Timeouts) {
        self.config.timeouts = timeouts;
    }

    fn active(&self) -> &[Connection] {
        self.connections
            .borrow()
            .get(..self.count)
            .unwrap_or_default()
    }

    fn active_mut(&mut self) -> &mut [Connection] {
        self.connections
            .borrow_mut()
            .get_mut(..self.count)
            .unwrap_or_default()
    }

    fn get(&mut self, connection: u16) -> Option<&mut Connection> {
        self.active_mut().get_mut(usize::from(connection))
    }

    // ---- what happened ----

    /// The handshake of a connection succeeded. `max_connections` is what the node allows.
    ///
    /// Returns false if the machine does not want the connection (its deadline has passed, or the
    /// node now allows fewer connections than the device has): the caller closes the socket.
    pub fn on_opened(&mut self, connection: u16, max_connections: u16, now: Instant) -> bool {
        let state = self.state;
        let wanted = usize::from(self.config.connections.max(1));
        let Some(c) = self.get(connection) else {
            return false;
        };
        if !matches!(c.state, ConnectionState::Connecting { .. }) {
            return false;
        }
        let opening = state == SessionState::Opening;
        if opening && self.was_usable && usize::from(max_connections) < self.count {
            // The queues of the device stay: one without a connection would hang for ever.
            let cause = CloseCause::BadGeometry("number of connections (smaller than before)");
            self.on_connect_failed(connection, cause, now);
            return false;
        }
        let Some(c) = self.get(connection) else {
            return false;
        };
        c.enter(ConnectionState::Live, now);
        c.heard_at = now;
        c.pinged_at = None;
        c.lost_at = None;
        c.due_resume = true;
        match state {
            SessionState::Opening => {
                self.state = SessionState::Live;
                // The number is fixed by the first open: hardware queues do not come and go.
                if !self.was_usable {
                    let allowed = usize::from(max_connections.max(1));
                    self.count = wanted.min(allowed).min(self.connections.borrow().len());
                }
                for other in 1..self.count {
                    // The node is there: how often it was not, and for how long, does not matter
                    // any more.
                    if let Some(c) = self.connections.borrow_mut().get_mut(other) {
                        c.backoff.reset();
                        c.lost_at = c.lost_at.map(|_| now);
                    }
                    self.schedule(other, now);
                }
            }
            SessionState::Live => {}
            SessionState::Reopening | SessionState::Failed(_) | SessionState::Closed => {
                self.stop(usize::from(connection), CloseCause::Replaced, now);
                return true;
            }
        }
        self.note_service(now);
        true
    }

    /// A connection could not be made. The socket is closed already.
    pub fn on_connect_failed(&mut self, connection: u16, cause: CloseCause, now: Instant) {
        let Some(c) = self.get(connection) else {
            return;
        };
        if !matches!(c.state, ConnectionState::Connecting { .. }) {
            return;
        }
        c.last_cause = Some(cause);
        c.enter(ConnectionState::Idle { retry_at: None }, now);
        match self.state {
            SessionState::Opening => self.on_open_failed(cause, now),
            SessionState::Live => self.on_join_failed(usize::from(connection), cause, now),
            SessionState::Reopening => self.finish_reopen(now),
            SessionState::Failed(cause) => self.finish_failure(cause),
            SessionState::Closed => {}
        }
    }

    fn on_open_failed(&mut self, cause: CloseCause, now: Instant) {
        if self.was_usable {
            if let CloseCause::Refused(Status::HeldByOther | Status::Fenced) = cause {
                // The volume has a new owner: errors at once, never silence.
                return self.fail(CloseCause::Fenced, now);
            }
            if let CloseCause::VolumeChanged(_) = cause {
                return self.fail(cause, now);
            }
        }
        self.leave_node();
        match cause {
            // A person takes a while, and each look is an OPEN.
            CloseCause::VolumeShrunk(_) => {
                self.schedule_from(0, now.after_ms(SHRUNK_RETRY_MS), now);
            }
            _ => self.schedule(0, now),
        }
    }

    fn on_join_failed(&mut self, connection: usize, cause: CloseCause, now: Instant) {
        let has_ended_there = match cause {
            CloseCause::Refused(
                Status::UnknownSession
                | Status::StaleGeneration
                | Status::NotOwner
                | Status::GoingAway,
            ) => true,
            CloseCause::Refused(Status::Fenced | Status::HeldByOther) | CloseCause::Fenced => {
                return self.fail(CloseCause::Fenced, now);
            }
            _ => false,
        };
        let is_any_live = self
            .active()
            .iter()
            .any(|c| matches!(c.state, ConnectionState::Live));
        // A node that says that it has ended the session answers: it opens one, or refuses at once.
        let is_overdue = !has_ended_there && self.is_join_overdue(connection, now);
        if is_any_live && !has_ended_there && !is_overdue {
            return self.schedule(connection, now);
        }
        let is_nobody = matches!(
            cause,
            CloseCause::ConnectFailed(_) | CloseCause::ConnectTimeout
        );
        if is_nobody || is_overdue {
            // Nobody is there, or nobody who can serve: to open there would take as long again.
            self.leave_node();
        }
        self.reopen(cause, now);
    }

    /// A live connection is lost, or must be given up: a socket error, a violation, a request
    /// timeout. Ignored unless the connection is live.
    pub fn on_lost(&mut self, connection: u16, cause: CloseCause, now: Instant) {
        let Some(c) = self.get(connection) else {
            return;
        };
        if c.state != ConnectionState::Live {
            return;
        }
        match (self.state, cause) {
            (SessionState::Live, CloseCause::Fenced) => self.fail(CloseCause::Fenced, now),
            (
                SessionState::Live,
                CloseCause::Refused(Status::NotOwner | Status::UnknownSession | Status::GoingAway),
            ) => self.reopen(cause, now),
            (SessionState::Live, _) if self.is_node_silent(now) => {
                // There is nothing to join, and to ask would cost a connect timeout.
                self.leave_node();
                self.reopen(cause, now);
            }
            _ => self.stop(usize::from(connection), cause, now),
        }
    }

    /// Neither side of a stopped connection touches a request any more, and all its requests are
    /// parked.
    pub fn on_drained(&mut self, connection: u16, now: Instant) {
        let Some(c) = self.get(connection) else {
            return;
        };
        if c.state != ConnectionState::Stopping || c.due_stop.is_some() {
            return;
        }
        c.enter(ConnectionState::Idle { retry_at: None }, now);
        match self.state {
            SessionState::Live => self.schedule(usize::from(connection), now),
            SessionState::Opening => {
                if connection == 0 {
                    self.schedule(0, now);
                }
            }
            SessionState::Reopening => self.finish_reopen(now),
            SessionState::Failed(cause) => self.finish_failure(cause),
            SessionState::Closed => {}
        }
    }

    /// Something was received on a connection at `at`.
    pub fn on_heard(&mut self, connection: u16, at: Instant) {
        if let Some(c) = self.get(connection) {
            if at > c.heard_at {
                c.heard_at = at;
                c.pinged_at = None;
            }
        }
    }

    /// The device is detached: every connection is stopped, and nothing else happens any more.
    pub fn close(&mut self, now: Instant) {
        self.state = SessionState::Closed;
        self.lost_since = None;
        self.due_notice = None;
        self.due_still_lost = None;
        self.due_fail = None;
        self.stop_all(CloseCause::Detached, now);
    }

    /// Whether every connection has come to rest: after [`Session::close`] the caller waits for it.
    pub fn is_at_rest(&self) -> bool {
        self.active()
            .iter()
            .all(|c| matches!(c.state, ConnectionState::Idle { .. }))
    }

    // ---- transitions ----

    /// Sets the time of the next try of an idle connection. The delay counts from when the last
    /// try began: one that a silent network let run into its timeout has waited long enough.
    fn schedule(&mut self, connection: usize, now: Instant) {
        self.schedule_from(connection, now, now);
    }

    /// The same, not before `earliest`.
    fn schedule_from(&mut self, connection: usize, earliest: Instant, now: Instant) {
        let timeouts = self.config.timeouts;
        if let Some(c) = self.connections.borrow_mut().get_mut(connection) {
            let delay = c.backoff.next_delay_ms(&timeouts);
            let retry_at = match delay {
                0 => earliest,
                _ => c.tried_at.after_ms(delay).max(earliest),
            };
            c.enter(
                ConnectionState::Idle {
                    retry_at: Some(retry_at),
                },
                now,
            );
        }
        self.start_due(now);
    }

    /// Starts every connection whose time has come.
    fn start_due(&mut self, now: Instant) {
        let connect_ms = u64::from(self.config.timeouts.connect_ms);
        let state = self.state;
        let promote = self.was_usable;
        let mut generation = self.generation;
        for (i, c) in self.active_mut().iter_mut().enumerate() {
            let ConnectionState::Idle { retry_at: Some(at) } = c.state else {
                continue;
            };
            if at > now {
                continue;
            }
            let epoch = c.epoch + 1;
            let kind = match state {
                SessionState::Opening if i == 0 => {
                    generation = generation.next();
                    ConnectKind::Open {
                        generation,
                        epoch,
                        promote,
                    }
                }
                SessionState::Live => ConnectKind::Join {
                    generation,
                    connection: i as u16,
                    epoch,
                },
                _ => continue,
            };
            c.epoch = epoch;
            c.tried_at = now;
            c.enter(
                ConnectionState::Connecting {
                    deadline: now.after_ms(connect_ms),
                },
                now,
            );
            c.due_connect = Some(kind);
        }
        self.generation = generation;
    }

    /// Live → Stopping.
    fn stop(&mut self, connection: usize, cause: CloseCause, now: Instant) {
        let max_delay_ms = self.config.timeouts.reconnect_delay_max_ms;
        if let Some(c) = self.active_mut().get_mut(connection) {
            if c.state == ConnectionState::Live {
                // Only a connection that held deserves a new try at once: a node that accepts
                // and then fails each time would be tried without a pause.
                if now.since_ms(c.since) >= u64::from(max_delay_ms) {
                    c.backoff.reset();
                }
                c.enter(ConnectionState::Stopping, now);
                c.lost_at = Some(now);
                c.last_cause = Some(cause);
                c.due_stop = Some(cause);
            }
        }
        self.note_loss(cause, now);
    }

    /// Stops what is live, takes back what has not begun. Connections that are being made are
    /// turned away when they report.
    fn stop_all(&mut self, cause: CloseCause, now: Instant) {
        for connection in 0..self.count {
            self.stop(connection, cause, now);
            if let Some(c) = self.active_mut().get_mut(connection) {
                match c.state {
                    ConnectionState::Connecting { .. } if c.due_connect.is_some() => {
                        c.enter(ConnectionState::Idle { retry_at: None }, now);
                    }
                    ConnectionState::Idle { .. } => {
                        c.enter(ConnectionState::Idle { retry_at: None }, now);
                    }
                    ConnectionState::Connecting { .. }
                    | ConnectionState::Live
                    | ConnectionState::Stopping => {}
                }
            }
        }
    }

    /// Why the first connection, which is the one that opens, was lost or could not be made.
    fn last_cause(&self) -> CloseCause {
        let first = self.active().first();
        first
            .and_then(|c| c.last_cause)
            .unwrap_or(CloseCause::PeerClosed)
    }

    fn reopen(&mut self, cause: CloseCause, now: Instant) {
        self.state = SessionState::Reopening;
        self.stop_all(cause, now);
        self.finish_reopen(now);
    }

    /// Reopening → Opening, once every connection rests.
    fn finish_reopen(&mut self, now: Instant) {
        if self.is_at_rest() {
            if self.node == UNLISTED {
                // It was good as long as it had the session.
                self.leave_node();
            }
            self.state = SessionState::Opening;
            self.schedule(0, now);
        }
    }

    fn fail(&mut self, cause: CloseCause, now: Instant) {
        self.state = SessionState::Failed(cause);
        self.stop_all(cause, now);
        self.finish_failure(cause);
    }

    fn finish_failure(&mut self, cause: CloseCause) {
        // Also where requests fail already, since the volume was lost for long: why has changed.
        if self.is_at_rest() {
            self.failing = true;
            self.due_fail = Some(cause);
        }
    }

    fn note_service(&mut self, now: Instant) {
        self.failing = false;
        self.due_fail = None;
        self.due_still_lost = None;
        if let Some(since) = self.lost_since.take() {
            self.due_notice = match self.due_notice {
                // Lost and back before anyone was told.
                Some(Notice::Lost { .. }) => None,
                _ => Some(Notice::Recovered {
                    lost_for_ms: now.since_ms(since),
                }),
            };
        }
        if self.is_usable() {
            self.was_usable = true;
        }
    }

    fn note_loss(&mut self, cause: CloseCause, now: Instant) {
        let none_live = self
            .active()
            .iter()
            .all(|c| c.state != ConnectionState::Live);
        let counts = self.was_usable && self.state != SessionState::Closed;
        if counts && none_live && self.lost_since.is_none() {
            self.lost_since = Some(now);
            self.told_lost_at = now.after_ms(STILL_LOST_FIRST_MS);
            self.due_notice = Some(Notice::Lost { cause });
        }
    }

    /// The next thing to do; `None` when there is nothing.
    pub fn poll_action(&mut self) -> Option<Action> {
        let node = self.node;
        for (i, c) in self.active_mut().iter_mut().enumerate() {
            let connection = i as u16;
            if let Some(cause) = c.due_stop.take() {
                return Some(Action::Stop { connection, cause });
            }
            if let Some(kind) = c.due_connect.take() {
                if let ConnectionState::Connecting { deadline } = c.state {
                    return Some(Action::Connect {
                        connection,
                        node,
                        kind,
                        deadline,
                    });
                }
            }
            if core::mem::take(&mut c.due_resume) {
                return Some(Action::Resume { connection });
            }
            if core::mem::take(&mut c.due_ping) {
                return Some(Action::Ping { connection });
            }
        }
        if let Some(cause) = self.due_fail.take() {
            return Some(Action::FailRequests { cause });
        }
        let notice = self.due_notice.take();
        notice
            .or_else(|| self.due_still_lost.take())
            .map(Action::Notify)
    }
}
