// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The control task: owns the session machine, and does what it says.

use crate::config::random_id;
use crate::lane::Lane;
use crate::left::Note;
use crate::link::{self, ConnectError, Connected, Link};
use crate::{Config, Error};
use neonsan_proto::{Capabilities, Geometry, Kind, OpenReply, RequestFlags};
use neonsan_session::client::{
    self, check_same_volume, check_size, is_resumption_refused, Action, ConnectKind, Durability,
    Notice, Session, SessionState, Used,
};
use neonsan_session::{CloseCause, Instant, Timeouts};
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::{broadcast, oneshot};

/// What happened to the volume or to the way there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// There is no service; requests wait.
    Lost(CloseCause),
    /// There is service again.
    Recovered {
        /// How long there was none, in milliseconds.
        lost_for_ms: u64,
    },
    /// The node restarted: answered writes that were not flushed may be gone.
    DataAtRisk,
    /// The volume has a new size in bytes.
    Resized(u64),
    /// The node will stop in so many milliseconds.
    GoingAway(u64),
    /// The volume has other limits.
    Limits(Box<Geometry>),
}

/// What the control task is told.
pub(crate) enum Message {
    Connected {
        connection: u16,
        epoch: u64,
        result: Result<Box<Connected>, ConnectError>,
    },
    Lost {
        connection: u16,
        epoch: u64,
        cause: CloseCause,
    },
    Resized {
        size_bytes: u64,
    },
    Limits(Geometry),
    GoingAway {
        grace_ms: u64,
    },
    SetTimeouts(Timeouts),
    Close {
        done: oneshot::Sender<()>,
    },
}

/// What the control task and the I/O calls share.
pub(crate) struct Shared {
    /// One per connection; set when the session is open for the first time.
    pub(crate) lanes: OnceLock<Vec<Arc<Lane>>>,
    pub(crate) opened: RwLock<OpenReply>,
    /// What the node's power could take.
    pub(crate) durability: Arc<Durability>,
    pub(crate) events: broadcast::Sender<Event>,
}

impl Shared {
    pub(crate) fn lanes(&self) -> &[Arc<Lane>] {
        self.lanes.get().map_or(&[], Vec::as_slice)
    }

    pub(crate) fn opened(&self) -> OpenReply {
        *self.opened.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut OpenReply)) {
        change(&mut self.opened.write().unwrap_or_else(PoisonError::into_inner));
    }
}

/// Milliseconds since the first call: a clock that never goes back.
pub(crate) fn now() -> Instant {
    static START: OnceLock<std::time::Instant> = OnceLock::new();
    Instant(
        START
            .get_or_init(std::time::Instant::now)
            .elapsed()
            .as_millis() as u64,
    )
}

pub(crate) struct Control {
    config: Config,
    session_id: [u8; 16],
    nodes: Vec<SocketAddr>,
    session: Session,
    shared: Arc<Shared>,
    /// The link of each connection that is in force.
    links: Vec<Option<Link>>,
    /// The socket and features of connections that opened before their lane existed.
    waiting: Vec<Option<Box<Connected>>>,
    /// How often each connection was made, to tell late messages of older ones.
    epochs: Vec<u64>,
    sender: UnboundedSender<Message>,
    /// Whom to tell that the volume is usable, or why it is not.
    attached: Option<oneshot::Sender<Result<(), Error>>>,
    failures: usize,
    closing: Vec<oneshot::Sender<()>>,
    /// The node was told that the session ends; until then it may answer by closing.
    release_until: Option<Instant>,
    /// Where the session is noted, if it is.
    note: Option<Note>,
    /// The session is one that another client has left, and was not let in yet.
    is_resuming: bool,
    /// A node may hold the volume for this session.
    may_be_held: bool,
}

/// How long a node may take to confirm that a session ended, before the client just goes.
const RELEASE_MS: u64 = 1000;

