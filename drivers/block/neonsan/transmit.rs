// SPDX-License-Identifier: GPL-2.0

//! The transmitting side of a connection.
//!
//! The thread that brings the last request of a batch tries to take the transmitting side, and sends
//! what there is: its own and other threads' requests, many with one call. If another thread has it,
//! the submitting thread goes away, and the holder looks again after letting go. The gate that sees to
//! that is [`SendGate`] of the session crate, tested there in every interleaving. The transmitting
//! side is private to this file, so there is no way around the gate; statistics are read beside it.
//!
//! # Headers
//!
//! Headers lie in a ring of pages of the connection's batch, one behind the other, and where payloads
//! are spliced the network takes them from there. The ring has room for twice the headers that can be
//! unanswered. So when a place is written again, a message behind the old one has been answered:
//! the node has read the old one, and what TCP might still repeat of it is thrown away by the
//! node's TCP.

use crate::{
    clock::now,
    connection::{Connection, TRANSMIT_WORK},
    queue::{describe, op_of, Queue},
    trace,
};
use kernel::{
    new_mutex,
    prelude::*,
    sync::{atomic::Relaxed, Arc, ArcBorrow, Mutex, MutexGuard},
};
use neonsan_kernel::{
    block::{
        self,
        bio::SegmentCursor,
        mq::{OwnedRequest, Taken},
    },
    mm::NoReclaimScope,
    net::{Attached, BatchSize, SendBatch},
    sync::smp_mb,
};
use neonsan_proto::{Features, Header, Kind, RequestFlags, HEADER_BYTES};
use neonsan_session::{
    client::{GateState, SendGate, Sender, Tally, MAX_PINGS},
    CloseCause, Instant, Tag,
};

/// Pieces of memory in one call.
const BATCH_PIECES: usize = 256;
/// Requests with payload in one call.
const BATCH_REQUESTS: usize = 128;
/// Room for headers of messages that are not requests: the PONGs for as many PINGs as may come at once,
/// and those that heartbeats bring while nothing is acknowledged.
const CONTROL_HEADERS: usize = 2 * MAX_PINGS as usize;
/// Calls to the socket in one turn: a thread that submits requests does not send for all others for
/// ever, the work of the connection has the rest.
const TURN_SENDS: u32 = 32;

/// What is done with requests.
enum Mode {
    /// They wait.
    Parked,
    /// They are sent.
    Sending,
    /// They end like this.
    Failing(block::Status),
}

/// What the transmitting side has done so far. Its holder adds, any thread reads.
struct Tallies {
    reads: Tally,
    writes: Tally,
    flushes: Tally,
    discards: Tally,
    write_zeroes: Tally,
    read_bytes: Tally,
    written_bytes: Tally,
    resent: Tally,
    sends: Tally,
}

/// What the transmitting side had done when it was asked.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counts {
    /// READ requests, a resend not counted.
    pub(crate) reads: u64,
    /// WRITE requests.
    pub(crate) writes: u64,
    /// FLUSH requests.
    pub(crate) flushes: u64,
    /// DISCARD requests.
    pub(crate) discards: u64,
    /// WRITE_ZEROES requests.
    pub(crate) write_zeroes: u64,
    /// Bytes of READ requests.
    pub(crate) read_bytes: u64,
    /// Bytes of WRITE requests.
    pub(crate) written_bytes: u64,
    /// Requests sent again.
    pub(crate) resent: u64,
    /// Calls that gave data to the socket.
    pub(crate) sends: u64,
}

/// The transmitting side of a connection, with the gate before it.
#[pin_data]
pub(crate) struct Transmit {
    gate: SendGate,
    /// Taken through the gate only: see [`Side`].
    #[pin]
    tx: Mutex<Transmitter>,
    tallies: Tallies,
}

