// SPDX-License-Identifier: GPL-2.0 OR MIT

//! One connection as a node sees it.

use crate::engine::Ticket;
use crate::env::{crc32c, Env};
use crate::net::{ConnId, Got, Sent, Side};
use neonsan_proto::{Features, Header, Kind, Status};
use neonsan_session::server::{Command, Handshake, Introduced, Limits, Received, Receiver, Want};
use neonsan_session::{CloseCause, Instant};
use std::collections::VecDeque;
use zerocopy::IntoBytes as _;

/// Where a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Shaking,
    /// The gate thinks about it.
    Waiting,
    Active,
    /// To be closed once the refusal has gone out.
    Refused,
    /// The socket is closed; requests may be in the engine.
    Closed,
}

/// What looking at a socket has led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pumped {
    Idle,
    /// The client has said who it is.
    Introduced,
    /// The client ends its whole session.
    Release,
}

/// What the node allows on one connection.
pub(super) fn limits(env: &Env, read_only: bool) -> Limits {
    let depth = env.setup.depth;
    Limits {
        max_depth: depth,
        max_inflight_bytes: u32::from(depth) * env.geometry().max_io_bytes.get(),
        read_only,
    }
}

#[derive(Debug)]
struct Write {
    command: Command,
    data: Vec<u8>,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) phase: Phase,
    pub(super) shake: Handshake,
    pub(super) introduced: Option<Introduced>,
    pub(super) ticket: Option<Ticket>,
    pub(super) receiver: Option<Receiver>,
    writing: Option<Write>,
    pub(super) out: VecDeque<u8>,
    /// Operations of it that the engine has not ended.
    pub(super) in_engine: u32,
    pub(super) heard_at: Instant,
    pub(super) pinged_at: Instant,
}

impl Peer {
    pub(super) fn new(features: Features, now: Instant) -> Self {
        Peer {
            phase: Phase::Shaking,
            shake: Handshake::new(features, "neonsan-sim", crc32c),
            introduced: None,
            ticket: None,
            receiver: None,
            writing: None,
            out: VecDeque::new(),
            in_engine: 0,
            heard_at: now,
            pinged_at: now,
        }
    }

    fn features(&self) -> Features {
        self.shake.features()
    }

    /// Seals a message and queues it.
    pub(super) fn push(&mut self, mut header: Header, payload: &[u8]) {
        if self.features().contains(Features::PAYLOAD_CRC) && !payload.is_empty() {
            header.set_payload_crc(crc32c(payload));
        }
        if self.features().contains(Features::HEADER_CRC) {
            header.seal(crc32c);
        }
        self.out.extend(header.as_bytes());
        self.out.extend(payload);
    }

    /// Queues the answer to a command.
    pub(super) fn answer(&mut self, command: &Command, status: Status, data: &[u8]) {
        let write_len = if command.kind == Kind::Write {
            command.length
        } else {
            0
        };
        if let Some(receiver) = &mut self.receiver {
            receiver.answered(write_len);
        }
        let data = if status == Status::Ok { data } else { &[] };
        let data = if command.kind == Kind::Read {
            data
        } else {
            &[]
        };
        self.push(
            Header::reply(status, command.cookie, data.len() as u32),
            data,
        );
    }

    /// Hands what is queued to the socket. True if the socket is of no use any more.
    pub(super) fn transmit(&mut self, env: &mut Env, conn: ConnId) -> bool {
        while !self.out.is_empty() {
            let bytes = self.out.make_contiguous();
            match env.net.send(&mut env.core, conn, Side::Node, bytes) {
                Sent::Bytes(n) => drop(self.out.drain(..n)),
                Sent::Full => return false,
                Sent::Reset => return true,
            }
        }
        false
    }

    /// Sends and receives what can be. An error ends the connection.
    pub(super) fn pump(
        &mut self,
        env: &mut Env,
        node: usize,
        conn: ConnId,
    ) -> Result<Pumped, CloseCause> {
        debug_assert!(self.ticket.is_none_or(|t| t.node == node));
        if self.phase == Phase::Closed {
            return Ok(Pumped::Idle);
        }
        if self.transmit(env, conn) {
            return Err(CloseCause::SocketError(104));
        }
        let result = match self.phase {
            Phase::Shaking => self.shake(env, conn),
            Phase::Active => self.receive(env, conn),
            Phase::Refused if self.out.is_empty() => Err(CloseCause::Refused(Status::NotPermitted)),
            // A node that waits still notices that its peer is gone, now and then.
            Phase::Waiting => {
                if env.net.is_over(conn, Side::Node) && env.core.rng.permille(500) {
                    Err(CloseCause::PeerClosed)
                } else {
                    Ok(Pumped::Idle)
                }
            }
            Phase::Refused | Phase::Closed => Ok(Pumped::Idle),
        };
        if self.transmit(env, conn) {
            return Err(CloseCause::SocketError(104));
        }
        result
    }

