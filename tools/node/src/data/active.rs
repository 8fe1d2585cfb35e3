// SPDX-License-Identifier: GPL-2.0 OR MIT
//! An admitted connection: from the socket through the receiver machine to
//! the engine's queue, and back.
//!
//! Memory: a request takes its bytes from two budgets, the session's and the
//! node's, before it has a buffer, and gives them back when the buffer is
//! free: a write when the engine has done it, a read when its reply is sent.
//! If a budget has too little the connection stalls: it is not read from until
//! there is enough. A session that has nothing in flight is not kept waiting by
//! the node's budget, which others may have used up. Answers without payload
//! take nothing from the budgets; a connection is not read from either while
//! too many of them wait to be sent.

use std::io::IoSliceMut;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::Instant as StdInstant;

use neonsan_engine::{Buffer, Completion, ErrorKind, Op, Queue, Request};
use neonsan_proto::{EventKind, Features, Geometry, Header, Kind, RequestFlags, Status};
use neonsan_session::server::{Command, Received, Receiver, Want};
use neonsan_session::{CloseCause, Instant};
use rustix::io::Errno;

use super::output::Output;
use super::status::status_of;
use super::worker::Context;
use crate::engines::Supervised;
use crate::hub::OpenName;
use crate::metrics::OpKind;
use crate::shared::Budget;

/// Bytes read ahead: headers and small payloads, many in one system call.
const INPUT_BYTES: usize = 64 * 1024;

/// A payload of which at least this much is missing is read to its place.
const DIRECT_BYTES: u32 = 4096;

/// Behind a payload of which at least this much is missing, only [`LITTLE_AHEAD_BYTES`] are read ahead: a
/// long write is often followed by another, and what is read of that before its place is known must be
/// copied there.
const LONG_BYTES: usize = 32 * 1024;

/// Room for a header, and some more in case that short requests follow.
const LITTLE_AHEAD_BYTES: usize = 4096;

/// System calls in one turn, so that one connection does not keep its worker
/// from the others.
const MAX_READS: usize = 16;

/// A request in the engine.
#[derive(Clone, Copy, Debug)]
struct Pending {
    cookie: u64,
    kind: OpKind,
    /// Bytes of payload, which count against the budgets.
    len: u32,
    began: StdInstant,
}

/// A write whose payload is arriving.
struct Incoming {
    command: Command,
    buffer: Buffer,
    /// CRC-32C of what has arrived, if it is wanted.
    crc: u32,
    began: StdInstant,
    /// Since when the rest is waited for.
    since: Instant,
}

/// What one call on the socket brought.
#[derive(Clone, Copy, Debug)]
struct Read {
    /// Bytes; zero at the end of the stream.
    len: usize,
    /// There was room for more.
    was_all: bool,
}

/// Why reading stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pause {
    /// There is nothing more to read now.
    Drained,
    /// It did its share; more may be there.
    Share,
    /// A budget has too little.
    Stalled,
    /// Too many answers wait to be sent.
    Full,
    /// The client has closed the connection in order.
    Closed {
        /// The whole session ends.
        release: bool,
    },
}

/// An admitted connection. Owned by its worker.
pub(super) struct Active {
    pub(super) volume: OpenName,
    /// Told of requests that its storage fails.
    engine: Arc<Supervised>,
    queue: Box<dyn Queue>,
    receiver: Receiver,
    features: Features,
    /// The session's bytes in flight.
    budget: Arc<Budget>,
    input: Box<[u8]>,
    /// The part of `input` that is not used up.
    unread: std::ops::Range<usize>,
    incoming: Option<Incoming>,
    /// What the receiver said to payload that was read to its place.
    after_payload: Option<Received>,
    /// The command for which a budget had too little.
    stalled: Option<Command>,
    /// Requests in the engine, by token.
    pending: Vec<Option<Pending>>,
    free: Vec<u32>,
    completions: Vec<Completion>,
    /// The last time an engine's failure was logged for this connection.
    warned_at: Option<StdInstant>,
}