impl Control {
    pub(crate) fn new(
        config: Config,
        shared: Arc<Shared>,
        sender: UnboundedSender<Message>,
        attached: oneshot::Sender<Result<(), Error>>,
    ) -> Self {
        let (mut note, left) = Note::claim(&config).unzip();
        let left = left.flatten();
        let session_id = left.map_or_else(random_id, |left| left.session_id);
        let used = left.map_or_else(Used::default, |left| left.used);
        if let Some(note) = &mut note {
            note.write(&config, &session_id, used);
        }
        let seed = u64::from_le_bytes(*session_id.first_chunk().unwrap_or(&[0; 8]));
        let session = Session::new(
            client::Config {
                connections: config.connections,
                nodes: config.nodes.len() as u16,
                timeouts: config.timeouts,
                seed,
                used,
            },
            now(),
        );
        Control {
            nodes: config.nodes.clone(),
            session_id,
            session,
            shared,
            links: (0..client::MAX_CONNECTIONS).map(|_| None).collect(),
            waiting: (0..client::MAX_CONNECTIONS).map(|_| None).collect(),
            epochs: vec![0; client::MAX_CONNECTIONS],
            sender,
            attached: Some(attached),
            failures: 0,
            closing: Vec::new(),
            release_until: None,
            note,
            is_resuming: left.is_some(),
            may_be_held: left.is_some(),
            config,
        }
    }

    /// Runs until the client is detached.
    pub(crate) async fn run(mut self, mut messages: UnboundedReceiver<Message>) {
        loop {
            self.act().await;
            if self.session.state() == SessionState::Closed && self.session.is_at_rest() {
                break;
            }
            // Request timeouts are looked for a few times within their length.
            let check_ms = match self.release_until {
                Some(until) => until.since_ms(now()),
                None => u64::from(self.session.timeouts().request_ms) / 4,
            };
            let wake = self
                .session
                .poll_timeout()
                .map_or(check_ms, |at| at.since_ms(now()).min(check_ms))
                .max(1);
            tokio::select! {
                message = messages.recv() => match message {
                    Some(message) => self.on_message(message),
                    // Cannot be: this task holds a sender itself.
                    None => self.session.close(now()),
                },
                () = tokio::time::sleep(Duration::from_millis(wake)) => self.on_tick(),
            }
        }
        for lane in self.shared.lanes() {
            lane.shut();
            lane.fail_all(CloseCause::Detached);
        }
        if !self.may_be_held {
            if let Some(note) = self.note.take() {
                note.remove();
            }
        }
        for done in self.closing.drain(..) {
            let _ = done.send(());
        }
    }

    fn on_tick(&mut self) {
        let now = now();
        if self.release_until.is_some_and(|until| until <= now) {
            self.session.close(now);
        }
        let patience = u64::from(self.session.timeouts().request_ms);
        for lane in self.shared.lanes() {
            self.session.on_heard(lane.connection(), lane.heard_at());
            let oldest = lane.slots.oldest_in_flight();
            if oldest.is_some_and(|since| now.since_ms(since) >= patience) {
                self.session
                    .on_lost(lane.connection(), CloseCause::RequestTimeout, now);
            }
        }
        self.session.handle_timeout(now);
    }

    fn is_current(&self, connection: u16, epoch: u64) -> bool {
        self.epochs.get(usize::from(connection)) == Some(&epoch)
    }

    fn on_message(&mut self, message: Message) {
        match message {
            Message::Connected {
                connection,
                epoch,
                result,
            } => {
                if self.is_current(connection, epoch) {
                    match result {
                        Ok(connected) => self.on_connected(connection, connected),
                        Err(error) => self.on_connect_failed(connection, error),
                    }
                }
            }
            Message::Lost {
                connection,
                epoch,
                cause,
            } => {
                if self.release_until.is_some() {
                    self.may_be_held = false;
                    self.session.close(now());
                } else if self.is_current(connection, epoch) {
                    self.session.on_lost(connection, cause, now());
                }
            }
            Message::Resized { size_bytes } => {
                self.shared
                    .update(|reply| reply.geometry.size_bytes = size_bytes.into());
                let _ = self.shared.events.send(Event::Resized(size_bytes));
            }
            Message::Limits(geometry) => {
                self.shared.update(|reply| reply.geometry = geometry);
                let _ = self.shared.events.send(Event::Limits(Box::new(geometry)));
            }
            Message::GoingAway { grace_ms } => {
                let _ = self.shared.events.send(Event::GoingAway(grace_ms));
                self.session.on_going_away(now());
            }
            Message::SetTimeouts(timeouts) => self.session.set_timeouts(timeouts),
            Message::Close { done } => {
                self.closing.push(done);
                for lane in self.shared.lanes() {
                    lane.shut();
                }
                self.release();
            }
        }
    }