    fn shake(&mut self, env: &mut Env, conn: ConnId) -> Result<Pumped, CloseCause> {
        loop {
            while !self.shake.poll_transmit().is_empty() {
                let bytes = self.shake.poll_transmit();
                match env.net.send(&mut env.core, conn, Side::Node, bytes) {
                    Sent::Bytes(n) => self.shake.transmitted(n)?,
                    Sent::Full => return Ok(Pumped::Idle),
                    Sent::Reset => return Err(CloseCause::SocketError(104)),
                }
            }
            if self.shake.introduced().is_some() {
                return Ok(Pumped::Introduced);
            }
            let want = self.shake.want();
            if want.is_empty() {
                return Ok(Pumped::Idle);
            }
            match env.net.recv(&mut env.core, conn, Side::Node, want) {
                Got::Bytes(n) => {
                    self.heard_at = env.core.now();
                    self.shake.received(n)?;
                }
                Got::Nothing => return Ok(Pumped::Idle),
                Got::End => return Err(CloseCause::PeerClosed),
                Got::Reset => return Err(CloseCause::SocketError(104)),
            }
        }
    }

    fn receive(&mut self, env: &mut Env, conn: ConnId) -> Result<Pumped, CloseCause> {
        // A slow reader: what is left waits for the next turn.
        let mut turns = env.core.rng.range(4, 64);
        loop {
            turns -= 1;
            if turns == 0 {
                env.net.wake(&mut env.core, conn, Side::Node, 50);
                return Ok(Pumped::Idle);
            }
            let Some(receiver) = &mut self.receiver else {
                return Ok(Pumped::Idle);
            };
            let mut scrap = [0; 1024];
            let (to, kept) = match receiver.want() {
                Want::Bytes(bytes) => (bytes, None),
                Want::Payload { at, remaining } => {
                    let Some(write) = &mut self.writing else {
                        return Err(CloseCause::NoMemory);
                    };
                    let (at, end) = (at as usize, at as usize + remaining as usize);
                    (&mut write.data[at..end], Some(true))
                }
                Want::Skip { remaining } => {
                    let len = scrap.len().min(remaining as usize);
                    (&mut scrap[..len], Some(false))
                }
            };
            let n = match env.net.recv(&mut env.core, conn, Side::Node, to) {
                Got::Bytes(n) => n,
                Got::Nothing => return Ok(Pumped::Idle),
                Got::End => return Err(CloseCause::PeerClosed),
                Got::Reset => return Err(CloseCause::SocketError(104)),
            };
            self.heard_at = env.core.now();
            let received = match kept {
                None => receiver.received(n)?,
                Some(kept) => {
                    let mut crc = 0;
                    if let (true, Some(write)) = (kept, &self.writing) {
                        if let Want::Payload { at, .. } = receiver.want() {
                            crc = crc32c(&write.data[..at as usize + n]);
                        }
                    }
                    receiver.payload_received(n as u32, crc)
                }
            };
            if let Some(received) = received {
                if self.on_received(env, received)? == Pumped::Release {
                    return Ok(Pumped::Release);
                }
            }
        }
    }

    fn on_received(&mut self, env: &mut Env, received: Received) -> Result<Pumped, CloseCause> {
        match received {
            Received::Command(command) => self.carry_out(env, command, Vec::new()),
            Received::WriteBegins(command) => {
                self.writing = Some(Write {
                    command,
                    data: vec![0; command.length as usize],
                });
            }
            Received::WriteComplete => {
                if let Some(write) = self.writing.take() {
                    self.carry_out(env, write.command, write.data);
                }
            }
            Received::WriteDamaged => {
                if let Some(write) = self.writing.take() {
                    self.answer(&write.command, Status::ChecksumMismatch, &[]);
                }
            }
            Received::Rejected { cookie, status } => {
                if !env.setup.may_see_violations() {
                    env.core
                        .fail(format!("the node rejects a request: {status:?}"));
                }
                if let Some(receiver) = &mut self.receiver {
                    receiver.answered(0);
                }
                self.push(Header::reply(status, cookie, 0), &[]);
            }
            Received::Ping { cookie } => {
                let pong =
                    Header::request(Kind::Pong, neonsan_proto::RequestFlags::NONE, cookie, 0, 0);
                self.push(pong, &[]);
            }
            Received::Pong { .. } => {}
            Received::Close { release: true } => return Ok(Pumped::Release),
            Received::Close { release: false } => return Err(CloseCause::PeerClosed),
        }
        Ok(Pumped::Idle)
    }

    fn carry_out(&mut self, env: &mut Env, command: Command, data: Vec<u8>) {
        let Some(ticket) = self.ticket else { return };
        if env.core.rng.permille(env.setup.busy_permille) {
            return self.answer(&command, Status::Busy, &[]);
        }
        self.in_engine += 1;
        env.engine.begin(&mut env.core, ticket, command, data);
    }
}
