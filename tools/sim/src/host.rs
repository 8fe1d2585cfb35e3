// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A host with the device: does what `neonsan_session::client` says, as the driver does.

mod link;
mod workload;

use crate::clock::Event;
use crate::content::{Version, BLOCK_BYTES};
use crate::engine::SessionId;
use crate::env::{crc32c, Env};
use crate::net::{ConnId, Side};
use crate::node::{arm, session_of};
use crate::setup::{Attach, Planted};
use link::{close, Link, News, Pumped, Wire};
use neonsan_proto::{Capabilities, Kind, Mode, OpenReply, RequestFlags, Status, VolumeName};
use neonsan_session::client::{
    check_same_volume, Action, Config, ConnectKind, ConnectionState, Durability, Handshake,
    Identity, Opened, Session, SessionState, Used,
};
use neonsan_session::server::Standing;
use neonsan_session::{CloseCause, Instant};
use workload::{next_io, Io};

/// Where the device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Not usable yet.
    Attaching,
    /// Its workload runs.
    Attached,
    /// Detached, or never attached since the volume was refused.
    Detached,
}

/// One attachment of the volume by a host.
#[derive(Debug)]
pub(crate) struct Host {
    index: usize,
    attach: Attach,
    session_id: SessionId,
    session: Session,
    pub(crate) stage: Stage,
    links: Vec<Link>,
    cache: Durability,
    first_reply: Option<OpenReply>,
    boot_id: [u8; 16],
    blocks: u64,
    /// Requests fail at once.
    failing: bool,
    issued: u32,
    /// All of them are completed.
    workload_over: bool,
    timer_at: Option<u64>,
}

impl Host {
    /// A host that begins to attach the volume.
    pub(crate) fn new(env: &mut Env, index: usize, attach: Attach) -> Self {
        let setup = &env.setup;
        let config = Config {
            connections: setup.connections.0,
            nodes: setup.addresses.len() as u16,
            timeouts: setup.timeouts,
            seed: setup.seed ^ index as u64,
            used: Used::default(),
        };
        let links = (0..setup.connections.0)
            .map(|index| Link::new(index, setup.depth))
            .collect();
        let mut host = Host {
            index,
            attach,
            session_id: session_of(index),
            session: Session::new(config, env.core.now()),
            stage: Stage::Attaching,
            links,
            cache: Durability::new(),
            first_reply: None,
            boot_id: [0; 16],
            blocks: 0,
            failing: false,
            issued: 0,
            workload_over: false,
            timer_at: None,
        };
        env.core
            .trace(|| format!("host {index} attaches, force {}", attach.force));
        host.drive(env);
        host
    }

    /// Whether it is an older boot of the host that attaches now: its kernel is gone.
    pub(crate) fn is_over_by(&self, attach: &Attach) -> bool {
        self.attach.host_id == attach.host_id && self.attach.host_boot < attach.host_boot
    }

    /// Whether every request of its workload has been issued and completed.
    pub(crate) fn is_done(&self) -> bool {
        let idle = self.links.iter().all(|link| link.outstanding() == 0);
        match (self.stage, self.session.state()) {
            (Stage::Detached, _) | (_, SessionState::Failed(_)) => idle,
            (Stage::Attaching, _) => false,
            (Stage::Attached, _) => idle && self.workload_over,
        }
    }

    /// What it is waiting for, for people.
    pub(crate) fn describe(&self) -> String {
        let links: Vec<String> = self
            .links
            .iter()
            .map(|link| {
                format!(
                    "[{} {:?} open {} outstanding {} slots {:?}]",
                    link.index,
                    self.session.connection(link.index),
                    link.open,
                    link.outstanding(),
                    link.slots
                        .iter()
                        .map(|s| s.state.name())
                        .collect::<Vec<_>>()
                )
            })
            .collect();
        format!(
            "host {} {:?} {:?} issued {} {}",
            self.index,
            self.stage,
            self.session.state(),
            self.issued,
            links.join(" ")
        )
    }

    // ---- the machine ----

    /// Does what the machine says until it says no more, and sets the timer.
    fn drive(&mut self, env: &mut Env) {
        while let Some(action) = self.session.poll_action() {
            env.core.trace(|| format!("host {} {action:?}", self.index));
            self.act(env, action);
        }
        if self.stage == Stage::Attaching && self.session.is_usable() {
            env.core.trace(|| format!("host {} is usable", self.index));
            self.stage = Stage::Attached;
            env.core.after(0, Event::HostSubmit { host: self.index });
        }
        self.check(env);
        self.set_timer(env);
    }