impl Active {
    pub(super) fn new(
        volume: OpenName,
        engine: Arc<Supervised>,
        queue: Box<dyn Queue>,
        receiver: Receiver,
        features: Features,
        budget: Arc<Budget>,
    ) -> Self {
        Self {
            volume,
            engine,
            queue,
            receiver,
            features,
            budget,
            input: vec![0; INPUT_BYTES].into_boxed_slice(),
            unread: 0..0,
            incoming: None,
            after_payload: None,
            stalled: None,
            pending: Vec::new(),
            free: Vec::new(),
            completions: Vec::new(),
            warned_at: None,
        }
    }

    /// The engine has requests of this connection.
    pub(super) fn is_busy(&self) -> bool {
        self.queue.in_flight() > 0
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.stalled.is_some()
    }

    /// Something was read from the socket that is not used up.
    pub(super) fn has_input(&self) -> bool {
        !self.unread.is_empty()
    }

    /// The payload of a write has not arrived within `limit_ms`.
    pub(super) fn is_payload_late(&self, now: Instant, limit_ms: u64) -> bool {
        let incoming = self.incoming.as_ref();
        incoming.is_some_and(|write| now.since_ms(write.since) >= limit_ms)
    }

    /// The node did not read: the time for a payload begins anew.
    pub(super) fn excuse_payload(&mut self, now: Instant) {
        if let Some(incoming) = &mut self.incoming {
            incoming.since = now;
        }
    }

