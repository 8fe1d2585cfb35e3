// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A storage node: accepts connections, asks the gate, feeds the engine, answers.
//!
//! All decisions are those of `neonsan_session::server`; what is here only carries bytes, as the
//! daemon does.

mod ownership;
mod peer;
mod saving;

use crate::clock::{Core, Event};
use crate::engine::{name, Done, SessionId, Ticket};
use crate::env::Env;
use crate::net::{Closing, ConnId, Side};
use crate::setup::Planted;
use neonsan_proto::{EventKind, Header, Mode, OpenReply, Refusal, Status};
use neonsan_session::server::{
    ConnectionId, Gate, GateAction, Introduced, IntroducedAs, Opening, Receiver, RefuseReason,
};
use neonsan_session::{CloseCause, Instant};
use peer::{Peer, Phase, Pumped};
use saving::Saving;
use std::collections::BTreeMap;
use zerocopy::IntoBytes as _;

/// Whether the node's process is there, and awake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    Running,
    /// Stopped by a signal: sockets and engine go on without it.
    Paused,
    Gone,
}

/// One node.
#[derive(Debug)]
pub(crate) struct Node {
    index: usize,
    pub(crate) life: Life,
    /// It has announced that it stops, and lets nobody in.
    stopping: bool,
    /// How often it was started.
    pub(crate) boot: u64,
    /// The number of its boot id: another one with each start and each loss.
    pub(crate) memory: u64,
    /// What the last OPEN of each session was told of that.
    told: BTreeMap<[u8; 16], u64>,
    /// The term in which it has the volume, if it has.
    term: Option<u64>,
    /// Connections that wait for the node to have the volume.
    callers: Vec<ConnId>,
    gate: Gate,
    /// The version of the gate's memory that was saved last.
    saved_memory: Option<u64>,
    /// What is being saved, for sessions that begin then.
    saving: Option<Saving>,
    /// How often something was.
    savings: u64,
    peers: BTreeMap<ConnId, Peer>,
    /// What ended in the engine while the process was paused.
    missed: Vec<Done>,
    missed_wakes: Vec<ConnId>,
    missed_accepts: Vec<ConnId>,
    missed_disowned: Option<u64>,
    timer_at: Option<u64>,
}

fn id_of(conn: ConnId) -> ConnectionId {
    ConnectionId(conn.0 as u64)
}

fn conn_of(id: ConnectionId) -> ConnId {
    ConnId(id.0 as usize)
}

impl Node {
    /// A node that was just started.
    pub(crate) fn new(env: &mut Env, index: usize) -> Self {
        let mut node = Node {
            index,
            life: Life::Running,
            stopping: false,
            boot: 1,
            memory: 1,
            told: BTreeMap::new(),
            term: None,
            callers: Vec::new(),
            gate: Gate::new(env.setup.gate),
            saved_memory: None,
            saving: None,
            savings: 0,
            peers: BTreeMap::new(),
            missed: Vec::new(),
            missed_wakes: Vec::new(),
            missed_accepts: Vec::new(),
            missed_disowned: None,
            timer_at: None,
        };
        node.own_alone(env);
        node.set_timer(env);
        node
    }

    /// The gate, for checks.
    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    fn boot_id(&self) -> [u8; 16] {
        (u128::from(self.memory) | (1 << 127)).to_le_bytes()
    }

    // ---- its life ----