    fn act(&mut self, env: &mut Env, action: Action) {
        match action {
            Action::Connect {
                connection,
                node,
                kind,
                deadline,
            } => self.dial(env, connection, node, kind, deadline),
            Action::Resume { connection } => {
                self.failing = false;
                let link = &mut self.links[usize::from(connection)];
                link.resend(env);
                link.open = true;
                self.touch(env, connection);
            }
            Action::Stop { connection, .. } => {
                env.counts.losses += 1;
                let link = &mut self.links[usize::from(connection)];
                link.stop(env);
                let attempt = link.attempt;
                let early = matches!(
                    env.setup.planted,
                    Planted::EarlyResend | Planted::ReusedCookies
                );
                let delay_us = if early { 0 } else { env.core.rng.below(3_000) };
                env.core.after(
                    delay_us,
                    Event::HostDrained {
                        host: self.index,
                        link: connection,
                        attempt,
                    },
                );
            }
            Action::Ping { connection } => {
                let link = &mut self.links[usize::from(connection)];
                link.push_control(Kind::Ping, RequestFlags::NONE, 7);
                self.touch(env, connection);
            }
            Action::FailRequests { cause } => {
                if cause == CloseCause::Fenced {
                    env.counts.fenced += 1;
                }
                self.failing = true;
                self.fail_all(env);
            }
            Action::Notify(_) => {}
        }
    }

    fn fail_all(&mut self, env: &mut Env) {
        for link in &mut self.links {
            for io in link.take_all(env) {
                io.fail(env);
            }
        }
    }

    /// Lets a link look at its socket soon.
    fn touch(&mut self, env: &mut Env, connection: u16) {
        if let Some(conn) = self.links[usize::from(connection)].wire.conn() {
            env.net.wake(&mut env.core, conn, Side::Host, 20);
        }
    }

    // ---- connecting ----

    fn dial(
        &mut self,
        env: &mut Env,
        connection: u16,
        node: u16,
        kind: ConnectKind,
        deadline: Instant,
    ) {
        let link = &mut self.links[usize::from(connection)];
        link.attempt += 1;
        link.deadline = Some(deadline);
        link.wire = Wire::Dialling { kind };
        if env.net.is_parted(&env.core, self.index) {
            return;
        }
        let there = env.setup.addresses.get(usize::from(node)).copied();
        let there = there.flatten().filter(|node| env.listening[*node]);
        let delay_us = env.core.rng.delay_us(env.setup.net.delay_us);
        let conn = there.map(|node| {
            let conn = env.net.connect(self.index, connection, node);
            env.core.after(delay_us, Event::Accept { conn });
            conn
        });
        let back_us = env.core.rng.delay_us(env.setup.net.delay_us);
        env.core.after(
            delay_us + back_us,
            Event::Dialled {
                host: self.index,
                link: connection,
                attempt: link.attempt,
                conn,
            },
        );
    }

    /// A connect call has returned.
    pub(crate) fn on_dialled(
        &mut self,
        env: &mut Env,
        connection: u16,
        attempt: u64,
        conn: Option<ConnId>,
    ) {
        let link = &mut self.links[usize::from(connection)];
        let kind = match link.wire {
            Wire::Dialling { kind } if link.attempt == attempt => kind,
            _ => {
                // It was given up meanwhile.
                if let Some(conn) = conn {
                    close(env, conn);
                }
                return;
            }
        };
        let Some(conn) = conn else {
            self.on_lost(env, connection, CloseCause::ConnectFailed(111));
            return self.drive(env);
        };
        let Ok(volume) = VolumeName::parse("pool/volume") else {
            return;
        };
        let identity = Identity {
            volume,
            mode: match self.attach.read_only {
                true => Mode::ReadOnly,
                false => Mode::Exclusive,
            },
            force: self.attach.force,
            session_id: self.session_id,
            host_id: [self.attach.host_id; 16],
            host_boot: self.attach.host_boot,
            host_name: "sim",
            offered: env.features(),
            required: env.features(),
            product: "neonsan-sim",
        };
        let shake = Box::new(Handshake::new(&identity, kind, crc32c));
        link.wire = Wire::Shaking { conn, shake };
        env.net.wake(&mut env.core, conn, Side::Host, 50);
    }

    fn on_opened(&mut self, env: &mut Env, connection: u16, opened: Opened) {
        let reply = opened.reply;
        if let Some(first) = &self.first_reply {
            if let Err(cause) = check_same_volume(first, &reply) {
                env.core
                    .fail(format!("the same volume seems changed: {cause}"));
                return self.on_lost(env, connection, cause);
            }
        }
        let link = &mut self.links[usize::from(connection)];
        link.deadline = None;
        let now = env.core.now();
        if !self
            .session
            .on_opened(connection, reply.max_connections.get(), now)
        {
            if let Some(conn) = link.wire.conn() {
                close(env, conn);
            }
            link.wire = Wire::None;
            return;
        }
        link.go_up(opened.features, &reply.boot_id);
        if self.first_reply.is_none() {
            self.first_reply = Some(reply);
            self.boot_id = reply.boot_id;
        }
        let cached = reply
            .geometry
            .capabilities()
            .contains(Capabilities::VOLATILE_CACHE);
        if reply.boot_id != self.boot_id {
            self.boot_id = reply.boot_id;
            if cached && self.cache.on_boot_changed() {
                env.core
                    .trace(|| format!("host {}: answered writes may be lost", self.index));
            }
        }
        let blocks = reply.geometry.size_bytes.get() / BLOCK_BYTES as u64;
        self.blocks = self.blocks.max(blocks);
    }

