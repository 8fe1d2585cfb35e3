// SPDX-License-Identifier: GPL-2.0 OR MIT
//! One data connection.
//!
//! ```text
//!   1 Handshake ──▶ 2 Waiting ──▶ 3 Active ──▶ 4 Draining ──▶ 5 Ended
//!        │              │ refused     │ (the socket is gone,      ▲
//!        │              ▼             │  the engine still works)  │
//!        │          2a Refusing ──────┼───────────────────────────┤
//!        └────────────────────────────┴───────────────────────────┘
//! ```
//!
//! From 2 on the hub knows the connection, and is told when nothing of it can
//! reach the engine any more: at the end of 2, 3 or 4.

mod opening;

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use neonsan_proto::{EventKind, Features, Refusal, Status};
use neonsan_session::server::{ConnectionId, Handshake};
use neonsan_session::{CloseCause, Instant};
use rustix::event::epoll::EventFlags;
use rustix::io::Errno;

use super::active::{Active, Pause};
use super::output::Output;
use super::pace::{self, Pace};
use super::worker::Context;
use super::ToWorker;
use crate::access::Arrival;
use crate::hub::{Introduction, ToHub};
use opening::Prepared;

/// Time for a refusal to be sent.
const REFUSAL_MS: u64 = 2000;

/// The cause, for people and counters, by which a connection that had not introduced itself ends for
/// another one. Only a node knows it: the client sees that it is closed.
const MADE_ROOM: &str = "made-room";

/// What a node says it is in its hello.
const PRODUCT: &str = concat!("neonsan-node ", env!("CARGO_PKG_VERSION"));

enum Phase {
    Handshake(Box<Handshake>),
    Waiting(Box<Handshake>),
    Refusing { deadline: Instant },
    Active(Box<Active>),
    Draining(Box<Active>),
    Ended,
}

/// One data connection. Owned by its worker.
pub(super) struct Connection {
    pub(super) id: ConnectionId,
    peer: SocketAddr,
    arrival: Arrival,
    /// Gone from `Draining` on.
    socket: Option<OwnedFd>,
    phase: Phase,
    output: Output,
    /// Events for which the socket is registered.
    pub(super) interest: EventFlags,
    since: Instant,
    heard_at: Instant,
    /// When something was last sent.
    sent_at: Instant,
    /// Since when the socket takes nothing of what waits to be sent.
    blocked_since: Option<Instant>,
    pace: Pace,
    /// Takes no more requests, and closes when all is answered.
    finishing: Option<Finishing>,
    /// Made before it is let in, or asked for.
    prepared: Option<Prepared>,
}

/// How a connection ends that takes no more requests.
#[derive(Clone, Copy, Debug)]
struct Finishing {
    cause: CloseCause,
    /// From then on it waits for the engine only, and not for the client to take its answers:
    /// somebody may wait for the volume.
    deadline: Instant,
}

impl Finishing {
    fn new(cause: CloseCause, context: &Context<'_>) -> Self {
        let time_ms = u64::from(context.shared.config.timeouts.drain_ms);
        Self {
            cause,
            deadline: context.now.after_ms(time_ms),
        }
    }
}

