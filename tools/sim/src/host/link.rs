// SPDX-License-Identifier: GPL-2.0 OR MIT

//! One hardware queue of a device with its connection: sends requests, receives answers.

use super::workload::Io;
use crate::env::{crc32c, Env};
use crate::net::{Closing, ConnId, Got, Sent, Side};
use crate::node::boot_of;
use crate::setup::Planted;
use neonsan_proto::{Features, Header, Kind, RequestFlags, Status};
use neonsan_session::client::{
    ConnectKind, Durability, Handshake, Opened, Progress, Received, Receiver, Slot, SlotState,
    SlotTable, Want,
};
use neonsan_session::{CloseCause, Cookie, Instant, Tag};
use std::collections::VecDeque;
use zerocopy::{FromBytes as _, IntoBytes as _};

/// What a link does with its socket.
#[derive(Debug)]
pub(super) enum Wire {
    None,
    /// The connect call has not returned.
    Dialling {
        kind: ConnectKind,
    },
    Shaking {
        conn: ConnId,
        shake: Box<Handshake>,
    },
    Up {
        conn: ConnId,
        receiver: Box<Receiver>,
    },
    /// The machine has said Stop; the receiving side finishes its turn, if it has a socket.
    Stopping {
        conn: ConnId,
        receiver: Option<Box<Receiver>>,
    },
}

impl Wire {
    pub(super) fn conn(&self) -> Option<ConnId> {
        match self {
            Wire::None | Wire::Dialling { .. } => None,
            Wire::Shaking { conn, .. } | Wire::Up { conn, .. } | Wire::Stopping { conn, .. } => {
                Some(*conn)
            }
        }
    }
}

/// A message on its way to the socket.
#[derive(Debug)]
struct Message {
    header: Header,
    /// Whose payload follows.
    tag: Option<Tag>,
    /// Bytes of header and payload that the socket has taken.
    at: usize,
}

/// What looking at the socket has led to.
#[derive(Debug)]
pub(super) enum Pumped {
    Idle,
    Opened(Opened),
    Lost(CloseCause),
}

/// What a link tells its device while it receives.
#[derive(Clone, Copy, Debug)]
pub(super) enum News {
    /// The volume has a new size, in bytes.
    Size(u64),
    GoingAway,
}

/// One hardware queue.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) index: u16,
    pub(super) wire: Wire,
    /// How often a connection was tried: events of older tries are void.
    pub(super) attempt: u64,
    /// When the try that is under way is given up.
    pub(super) deadline: Option<Instant>,
    /// New requests may pass.
    pub(super) open: bool,
    features: Features,
    /// The boot of the node that the connection leads to.
    boot: u64,
    /// The receiver has found a violation: nothing may be received any more.
    broken: bool,
    pub(super) slots: SlotTable<Vec<Slot>>,
    pub(super) ios: Vec<Option<Io>>,
    cookies: Vec<Option<Cookie>>,
    /// Requests without a tag, as the block layer keeps them.
    pub(super) waiting: VecDeque<Io>,
    /// Requests that were answered Busy.
    pub(super) busy: Vec<Io>,
    queue: VecDeque<Message>,
    pub(super) news: Vec<News>,
    /// Something has arrived since the device looked.
    pub(super) heard: bool,
    /// A planted bug: the receiving side of an old connection that nobody stopped.
    zombie: Option<(ConnId, Box<Receiver>)>,
}

impl Link {
    pub(super) fn new(index: u16, depth: u16) -> Self {
        let slots = (0..depth).map(|_| Slot::new()).collect();
        Link {
            index,
            wire: Wire::None,
            attempt: 0,
            deadline: None,
            open: false,
            features: Features::NONE,
            boot: 0,
            broken: false,
            slots: SlotTable::new(index, slots),
            ios: (0..depth).map(|_| None).collect(),
            cookies: (0..depth).map(|_| None).collect(),
            waiting: VecDeque::new(),
            busy: Vec::new(),
            queue: VecDeque::new(),
            news: Vec::new(),
            heard: false,
            zombie: None,
        }
    }

