// SPDX-License-Identifier: GPL-2.0

//! The receiving side of a connection.
//!
//! It runs in the soft interrupt that brought the data, or in a worker if the socket was in use.
//! The session machine says what the bytes are; this file puts them where they belong.

use crate::{
    clock::now,
    connection::{Connection, RECEIVE_WORK, TRANSMIT_WORK},
    error::block_status_of,
    queue::Queue,
    trace,
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc,
    },
};
use neonsan_kernel::{
    block::{
        self,
        bio::PayloadWriter,
        mq::{CompletionBatch, OwnedRequest, RequestOp},
    },
    crc32c,
    net::{Callbacks, SocketState},
};
use neonsan_proto::{Features, Status};
use neonsan_session::{
    client::{PingLimit, Received, Receiver, Want},
    CloseCause, Tag,
};

/// The state of the receiving side. Owned by whoever holds the socket's lock.
pub(crate) struct Receive {
    receiver: Receiver,
    /// The request whose payload is arriving.
    writer: Option<PayloadWriter<Queue>>,
    /// The checksum of what has come of that payload, not inverted yet.
    crc: u32,
    /// Requests that end together when the run is over.
    batch: CompletionBatch,
    /// Requests that ended in this run.
    ended: u32,
    /// What is written is volatile until it is flushed.
    has_write_cache: bool,
    /// How many PINGs the node may still send: each is answered.
    pings: PingLimit,
    /// A violation was seen: nothing more is looked at.
    dead: bool,
}

impl Receive {
    /// The receiving side of a new connection.
    pub(crate) fn new(features: Features, has_write_cache: bool) -> Self {
        Receive {
            // Pages of direct I/O are their owner's, which may write to them while they are sent.
            receiver: Receiver::new(features, crate::crc::crc32c).with_changing_payload(),
            writer: None,
            crc: !0,
            batch: CompletionBatch::new(),
            ended: 0,
            has_write_cache,
            pings: PingLimit::new(now()),
            dead: false,
        }
    }

    /// The request that was only partly received, if there is one.
    pub(crate) fn into_request(mut self) -> Option<OwnedRequest<Queue>> {
        self.batch.flush();
        self.writer.take().map(PayloadWriter::into_request)
    }

    /// Takes as much of what has arrived as the machine wants at once. Returns how many bytes.
    fn step(&mut self, connection: &Arc<Connection>, data: &[u8]) -> Result<usize, CloseCause> {
        let slots = &connection.slots;
        let (n, received) = match self.receiver.want() {
            Want::Bytes(bytes) => {
                let n = data.len().min(bytes.len());
                if let (Some(to), Some(from)) = (bytes.get_mut(..n), data.get(..n)) {
                    to.copy_from_slice(from);
                }
                (n, self.receiver.received(n, slots)?)
            }
            Want::Payload { remaining, .. } => {
                let n = data.len().min(remaining as usize);
                let data = data.get(..n).unwrap_or_default();
                if self.receiver.wants_payload_crc() {
                    self.crc = crc32c::extend(self.crc, data);
                }
                // The request has as much room as its slot says, which the reply had to match.
                let writer = self.writer.as_mut().ok_or(CloseCause::UnknownCookie)?;
                writer
                    .write(data)
                    .map_err(|_| CloseCause::SocketError(EFAULT_NUMBER))?;
                // `n` is at most `remaining`, a `u32`.
                (
                    n,
                    self.receiver.payload_received(n as u32, !self.crc, slots)?,
                )
            }
        };
        if let Some(received) = received {
            self.on_received(connection, received)?;
        }
        Ok(n)
    }