    pub(super) fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.queue.event_fd()
    }

    pub(super) fn set_geometry(&mut self, geometry: Geometry) {
        self.receiver.set_geometry(geometry);
    }

    /// Gives payload bytes back to both budgets.
    pub(super) fn give_back(&self, bytes: u64, context: &Context<'_>) {
        if bytes > 0 {
            self.budget.give(bytes);
            context.shared.in_flight.give(bytes);
        }
    }

    fn take(&self, bytes: u64, context: &Context<'_>) -> bool {
        let Some(before) = self.budget.take(bytes) else {
            return false;
        };
        let all = &context.shared.in_flight;
        if all.take(bytes).is_some() {
            return true;
        }
        // Others have used it up: this session goes on all the same, a request at a time.
        if before == 0 {
            all.take_anyway(bytes);
            return true;
        }
        self.budget.give(bytes);
        false
    }

    /// Nothing more is received: gives up a write of which a part is missing.
    pub(super) fn stop_receiving(&mut self, context: &mut Context<'_>) {
        self.stalled = None;
        self.unread = 0..0;
        if let Some(incoming) = self.incoming.take() {
            self.give_back(incoming.buffer.len() as u64, context);
            context.pool.give(incoming.buffer);
        }
    }

    fn send(&self, mut header: Header, payload: Option<Buffer>, output: &mut Output) {
        if let (true, Some(payload)) = (self.features.contains(Features::PAYLOAD_CRC), &payload) {
            header.set_payload_crc(crc32c::crc32c(payload));
        }
        if self.features.contains(Features::HEADER_CRC) {
            header.seal(crc32c::crc32c);
        }
        output.push(&header, payload);
    }

    /// Sends an event without a payload.
    pub(super) fn send_event(&self, event: EventKind, value: u64, output: &mut Output) {
        self.send(Header::event(event, value, 0), None, output);
    }

    /// Asks the client for a sign of life.
    pub(super) fn send_ping(&self, now: Instant, output: &mut Output) {
        let header = Header::request(Kind::Ping, RequestFlags::NONE, now.0, 0, 0);
        self.send(header, None, output);
    }

    /// Reads from the socket and begins what it asks for. `true` with the
    /// pause: something was read.
    pub(super) fn receive(
        &mut self,
        socket: BorrowedFd<'_>,
        output: &mut Output,
        context: &mut Context<'_>,
    ) -> Result<(Pause, bool), CloseCause> {
        let mut heard = false;
        for _ in 0..MAX_READS {
            if let Some(pause) = self.use_input(output, context)? {
                return Ok((pause, heard));
            }
            match self.read(socket) {
                Ok(Read { len: 0, .. }) => return Err(CloseCause::PeerClosed),
                // The socket had no more: asking it again would only say so. What comes from
                // here on is a new event.
                Ok(Read { was_all: true, .. }) => {
                    let pause = self.use_input(output, context)?;
                    return Ok((pause.unwrap_or(Pause::Drained), true));
                }
                Ok(_) => heard = true,
                Err(Errno::INTR) => {}
                Err(Errno::WOULDBLOCK) => return Ok((Pause::Drained, heard)),
                Err(error) => return Err(CloseCause::SocketError(error.raw_os_error())),
            }
        }
        match self.use_input(output, context)? {
            Some(pause) => Ok((pause, heard)),
            None => Ok((Pause::Share, heard)),
        }
    }

    /// Reads once: the missing payload to its place if it is long, and what
    /// follows into the input, which is empty.
    fn read(&mut self, socket: BorrowedFd<'_>) -> Result<Read, Errno> {
        let place = match (self.receiver.want(), &mut self.incoming) {
            (Want::Payload { at, remaining }, Some(incoming)) if remaining >= DIRECT_BYTES => {
                let (start, end) = (at as usize, at as usize + remaining as usize);
                incoming.buffer.get_mut(start..end)
            }
            _ => None,
        };
        let Some(place) = place else {
            let len = rustix::io::read(socket, &mut self.input[..])?;
            self.unread = 0..len;
            let was_all = len < self.input.len();
            return Ok(Read { len, was_all });
        };
        let missing = place.len();
        let ahead = match missing {
            LONG_BYTES.. => &mut self.input[..LITTLE_AHEAD_BYTES],
            _ => &mut self.input[..],
        };
        let wanted = missing + ahead.len();
        let mut slices = [IoSliceMut::new(place), IoSliceMut::new(ahead)];
        let len = rustix::io::readv(socket, &mut slices)?;
        let direct = len.min(missing);
        self.unread = 0..len - direct;
        self.direct_payload(direct);
        let was_all = len < wanted;
        Ok(Read { len, was_all })
    }

    /// Counts payload that was read to its place.
    fn direct_payload(&mut self, len: usize) {
        let Some(incoming) = &mut self.incoming else {
            return;
        };
        let Want::Payload { at, .. } = self.receiver.want() else {
            return;
        };
        let at = at as usize;
        if self.receiver.wants_payload_crc() {
            if let Some(part) = incoming.buffer.get(at..at + len) {
                incoming.crc = crc32c::crc32c_append(incoming.crc, part);
            }
        }
        // At most what was missing, which is a u32.
        self.after_payload = self.receiver.payload_received(len as u32, incoming.crc);
    }

    /// Uses up the input as far as budgets and the place for answers allow.
    fn use_input(
        &mut self,
        output: &mut Output,
        context: &mut Context<'_>,
    ) -> Result<Option<Pause>, CloseCause> {
        if let Some(received) = self.after_payload.take() {
            if let Some(pause) = self.on_received(received, output, context) {
                return Ok(Some(pause));
            }
        }
        if let Some(command) = self.stalled.take() {
            self.begin(command, output, context);
        }
        while self.stalled.is_none() {
            let have = &self.input[self.unread.clone()];
            if have.is_empty() {
                return Ok(None);
            }
            if output.is_full() {
                return Ok(Some(Pause::Full));
            }
            let (used, received) = match self.receiver.want() {
                Want::Bytes(target) => {
                    let n = target.len().min(have.len());
                    target[..n].copy_from_slice(&have[..n]);
                    (n, self.receiver.received(n)?)
                }
                Want::Payload { at, remaining } => {
                    let n = have.len().min(remaining as usize);
                    let crc = match &mut self.incoming {
                        Some(incoming) => {
                            let at = at as usize;
                            if let Some(place) = incoming.buffer.get_mut(at..at + n) {
                                place.copy_from_slice(&have[..n]);
                            }
                            if self.receiver.wants_payload_crc() {
                                incoming.crc = crc32c::crc32c_append(incoming.crc, &have[..n]);
                            }
                            incoming.crc
                        }
                        None => 0,
                    };
                    (n, self.receiver.payload_received(n as u32, crc))
                }
                Want::Skip { remaining } => {
                    let n = have.len().min(remaining as usize);
                    (n, self.receiver.payload_received(n as u32, 0))
                }
            };
            self.unread.start += used;
            if let Some(received) = received {
                if let Some(pause) = self.on_received(received, output, context) {
                    return Ok(Some(pause));
                }
            }
        }
        Ok(Some(Pause::Stalled))
    }

    fn on_received(
        &mut self,
        received: Received,
        output: &mut Output,
        context: &mut Context<'_>,
    ) -> Option<Pause> {
        match received {
            Received::Command(command) | Received::WriteBegins(command) => {
                self.begin(command, output, context);
            }
            Received::WriteComplete => {
                if let Some(incoming) = self.incoming.take() {
                    let flags = incoming.command.flags;
                    let pending = Pending {
                        cookie: incoming.command.cookie,
                        kind: OpKind::Write,
                        len: incoming.command.length,
                        began: incoming.began,
                    };
                    if flags.contains(RequestFlags::FUA) {
                        context.metrics.fua.fetch_add(1, Ordering::Relaxed);
                    }
                    let op = Op::Write {
                        offset: incoming.command.offset,
                        buffer: incoming.buffer,
                        fua: flags.contains(RequestFlags::FUA),
                        atomic: flags.contains(RequestFlags::ATOMIC),
                    };
                    self.submit(pending, op);
                }
            }
            Received::WriteDamaged => {
                if let Some(incoming) = self.incoming.take() {
                    let len = incoming.command.length;
                    context.pool.give(incoming.buffer);
                    self.give_back(u64::from(len), context);
                    self.answer(
                        Status::ChecksumMismatch,
                        incoming.command.cookie,
                        len,
                        None,
                        output,
                    );
                    context.metrics.rejected.fetch_add(1, Ordering::Relaxed);
                }
            }
            Received::Rejected { cookie, status } => {
                self.answer(status, cookie, 0, None, output);
                context.metrics.rejected.fetch_add(1, Ordering::Relaxed);
            }
            Received::Ping { cookie } => {
                let header = Header::request(Kind::Pong, RequestFlags::NONE, cookie, 0, 0);
                self.send(header, None, output);
            }
            Received::Pong { .. } => {}
            Received::Close { release } => return Some(Pause::Closed { release }),
        }
        None
    }

    /// Answers a request; `write_len` is the payload of a WRITE, else zero.
    fn answer(
        &mut self,
        status: Status,
        cookie: u64,
        write_len: u32,
        payload: Option<Buffer>,
        output: &mut Output,
    ) {
        self.receiver.answered(write_len);
        // A payload is at most as long as a read may be, which is a u32.
        let len = payload.as_ref().map_or(0, |p| p.len() as u32);
        self.send(Header::reply(status, cookie, len), payload, output);
    }

    /// Begins a request, or stalls with it.
    fn begin(&mut self, command: Command, output: &mut Output, context: &mut Context<'_>) {
        let Command {
            kind,
            flags,
            cookie,
            offset,
            length,
        } = command;
        let began = context.began;
        let with = |kind, len| Pending {
            cookie,
            kind,
            len,
            began,
        };
        let fua = flags.contains(RequestFlags::FUA);
        match kind {
            Kind::Read | Kind::Write => {
                if !self.take(u64::from(length), context) {
                    context.metrics.stalls.fetch_add(1, Ordering::Relaxed);
                    self.stalled = Some(command);
                    return;
                }
                let buffer = match context.pool.take(length as usize) {
                    Ok(buffer) => buffer,
                    // The receiver goes on to the payload of a write, which
                    // nobody takes; the answer must not overtake it.
                    Err(_) => {
                        self.give_back(u64::from(length), context);
                        self.stalled = Some(command);
                        return;
                    }
                };
                if kind == Kind::Read {
                    self.submit(with(OpKind::Read, length), Op::Read { offset, buffer });
                } else {
                    self.incoming = Some(Incoming {
                        command,
                        buffer,
                        crc: 0,
                        began,
                        since: context.now,
                    });
                }
            }
            Kind::Flush => self.submit(with(OpKind::Flush, 0), Op::Flush),
            Kind::Discard => {
                let op = Op::Discard {
                    offset,
                    len: length,
                };
                self.submit(with(OpKind::Discard, 0), op);
            }
            Kind::WriteZeroes => {
                if fua {
                    context.metrics.fua.fetch_add(1, Ordering::Relaxed);
                }
                let op = Op::WriteZeroes {
                    offset,
                    len: length,
                    fua,
                    no_unmap: flags.contains(RequestFlags::NO_UNMAP),
                };
                self.submit(with(OpKind::WriteZeroes, 0), op);
            }
            // The receiver gives no other kinds.
            _ => self.answer(Status::BadRequest, cookie, 0, None, output),
        }
    }

    fn submit(&mut self, pending: Pending, op: Op) {
        let token = match self.free.pop() {
            Some(token) => token,
            None => {
                self.pending.push(None);
                // As many as there are requests in flight: at most a u16.
                self.pending.len() as u32 - 1
            }
        };
        self.pending[token as usize] = Some(pending);
        self.queue.submit(Request {
            token: u64::from(token),
            op,
        });
    }

    /// Lets the engine work, and answers what it has done. Without a client
    /// (`output` is `None`) the answers are dropped.
    pub(super) fn run_engine(
        &mut self,
        mut output: Option<&mut Output>,
        context: &mut Context<'_>,
    ) {
        self.queue.kick();
        let mut completions = std::mem::take(&mut self.completions);
        self.queue.reap(&mut completions);
        if completions.is_empty() {
            self.completions = completions;
            return;
        }
        // Once for those that end together.
        let ended = StdInstant::now();
        for completion in completions.drain(..) {
            let token = completion.token;
            let Some(pending) = self.pending.get_mut(token as usize).and_then(Option::take) else {
                tracing::error!(volume = %self.volume, token, "the engine completed an unknown request");
                continue;
            };
            self.free.push(token as u32);
            let status = match &completion.result {
                Ok(()) => Status::Ok,
                Err(error) => {
                    self.warn(pending.kind, error);
                    status_of(error.kind())
                }
            };
            let took = ended.duration_since(pending.began);
            context
                .metrics
                .completed(pending.kind, pending.len, status, took);
            let is_write = pending.kind == OpKind::Write;
            let payload = match completion.buffer {
                Some(buffer)
                    if pending.kind == OpKind::Read && status == Status::Ok && output.is_some() =>
                {
                    Some(buffer)
                }
                Some(buffer) => {
                    context.pool.give(buffer);
                    self.give_back(u64::from(pending.len), context);
                    None
                }
                None => None,
            };
            if let Some(output) = output.as_deref_mut() {
                let write_len = if is_write { pending.len } else { 0 };
                self.answer(status, pending.cookie, write_len, payload, output);
            }
        }
        self.completions = completions;
    }

    /// Notes a failure of the engine, and logs it, at most once a second and connection.
    fn warn(&mut self, kind: OpKind, error: &neonsan_engine::Error) {
        self.engine.request_failed(&self.volume, kind, error);
        let now = StdInstant::now();
        let recent = self
            .warned_at
            .is_some_and(|at| now.duration_since(at).as_secs() < 1);
        if recent {
            return;
        }
        self.warned_at = Some(now);
        if error.kind() == ErrorKind::NoSpace {
            tracing::error!(volume = %self.volume, op = kind.name(), %error, "the engine is full");
        } else {
            tracing::error!(volume = %self.volume, op = kind.name(), %error, "a request failed");
        }
    }
}