impl Connection {
    pub(super) fn new(
        id: ConnectionId,
        socket: OwnedFd,
        peer: SocketAddr,
        arrival: Arrival,
        context: &Context<'_>,
    ) -> Self {
        let features = if context.shared.config.data.checksums {
            Features::KNOWN
        } else {
            Features::NONE
        };
        Self {
            id,
            peer,
            arrival,
            socket: Some(socket),
            phase: Phase::Handshake(Box::new(Handshake::new(features, PRODUCT, crc32c::crc32c))),
            output: Output::default(),
            interest: EventFlags::empty(),
            since: context.now,
            heard_at: context.now,
            sent_at: context.now,
            blocked_since: None,
            pace: Pace::default(),
            finishing: None,
            prepared: None,
        }
    }

    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    pub(super) fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.phase {
            Phase::Active(active) | Phase::Draining(active) => active.event_fd(),
            Phase::Handshake(_) | Phase::Waiting(_) | Phase::Refusing { .. } | Phase::Ended => None,
        }
    }

    pub(super) fn is_ended(&self) -> bool {
        matches!(self.phase, Phase::Ended)
    }

    /// It is to be tried again soon, though no event may tell: a budget had too little for it, or
    /// it has read what it had no place to answer to.
    pub(super) fn is_stalled(&self) -> bool {
        match &self.phase {
            Phase::Active(active) => {
                active.is_stalled() || (active.has_input() && !self.output.is_full())
            }
            Phase::Handshake(_)
            | Phase::Waiting(_)
            | Phase::Refusing { .. }
            | Phase::Draining(_)
            | Phase::Ended => false,
        }
    }

    /// Events that the socket is to be watched for. Errors always are.
    pub(super) fn wanted_events(&self) -> EventFlags {
        let mut events = match &self.phase {
            Phase::Handshake(_) => EventFlags::IN,
            // A client that waits says nothing, but may go away.
            Phase::Waiting(_) => EventFlags::RDHUP,
            Phase::Active(active)
                if self.finishing.is_none() && !active.is_stalled() && !self.output.is_full() =>
            {
                EventFlags::IN
            }
            Phase::Active(_) | Phase::Refusing { .. } | Phase::Draining(_) | Phase::Ended => {
                EventFlags::empty()
            }
        };
        if !self.output.is_empty() {
            events |= EventFlags::OUT;
        }
        if let Phase::Handshake(machine) = &self.phase {
            if !machine.poll_transmit().is_empty() {
                events |= EventFlags::OUT;
            }
        }
        events
    }

    /// Does what can be done now; `events` are the socket's.
    pub(super) fn turn(&mut self, events: EventFlags, context: &mut Context<'_>) {
        if let Err(cause) = self.advance(events, context) {
            self.close(cause, context);
        }
        if let Phase::Draining(active) = &mut self.phase {
            active.run_engine(None, context);
            if !active.is_busy() {
                self.end(context);
            }
        }
    }

    fn advance(&mut self, events: EventFlags, context: &mut Context<'_>) -> Result<(), CloseCause> {
        let Some(socket) = self.socket.as_ref().map(AsFd::as_fd) else {
            return Ok(());
        };
        // What an admitted client sent before it closed is heard first: it may have released its
        // session. Not so after a reset, by which it gives up all that was not answered: on the same
        // host what was not read yet lies in the client's own pages, which may be somebody else's now.
        let ended = EventFlags::ERR | EventFlags::HUP;
        let is_reset = events.contains(EventFlags::ERR);
        let is_closed = events.intersects(ended | EventFlags::RDHUP);
        if is_reset || (is_closed && !matches!(self.phase, Phase::Active(_))) {
            return Err(end_of(socket));
        }
        if self.output.is_full() {
            // There may be place then for what was read already.
            self.flush(context)?;
        }
        let Some(socket) = self.socket.as_ref().map(AsFd::as_fd) else {
            return Ok(());
        };
        match &mut self.phase {
            Phase::Handshake(machine) => {
                drive_handshake(machine, socket)?;
                self.heard_at = context.now;
                self.introduce(context);
                Ok(())
            }
            Phase::Active(active) => {
                let readable = events.intersects(EventFlags::IN | ended);
                let wanted = readable || active.is_stalled() || active.has_input();
                if self.finishing.is_none() && wanted && !self.output.is_full() {
                    let (pause, heard) = active.receive(socket, &mut self.output, context)?;
                    // While it stalls it is not listened to.
                    if heard || pause == Pause::Stalled {
                        self.heard_at = context.now;
                    }
                    if let Pause::Closed { release } = pause {
                        active.stop_receiving(context);
                        let cause = if release {
                            context.shared.tell_hub(ToHub::Release(self.id));
                            CloseCause::Released
                        } else {
                            CloseCause::PeerClosed
                        };
                        self.finishing = Some(Finishing::new(cause, context));
                    }
                }
                if events.intersects(ended) {
                    return Err(end_of(socket));
                }
                active.run_engine(Some(&mut self.output), context);
                self.flush(context)
            }
            Phase::Refusing { .. } => self.flush(context),
            Phase::Waiting(_) | Phase::Draining(_) | Phase::Ended => Ok(()),
        }
    }

    /// Sends what waits; an error ends the connection, also when it is done.
    fn flush(&mut self, context: &mut Context<'_>) -> Result<(), CloseCause> {
        let Some(socket) = self.socket.as_ref().map(AsFd::as_fd) else {
            return Ok(());
        };
        let flushed = self.output.flush(socket, context.pool);
        let waiting = self.output.waiting_bytes();
        self.pace.on_sent(flushed.sent_bytes, waiting, context.now);
        if flushed.sent_bytes > 0 {
            self.sent_at = context.now;
            self.blocked_since = None;
        }
        if self.output.is_empty() {
            self.blocked_since = None;
        } else {
            self.blocked_since.get_or_insert(context.now);
        }
        let mut busy = false;
        if let Phase::Active(active) = &self.phase {
            active.give_back(flushed.freed_bytes, context);
            busy = active.is_busy();
        }
        flushed
            .result
            .map_err(|error| CloseCause::SocketError(error.raw_os_error()))?;
        match self.finishing {
            Some(finishing) if !busy && self.output.is_empty() => Err(finishing.cause),
            _ => Ok(()),
        }
    }

    /// Passes the client on to the hub once it has introduced itself.
    fn introduce(&mut self, context: &mut Context<'_>) {
        let Phase::Handshake(machine) = &self.phase else {
            return;
        };
        let Some(introduced) = machine.introduced() else {
            return;
        };
        if let Phase::Handshake(machine) = std::mem::replace(&mut self.phase, Phase::Ended) {
            self.phase = Phase::Waiting(machine);
        }
        context.shared.admission.introduced(self.id);
        if let Some(text) = self.arrival.denied.take() {
            // The hub does not hear of it: nothing that it asks is looked at.
            return self.refuse(Status::NotPermitted, Refusal::default(), &text, context);
        }
        context
            .shared
            .tell_hub(ToHub::Introduce(Box::new(Introduction {
                id: self.id,
                introduced,
                peer: self.peer,
                key: self.arrival.peer,
            })));
    }

    /// Handles a message to this connection, but for `Accept`.
    pub(super) fn on_message(&mut self, message: ToWorker, context: &mut Context<'_>) {
        match message {
            ToWorker::Prepare {
                volume,
                engine_index,
                depth,
                ..
            } => self.prepare(volume, engine_index, depth, context),
            ToWorker::Admit { .. } => self.admit(message, context),
            ToWorker::Refuse {
                status,
                refusal,
                text,
                ..
            } => self.refuse(status, refusal, &text, context),
            ToWorker::Revoke { cause, .. } => self.revoke(cause, context),
            ToWorker::Resized {
                geometry,
                size_bytes,
                ..
            } => {
                if let Phase::Active(active) = &mut self.phase {
                    active.set_geometry(geometry);
                    active.send_event(EventKind::Resized, size_bytes, &mut self.output);
                }
            }
            ToWorker::GoingAway(left_ms) => match &mut self.phase {
                Phase::Active(active) => {
                    active.send_event(EventKind::GoingAway, u64::from(left_ms), &mut self.output);
                }
                // It would only be refused.
                Phase::Handshake(_) => self.close(CloseCause::GoingAway, context),
                // The hub answers it, or has.
                Phase::Waiting(_) | Phase::Refusing { .. } => {}
                Phase::Draining(_) | Phase::Ended => {}
            },
            // It has said nothing for long, or its peer has too many that say nothing.
            ToWorker::MakeRoom { .. } => {
                if let Phase::Handshake(_) = self.phase {
                    let why = "it had not introduced itself, and made room for another one";
                    self.close_as(MADE_ROOM, false, &why, context);
                }
            }
            ToWorker::Accept { .. } | ToWorker::Listen(_) | ToWorker::Stop => {}
        }
        self.turn(EventFlags::empty(), context);
    }

    fn revoke(&mut self, cause: CloseCause, context: &mut Context<'_>) {
        // It waits to be let in, and the node has lost the volume meanwhile.
        if let Phase::Waiting(_) = &self.phase {
            return self.close(cause, context);
        }
        let Phase::Active(active) = &mut self.phase else {
            return;
        };
        active.stop_receiving(context);
        match cause {
            // Everybody agrees that it ends: what was begun is answered.
            CloseCause::GoingAway | CloseCause::Released | CloseCause::WritesLost => {
                let finishing = Finishing::new(cause, context);
                self.finishing.get_or_insert(finishing);
            }
            CloseCause::Fenced => {
                active.send_event(EventKind::Fenced, 0, &mut self.output);
                // As far as the socket takes it; nobody waits for a fenced host.
                let _ = self.flush(context);
                self.close(cause, context);
            }
            _ => self.close(cause, context),
        }
    }

    /// Looks at the time.
    pub(super) fn handle_timeout(&mut self, context: &mut Context<'_>) {
        let now = context.now;
        let timeouts = &context.shared.config.timeouts;
        match &mut self.phase {
            Phase::Handshake(_) => {
                if now.since_ms(self.since) >= u64::from(timeouts.handshake_ms) {
                    self.close(CloseCause::ConnectTimeout, context);
                }
            }
            Phase::Refusing { deadline } => {
                if now >= *deadline {
                    self.close(CloseCause::ConnectTimeout, context);
                }
            }
            Phase::Active(active) => {
                let limit = u64::from(timeouts.heartbeat_timeout_ms);
                // Nobody listens to it now.
                if active.is_stalled() || self.output.is_full() || self.finishing.is_some() {
                    self.heard_at = now;
                    active.excuse_payload(now);
                }
                // It need not say anything while it takes its answers: that it does not take them,
                // or too slowly, is what ends it then.
                if !self.output.is_empty() {
                    self.heard_at = now;
                }
                let deaf = self
                    .blocked_since
                    .is_some_and(|since| now.since_ms(since) >= limit);
                if deaf || now.since_ms(self.heard_at) >= limit {
                    return self.close(CloseCause::HeartbeatTimeout, context);
                }
                let limit = pace::limit_ms(timeouts);
                if self.pace.is_too_slow(now, limit) || active.is_payload_late(now, limit) {
                    tracing::warn!(
                        connection = self.id.0, peer = %self.peer, limit_ms = limit,
                        "the client, or the way to it, is too slow: it took less of its replies \
                         than it must within the limit, or did not send a whole write"
                    );
                    return self.close(CloseCause::RequestTimeout, context);
                }
                if let Some(finishing) = self.finishing {
                    if now >= finishing.deadline && !active.is_busy() {
                        return self.close(finishing.cause, context);
                    }
                }
                // In case the system took no more requests for a moment.
                active.run_engine(Some(&mut self.output), context);
                let quiet = u64::from(timeouts.heartbeat_interval_ms);
                if self.output.is_empty()
                    && self.finishing.is_none()
                    && now.since_ms(self.sent_at) >= quiet
                {
                    active.send_ping(now, &mut self.output);
                }
                if !self.output.is_empty() {
                    self.turn(EventFlags::empty(), context);
                }
            }
            Phase::Draining(_) => self.turn(EventFlags::empty(), context),
            // The gate has the say there.
            Phase::Waiting(_) | Phase::Ended => {}
        }
    }

    /// Closes the socket. What the engine still has is drained.
    fn close(&mut self, cause: CloseCause, context: &mut Context<'_>) {
        self.close_as(cause.name(), cause.is_violation(), &cause, context);
    }

    /// [`Self::close`] for a cause of this name; `why` is for people.
    fn close_as(
        &mut self,
        cause: &'static str,
        is_violation: bool,
        why: &dyn std::fmt::Display,
        context: &mut Context<'_>,
    ) {
        let Some(socket) = self.socket.take() else {
            return;
        };
        // Before the client can see it, so that who looks then finds it.
        context.metrics.closed(cause);
        let id = self.id.0;
        let peer = self.peer;
        // One that was let in has had its line, and has this one too.
        let kind = ("connection closed", cause);
        let was_let_in = matches!(self.phase, Phase::Active(_));
        if was_let_in || context.shared.log_limits.admits(kind, context.now) {
            if is_violation {
                tracing::warn!(connection = id, %peer, cause, "connection closed: {why}");
            } else {
                tracing::info!(connection = id, %peer, cause, "connection closed: {why}");
            }
        }
        let freed = self.output.clear(context.pool);
        drop(socket);
        self.prepared = None;
        match std::mem::replace(&mut self.phase, Phase::Ended) {
            Phase::Active(mut active) => {
                active.give_back(freed, context);
                active.stop_receiving(context);
                self.phase = Phase::Draining(active);
                // `turn` ends it, at once if the engine has nothing of it.
                self.turn(EventFlags::empty(), context);
            }
            Phase::Waiting(_) => context.shared.tell_hub(ToHub::Drained(self.id)),
            Phase::Handshake(_) | Phase::Refusing { .. } | Phase::Ended => {}
            Phase::Draining(active) => self.phase = Phase::Draining(active),
        }
    }

    /// The engine has nothing of it any more.
    fn end(&mut self, context: &mut Context<'_>) {
        // The queue goes first: it keeps the volume open.
        self.phase = Phase::Ended;
        context.shared.tell_hub(ToHub::Drained(self.id));
    }
}