    /// A connection ended, or was not made.
    fn on_lost(&mut self, env: &mut Env, connection: u16, cause: CloseCause) {
        if cause.is_violation() && !env.setup.may_see_violations() {
            env.core
                .fail(format!("host finds node breaking the protocol: {cause}"));
        }
        let now = env.core.now();
        let link = &mut self.links[usize::from(connection)];
        match link.wire {
            Wire::Dialling { .. } | Wire::Shaking { .. } => {
                env.core
                    .trace(|| format!("host {} link {connection} not made: {cause:?}", self.index));
                if let Some(conn) = link.wire.conn() {
                    close(env, conn);
                }
                link.wire = Wire::None;
                link.deadline = None;
                self.session.on_connect_failed(connection, cause, now);
                self.fail_at_rest(env);
                let refused = matches!(
                    cause,
                    CloseCause::Refused(Status::HeldByOther | Status::Fenced) | CloseCause::Fenced
                );
                if refused && self.stage == Stage::Attaching {
                    let session_id = self.session_id;
                    // A node may have ended between saving that a session holds it and telling it so.
                    let is_held = env.engine.owner().is_some_and(|owner| owner != session_id)
                        || env.engine.remembered.iter().any(|other| {
                            other.session_id != session_id && other.standing == Standing::Holds
                        });
                    if !is_held {
                        env.core
                            .fail("refused, but nobody else holds the volume".into());
                    }
                    self.shut(env);
                }
            }
            Wire::Up { .. } => self.session.on_lost(connection, cause, now),
            Wire::None | Wire::Stopping { .. } => {}
        }
    }

    // ---- what happens ----

    /// A link looks at its socket.
    pub(crate) fn on_wake(&mut self, env: &mut Env, connection: u16, conn: ConnId) {
        let link = &mut self.links[usize::from(connection)];
        if link.wire.conn() != Some(conn) {
            return link.pump_zombie(env, conn, &self.cache);
        }
        let pumped = link.pump(env, &self.cache);
        if std::mem::take(&mut link.heard) {
            let now = env.core.now();
            self.session.on_heard(connection, now);
        }
        for news in std::mem::take(&mut link.news) {
            match news {
                News::Size(size_bytes) => {
                    self.blocks = self.blocks.max(size_bytes / BLOCK_BYTES as u64);
                }
                News::GoingAway => {
                    let now = env.core.now();
                    self.session.on_going_away(now);
                }
            }
        }
        if !self.links[usize::from(connection)].busy.is_empty() {
            env.core.after(
                5_000,
                Event::HostRequeue {
                    host: self.index,
                    link: connection,
                },
            );
        }
        match pumped {
            Pumped::Idle => {}
            Pumped::Opened(opened) => self.on_opened(env, connection, opened),
            Pumped::Lost(cause) => self.on_lost(env, connection, cause),
        }
        self.drive(env);
    }

    /// Neither side of a stopped link touches a request any more.
    pub(crate) fn on_drained(&mut self, env: &mut Env, connection: u16, attempt: u64) {
        let link = &mut self.links[usize::from(connection)];
        if link.attempt != attempt {
            return;
        }
        link.park(env);
        let now = env.core.now();
        self.session.on_drained(connection, now);
        self.fail_at_rest(env);
        self.drive(env);
    }

    /// Fails every request of a device that is detached, once nothing touches them any more.
    fn fail_at_rest(&mut self, env: &mut Env) {
        if self.stage == Stage::Detached && self.session.is_at_rest() {
            self.fail_all(env);
        }
    }

    /// The next request of the workload.
    pub(crate) fn on_submit(&mut self, env: &mut Env) {
        if self.stage != Stage::Attached {
            return;
        }
        let outstanding: usize = self.links.iter().map(Link::outstanding).sum();
        let failed = matches!(self.session.state(), SessionState::Failed(_));
        if self.issued < self.attach.requests && !failed {
            if outstanding < env.setup.outstanding as usize {
                self.issued += 1;
                self.submit(env);
            }
        } else if outstanding == 0 {
            // The workload is over.
            self.workload_over = true;
            if self.attach.detaches {
                self.detach(env);
            }
            return;
        }
        let think_us = env.core.rng.below(2 * env.setup.think_us + 1);
        env.core
            .after(think_us, Event::HostSubmit { host: self.index });
    }