    /// Requests that the device has not completed.
    pub(super) fn outstanding(&self) -> usize {
        self.ios.iter().flatten().count() + self.waiting.len() + self.busy.len()
    }

    /// Takes the handshake's socket into use.
    pub(super) fn go_up(&mut self, features: Features, boot_id: &[u8; 16]) {
        if let Some(conn) = self.wire.conn() {
            self.features = features;
            self.boot = boot_of(boot_id);
            self.broken = false;
            self.queue.clear();
            self.wire = Wire::Up {
                conn,
                receiver: Box::new(Receiver::new(features, crc32c)),
            };
        }
    }

    // ---- transmitting ----

    fn push(&mut self, mut header: Header, tag: Option<Tag>) {
        if self.features.contains(Features::PAYLOAD_CRC) {
            if let Some(io) = tag.and_then(|tag| self.ios[usize::from(tag.0)].as_ref()) {
                if io.request.kind == Kind::Write {
                    header.set_payload_crc(crc32c(&io.data));
                }
            }
        }
        if self.features.contains(Features::HEADER_CRC) {
            header.seal(crc32c);
        }
        self.queue.push_back(Message { header, tag, at: 0 });
    }

    fn push_request(&mut self, env: &mut Env, tag: Tag, mut cookie: Cookie) {
        let Some(io) = &self.ios[usize::from(tag.0)] else {
            return;
        };
        env.core.trace(|| {
            format!(
                "link {} sends {:?} {:?} flags {:#x} offset {} length {} as {:#x}",
                self.index,
                io.request.kind,
                tag,
                io.request.flags.0,
                io.request.offset,
                io.request.length,
                cookie.to_wire()
            )
        });
        self.cookies[usize::from(tag.0)] = Some(cookie);
        if env.setup.planted == Planted::ReusedCookies {
            cookie.slot_generation = 0;
        }
        let header = io.request.header(cookie);
        self.push(header, Some(tag));
    }

    /// Sends a message without a request.
    pub(super) fn push_control(&mut self, kind: Kind, flags: RequestFlags, cookie: u64) {
        self.push(Header::request(kind, flags, cookie, 0, 0), None);
    }

    /// Gives waiting requests free tags.
    pub(super) fn dispatch(&mut self, env: &mut Env) {
        while self.open && !self.waiting.is_empty() {
            let Some(free) = self.ios.iter().position(Option::is_none) else {
                return;
            };
            let tag = Tag(free as u16);
            let Some(io) = self.waiting.pop_front() else {
                return;
            };
            match self.slots.claim(tag, io.request, env.core.now()) {
                Some(cookie) => {
                    self.ios[free] = Some(io);
                    self.push_request(env, tag, cookie);
                }
                None => {
                    env.core.fail(format!("a free {tag:?} has its slot taken"));
                    return;
                }
            }
        }
    }

    /// Sends every parked request again, in any order.
    pub(super) fn resend(&mut self, env: &mut Env) {
        let mut parked: Vec<Tag> = self.slots.iter().map(|info| info.tag).collect();
        while !parked.is_empty() {
            let tag = parked.swap_remove(env.core.rng.index(parked.len()));
            let Some((cookie, request)) = self.slots.reclaim(tag, env.core.now()) else {
                env.core.fail(format!(
                    "link {} resumes with {tag:?} not parked",
                    self.index
                ));
                continue;
            };
            env.counts.resends += 1;
            match &mut self.ios[usize::from(tag.0)] {
                Some(io) if io.request == request => {
                    if request.kind == Kind::Read {
                        io.crc = 0;
                    }
                    self.push_request(env, tag, cookie);
                }
                _ => env.core.fail(format!(
                    "link {}: {tag:?} is parked without its request",
                    self.index
                )),
            }
        }
    }