impl Transmit {
    /// The transmitting side of a connection of `depth` tags, parked, with room for the copy of a
    /// request of `copy_bytes`. May sleep.
    pub(crate) fn new(depth: u32, copy_bytes: usize) -> Result<impl PinInit<Self>> {
        let tx = Transmitter::new(depth, copy_bytes)?;
        Ok(pin_init!(Transmit {
            gate: SendGate::new(),
            tx <- new_mutex!(tx, "neonsan_tx"),
            tallies: Tallies {
                reads: Tally::new(),
                writes: Tally::new(),
                flushes: Tally::new(),
                discards: Tally::new(),
                write_zeroes: Tally::new(),
                read_bytes: Tally::new(),
                written_bytes: Tally::new(),
                resent: Tally::new(),
                sends: Tally::new(),
            },
        }))
    }

    /// Whether requests can be sent now. A snapshot.
    pub(crate) fn state(&self) -> GateState {
        self.gate.state()
    }

    /// What was done so far. Takes no lock, so nobody who sends is held up.
    pub(crate) fn counts(&self) -> Counts {
        let t = &self.tallies;
        Counts {
            reads: t.reads.get(),
            writes: t.writes.get(),
            flushes: t.flushes.get(),
            discards: t.discards.get(),
            write_zeroes: t.write_zeroes.get(),
            read_bytes: t.read_bytes.get(),
            written_bytes: t.written_bytes.get(),
            resent: t.resent.get(),
            sends: t.sends.get(),
        }
    }
}

/// A connection as its gate sees it: the one way to the [`Transmitter`].
struct Side<'a>(ArcBorrow<'a, Connection>);

impl Sender for Side<'_> {
    type Tx = Transmitter;
    type Guard<'a>
        = MutexGuard<'a, Transmitter>
    where
        Self: 'a;

    #[inline]
    fn try_lock(&self) -> Option<MutexGuard<'_, Transmitter>> {
        self.0.transmit.tx.try_lock()
    }

    fn lock(&self) -> MutexGuard<'_, Transmitter> {
        self.0.transmit.tx.lock()
    }

    #[inline]
    fn has_pending(&self) -> bool {
        !self.0.pending.is_empty()
    }

    #[inline]
    fn send(&self, tx: &mut Transmitter) -> GateState {
        tx.run(self)
    }

    #[inline]
    fn fits_window(&self, tx: &Transmitter) -> bool {
        tx.next
            .as_ref()
            .is_none_or(|rq| tx.fits_window(&self.0, rq))
    }

    fn send_later(&self) {
        Arc::from(self.0).queue_work::<TRANSMIT_WORK>();
    }

    #[inline]
    fn full_barrier(&self) {
        smp_mb();
    }
}

/// The transmitting side. Owned by the thread that came through the gate.
struct Transmitter {
    mode: Mode,
    link: Option<Arc<Attached<Connection>>>,
    features: Features,
    window_bytes: u64,
    batch: SendBatch<Queue>,
    /// A request that did not fit in the window.
    next: Option<OwnedRequest<Queue>>,
    /// Taken from the pending list, not looked at yet.
    todo: Taken<Queue>,
    /// There may be messages that no request brought. Whoever has one to send queues the work to
    /// transmit, so only that needs to look.
    control_due: bool,
}

/// The checksum of what a request writes. The page cache keeps its pages from changing until they are
/// sent (stable writes); the owner of a direct write may change them, and then the node refuses the
/// write, which is sent again from a copy.
fn payload_crc(rq: &OwnedRequest<Queue>) -> u32 {
    let mut cursor = SegmentCursor::new(rq.share());
    let mut crc = !0;
    while let Some(segment) = cursor.next_segment() {
        crc = segment.crc32c(crc);
    }
    !crc
}

/// Why filling the batch ended.
#[derive(PartialEq, Eq)]
enum Filled {
    /// There is nothing more.
    Everything,
    /// The batch is full.
    Batch,
    /// The window of writes is full.
    Window,
}