    fn submit(&mut self, env: &mut Env) {
        let connections = u64::from(self.session.connection_count());
        let connection = env.core.rng.below(connections) as u16;
        let version = Version(((self.index as u64 + 1) << 32) | u64::from(self.issued));
        let mut io: Io = next_io(env, self.index, self.blocks, version, self.attach.read_only);
        if io.request.kind == Kind::Flush {
            io.flush_mark = Some(self.cache.begin_flush());
        }
        if self.failing {
            return io.fail(env);
        }
        let link = &mut self.links[usize::from(connection)];
        link.waiting.push_back(io);
        link.dispatch(env);
        self.touch(env, connection);
    }

    /// Requests that were answered Busy are tried again.
    pub(crate) fn on_requeue(&mut self, env: &mut Env, connection: u16) {
        let link = &mut self.links[usize::from(connection)];
        for io in std::mem::take(&mut link.busy) {
            if self.failing || self.stage == Stage::Detached {
                io.fail(env);
            } else {
                link.waiting.push_front(io);
            }
        }
        link.dispatch(env);
        self.touch(env, connection);
    }

    fn detach(&mut self, env: &mut Env) {
        if self.links[0].open {
            self.links[0].push_control(Kind::Close, RequestFlags::RELEASE, 0);
            self.links[0].pump(env, &self.cache);
        }
        self.shut(env);
        self.drive(env);
    }

    /// Detaches at once, in order or not.
    pub(crate) fn shut(&mut self, env: &mut Env) {
        if self.stage != Stage::Detached {
            env.core.trace(|| format!("host {} detaches", self.index));
            self.stage = Stage::Detached;
            let now = env.core.now();
            self.session.close(now);
            self.fail_at_rest(env);
        }
    }

    /// Detaches by force: nothing is said to the node, and what is under way fails.
    pub(crate) fn finish(&mut self, env: &mut Env) {
        self.shut(env);
        self.drive(env);
    }

    /// Whether the device is gone altogether.
    pub(crate) fn is_gone(&self) -> bool {
        self.stage == Stage::Detached && self.session.is_at_rest()
    }

    // ---- time ----

    /// The delayed work of the device.
    pub(crate) fn on_timer(&mut self, env: &mut Env) {
        self.timer_at = None;
        let now = env.core.now();
        let request_ms = u64::from(env.setup.timeouts.request_ms);
        for at in 0..self.links.len() {
            let link = &self.links[at];
            if link.deadline.is_some_and(|deadline| deadline <= now) {
                self.on_lost(env, at as u16, CloseCause::ConnectTimeout);
            } else if matches!(link.wire, Wire::Up { .. })
                && link
                    .slots
                    .oldest_in_flight()
                    .is_some_and(|since| now.since_ms(since) >= request_ms)
            {
                self.session
                    .on_lost(at as u16, CloseCause::RequestTimeout, now);
            }
        }
        self.session.handle_timeout(now);
        self.drive(env);
        if let Some(at) = self.session.poll_timeout().filter(|at| *at <= now) {
            env.core.fail(format!(
                "host {}: the session wants to be woken at {} ms, and has nothing to do then",
                self.index, at.0
            ));
        }
    }

    fn set_timer(&mut self, env: &mut Env) {
        let request_ms = u64::from(env.setup.timeouts.request_ms);
        let links = self.links.iter().filter_map(|link| match link.wire {
            Wire::Dialling { .. } | Wire::Shaking { .. } => link.deadline,
            Wire::Up { .. } => link
                .slots
                .oldest_in_flight()
                .map(|since| since.after_ms(request_ms)),
            Wire::None | Wire::Stopping { .. } => None,
        });
        if let Some(at) = links.chain(self.session.poll_timeout()).min() {
            let event = Event::HostTimer { host: self.index };
            arm(&mut env.core, &mut self.timer_at, at, event);
        }
    }

    // ---- checks ----

    /// The machine and the sockets must agree about every connection.
    fn check(&self, env: &mut Env) {
        for link in &self.links {
            let state = self.session.connection(link.index).map(|(state, ..)| state);
            let agree = match state {
                None | Some(ConnectionState::Idle { .. }) => matches!(link.wire, Wire::None),
                Some(ConnectionState::Connecting { .. }) => {
                    matches!(link.wire, Wire::Dialling { .. } | Wire::Shaking { .. })
                }
                Some(ConnectionState::Live) => matches!(link.wire, Wire::Up { .. }),
                Some(ConnectionState::Stopping) => matches!(link.wire, Wire::Stopping { .. }),
            };
            if !agree || (link.open && state != Some(ConnectionState::Live)) {
                env.core.fail(format!(
                    "host {} link {}: the machine says {state:?}, the socket is {:?}",
                    self.index, link.index, link.wire
                ));
            }
        }
    }
}