    fn transmit(&mut self, env: &mut Env) -> Result<(), CloseCause> {
        let Wire::Up { conn, .. } = self.wire else {
            return Ok(());
        };
        while let Some(message) = self.queue.front_mut() {
            let header = message.header.as_bytes();
            if message.at == 0 {
                if let Some(tag) = message.tag {
                    // Before the first byte is sent: the reply may come at once.
                    self.slots.sent(tag, env.core.now());
                }
            }
            let payload = match message.tag.map(|tag| &self.ios[usize::from(tag.0)]) {
                Some(Some(io)) if io.request.kind == Kind::Write => io.data.as_slice(),
                _ => &[],
            };
            let total = header.len() + payload.len();
            let rest = match message.at.checked_sub(header.len()) {
                None => &header[message.at..],
                Some(at) => &payload[at.min(payload.len())..],
            };
            if rest.is_empty() {
                self.queue.pop_front();
                continue;
            }
            match env.net.send(&mut env.core, conn, Side::Host, rest) {
                Sent::Bytes(n) => {
                    message.at += n;
                    if message.at == total {
                        self.queue.pop_front();
                    }
                }
                Sent::Full => return Ok(()),
                Sent::Reset => return Err(CloseCause::SocketError(104)),
            }
        }
        Ok(())
    }

    // ---- receiving ----

    /// Sends and receives what can be.
    pub(super) fn pump(&mut self, env: &mut Env, cache: &Durability) -> Pumped {
        let result = match std::mem::replace(&mut self.wire, Wire::None) {
            Wire::Shaking { conn, mut shake } => {
                let result = pump_shake(env, conn, &mut shake);
                self.wire = Wire::Shaking { conn, shake };
                result
            }
            Wire::Up { conn, mut receiver } => {
                let received = self.receive(env, conn, &mut receiver, cache);
                self.wire = Wire::Up { conn, receiver };
                self.dispatch(env);
                self.broken = received.is_err();
                match received.and_then(|()| self.transmit(env)) {
                    Ok(()) => Ok(None),
                    Err(cause) => Err(cause),
                }
            }
            Wire::Stopping {
                conn,
                receiver: Some(mut receiver),
            } => {
                // The last turn of a receiving side that has not seen the news.
                let over = self.receive(env, conn, &mut receiver, cache).is_err();
                self.wire = Wire::Stopping {
                    conn,
                    receiver: if over { None } else { Some(receiver) },
                };
                Ok(None)
            }
            wire => {
                self.wire = wire;
                Ok(None)
            }
        };
        match result {
            Ok(None) => Pumped::Idle,
            Ok(Some(opened)) => Pumped::Opened(opened),
            Err(cause) => Pumped::Lost(cause),
        }
    }

    fn receive(
        &mut self,
        env: &mut Env,
        conn: ConnId,
        receiver: &mut Receiver,
        cache: &Durability,
    ) -> Result<(), CloseCause> {
        let mut turns = env.core.rng.range(4, 64);
        loop {
            turns -= 1;
            if turns == 0 {
                env.net.wake(&mut env.core, conn, Side::Host, 50);
                return Ok(());
            }
            let received = match receiver.want() {
                Want::Bytes(to) => {
                    let reused = env.setup.planted == Planted::ReusedCookies && to.len() == 32;
                    if reused && env.net.waiting(conn, Side::Host) < 32 {
                        return Ok(());
                    }
                    let mut n = got(env.net.recv(&mut env.core, conn, Side::Host, to))?;
                    if n == 0 {
                        return Ok(());
                    }
                    while reused && n < 32 {
                        n += got(env.net.recv(&mut env.core, conn, Side::Host, &mut to[n..]))?;
                    }
                    if reused {
                        self.guess_cookie(to);
                    }
                    receiver.received(n, &self.slots)?
                }
                Want::Payload { tag, at, remaining } => {
                    let Some(io) = &mut self.ios[usize::from(tag.0)] else {
                        env.core
                            .fail(format!("payload for {tag:?}, which is completed"));
                        return Err(CloseCause::UnknownCookie);
                    };
                    let at = at as usize;
                    let end = (at + remaining as usize).min(io.data.len());
                    let to = &mut io.data[at.min(end)..end];
                    if to.is_empty() {
                        env.core
                            .fail(format!("payload for {tag:?}, which has no room for it"));
                        return Err(CloseCause::UnknownCookie);
                    }
                    let n = got(env.net.recv(&mut env.core, conn, Side::Host, to))?;
                    if n == 0 {
                        return Ok(());
                    }
                    if receiver.wants_payload_crc() {
                        let before = if at == 0 { 0 } else { io.crc };
                        io.crc = ::crc32c::crc32c_append(before, &io.data[at..at + n]);
                    }
                    let crc = io.crc;
                    receiver.payload_received(n as u32, crc, &self.slots)?
                }
            };
            self.heard = true;
            if let Some(received) = received {
                self.on_received(env, received, cache);
            }
        }
    }