impl Transmitter {
    /// A transmitter for `depth` tags, with room for a copy of this length. May sleep.
    fn new(depth: u32, copy_bytes: usize) -> Result<Self> {
        let size = BatchSize {
            pieces: BATCH_PIECES,
            requests: BATCH_REQUESTS,
            headers: 2 * depth as usize + CONTROL_HEADERS,
            header_bytes: HEADER_BYTES,
            copy_bytes,
        };
        Ok(Transmitter {
            mode: Mode::Parked,
            link: None,
            features: Features::NONE,
            window_bytes: u64::MAX,
            batch: SendBatch::new(size)?,
            next: None,
            todo: Taken::empty(),
            control_due: false,
        })
    }

    /// Adds a header.
    fn push_header(&mut self, mut header: Header) -> Result {
        if self.features.contains(Features::HEADER_CRC) {
            header.seal(crate::crc::crc32c);
        }
        self.batch.push_header(header.as_bytes())
    }

    /// Adds the header of a request, and its pages as many as fit.
    fn push_request(
        &mut self,
        connection: &Connection,
        rq: OwnedRequest<Queue>,
        now: Instant,
    ) -> Result<bool> {
        let Some(request) = describe(&rq) else {
            return Ok(true);
        };
        let (tag, cookie) = (rq.tag(), rq.data().cookie());
        let mut header = request.header(cookie);
        let from_copy = self.wants_copy(&rq);
        if from_copy {
            header.set_payload_crc(!self.batch.copy(rq.share())?);
        } else if request.kind == Kind::Write && self.features.contains(Features::PAYLOAD_CRC) {
            header.set_payload_crc(payload_crc(&rq));
        }
        self.push_header(header)?;
        self.count(connection, request.kind, request.length);
        trace::request_sent(
            connection.device.index(),
            connection.index.into(),
            tag.into(),
            cookie.to_wire(),
            op_of(request.kind),
            request.offset,
            request.length,
        );
        let payload = (request.kind == Kind::Write && !from_copy).then(|| rq.share());
        if request.kind == Kind::Write {
            connection
                .write_bytes_in_flight
                .fetch_add(u64::from(request.length), Relaxed);
        }
        // From here on the reply may come.
        connection.put_back(rq);
        connection.slots.sent(Tag(tag), now);
        match payload {
            Some(rq) => self.batch.push_request(rq),
            // A copy, or nothing.
            None => self.batch.push_rest(),
        }
    }

    /// Whether the request is sent from a copy: it was refused because its data had changed.
    #[inline]
    fn wants_copy(&self, rq: &OwnedRequest<Queue>) -> bool {
        self.features.contains(Features::PAYLOAD_CRC)
            && rq.data().has_changed()
            && self.batch.has_room_for_copy(rq.len_bytes() as usize)
    }

    /// The holder of `self` is the only thread that counts.
    fn count(&mut self, connection: &Connection, kind: Kind, length: u32) {
        let tallies = &connection.transmit.tallies;
        match kind {
            Kind::Read => {
                tallies.reads.add(1);
                tallies.read_bytes.add(length.into());
            }
            Kind::Write => {
                tallies.writes.add(1);
                tallies.written_bytes.add(length.into());
            }
            Kind::Flush => tallies.flushes.add(1),
            Kind::Discard => tallies.discards.add(1),
            Kind::WriteZeroes => tallies.write_zeroes.add(1),
            _ => {}
        }
    }

    fn take_next(&mut self, connection: &Connection) -> Option<OwnedRequest<Queue>> {
        if let Some(rq) = self.next.take().or_else(|| self.todo.next()) {
            return Some(rq);
        }
        self.todo = connection.pending.take();
        self.todo.next()
    }

