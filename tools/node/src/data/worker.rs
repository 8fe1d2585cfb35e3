// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The event loop of a worker thread.
//!
//! A worker owns its connections, with their engine queues, and its pool of
//! buffers. It waits with epoll for sockets, engines, its mailbox and its
//! timer, gives each connection that has an event one turn, and looks at the
//! time ten times a second. The timer is set once: a limit of each wait would
//! be set and taken back for each request. The first worker also accepts connections, and hands them
//! out in turn.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant as StdInstant};

use neonsan_engine::BufferPool;
use neonsan_session::server::ConnectionId;
use neonsan_session::Instant;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::Timespec;
use rustix::io::Errno;
use rustix::time::{
    timerfd_create, timerfd_settime, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags,
};

use super::connection::Connection;
use super::{Mailbox, ToWorker};
use crate::access::{Arrival, Doorkeeper, Full};
use crate::metrics::WorkerMetrics;
use crate::shared::Shared;

/// How often the time is looked at.
const TICK: Duration = Duration::from_millis(100);

/// How soon a connection that stalled is tried again, when nothing else
/// happens on this worker.
const STALL_RETRY: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 2_000_000,
};

/// Connections accepted in one turn: those that are there, and the mailbox, have theirs in between.
const ACCEPT_BATCH: usize = 64;

/// Spare buffers kept by a worker.
const POOL_BYTES: usize = 32 << 20;

/// Marks in epoll: the mailbox, the timer, the listeners, and for the connection in a
/// slot its socket and its engine.
const MAILBOX_MARK: u64 = u64::MAX;
const TIMER_MARK: u64 = u64::MAX - 1;
const LISTENER_MARK: u64 = 1 << 62;
const ENGINE_BIT: u64 = 1 << 61;

/// What a connection may use during its turn.
pub(super) struct Context<'a> {
    pub(super) shared: &'a Shared,
    pub(super) metrics: &'a WorkerMetrics,
    pub(super) pool: &'a mut BufferPool,
    pub(super) now: Instant,
    /// The same moment, finer: requests that arrive during the turn count their time from here. To read
    /// the clock for each of them would cost more than it tells.
    pub(super) began: StdInstant,
}

/// A timer that is due again and again.
fn timer(interval: Duration) -> std::io::Result<OwnedFd> {
    let timer = timerfd_create(
        TimerfdClockId::Monotonic,
        TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
    )?;
    let interval = Timespec::try_from(interval).map_err(std::io::Error::other)?;
    let setting = Itimerspec {
        it_interval: interval,
        it_value: interval,
    };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &setting)?;
    Ok(timer)
}

/// A worker thread's state.
pub struct Worker {
    index: usize,
    shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    metrics: Arc<WorkerMetrics>,
    epoll: OwnedFd,
    timer: OwnedFd,
    /// Only the first worker has any.
    listeners: Vec<TcpListener>,
    /// Asked about each connection that is accepted.
    doorkeeper: Option<Doorkeeper>,
    /// Listeners are watched; not so after the process ran out of files, for
    /// one tick.
    listening: bool,
    next_connection: u64,
    /// Connections by slot, which is their mark in epoll.
    slots: Vec<Option<Connection>>,
    free: Vec<usize>,
    by_id: HashMap<ConnectionId, usize>,
    /// Slots whose connections are to be tried again soon.
    stalled: Vec<usize>,
    pool: BufferPool,
    stopping: bool,
    going_away: bool,
}