    /// A planted bug: takes a reply for whatever request has its tag now.
    fn guess_cookie(&self, bytes: &mut [u8]) {
        let Ok(header) = Header::read_from_bytes(bytes) else {
            return;
        };
        let tag = Cookie::from_wire(header.cookie()).tag;
        let known = self.cookies.get(usize::from(tag.0)).copied().flatten();
        if let (Kind::Reply, Some(cookie)) = (header.kind(), known) {
            let mut guessed = Header::reply(header.status(), cookie.to_wire(), header.length());
            guessed.set_payload_crc(header.payload_crc());
            if self.features.contains(Features::HEADER_CRC) {
                guessed.seal(crc32c);
            }
            bytes.copy_from_slice(guessed.as_bytes());
        }
    }

    fn on_received(&mut self, env: &mut Env, received: Received, cache: &Durability) {
        match received {
            Received::Completed { tag, status } => self.complete(env, tag, status, cache),
            Received::PayloadBegins { .. } | Received::Pong { .. } => {}
            Received::Limits(geometry) => {
                self.news.push(News::Size(geometry.size_bytes.get()));
            }
            Received::Ping { cookie } => self.push_control(Kind::Pong, RequestFlags::NONE, cookie),
            Received::Resized { size_bytes } => self.news.push(News::Size(size_bytes)),
            Received::GoingAway { .. } => self.news.push(News::GoingAway),
        }
    }

    fn complete(&mut self, env: &mut Env, tag: Tag, status: Status, cache: &Durability) {
        env.core
            .trace(|| format!("link {} completes {tag:?}: {status:?}", self.index));
        let Some(io) = self.ios[usize::from(tag.0)].take() else {
            env.core
                .fail(format!("link {}: {tag:?} is completed twice", self.index));
            return;
        };
        match (status, io.request.kind) {
            (Status::Ok, Kind::Flush) => {
                let mark = io.flush_mark;
                let lost = mark.is_some_and(|mark| cache.end_flush(mark).is_err());
                if lost && env.setup.planted != Planted::IgnoredBootId {
                    env.counts.failed_flushes += 1;
                    io.fail(env);
                } else {
                    io.succeed(env, self.boot);
                }
            }
            (Status::Ok, kind) => {
                if kind != Kind::Read && !io.request.flags.contains(RequestFlags::FUA) {
                    cache.on_answered();
                }
                io.succeed(env, self.boot);
            }
            (Status::Busy, _) => self.busy.push(io),
            (status, kind) => {
                env.core
                    .fail(format!("{kind:?} fails for no reason: {status:?}"));
                io.fail(env);
            }
        }
    }

    // ---- stopping ----