    /// Tells the node that the session ends, if it can be told, so that the volume is free at once.
    fn release(&mut self) {
        match self.lane(0) {
            Some(lane) if self.session.is_usable() => {
                lane.send_control(Kind::Close, RequestFlags::RELEASE, 0);
                self.release_until = Some(now().after_ms(RELEASE_MS));
            }
            _ => self.session.close(now()),
        }
    }

    fn on_connect_failed(&mut self, connection: u16, error: ConnectError) {
        if self.is_resuming && is_resumption_refused(error.cause) {
            // That session is lost: the volume is asked for by one that is new.
            self.is_resuming = false;
            self.may_be_held = false;
            self.session_id = random_id();
            if let Some(note) = &mut self.note {
                note.write(&self.config, &self.session_id, self.session.used());
            }
            self.session
                .on_connect_failed(connection, error.cause, now());
            return;
        }
        self.may_be_held |= !matches!(
            error.cause,
            CloseCause::Refused(_) | CloseCause::ConnectFailed(_)
        );
        self.session
            .on_connect_failed(connection, error.cause, now());
        // Until the volume was usable once, every node gets one try.
        self.failures += 1;
        if self.attached.is_some() && self.failures >= self.config.nodes.len() {
            self.finish_attach(Err(error.error));
            self.session.close(now());
        }
    }

    fn on_connected(&mut self, connection: u16, connected: Box<Connected>) {
        self.is_resuming = false;
        self.may_be_held = true;
        let reply = connected.opened.reply;
        let first = self.shared.lanes.get().is_none();
        if !first {
            if let Err(cause) = check_same_volume(&self.shared.opened(), &reply) {
                self.session.on_connect_failed(connection, cause, now());
                return;
            }
            let had_bytes = self.shared.opened().geometry.size_bytes.get();
            let has_bytes = reply.geometry.size_bytes.get();
            if let Err(shrunk) = check_size(had_bytes, has_bytes, None) {
                let cause = match self.session.state() {
                    // A program copies what it was told of. There is no person to wait for.
                    SessionState::Opening => {
                        CloseCause::VolumeChanged("size, which is smaller than before")
                    }
                    // Said before it grew, perhaps: the others are told of what is new.
                    _ => shrunk,
                };
                self.session.on_connect_failed(connection, cause, now());
                return;
            }
        }
        if !self
            .session
            .on_opened(connection, reply.max_connections.get(), now())
        {
            return;
        }
        for node in &connected.nodes {
            if !self.nodes.contains(node) && !node.ip().is_unspecified() {
                self.nodes.push(*node);
            }
        }
        self.session.set_nodes(self.nodes.len() as u16);
        let boot_changed = !first && self.shared.opened().boot_id != reply.boot_id;
        if boot_changed && self.shared.durability.on_boot_changed() {
            let _ = self.shared.events.send(Event::DataAtRisk);
        }
        self.shared.update(|shared| *shared = reply);
        if first {
            let depth = self.config.depth.min(reply.max_depth.get());
            let caps = reply.geometry.capabilities();
            let durability = caps
                .contains(Capabilities::VOLATILE_CACHE)
                .then(|| Arc::clone(&self.shared.durability));
            let lanes = (0..self.session.connection_count())
                .map(|c| {
                    let window = reply.max_inflight_bytes.get();
                    Arc::new(Lane::new(c, depth, window, durability.clone()))
                })
                .collect();
            let _ = self.shared.lanes.set(lanes);
        }
        if let Some(place) = self.waiting.get_mut(usize::from(connection)) {
            *place = Some(connected);
        }
    }