impl Worker {
    /// A worker without connections. `listeners` are not blocking.
    pub fn new(
        index: usize,
        shared: Arc<Shared>,
        listeners: Vec<TcpListener>,
    ) -> std::io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        let mailbox = Arc::clone(&shared.mailboxes[index]);
        epoll::add(
            &epoll,
            mailbox.signal(),
            EventData::new_u64(MAILBOX_MARK),
            EventFlags::IN,
        )?;
        let timer = timer(TICK)?;
        let mark = EventData::new_u64(TIMER_MARK);
        epoll::add(&epoll, &timer, mark, EventFlags::IN)?;
        let metrics = shared.metrics.worker(index);
        let mut worker = Self {
            index,
            shared,
            mailbox,
            metrics,
            epoll,
            timer,
            listeners,
            doorkeeper: (index == 0).then(Doorkeeper::new),
            listening: false,
            next_connection: 0,
            slots: Vec::new(),
            free: Vec::new(),
            by_id: HashMap::new(),
            stalled: Vec::new(),
            pool: BufferPool::new(POOL_BYTES),
            stopping: false,
            going_away: false,
        };
        worker.listen()?;
        Ok(worker)
    }

    fn listen(&mut self) -> std::io::Result<()> {
        if !self.listening && !self.going_away {
            for (i, listener) in self.listeners.iter().enumerate() {
                let mark = EventData::new_u64(LISTENER_MARK | i as u64);
                epoll::add(&self.epoll, listener, mark, EventFlags::IN)?;
            }
            self.listening = true;
        }
        Ok(())
    }

    fn stop_listening(&mut self) {
        if self.listening {
            self.listening = false;
            for listener in &self.listeners {
                if let Err(error) = epoll::delete(&self.epoll, listener) {
                    tracing::error!(%error, "cannot stop listening");
                }
            }
        }
    }

    /// Works until [`ToWorker::Stop`] comes. An error is one of epoll, without which no connection
    /// is served.
    pub fn run(mut self) -> std::io::Result<()> {
        let mut events = [MaybeUninit::<Event>::uninit(); 256];
        while !self.stopping {
            let stalled = std::mem::take(&mut self.stalled);
            let limit = (!stalled.is_empty()).then_some(&STALL_RETRY);
            let ready = match epoll::wait(&self.epoll, &mut events[..], limit) {
                Ok((ready, _)) => &*ready,
                Err(Errno::INTR) => {
                    self.stalled = stalled;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let mut has_mail = false;
            let mut is_tick = false;
            let mut to_accept = Vec::new();
            // Connections first: a slot that becomes free is given to another
            // connection only after all events of this round.
            for event in ready {
                let mark = event.data.u64();
                if mark == MAILBOX_MARK {
                    has_mail = true;
                } else if mark == TIMER_MARK {
                    is_tick = true;
                } else if mark & LISTENER_MARK != 0 {
                    to_accept.push((mark & !LISTENER_MARK) as usize);
                } else {
                    let flags = if mark & ENGINE_BIT != 0 {
                        EventFlags::empty()
                    } else {
                        event.flags
                    };
                    self.turn((mark & !ENGINE_BIT) as usize, |c, cx| c.turn(flags, cx));
                }
            }
            for slot in stalled {
                self.turn(slot, |c, cx| c.turn(EventFlags::empty(), cx));
            }
            if has_mail {
                for message in self.mailbox.take() {
                    self.on_message(message);
                }
            }
            for listener in to_accept {
                self.accept(listener);
            }
            if is_tick {
                // Says how often it was due, and is quiet until the next time.
                let _ = rustix::io::read(&self.timer, &mut [0; 8]);
                for slot in 0..self.slots.len() {
                    self.turn(slot, Connection::handle_timeout);
                }
                if let Err(error) = self.listen() {
                    tracing::error!(%error, "cannot listen");
                }
                if self.index == 0 {
                    self.shared.log_limits.tell(self.shared.clock.now());
                }
                self.metrics.beat();
            }
        }
        if self.index == 0 {
            // Periods end with the node.
            self.shared.log_limits.tell(Instant(u64::MAX));
        }
        Ok(())
    }

    /// Lets the connection in `slot` act, and does what follows from it.
    fn turn(&mut self, slot: usize, act: impl FnOnce(&mut Connection, &mut Context<'_>)) {
        let Some(connection) = self.slots.get_mut(slot).and_then(Option::as_mut) else {
            return;
        };
        let began = StdInstant::now();
        let mut context = Context {
            shared: &self.shared,
            metrics: &self.metrics,
            pool: &mut self.pool,
            now: self.shared.clock.at(began),
            began,
        };
        let had_engine = connection.event_fd().is_some();
        act(connection, &mut context);
        if connection.is_ended() {
            let id = connection.id;
            self.slots[slot] = None;
            self.free.push(slot);
            self.by_id.remove(&id);
            self.forget(id);
            return;
        }
        if connection.is_stalled() && !self.stalled.contains(&slot) {
            self.stalled.push(slot);
        }
        let wanted = connection.wanted_events();
        let mut result = Ok(());
        if let Some(socket) = connection.socket() {
            if wanted != connection.interest {
                let mark = EventData::new_u64(slot as u64);
                result = epoll::modify(&self.epoll, socket, mark, wanted);
            }
        }
        connection.interest = wanted;
        if let (false, Some(fd)) = (had_engine, connection.event_fd()) {
            let mark = EventData::new_u64(slot as u64 | ENGINE_BIT);
            result = result.and(epoll::add(&self.epoll, fd, mark, EventFlags::IN));
        }
        if let Err(error) = result {
            tracing::error!(%error, "epoll does not take a connection");
        }
    }

    fn on_message(&mut self, message: ToWorker) {
        let id = match &message {
            ToWorker::Accept { .. } => return self.adopt(message),
            ToWorker::Listen(_) => return self.add_listener(message),
            ToWorker::MakeRoom { id }
            | ToWorker::Prepare { id, .. }
            | ToWorker::Admit { id, .. }
            | ToWorker::Refuse { id, .. }
            | ToWorker::Revoke { id, .. }
            | ToWorker::Resized { id, .. } => *id,
            ToWorker::GoingAway(left_ms) => {
                let left_ms = *left_ms;
                self.going_away = true;
                self.stop_listening();
                self.listeners.clear();
                for slot in 0..self.slots.len() {
                    self.turn(slot, |c, cx| c.on_message(ToWorker::GoingAway(left_ms), cx));
                }
                return;
            }
            ToWorker::Stop => {
                self.stopping = true;
                return;
            }
        };
        // It may be gone, and the hub will hear so, or has.
        if let Some(slot) = self.by_id.get(&id).copied() {
            self.turn(slot, |c, cx| c.on_message(message, cx));
        }
    }

    /// Listens on an address that was waited for.
    fn add_listener(&mut self, message: ToWorker) {
        let ToWorker::Listen(listener) = message else {
            return;
        };
        if self.going_away {
            return;
        }
        self.stop_listening();
        self.listeners.push(listener);
        if let Err(error) = self.listen() {
            tracing::error!(%error, "cannot listen");
        }
    }

    /// The connection is gone.
    fn forget(&self, id: ConnectionId) {
        self.shared.admission.closed(id);
        self.shared
            .metrics
            .connections
            .fetch_sub(1, Ordering::Relaxed);
    }

    /// Leaves a message with a connection's worker.
    fn post(&mut self, id: ConnectionId, message: ToWorker) {
        let worker = (id.0 % self.shared.mailboxes.len() as u64) as usize;
        self.shared.mailboxes[worker].post(message);
    }

    /// Accepts what waits on a listener, and hands it out.
    fn accept(&mut self, listener: usize) {
        for _ in 0..ACCEPT_BATCH {
            let Some(socket) = self.listeners.get(listener) else {
                return;
            };
            let (stream, peer) = match socket.accept() {
                Ok(accepted) => accepted,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    tracing::error!(%error, "cannot accept connections for a moment");
                    self.stop_listening();
                    return;
                }
            };
            let Some(doorkeeper) = &mut self.doorkeeper else {
                return;
            };
            let live = self.shared.live();
            let arrival = doorkeeper.look(stream.as_fd(), peer, &live.local_users);
            let now = self.shared.clock.now();
            if let Some(reason) = &arrival.denied {
                let kind = ("a connection is not let in", "");
                if self.shared.log_limits.admits(kind, now) {
                    tracing::warn!(%peer, "a connection is not let in: {reason}");
                }
                self.metrics.denied.fetch_add(1, Ordering::Relaxed);
            }
            let id = ConnectionId(self.next_connection);
            let limits = &live.config.limits;
            let admitted = self.shared.admission.admit(id, arrival.peer, limits, now);
            for id in admitted.leaving {
                self.post(id, ToWorker::MakeRoom { id });
            }
            if let Some(full) = admitted.full {
                self.refuse(peer, full, now);
                continue;
            }
            self.next_connection += 1;
            self.shared
                .metrics
                .connections
                .fetch_add(1, Ordering::Relaxed);
            let message = ToWorker::Accept {
                id,
                socket: stream.into(),
                peer,
                arrival,
            };
            if id.0 % self.shared.mailboxes.len() as u64 == self.index as u64 {
                self.adopt(message);
            } else {
                self.post(id, message);
            }
        }
    }

    /// Says that a connection is closed at once, and which limit it is about.
    fn refuse(&self, peer: SocketAddr, full: Full, now: Instant) {
        let open = self.shared.metrics.connections.load(Ordering::Relaxed);
        let limit = match full {
            Full::All => "limits.max_connections is reached",
            Full::Peer => "this peer has as many as it may have (limits.max_peer_connections)",
            Full::Reserve => {
                "what is left of limits.max_connections is for peers that have few connections"
            }
        };
        let kind = ("refused a connection", limit);
        if self.shared.log_limits.admits(kind, now) {
            tracing::warn!(%peer, open, "refused a connection: {limit}");
        }
        self.metrics.over_limit.fetch_add(1, Ordering::Relaxed);
    }

    /// Makes an accepted socket a connection of this worker.
    fn adopt(&mut self, message: ToWorker) {
        let ToWorker::Accept {
            id,
            socket,
            peer,
            arrival,
        } = message
        else {
            return;
        };
        if self.going_away {
            // Another worker accepted it before it heard of that.
            drop(socket);
        } else if let Err(error) = self.try_adopt(id, socket, peer, arrival) {
            tracing::error!(%peer, %error, "cannot serve a connection");
        } else {
            return;
        }
        self.forget(id);
    }

    fn try_adopt(
        &mut self,
        id: ConnectionId,
        socket: OwnedFd,
        peer: SocketAddr,
        arrival: Arrival,
    ) -> Result<(), Errno> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        // Replies are sent when they are ready, whole.
        rustix::net::sockopt::set_tcp_nodelay(&socket, true)?;
        let began = StdInstant::now();
        let context = Context {
            shared: &self.shared,
            metrics: &self.metrics,
            pool: &mut self.pool,
            now: self.shared.clock.at(began),
            began,
        };
        let mut connection = Connection::new(id, socket, peer, arrival, &context);
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        connection.interest = connection.wanted_events();
        if let Some(socket) = connection.socket() {
            let mark = EventData::new_u64(slot as u64);
            if let Err(error) = epoll::add(&self.epoll, socket.as_fd(), mark, connection.interest) {
                self.free.push(slot);
                return Err(error);
            }
        }
        self.metrics.accepted.fetch_add(1, Ordering::Relaxed);
        self.slots[slot] = Some(connection);
        self.by_id.insert(id, slot);
        Ok(())
    }
}
