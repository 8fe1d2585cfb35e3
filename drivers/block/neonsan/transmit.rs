// SPDX-License-Identifier: GPL-2.0

//! The transmitting side of a connection.
//!
//! Whoever brings the last request of a batch tries to take the transmitter, and sends what there
//! is: his own and the others' requests, many with one call. Who finds it taken goes away: the
//! holder looks again after he has let go.
//!
//! # The gate
//!
//! ```text
//!               resume / fail                  socket is full
//!  1 Parked ───────────────────► 0 Open ───────────────────────► 2 Blocked
//!     ▲                           │  ▲◄──────────────────────────────┘ room again
//!     │           park            │  │ window of writes is full
//!     └───────────────────────────┘  └──────────────────────────► 3 Window
//! ```
//!
//! It is changed only by the holder of the transmitter. Everyone else reads it, after adding his
//! request, to see whether trying makes sense. Who opens it looks at the list afterwards; both
//! sides have a full barrier between, so one of them sees the other.
//!
//! # Headers
//!
//! Headers lie in a ring of pages of the connection, one behind the other, and where payloads are
//! spliced the network takes them from there. The ring has room for twice the headers that can be
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
    prelude::*,
    sync::{
        atomic::{Acquire, Full, Relaxed, Release},
        barrier::smp_mb,
        Arc,
    },
};
use neonsan_kernel::{
    block::{
        self,
        bio::SegmentCursor,
        mq::{OwnedRequest, RequestRef, Taken},
    },
    mm::{NoReclaimScope, PageArray},
    net::{Attached, BvecBatch},
};
use neonsan_proto::{Features, Header, Kind, RequestFlags, HEADER_BYTES};
use neonsan_session::{CloseCause, Instant, Tag};

/// Requests are sent.
pub(crate) const GATE_OPEN: u32 = 0;
/// Nothing can be sent: requests wait for recovery.
pub(crate) const GATE_PARKED: u32 = 1;
/// The socket is full: its callback goes on.
pub(crate) const GATE_BLOCKED: u32 = 2;
/// The node has as many bytes of writes as it may have: a reply goes on.
pub(crate) const GATE_WINDOW: u32 = 3;

/// Pieces of memory in one call.
const BATCH_PIECES: usize = 256;
/// Requests with payload in one call.
const BATCH_REQUESTS: usize = 128;
/// Room for headers of messages that are not requests: far more than can be unanswered at once.
const CONTROL_HEADERS: usize = 16;

/// What is done with requests.
enum Mode {
    /// They wait.
    Parked,
    /// They are sent.
    Sending,
    /// They end like this.
    Failing(block::Status),
}

/// Counted under the transmitter's lock.
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

/// The transmitting side. Owned by whoever has locked it.
pub(crate) struct Transmitter {
    mode: Mode,
    link: Option<Arc<Attached<Connection>>>,
    features: Features,
    window_bytes: u64,
    /// The ring of headers.
    headers: PageArray,
    /// How many there is room for.
    header_places: usize,
    /// Where the next one goes.
    next_header: usize,
    batch: BvecBatch,
    /// Keeps the requests whose pages are in the batch.
    held: KVVec<RequestRef<Queue>>,
    /// A request of which only a part is in the batch.
    cursor: Option<SegmentCursor<Queue>>,
    /// A request that did not fit in the window.
    next: Option<OwnedRequest<Queue>>,
    /// Taken from the pending list, not looked at yet.
    todo: Taken<Queue>,
    /// There may be messages that no request brought. Whoever has one to send queues the work to
    /// transmit, so only that needs to look.
    control_due: bool,
    /// What was done.
    pub(crate) counts: Counts,
}