    fn finish_attach(&mut self, result: Result<(), Error>) {
        if let Some(attached) = self.attached.take() {
            let _ = attached.send(result);
        }
    }

    /// Does what the machine says, until it has nothing more to say.
    async fn act(&mut self) {
        while let Some(action) = self.session.poll_action() {
            match action {
                Action::Connect {
                    connection,
                    node,
                    kind,
                    deadline,
                } => {
                    self.connect(connection, node, kind, deadline);
                }
                Action::Resume { connection } => self.resume(connection),
                Action::Stop { connection, .. } => self.stop(connection).await,
                Action::Ping { connection } => {
                    if let Some(lane) = self.lane(connection) {
                        lane.send_control(Kind::Ping, RequestFlags::NONE, now().0);
                    }
                }
                Action::FailRequests { cause } => {
                    for lane in self.shared.lanes() {
                        lane.fail_all(cause);
                    }
                }
                Action::Notify(Notice::Lost { cause }) => {
                    let _ = self.shared.events.send(Event::Lost(cause));
                }
                // The program was told when it was lost.
                Action::Notify(Notice::StillLost { .. }) => {}
                Action::Notify(Notice::Recovered { lost_for_ms }) => {
                    let _ = self.shared.events.send(Event::Recovered { lost_for_ms });
                }
            }
        }
        if self.session.is_usable() {
            self.finish_attach(Ok(()));
        }
    }

    fn lane(&self, connection: u16) -> Option<Arc<Lane>> {
        self.shared.lanes().get(usize::from(connection)).cloned()
    }

    fn connect(&mut self, connection: u16, node: u16, kind: ConnectKind, deadline: Instant) {
        let (ConnectKind::Open { epoch, .. } | ConnectKind::Join { epoch, .. }) = kind;
        if let Some(place) = self.epochs.get_mut(usize::from(connection)) {
            *place = epoch;
        }
        let fallback = self.config.nodes.first();
        let Some(node) = self.nodes.get(usize::from(node)).or(fallback).copied() else {
            return;
        };
        let (config, session_id) = (self.config.clone(), self.session_id);
        let sender = self.sender.clone();
        tokio::spawn(async move {
            let limit = Duration::from_millis(deadline.since_ms(now()));
            let attempt = link::connect(&config, session_id, node, kind);
            let result = match tokio::time::timeout(limit, attempt).await {
                Ok(result) => result.map(Box::new),
                Err(_) => {
                    let cause = CloseCause::ConnectTimeout;
                    Err(ConnectError {
                        cause,
                        error: Error::Connect { node, cause },
                    })
                }
            };
            let _ = sender.send(Message::Connected {
                connection,
                epoch,
                result,
            });
        });
    }

    fn resume(&mut self, connection: u16) {
        let at = usize::from(connection);
        let Some(connected) = self.waiting.get_mut(at).and_then(Option::take) else {
            return;
        };
        let (Some(lane), Some(&epoch)) = (self.lane(connection), self.epochs.get(at)) else {
            return;
        };
        lane.heard(now());
        lane.resend_parked(now());
        let features = connected.opened.features;
        let link = Link::start(
            lane,
            connected.stream,
            features,
            epoch,
            self.sender.clone(),
            now,
        );
        if let Some(place) = self.links.get_mut(at) {
            *place = Some(link);
        }
    }

    async fn stop(&mut self, connection: u16) {
        let at = usize::from(connection);
        // A connection may be stopped before it was resumed.
        drop(self.waiting.get_mut(at).and_then(Option::take));
        if let Some(link) = self.links.get_mut(at).and_then(Option::take) {
            link.stop().await;
        }
        if let Some(lane) = self.lane(connection) {
            lane.park_all();
        }
        self.session.on_drained(connection, now());
    }
}