    /// Whether the node may be given this request now.
    fn fits_window(&self, connection: &Connection, rq: &OwnedRequest<Queue>) -> bool {
        let in_flight = connection.write_bytes_in_flight.load(Relaxed);
        in_flight == 0
            || rq.op() != block::mq::RequestOp::Write
            || in_flight + u64::from(rq.len_bytes()) <= self.window_bytes
    }

    /// Adds the messages that are due and that no request brought.
    fn push_control(&mut self, connection: &Connection) -> Result {
        let (ping, pong) = {
            let mut shared = connection.shared.lock();
            (core::mem::take(&mut shared.ping), shared.pong.take())
        };
        if ping {
            let cookie = now().0;
            self.push_header(Header::request(
                Kind::Ping,
                RequestFlags::NONE,
                cookie,
                0,
                0,
            ))?;
        }
        if let Some(cookie) = pong {
            self.push_header(Header::request(
                Kind::Pong,
                RequestFlags::NONE,
                cookie,
                0,
                0,
            ))?;
        }
        Ok(())
    }

    /// Fills the batch with what is to be sent.
    fn fill(&mut self, connection: &Connection) -> Result<Filled> {
        if !self.batch.push_rest()? {
            return Ok(Filled::Batch);
        }
        // Two messages may be due, each a piece of its own.
        if self.control_due && self.batch.has_room() {
            self.control_due = false;
            self.push_control(connection)?;
        }
        let now = now();
        while self.batch.has_room() {
            let Some(rq) = self.take_next(connection) else {
                return Ok(Filled::Everything);
            };
            if !self.fits_window(connection, &rq) {
                self.next = Some(rq);
                return Ok(Filled::Window);
            }
            if self.batch.has_copy() && self.wants_copy(&rq) {
                // Its turn comes when the copy before it is with the socket.
                self.next = Some(rq);
                return Ok(Filled::Batch);
            }
            if !self.push_request(connection, rq, now)? {
                return Ok(Filled::Batch);
            }
        }
        Ok(Filled::Batch)
    }

    /// Does what is to be done with requests now, until there is nothing more or no room. Returns
    /// where the gate goes.
    fn run(&mut self, side: &Side<'_>) -> GateState {
        match self.mode {
            Mode::Parked => GateState::Parked,
            Mode::Failing(status) => {
                self.fail_all(&side.0, status);
                GateState::Open
            }
            Mode::Sending => {
                let _scope = NoReclaimScope::enter();
                self.send(side).unwrap_or_else(|e| {
                    side.0.fault(match e {
                        e if e == EPIPE => CloseCause::PeerClosed,
                        e => CloseCause::SocketError(-e.to_errno()),
                    });
                    // Recovery will park what is here.
                    GateState::Parked
                })
            }
        }
    }

    fn send(&mut self, side: &Side<'_>) -> Result<GateState> {
        // Lent for the time of the call, which nobody can interrupt.
        let Some(link) = self.link.take() else {
            return Ok(GateState::Parked);
        };
        let result = self.send_over(&link, side);
        self.link = Some(link);
        result
    }

    fn send_over(&mut self, link: &Attached<Connection>, side: &Side<'_>) -> Result<GateState> {
        for _ in 0..TURN_SENDS {
            let filled = if self.batch.is_empty() {
                self.fill(&side.0)?
            } else {
                Filled::Batch
            };
            if self.batch.is_empty() {
                return Ok(match filled {
                    Filled::Window => GateState::Window,
                    Filled::Everything | Filled::Batch => GateState::Open,
                });
            }
            side.0.transmit.tallies.sends.add(1);
            if !link.socket().send_batch(&mut self.batch)? {
                return Ok(GateState::Blocked);
            }
        }
        side.send_later();
        Ok(GateState::Open)
    }

    /// Ends everything that waits to be sent.
    fn fail_all(&mut self, connection: &Connection, status: block::Status) {
        connection.retry_busy();
        while let Some(rq) = self.take_next(connection) {
            connection.slots.abort(Tag(rq.tag()));
            connection.errors.add(1, Relaxed);
            rq.end(status);
        }
    }