    /// The process ends; `closing` is what its peers hear of it.
    pub(crate) fn kill(&mut self, env: &mut Env, closing: Closing) {
        if self.life == Life::Gone {
            return;
        }
        env.core
            .trace(|| format!("node {} gone ({closing:?})", self.index));
        self.life = Life::Gone;
        self.stopping = false;
        self.end_while_saving(env);
        let now = env.core.now();
        for (conn, peer) in &self.peers {
            env.net.close(&mut env.core, *conn, Side::Node, closing);
            if let Some(ticket) = &peer.ticket {
                env.claims.ended(&ticket.session, now);
            }
        }
        for conn in self.missed_accepts.drain(..) {
            env.net.close(&mut env.core, conn, Side::Node, closing);
        }
        self.peers.clear();
        self.callers.clear();
        self.missed.clear();
        self.missed_wakes.clear();
        self.missed_disowned = None;
        env.engine.on_node_gone(&mut env.core, self.index);
        let now_us = env.core.now_us;
        env.engine.set_away(self.index, Some(now_us));
    }

    /// The process is started again.
    pub(crate) fn start(&mut self, env: &mut Env) {
        if self.life != Life::Gone {
            return;
        }
        self.boot += 1;
        self.memory += 1;
        self.told.clear();
        self.life = Life::Running;
        env.engine.set_away(self.index, None);
        self.term = None;
        self.gate = Gate::new(env.setup.gate);
        self.timer_at = None;
        env.core
            .trace(|| format!("node {} starts, boot {}", self.index, self.boot));
        self.own_alone(env);
        self.set_timer(env);
    }

    /// The storage has lost its write cache, and says so: every session must be opened again.
    pub(crate) fn on_cache_lost(&mut self, env: &mut Env) {
        env.core
            .trace(|| format!("node {} loses its cache", self.index));
        if env.setup.planted == Planted::SilentLoss {
            return;
        }
        self.memory += 1;
        let active = |peer: &&Peer| peer.phase == Phase::Active;
        let conns: Vec<ConnId> = self
            .peers
            .iter()
            .filter(|(_, peer)| active(peer))
            .map(|(conn, _)| *conn)
            .collect();
        for conn in conns {
            self.close(env, conn, CloseCause::WritesLost);
        }
        self.run_gate(env);
        self.set_timer(env);
    }

    /// A JOIN of a session that was opened before a loss: it must be opened again.
    fn is_from_before(&self, introduced: &Introduced) -> bool {
        let told = self.told.get(&introduced.request.session_id);
        introduced.kind == IntroducedAs::Join && told.is_some_and(|told| *told != self.memory)
    }

    /// The process stands still.
    pub(crate) fn pause(&mut self, env: &mut Env) {
        if self.life == Life::Running {
            env.core.trace(|| format!("node {} pauses", self.index));
            self.life = Life::Paused;
            let now_us = env.core.now_us;
            env.engine.set_away(self.index, Some(now_us));
        }
    }

    /// The process goes on, and finds everything that it missed.
    pub(crate) fn resume(&mut self, env: &mut Env) {
        if self.life != Life::Paused {
            return;
        }
        env.core.trace(|| format!("node {} goes on", self.index));
        self.life = Life::Running;
        env.engine.set_away(self.index, None);
        // In any order: its threads wake as they like.
        let mut steps: Vec<u64> = (0..4).collect();
        while !steps.is_empty() {
            let at = env.core.rng.index(steps.len());
            match steps.swap_remove(at) {
                0 => {
                    for done in std::mem::take(&mut self.missed) {
                        self.on_done(env, done);
                    }
                }
                1 => {
                    for conn in std::mem::take(&mut self.missed_wakes) {
                        env.net.wake(&mut env.core, conn, Side::Node, 500);
                    }
                }
                2 => {
                    if let Some(term) = self.missed_disowned.take() {
                        self.on_disowned(env, term);
                    }
                }
                _ => {
                    for conn in std::mem::take(&mut self.missed_accepts) {
                        self.on_accept(env, conn);
                    }
                }
            }
        }
        self.timer_at = None;
        self.set_timer(env);
    }

    /// It does not stop after all.
    pub(crate) fn stay(&mut self) {
        self.stopping = false;
    }