/// Why a socket ended, which epoll has told.
fn end_of(socket: BorrowedFd<'_>) -> CloseCause {
    match rustix::net::sockopt::socket_error(socket) {
        Ok(Err(error)) => CloseCause::SocketError(error.raw_os_error()),
        Ok(Ok(())) | Err(_) => CloseCause::PeerClosed,
    }
}

/// Moves the handshake on as far as the socket allows.
fn drive_handshake(machine: &mut Handshake, socket: BorrowedFd<'_>) -> Result<(), CloseCause> {
    loop {
        let to_send = machine.poll_transmit();
        if !to_send.is_empty() {
            use rustix::net::SendFlags;
            match rustix::net::send(socket, to_send, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(len) => machine.transmitted(len)?,
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => return Ok(()),
                Err(error) => return Err(CloseCause::SocketError(error.raw_os_error())),
            }
            continue;
        }
        let place = machine.want();
        if place.is_empty() {
            return Ok(());
        }
        match rustix::io::read(socket, place) {
            Ok(0) => return Err(CloseCause::PeerClosed),
            Ok(len) => machine.received(len)?,
            Err(Errno::INTR) => {}
            Err(Errno::WOULDBLOCK) => return Ok(()),
            Err(error) => return Err(CloseCause::SocketError(error.raw_os_error())),
        }
    }
}