    fn on_received(
        &mut self,
        connection: &Arc<Connection>,
        received: Received,
    ) -> Result<(), CloseCause> {
        match received {
            Received::Completed { tag, status } => {
                let rq = match self.writer.take() {
                    Some(writer) => writer.into_request(),
                    None => connection
                        .table
                        .take(tag.0)
                        .ok_or(CloseCause::UnknownCookie)?,
                };
                self.complete(connection, tag, status, rq)?;
            }
            Received::PayloadBegins { tag } => {
                let rq = connection
                    .table
                    .take(tag.0)
                    .ok_or(CloseCause::UnknownCookie)?;
                // The machine lets payload come for reads only.
                let writer = PayloadWriter::new(rq).map_err(|rq| {
                    connection.put_back(rq);
                    CloseCause::UnknownCookie
                })?;
                self.writer = Some(writer);
                self.crc = !0;
            }
            Received::Ping { cookie } => {
                self.pings.on_ping(now())?;
                connection.shared.lock().pong = Some(cookie);
                connection.clone().queue_work::<TRANSMIT_WORK>();
            }
            Received::Pong { .. } => {}
            Received::Resized { size_bytes } => connection.device.on_resized(size_bytes),
            Received::GoingAway { grace_ms } => connection.device.on_going_away(grace_ms),
            Received::Limits(geometry) => connection.device.on_limits(geometry),
        }
        Ok(())
    }

    fn complete(
        &mut self,
        connection: &Arc<Connection>,
        tag: Tag,
        status: Status,
        rq: OwnedRequest<Queue>,
    ) -> Result<(), CloseCause> {
        let length = rq.len_bytes();
        trace::reply_received(
            connection.device.index(),
            connection.index.into(),
            tag.0.into(),
            rq.data().cookie().to_wire(),
            status.to_wire(),
            length,
        );
        if rq.op() == RequestOp::Write {
            connection.free_window(length);
        }
        // The node has done nothing: it had no room, or what it got is not what the checksum says.
        match status {
            Status::Busy => {
                connection.send_later(rq);
                return Ok(());
            }
            Status::ChecksumMismatch => return connection.send_from_copy(rq),
            _ => {}
        }
        let mut end = block_status_of(status);
        if end.is_ok() {
            let durability = connection.device.durability();
            match rq.op() {
                RequestOp::Flush if durability.end_flush(rq.data().flush_mark()).is_err() => {
                    end = block::Status::IOERR;
                }
                RequestOp::Flush => connection
                    .device
                    .at_risk()
                    .on_flushed(rq.data().flush_bytes()),
                RequestOp::Write | RequestOp::Discard | RequestOp::WriteZeroes
                    if self.has_write_cache && !rq.is_fua() =>
                {
                    connection.device.add_answered(connection.index, length);
                    durability.on_answered();
                }
                _ => {}
            }
        }
        if !end.is_ok() {
            connection.errors.add(1, Relaxed);
        }
        self.ended += 1;
        rq.end_batched(end, &mut self.batch);
        Ok(())
    }
}

/// The number of EFAULT: what a reply longer than its request's memory would be reported as.
const EFAULT_NUMBER: i32 = 14;

impl Callbacks for Connection {
    type Receive = Receive;

    fn receive(self: &Arc<Self>, rx: &mut Receive, data: &[u8]) -> usize {
        let mut taken = 0;
        while !rx.dead {
            let rest = data.get(taken..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            match rx.step(self, rest) {
                Ok(n) => taken += n,
                Err(cause) => {
                    rx.dead = true;
                    self.fault(cause);
                }
            }
        }
        taken
    }

    fn wanted(rx: &Receive) -> u32 {
        rx.receiver.payload_left().max(1)
    }

    fn receive_done(self: &Arc<Self>, rx: &mut Receive) {
        rx.batch.flush();
        self.polling.add_ended(core::mem::take(&mut rx.ended));
        heard(&self.heard_at);
    }

    fn read_later(self: &Arc<Self>) {
        self.clone().queue_work::<RECEIVE_WORK>();
    }

    fn write_space(self: &Arc<Self>) {
        self.clone().queue_work::<TRANSMIT_WORK>();
    }

    fn state_change(self: &Arc<Self>, state: SocketState) {
        match state {
            SocketState::Established => {}
            SocketState::PeerClosed | SocketState::Closed => self.fault(CloseCause::PeerClosed),
        }
    }
}

fn heard(at: &Atomic<u64>) {
    at.store(now().0, Relaxed);
}