    /// Announces that it will stop in so many milliseconds, and lets nobody in.
    pub(crate) fn go_away(&mut self, env: &mut Env, grace_ms: u64) {
        if self.life != Life::Running {
            return;
        }
        env.core
            .trace(|| format!("node {} will stop in {grace_ms} ms", self.index));
        self.stopping = true;
        self.tell_all(env, Header::event(EventKind::GoingAway, grace_ms, 0), &[]);
    }

    /// The volume has grown.
    pub(crate) fn on_grown(&mut self, env: &mut Env) {
        if self.life == Life::Gone {
            return;
        }
        let geometry = env.geometry();
        for peer in self.peers.values_mut() {
            if let Some(receiver) = &mut peer.receiver {
                receiver.set_geometry(geometry);
            }
        }
        // A node may tell a new size by itself, or all limits at once.
        if env.core.rng.permille(500) {
            let event = Header::event(EventKind::Resized, geometry.size_bytes.get(), 0);
            return self.tell_all(env, event, &[]);
        }
        let bytes = geometry.as_bytes();
        let event = Header::event(EventKind::Limits, 0, bytes.len() as u32);
        self.tell_all(env, event, bytes);
    }

    fn tell_all(&mut self, env: &mut Env, event: Header, payload: &[u8]) {
        for (conn, peer) in &mut self.peers {
            if peer.phase == Phase::Active {
                peer.push(event, payload);
                env.net.wake(&mut env.core, *conn, Side::Node, 100);
            }
        }
    }

    // ---- what happens to it ----

    /// A new connection was made.
    pub(crate) fn on_accept(&mut self, env: &mut Env, conn: ConnId) {
        match self.life {
            Life::Gone => env.net.close(&mut env.core, conn, Side::Node, Closing::Rst),
            Life::Paused => self.missed_accepts.push(conn),
            Life::Running => {
                let peer = Peer::new(env.features(), env.core.now());
                self.peers.insert(conn, peer);
                env.net.wake(&mut env.core, conn, Side::Node, 100);
            }
        }
    }

    /// One of its sockets has something to read, or room to write.
    pub(crate) fn on_wake(&mut self, env: &mut Env, conn: ConnId) {
        match self.life {
            Life::Gone => {}
            Life::Paused => self.missed_wakes.push(conn),
            Life::Running => {
                self.pump(env, conn);
                self.run_gate(env);
                self.set_timer(env);
            }
        }
    }

    fn pump(&mut self, env: &mut Env, conn: ConnId) {
        let Some(peer) = self.peers.get_mut(&conn) else {
            return;
        };
        match peer.pump(env, self.index, conn) {
            Ok(Pumped::Idle) => {}
            Ok(Pumped::Introduced) => self.introduce(env, conn),
            Ok(Pumped::Release) => {
                let ticket = self.peers.get(&conn).and_then(|peer| peer.ticket);
                if let Some(ticket) = ticket.filter(|_| self.term.is_some()) {
                    self.gate.on_release(id_of(conn));
                    env.claims.released(&ticket.session);
                }
                self.close(env, conn, CloseCause::Released);
            }
            Err(cause) => {
                if cause.is_violation() && !env.setup.may_see_violations() {
                    env.core
                        .fail(format!("node finds host breaking the protocol: {cause}"));
                }
                self.close(env, conn, cause);
            }
        }
    }

    fn introduce(&mut self, env: &mut Env, conn: ConnId) {
        let Some(peer) = self.peers.get_mut(&conn) else {
            return;
        };
        let Some(introduced) = peer.shake.introduced() else {
            return;
        };
        let request = introduced.request;
        env.core.trace(|| {
            format!(
                "node {} {conn:?}: {:?} by {} host {} generation {} connection {} epoch {} flags {:#x}",
                self.index,
                introduced.kind,
                name(&request.session_id),
                request.host_id[0],
                request.generation.get(),
                request.connection.get(),
                request.epoch.get(),
                request.flags().0
            )
        });
        peer.introduced = Some(introduced);
        if self.stopping {
            return self.refuse(
                env,
                conn,
                RefuseReason {
                    status: Status::GoingAway,
                    holder: None,
                    generation: 0,
                    retry_after_ms: 0,
                },
            );
        }
        if self.is_from_before(&introduced) {
            return self.refuse_from_before(env, conn);
        }
        if self.term.is_some() {
            self.ask_gate(env, conn, introduced);
        } else {
            self.call_for_volume(env, conn, introduced);
        }
    }