    /// Forgets the socket and everything that was given to it in part.
    fn stop(&mut self) {
        self.mode = Mode::Parked;
        self.link = None;
        // Those that were answered meanwhile end here.
        self.batch.clear();
    }
}

/// Sends what is pending, unless another thread does or it makes no sense. Process context.
pub(crate) fn submit(connection: ArcBorrow<'_, Connection>) {
    connection.transmit.gate.submit(&Side(connection));
}

impl Connection {
    /// Takes the transmitting side, and goes on sending if `f` says so. Process context.
    fn enter(self: &Arc<Self>, f: impl FnOnce(&mut Transmitter, GateState) -> Option<GateState>) {
        let side = Side(self.as_arc_borrow());
        self.transmit.gate.enter(&side, f);
    }

    /// Goes on after the gate was closed for want of room, or with messages that no request
    /// brought. Process context.
    pub(crate) fn transmit_again(self: &Arc<Self>) {
        self.enter(|tx, state| {
            tx.control_due = true;
            (state != GateState::Parked).then_some(GateState::Open)
        });
    }

    /// Requests go out over this link from now on.
    pub(crate) fn open_gate(
        self: &Arc<Self>,
        link: Arc<Attached<Connection>>,
        features: Features,
        window_bytes: u64,
        resent: u64,
    ) {
        self.enter(|tx, _| {
            tx.mode = Mode::Sending;
            tx.link = Some(link);
            tx.features = features;
            tx.window_bytes = window_bytes;
            tx.control_due = true;
            self.transmit.tallies.resent.add(resent);
            Some(GateState::Open)
        });
    }

    /// Nothing goes out from now on, and the transmitter holds on to no request that was sent.
    pub(crate) fn close_gate(self: &Arc<Self>) {
        self.enter(|tx, _| {
            tx.stop();
            Some(GateState::Parked)
        });
    }

    /// Ends what waits, and everything that comes, with an error. The connection must be parked.
    pub(crate) fn fail(self: &Arc<Self>, status: block::Status) {
        self.enter(|tx, _| {
            tx.mode = Mode::Failing(status);
            None
        });
        for tag in 0..self.slots.depth() {
            let tag = Tag(tag as u16);
            if let Some(rq) = self.table.take(tag.0) {
                self.slots.abort(tag);
                self.errors.add(1, Relaxed);
                rq.end(status);
            }
        }
        self.enter(|tx, _| matches!(tx.mode, Mode::Failing(_)).then_some(GateState::Open));
    }

    /// Requests wait for recovery instead of ending with an error, if they did.
    pub(crate) fn stop_failing(self: &Arc<Self>) {
        self.enter(|tx, _| {
            if !matches!(tx.mode, Mode::Failing(_)) {
                return None;
            }
            tx.mode = Mode::Parked;
            Some(GateState::Parked)
        });
    }

    /// Tells the node that the session is over, if it can be told at once.
    pub(crate) fn send_release(self: &Arc<Self>) {
        self.enter(|tx, state| {
            let is_idle = matches!(tx.mode, Mode::Sending) && tx.batch.is_empty();
            if state == GateState::Parked || !is_idle || tx.batch.is_amid_request() {
                return None;
            }
            let header = Header::request(Kind::Close, RequestFlags::RELEASE, 0, 0, 0);
            tx.push_header(header).is_ok().then_some(GateState::Open)
        });
    }

    /// A reply has freed `bytes` of the window.
    pub(crate) fn free_window(self: &Arc<Self>, bytes: u32) {
        let old = self
            .write_bytes_in_flight
            .fetch_sub(u64::from(bytes), Relaxed);
        debug_assert!(old >= u64::from(bytes));
        let side = Side(self.as_arc_borrow());
        if self.transmit.gate.waits_for_window(&side) {
            side.send_later();
        }
    }
}