/// The checksum of what a request writes. The page cache keeps its pages from changing until they are
/// sent (stable writes); who writes with direct I/O may change his, and then the node refuses the
/// write, which is sent again.
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
    /// A transmitter for `depth` tags. May sleep.
    pub(crate) fn new(depth: u32) -> Result<Self> {
        let header_places = 2 * depth as usize + CONTROL_HEADERS;
        Ok(Transmitter {
            mode: Mode::Parked,
            link: None,
            features: Features::NONE,
            window_bytes: u64::MAX,
            headers: PageArray::new(header_places * HEADER_BYTES)?,
            header_places,
            next_header: 0,
            batch: BvecBatch::new(BATCH_PIECES)?,
            held: KVVec::with_capacity(BATCH_REQUESTS, GFP_KERNEL)?,
            cursor: None,
            next: None,
            todo: Taken::empty(),
            control_due: false,
            counts: Counts::default(),
        })
    }

    /// Adds a header.
    fn push_header(&mut self, mut header: Header) -> Result {
        if self.features.contains(Features::HEADER_CRC) {
            header.seal(crate::crc::crc32c);
        }
        let place = self.next_header * HEADER_BYTES;
        self.next_header += 1;
        if self.next_header >= self.header_places {
            self.next_header = 0;
        }
        self.headers.write(place, header.as_bytes())?;
        self.batch.push_pages(&self.headers, place, HEADER_BYTES)
    }

    /// Adds the pages of the request under the cursor, as many as fit; true if that was all.
    fn push_segments(&mut self) -> Result<bool> {
        let Some(mut cursor) = self.cursor.take() else {
            return Ok(true);
        };
        while self.batch.room() > 0 {
            let Some(segment) = cursor.next_segment() else {
                self.held
                    .push_within_capacity(cursor.into_request())
                    .map_err(|_| ENOSPC)?;
                return Ok(true);
            };
            self.batch.push_segment(segment)?;
        }
        self.cursor = Some(cursor);
        Ok(false)
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
        if request.kind == Kind::Write && self.features.contains(Features::PAYLOAD_CRC) {
            header.set_payload_crc(payload_crc(&rq));
        }
        self.push_header(header)?;
        self.count(request.kind, request.length);
        trace::request_sent(
            connection.device.index(),
            connection.index.into(),
            tag.into(),
            cookie.to_wire(),
            op_of(request.kind),
            request.offset,
            request.length,
        );
        if request.kind == Kind::Write {
            connection
                .write_bytes_in_flight
                .fetch_add(u64::from(request.length), Relaxed);
            self.cursor = Some(SegmentCursor::new(rq.share()));
        }
        // From here on the reply may come.
        connection.put_back(rq);
        connection.slots.sent(Tag(tag), now);
        self.push_segments()
    }

    fn count(&mut self, kind: Kind, length: u32) {
        let counts = &mut self.counts;
        match kind {
            Kind::Read => {
                counts.reads += 1;
                counts.read_bytes += u64::from(length);
            }
            Kind::Write => {
                counts.writes += 1;
                counts.written_bytes += u64::from(length);
            }
            Kind::Flush => counts.flushes += 1,
            Kind::Discard => counts.discards += 1,
            Kind::WriteZeroes => counts.write_zeroes += 1,
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
        if !self.push_segments()? {
            return Ok(Filled::Batch);
        }
        // Two messages may be due, each a piece of its own.
        if self.control_due && self.batch.room() >= 2 {
            self.control_due = false;
            self.push_control(connection)?;
        }
        let now = now();
        while self.batch.room() >= 2 && self.held.len() < BATCH_REQUESTS {
            let Some(rq) = self.take_next(connection) else {
                return Ok(Filled::Everything);
            };
            if !self.fits_window(connection, &rq) {
                self.next = Some(rq);
                return Ok(Filled::Window);
            }
            if !self.push_request(connection, rq, now)? {
                return Ok(Filled::Batch);
            }
        }
        Ok(Filled::Batch)
    }

    /// Sends until there is nothing more or no room. Returns the state of the gate.
    fn send(&mut self, connection: &Connection) -> Result<u32> {
        // Lent for the time of the call, which nobody can interrupt.
        let Some(link) = self.link.take() else {
            return Ok(GATE_PARKED);
        };
        let result = self.send_over(&link, connection);
        self.link = Some(link);
        result
    }

    fn send_over(&mut self, link: &Attached<Connection>, connection: &Connection) -> Result<u32> {
        loop {
            let filled = if self.batch.is_empty() {
                self.held.clear();
                self.batch.clear();
                self.fill(connection)?
            } else {
                Filled::Batch
            };
            if self.batch.is_empty() {
                if filled != Filled::Window {
                    return Ok(GATE_OPEN);
                }
                return Ok(GATE_WINDOW);
            }
            self.counts.sends += 1;
            // Only in the midst of a request it is certain that more follows at once.
            let more = self.cursor.is_some();
            if !link.socket().send_bvecs(&mut self.batch, more)? {
                return Ok(GATE_BLOCKED);
            }
        }
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
        self.batch.clear();
        self.cursor = None;
        // Those that were answered meanwhile end here.
        self.held.clear();
    }
}