    fn refuse_from_before(&mut self, env: &mut Env, conn: ConnId) {
        let reason = RefuseReason {
            status: Status::UnknownSession,
            holder: None,
            generation: 0,
            retry_after_ms: 0,
        };
        self.refuse(env, conn, reason);
    }

    fn ask_gate(&mut self, env: &mut Env, conn: ConnId, introduced: Introduced) {
        let now = env.core.now();
        let request = introduced.request;
        match self
            .gate
            .introduce(id_of(conn), introduced.kind, &request, now)
        {
            Opening::Waiting => {
                if let Some(peer) = self.peers.get_mut(&conn) {
                    peer.phase = Phase::Waiting;
                }
            }
            Opening::Refused(reason) => {
                self.check_fenced(env, &request.session_id, reason.status);
                self.refuse(env, conn, reason);
            }
        }
    }

    fn refuse(&mut self, env: &mut Env, conn: ConnId, reason: RefuseReason) {
        env.core
            .trace(|| format!("node {} {conn:?}: refused, {:?}", self.index, reason.status));
        let Some(peer) = self.peers.get_mut(&conn) else {
            return;
        };
        let mut refusal = Refusal {
            generation: reason.generation.into(),
            retry_after_ms: reason.retry_after_ms.into(),
            ..Refusal::default()
        };
        if let Some(holder) = reason.holder {
            refusal.holder = holder.host_id;
        }
        let mut bytes = Vec::new();
        peer.shake
            .encode_refusal(reason.status, refusal, "in the simulation", &mut bytes);
        peer.out.extend(bytes);
        peer.phase = Phase::Refused;
        env.net.wake(&mut env.core, conn, Side::Node, 100);
    }

    /// Does what the gate says until it says no more.
    fn run_gate(&mut self, env: &mut Env) {
        let now = env.core.now();
        self.begin_saving(env);
        while let Some(action) = self.gate.poll_action(now) {
            match action {
                GateAction::Admit(id) => self.admit(env, conn_of(id)),
                GateAction::Refuse(id, reason) => self.refuse(env, conn_of(id), reason),
                GateAction::Revoke(id, cause) => {
                    let conn = conn_of(id);
                    let ticket = self.peers.get(&conn).and_then(|peer| peer.ticket);
                    if let (Some(ticket), CloseCause::Fenced) = (ticket, cause) {
                        self.check_fenced(env, &ticket.session, Status::Fenced);
                    }
                    if let Some(peer) = self.peers.get_mut(&conn) {
                        if cause == CloseCause::Fenced && peer.phase == Phase::Active {
                            peer.push(Header::event(EventKind::Fenced, 0, 0), &[]);
                            peer.transmit(env, conn);
                        }
                    }
                    self.close(env, conn, cause);
                }
            }
        }
    }