    /// Lets nothing new through, and closes the socket now or when the receiving side is done.
    pub(super) fn stop(&mut self, env: &mut Env) {
        self.open = false;
        self.queue.clear();
        if let Wire::Up { conn, receiver } = std::mem::replace(&mut self.wire, Wire::None) {
            let mut receiver = Some(receiver);
            if env.setup.planted == Planted::EarlyResend
                || env.setup.planted == Planted::ReusedCookies
            {
                self.zombie = receiver.take().map(|receiver| (conn, receiver));
            } else if self.broken || env.core.rng.permille(500) {
                receiver = None;
                close(env, conn);
            }
            self.wire = Wire::Stopping { conn, receiver };
        }
    }

    /// Both sides have stopped: every request is parked.
    pub(super) fn park(&mut self, env: &mut Env) {
        if let Wire::Stopping { conn, .. } = self.wire {
            if self
                .zombie
                .as_ref()
                .is_none_or(|(zombie, _)| *zombie != conn)
            {
                close(env, conn);
            }
            self.wire = Wire::None;
        }
        for tag in 0..self.slots.depth() {
            let tag = Tag(tag as u16);
            // False if it is parked since an earlier connection that was never resumed.
            self.slots.park(tag);
            let parked = self.slots.info(tag).map(|info| info.state) == Some(SlotState::Parked);
            if parked != self.ios[usize::from(tag.0)].is_some() {
                env.core.fail(format!(
                    "link {}: {tag:?} has a slot without a request, or the reverse",
                    self.index
                ));
            }
        }
    }

    /// A planted bug: what arrives on the old connection is taken as ever.
    pub(super) fn pump_zombie(&mut self, env: &mut Env, conn: ConnId, cache: &Durability) {
        let Some((_, mut receiver)) = self.zombie.take_if(|(zombie, _)| *zombie == conn) else {
            return;
        };
        match self.receive(env, conn, &mut receiver, cache) {
            Ok(()) => self.zombie = Some((conn, receiver)),
            Err(_) => close(env, conn),
        }
    }

    /// Everything that waits, parked or not, to be ended by the caller.
    pub(super) fn take_all(&mut self, env: &mut Env) -> Vec<Io> {
        let mut all: Vec<Io> = self.waiting.drain(..).chain(self.busy.drain(..)).collect();
        for tag in 0..self.slots.depth() {
            let tag = Tag(tag as u16);
            if self.slots.info(tag).is_none() {
                continue;
            }
            if !self.slots.abort(tag) {
                env.core
                    .fail(format!("link {}: {tag:?} cannot be given up", self.index));
            }
            all.extend(self.ios[usize::from(tag.0)].take());
        }
        all
    }
}

fn got(got: Got) -> Result<usize, CloseCause> {
    match got {
        Got::Bytes(n) => Ok(n),
        Got::Nothing => Ok(0),
        Got::End => Err(CloseCause::PeerClosed),
        Got::Reset => Err(CloseCause::SocketError(104)),
    }
}

/// Closes a socket in one of the ways in which a host may.
pub(super) fn close(env: &mut Env, conn: ConnId) {
    let how = match env.core.rng.below(10) {
        0..=5 => Closing::Fin,
        6..=8 => Closing::Rst,
        _ => Closing::Silent,
    };
    env.net.close(&mut env.core, conn, Side::Host, how);
}

fn pump_shake(
    env: &mut Env,
    conn: ConnId,
    shake: &mut Handshake,
) -> Result<Option<Opened>, CloseCause> {
    loop {
        while !shake.poll_transmit().is_empty() {
            let bytes = shake.poll_transmit();
            match env.net.send(&mut env.core, conn, Side::Host, bytes) {
                Sent::Bytes(n) => shake.transmitted(n),
                Sent::Full => return Ok(None),
                Sent::Reset => return Err(CloseCause::SocketError(104)),
            }
        }
        let want = shake.want();
        if want.is_empty() {
            return Ok(None);
        }
        match got(env.net.recv(&mut env.core, conn, Side::Host, want))? {
            0 => return Ok(None),
            n => {
                if shake.received(n)? == Progress::Opened {
                    return Ok(shake.opened());
                }
            }
        }
    }
}