impl Connection {
    /// Sends what is pending, unless someone else does or it makes no sense. Process context.
    pub(crate) fn transmit(&self) {
        while self.gate.load(Acquire) == GATE_OPEN {
            let Some(mut tx) = self.tx.try_lock() else {
                return;
            };
            self.run(&mut tx);
            drop(tx);
            // Who added a request while we had the transmitter has gone away.
            smp_mb(Full);
            if self.pending.is_empty() {
                return;
            }
        }
    }

    /// Goes on after the gate was closed for want of room, or with messages that no request
    /// brought. Process context.
    pub(crate) fn transmit_again(&self) {
        {
            let mut tx = self.tx.lock();
            match tx.mode {
                Mode::Parked => return,
                Mode::Sending | Mode::Failing(_) => self.gate.store(GATE_OPEN, Release),
            }
            tx.control_due = true;
            smp_mb(Full);
            self.run(&mut tx);
        }
        smp_mb(Full);
        if !self.pending.is_empty() {
            self.transmit();
        }
    }

    fn run(&self, tx: &mut Transmitter) {
        match tx.mode {
            Mode::Parked => {}
            Mode::Failing(status) => tx.fail_all(self, status),
            Mode::Sending => {
                let _scope = NoReclaimScope::enter();
                loop {
                    let gate = match tx.send(self) {
                        Ok(gate) => gate,
                        Err(e) => {
                            self.fault(match e {
                                e if e == EPIPE => CloseCause::PeerClosed,
                                e => CloseCause::SocketError(-e.to_errno()),
                            });
                            // Recovery will park what is here.
                            GATE_PARKED
                        }
                    };
                    self.gate.store(gate, Release);
                    if gate != GATE_WINDOW {
                        return;
                    }
                    smp_mb(Full);
                    // A reply may have come between looking and closing the gate.
                    let fits = match &tx.next {
                        Some(rq) => tx.fits_window(self, rq),
                        None => true,
                    };
                    if !fits {
                        return;
                    }
                }
            }
        }
    }

    /// Requests go out over this link from now on.
    pub(crate) fn open_gate(
        &self,
        link: Arc<Attached<Connection>>,
        features: Features,
        window_bytes: u64,
        resent: u64,
    ) {
        {
            let mut tx = self.tx.lock();
            tx.mode = Mode::Sending;
            tx.link = Some(link);
            tx.features = features;
            tx.window_bytes = window_bytes;
            tx.counts.resent += resent;
        }
        self.transmit_again();
    }

    /// Nothing goes out from now on, and the transmitter holds on to no request that was sent.
    pub(crate) fn close_gate(&self) {
        let mut tx = self.tx.lock();
        self.gate.store(GATE_PARKED, Release);
        tx.stop();
    }

    /// Ends what waits, and everything that comes, with an error. The connection must be parked.
    pub(crate) fn fail(&self, status: block::Status) {
        self.tx.lock().mode = Mode::Failing(status);
        for tag in 0..self.slots.depth() {
            let tag = Tag(tag as u16);
            if let Some(rq) = self.table.take(tag.0) {
                self.slots.abort(tag);
                self.errors.add(1, Relaxed);
                rq.end(status);
            }
        }
        self.transmit_again();
    }

    /// Requests wait for recovery instead of ending with an error, if they did.
    pub(crate) fn stop_failing(&self) {
        let mut tx = self.tx.lock();
        if matches!(tx.mode, Mode::Failing(_)) {
            self.gate.store(GATE_PARKED, Release);
            tx.mode = Mode::Parked;
        }
    }

    /// Tells the node that the session is over, if it can be told at once.
    pub(crate) fn send_release(&self) {
        let mut tx = self.tx.lock();
        if matches!(tx.mode, Mode::Sending) && tx.batch.is_empty() && tx.cursor.is_none() {
            let header = Header::request(Kind::Close, RequestFlags::RELEASE, 0, 0, 0);
            tx.batch.clear();
            if tx.push_header(header).is_ok() {
                self.run(&mut tx);
            }
        }
    }

    /// A reply has freed `bytes` of the window.
    pub(crate) fn free_window(self: &Arc<Self>, bytes: u32) {
        let old = self
            .write_bytes_in_flight
            .fetch_sub(u64::from(bytes), Relaxed);
        debug_assert!(old >= u64::from(bytes));
        smp_mb(Full);
        if self.gate.load(Relaxed) == GATE_WINDOW {
            self.clone().queue_work::<TRANSMIT_WORK>();
        }
    }
}