    fn admit(&mut self, env: &mut Env, conn: ConnId) {
        let Some(term) = self.term else {
            return;
        };
        let boot_id = self.boot_id();
        let introduced = self.peers.get(&conn).and_then(|peer| peer.introduced);
        match introduced {
            Some(introduced) if self.is_from_before(&introduced) => {
                return self.refuse_from_before(env, conn);
            }
            Some(introduced) if introduced.kind == IntroducedAs::Open => {
                self.told.insert(introduced.request.session_id, self.memory);
            }
            Some(_) | None => {}
        }
        let Some(peer) = self.peers.get_mut(&conn) else {
            env.core
                .fail(format!("the gate lets in {conn:?}, which is gone"));
            return;
        };
        let Some(introduced) = peer.introduced else {
            return;
        };
        let request = introduced.request;
        let ticket = Ticket {
            node: self.index,
            read_only: request.mode() == Mode::ReadOnly,
            term,
            conn,
            session: request.session_id,
            generation: request.generation.get(),
            index: request.connection.get(),
            epoch: request.epoch.get(),
        };
        let opens = introduced.kind == IntroducedAs::Open;
        env.core
            .trace(|| format!("node {} {conn:?}: let in", self.index));
        env.counts.admissions += 1;
        let now = env.core.now();
        if let Some(lost) = env.engine.let_in(&mut env.core, &ticket, opens) {
            env.model.settle_host(host_of(&lost));
            // Several nodes do not see the same end of a connection.
            let linger_ms = env.setup.gate.linger_ms;
            let objection = env.claims.objection(&lost, &request, linger_ms, now);
            if let Some(what) = objection.filter(|_| env.setup.nodes == 1) {
                env.core.fail(what);
            }
        }
        env.claims.let_in(&request, now);
        let geometry = env.geometry();
        let limits = peer::limits(env, ticket.read_only);
        let reply = OpenReply {
            geometry,
            volume_id: [0x70; 16],
            boot_id,
            generation: ticket.generation.into(),
            heartbeat_interval_ms: env.setup.node_heartbeat_ms.0.into(),
            heartbeat_timeout_ms: env.setup.node_heartbeat_ms.1.into(),
            max_connections: env.setup.connections.1.into(),
            max_depth: limits.max_depth.into(),
            max_inflight_bytes: limits.max_inflight_bytes.into(),
            ..OpenReply::default()
        };
        let mut bytes = Vec::new();
        peer.shake.encode_accept(reply, &[], &mut bytes);
        peer.out.extend(bytes);
        peer.phase = Phase::Active;
        peer.ticket = Some(ticket);
        peer.receiver = Some(Receiver::new(
            geometry,
            limits,
            introduced.features,
            crate::env::crc32c,
        ));
        env.net.wake(&mut env.core, conn, Side::Node, 100);
    }

    /// Ends a connection; its requests may be in the engine for a while.
    fn close(&mut self, env: &mut Env, conn: ConnId, cause: CloseCause) {
        let Some(peer) = self.peers.get_mut(&conn) else {
            return;
        };
        if peer.phase != Phase::Closed {
            env.core.trace(|| {
                format!(
                    "node {} {conn:?}: closed, {} ({} in the engine)",
                    self.index,
                    cause.name(),
                    peer.in_engine
                )
            });
            let how = if env.core.rng.permille(700) {
                Closing::Fin
            } else {
                Closing::Rst
            };
            env.net.close(&mut env.core, conn, Side::Node, how);
            peer.phase = Phase::Closed;
        }
        self.drop_if_drained(env, conn);
    }

    fn drop_if_drained(&mut self, env: &mut Env, conn: ConnId) {
        let drained = self
            .peers
            .get(&conn)
            .is_some_and(|p| p.phase == Phase::Closed && p.in_engine == 0);
        if drained {
            let gone = self.peers.remove(&conn).and_then(|peer| peer.ticket);
            if let Some(ticket) = gone {
                env.claims.ended(&ticket.session, env.core.now());
            }
            self.gate.on_drained(id_of(conn), env.core.now());
        }
    }

    /// An operation of the engine has come to its end.
    pub(crate) fn on_done(&mut self, env: &mut Env, done: Done) {
        match self.life {
            Life::Gone => return,
            Life::Paused => return self.missed.push(done),
            Life::Running => {}
        }
        if done.refused {
            // The storage says so itself: no need to wait for the news.
            self.on_disowned(env, done.ticket.term);
        }
        let conn = done.ticket.conn;
        let Some(peer) = self.peers.get_mut(&conn) else {
            env.core.fail(format!(
                "{conn:?} was forgotten with requests in the engine"
            ));
            return;
        };
        peer.in_engine -= 1;
        if peer.phase == Phase::Active {
            peer.answer(&done.command, Status::Ok, &done.data);
            if env.setup.planted == Planted::DoubleAnswer && env.core.rng.permille(5) {
                peer.answer(&done.command, Status::Ok, &done.data);
            }
            env.net.wake(&mut env.core, conn, Side::Node, 100);
        }
        self.drop_if_drained(env, conn);
        self.run_gate(env);
        self.set_timer(env);
    }

    // ---- time ----

    /// Does what is due.
    pub(crate) fn on_timer(&mut self, env: &mut Env, boot: u64) {
        if boot != self.boot || self.life != Life::Running {
            return;
        }
        self.timer_at = None;
        let now = env.core.now();
        self.gate.handle_timeout(now);
        let (interval_ms, timeout_ms) = env.setup.node_heartbeat_ms;
        let mut silent = Vec::new();
        for (conn, peer) in &mut self.peers {
            if peer.phase == Phase::Closed || peer.phase == Phase::Waiting {
                continue;
            }
            if now.since_ms(peer.heard_at) >= u64::from(timeout_ms) {
                silent.push(*conn);
            } else if peer.phase == Phase::Active
                && now.since_ms(peer.heard_at.max(peer.pinged_at)) >= u64::from(interval_ms)
            {
                peer.pinged_at = now;
                peer.push(Header::new(neonsan_proto::Kind::Ping), &[]);
                env.net.wake(&mut env.core, *conn, Side::Node, 100);
            }
        }
        for conn in silent {
            self.close(env, conn, CloseCause::HeartbeatTimeout);
        }
        self.run_gate(env);
        if let Some(at) = self.gate.poll_timeout().filter(|at| *at <= now) {
            env.core.fail(format!(
                "the gate wants to be woken at {} ms, and has nothing to do then",
                at.0
            ));
        }
        self.set_timer(env);
    }

    fn set_timer(&mut self, env: &mut Env) {
        let (interval_ms, timeout_ms) = env.setup.node_heartbeat_ms;
        let heartbeats = self.peers.values().filter_map(|peer| match peer.phase {
            Phase::Closed | Phase::Waiting => None,
            Phase::Active => Some(
                peer.heard_at
                    .max(peer.pinged_at)
                    .after_ms(interval_ms.into())
                    .min(peer.heard_at.after_ms(timeout_ms.into())),
            ),
            Phase::Shaking | Phase::Refused => Some(peer.heard_at.after_ms(timeout_ms.into())),
        });
        let next: Option<Instant> = heartbeats.chain(self.gate.poll_timeout()).min();
        let Some(at) = next else { return };
        arm(
            &mut env.core,
            &mut self.timer_at,
            at,
            Event::NodeTimer {
                node: self.index,
                boot: self.boot,
            },
        );
    }
}

/// Schedules a timer unless one is already set that comes first.
pub(crate) fn arm(core: &mut Core, armed_at: &mut Option<u64>, at: Instant, event: Event) {
    let at_us = (at.0 * 1000).max(core.now_us);
    if armed_at.is_none_or(|armed| armed > at_us) {
        *armed_at = Some(at_us);
        core.at(at_us, event);
    }
}

/// The host (in order of attaching) that a session belongs to.
pub(crate) fn host_of(session: &SessionId) -> usize {
    usize::from(session[0]) - 1
}

/// The session of a host (in order of attaching).
pub(crate) fn session_of(host: usize) -> SessionId {
    let mut id = [0x5e; 16];
    id[0] = host as u8 + 1;
    id
}

/// The boot that a boot id stands for.
pub(crate) fn boot_of(boot_id: &[u8; 16]) -> u64 {
    u128::from_le_bytes(*boot_id) as u64
}
