// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A place for every request in flight on one connection.
//!
//! The submitting, the receiving and the recovering side share the table without a lock. Each slot
//! has one word that says who owns it; whoever moves a slot to `Free` is the one, and the only
//! one, that completes the request.
//!
//! ```text
//!            claim (submitter)      sent (submitter)       reply with payload (receiver)
//!  0 Free ───────────────► 1 Queued ───────────► 2 InFlight ───────────► 3 Receiving
//!    ▲                        │ ▲                   │  │                     │  │
//!    │◄───────────────────────┼─┼───────────────────┘  │                     │  │
//!    │   reply without payload│ │                      │ park (recovery,     │  │
//!    │◄───────────────────────┼─┼──────────────────────┼── payload complete ─┘  │
//!    │                        ▼ │ reclaim (recovery)   ▼                        │
//!    └────────────────────── 4 Parked ◄─────────────────────────────────────────┘
//!         abort (recovery)
//! ```
//!
//! Ownership: `Free` belongs to the submitter that got the tag from blk-mq; `Queued` to the
//! transmitting side; `InFlight` and `Receiving` to the receiving side; `Parked` to recovery.
//! Recovery parks slots only when the transmitting and the receiving side have stopped.

use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::{CloseCause, Cookie, Instant, Tag};
use core::ops::Deref;
use neonsan_proto::{Header, Kind, RequestFlags, Status};

/// Where a request is. The numbers are those of the diagram above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum SlotState {
    /// No request.
    Free = 0,
    /// Waiting to be handed to the socket.
    Queued = 1,
    /// With the socket or the node.
    InFlight = 2,
    /// Payload of the reply is arriving.
    Receiving = 3,
    /// The connection was lost; to be sent again.
    Parked = 4,
}

impl SlotState {
    /// A short name, for state dumps.
    pub const fn name(self) -> &'static str {
        match self {
            SlotState::Free => "free",
            SlotState::Queued => "queued",
            SlotState::InFlight => "in-flight",
            SlotState::Receiving => "receiving",
            SlotState::Parked => "parked",
        }
    }

    const fn from_bits(bits: u8) -> SlotState {
        match bits {
            1 => SlotState::Queued,
            2 => SlotState::InFlight,
            3 => SlotState::Receiving,
            4 => SlotState::Parked,
            // Only `Word::pack` makes these bits; 0 is the only other value.
            _ => SlotState::Free,
        }
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// READ, WRITE, FLUSH, DISCARD or WRITE_ZEROES.
    pub kind: Kind,
    /// Modifiers.
    pub flags: RequestFlags,
    /// First byte of the range.
    pub offset: u64,
    /// Bytes of the range; zero for FLUSH.
    pub length: u32,
}

impl Request {
    /// The header that goes over the wire for this request. Not sealed: see [`Header::seal`].
    #[inline]
    pub fn header(&self, cookie: Cookie) -> Header {
        Header::request(
            self.kind,
            self.flags,
            cookie.to_wire(),
            self.offset,
            self.length,
        )
    }

    /// How many bytes of payload a successful reply must carry.
    #[inline]
    pub fn reply_len(&self) -> u32 {
        if self.kind == Kind::Read {
            self.length
        } else {
            0
        }
    }
}

/// One slot. See the module's diagram.
#[derive(Debug)]
pub struct Slot {
    /// A [`Word`]: generation, kind, flags, state. Written with Release, read with Acquire: the
    /// fields below are valid for whoever has seen the state.
    word: AtomicU64,
    offset: AtomicU64,
    length: AtomicU32,
    /// When the request was claimed or, later, sent, for state dumps and timeouts; in milliseconds.
    /// Written by whoever owns the slot at that time.
    since: AtomicU64,
}

impl Slot {
    /// An empty slot.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        Slot {
            word: AtomicU64::new(0),
            offset: AtomicU64::new(0),
            length: AtomicU32::new(0),
            since: AtomicU64::new(0),
        }
    }

    /// An empty slot.
    #[cfg(loom)]
    pub fn new() -> Self {
        Slot {
            word: AtomicU64::new(0),
            offset: AtomicU64::new(0),
            length: AtomicU32::new(0),
            since: AtomicU64::new(0),
        }
    }
}

impl Default for Slot {
    fn default() -> Self {
        Slot::new()
    }
}

/// The owner word of a slot, unpacked.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Word {
    generation: u32,
    kind: u8,
    flags: u8,
    state: SlotState,
}

impl Word {
    const fn pack(self) -> u64 {
        ((self.generation as u64) << 32)
            | ((self.kind as u64) << 16)
            | ((self.flags as u64) << 8)
            | self.state as u64
    }

    const fn unpack(bits: u64) -> Word {
        Word {
            generation: (bits >> 32) as u32,
            kind: (bits >> 16) as u8,
            flags: (bits >> 8) as u8,
            state: SlotState::from_bits(bits as u8),
        }
    }

    const fn with(self, state: SlotState) -> Word {
        Word { state, ..self }
    }
}

/// What a slot holds, for state dumps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotInfo {
    /// The slot.
    pub tag: Tag,
    /// Where the request is.
    pub state: SlotState,
    /// What it asks for.
    pub request: Request,
    /// What it is called on the wire.
    pub cookie: Cookie,
    /// When it was sent; before that, and after it was taken back from a lost connection, when its
    /// slot was claimed for it last.
    pub since: Instant,
}

/// What a reply means for its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matched {
    /// The request is answered and its slot free: complete it.
    Done,
    /// This many bytes of payload follow; then call [`SlotTable::finish`].
    Payload(u32),
}

/// The slots of one connection.
#[derive(Debug)]
pub struct SlotTable<S> {
    connection: u16,
    slots: S,
}

impl<S: Deref<Target = [Slot]>> SlotTable<S> {
    /// A table for the connection with this index. At most 65536 slots are used.
    pub fn new(connection: u16, slots: S) -> Self {
        SlotTable { connection, slots }
    }

    /// The number of slots.
    pub fn depth(&self) -> usize {
        self.slots.len()
    }

    /// The index of the connection in its session.
    pub fn connection(&self) -> u16 {
        self.connection
    }

    fn slot(&self, tag: Tag) -> Option<&Slot> {
        self.slots.get(usize::from(tag.0))
    }

    fn cookie(&self, tag: Tag, word: Word) -> Cookie {
        Cookie {
            slot_generation: word.generation,
            connection: self.connection,
            tag,
        }
    }

    /// Moves a slot from one of `from` to `to` if it is there. Returns what it held.
    fn shift(&self, tag: Tag, from: &[SlotState], to: SlotState) -> Option<Word> {
        let slot = self.slot(tag)?;
        let bits = slot.word.load(Ordering::Acquire);
        let word = Word::unpack(bits);
        if !from.contains(&word.state) {
            return None;
        }
        // One try: the owner rule says that nobody else moves the slot now, except when a peer
        // or a caller breaks the rules, and then losing is right.
        let moved = word.with(to).pack();
        slot.word
            .compare_exchange(bits, moved, Ordering::AcqRel, Ordering::Acquire)
            .ok()
            .map(|_| word)
    }

    fn request_of(&self, slot: &Slot, word: Word) -> Request {
        Request {
            kind: Kind::from_wire(word.kind),
            flags: RequestFlags(word.flags),
            offset: slot.offset.load(Ordering::Relaxed),
            length: slot.length.load(Ordering::Relaxed),
        }
    }

    /// Takes the slot of a tag for a request: Free → Queued. Returns the request's name on the
    /// wire, or `None` if the slot is taken or does not exist, which is a fault of the caller.
    /// The caller must own the tag.
    pub fn claim(&self, tag: Tag, request: Request, now: Instant) -> Option<Cookie> {
        let slot = self.slot(tag)?;
        let old = Word::unpack(slot.word.load(Ordering::Acquire));
        if old.state != SlotState::Free {
            return None;
        }
        slot.offset.store(request.offset, Ordering::Relaxed);
        slot.length.store(request.length, Ordering::Relaxed);
        slot.since.store(now.0, Ordering::Relaxed);
        let word = Word {
            generation: old.generation.wrapping_add(1),
            kind: request.kind.to_wire(),
            flags: request.flags.0,
            state: SlotState::Queued,
        };
        slot.word.store(word.pack(), Ordering::Release);
        Some(self.cookie(tag, word))
    }

    /// The request is about to be handed to the socket: Queued → InFlight. Call it before the
    /// first byte is sent, since the reply may come before the send call returns. From `now` on the
    /// node has the request, as far as the request timeout is concerned: what it waited before, for
    /// room or for a connection, is not the node's.
    pub fn sent(&self, tag: Tag, now: Instant) -> bool {
        if let Some(slot) = self.slot(tag) {
            // Ordered before the state by the exchange below.
            slot.since.store(now.0, Ordering::Relaxed);
        }
        self.shift(tag, &[SlotState::Queued], SlotState::InFlight)
            .is_some()
    }

    /// Matches a reply with its slot. The receiving side calls it through
    /// [`Receiver`](super::Receiver).
    pub fn on_reply(&self, header: &Header) -> Result<(Tag, Matched), CloseCause> {
        let cookie = Cookie::from_wire(header.cookie());
        let slot = match self.slot(cookie.tag) {
            Some(slot) if cookie.connection == self.connection => slot,
            _ => return Err(CloseCause::UnknownCookie),
        };
        let bits = slot.word.load(Ordering::Acquire);
        let word = Word::unpack(bits);
        if word.generation != cookie.slot_generation {
            // The generation before this one was answered, or was lost with its connection.
            let older = word.generation.wrapping_sub(cookie.slot_generation);
            return Err(if older < 1 << 31 {
                CloseCause::DuplicateReply
            } else {
                CloseCause::UnknownCookie
            });
        }
        match word.state {
            SlotState::InFlight => {}
            // No request has ever had generation zero (until it wraps: then it was a duplicate).
            SlotState::Free if word.generation == 0 && word.kind == 0 => {
                return Err(CloseCause::UnknownCookie)
            }
            SlotState::Free | SlotState::Receiving => return Err(CloseCause::DuplicateReply),
            SlotState::Queued | SlotState::Parked => return Err(CloseCause::UnknownCookie),
        }
        let request = self.request_of(slot, word);
        let status = header.status();
        if status == Status::ChecksumMismatch && request.kind != Kind::Write {
            // Only a write brings bytes that could be damaged. The request stays in flight: what is
            // sent again from a copy must not be the memory that a read is to fill.
            return Err(CloseCause::Refused(status));
        }
        let ok = status == Status::Ok;
        let expected = if ok { request.reply_len() } else { 0 };
        if header.length() != expected {
            return Err(CloseCause::ReplyLength {
                expected,
                got: header.length(),
            });
        }
        let next = if expected == 0 {
            SlotState::Free
        } else {
            SlotState::Receiving
        };
        slot.word
            .compare_exchange(
                bits,
                word.with(next).pack(),
                Ordering::AcqRel,
                Ordering::Acquire,
            )
            .map_err(|_| CloseCause::DuplicateReply)?;
        let matched = if expected == 0 {
            Matched::Done
        } else {
            Matched::Payload(expected)
        };
        Ok((cookie.tag, matched))
    }

    /// All payload of the reply has arrived: Receiving → Free. If true, the caller completes the
    /// request.
    pub fn finish(&self, tag: Tag) -> bool {
        self.shift(tag, &[SlotState::Receiving], SlotState::Free)
            .is_some()
    }

    /// The connection is lost, and both its sides have stopped: any state but Free → Parked. Only
    /// recovery calls it: beside [`SlotTable::reclaim`] it could park a request that is on its way
    /// again.
    /// Returns whether there was a request.
    pub fn park(&self, tag: Tag) -> bool {
        let taken = [SlotState::Queued, SlotState::InFlight, SlotState::Receiving];
        self.shift(tag, &taken, SlotState::Parked).is_some()
    }

    /// Takes a parked request to send it again under a new name: Parked → Queued.
    pub fn reclaim(&self, tag: Tag, now: Instant) -> Option<(Cookie, Request)> {
        let slot = self.slot(tag)?;
        let word = Word::unpack(slot.word.load(Ordering::Acquire));
        if word.state != SlotState::Parked {
            return None;
        }
        slot.since.store(now.0, Ordering::Relaxed);
        let word = Word {
            generation: word.generation.wrapping_add(1),
            ..word.with(SlotState::Queued)
        };
        slot.word.store(word.pack(), Ordering::Release);
        Some((self.cookie(tag, word), self.request_of(slot, word)))
    }

    /// Gives a request up that is parked or was never sent: Parked or Queued → Free. If true, the
    /// caller completes the request with an error, or requeues it.
    pub fn abort(&self, tag: Tag) -> bool {
        self.shift(
            tag,
            &[SlotState::Parked, SlotState::Queued],
            SlotState::Free,
        )
        .is_some()
    }

    /// What a slot holds; `None` if it is free. A snapshot: it may be old when it is read.
    pub fn info(&self, tag: Tag) -> Option<SlotInfo> {
        let slot = self.slot(tag)?;
        let word = Word::unpack(slot.word.load(Ordering::Acquire));
        if word.state == SlotState::Free {
            return None;
        }
        Some(SlotInfo {
            tag,
            state: word.state,
            request: self.request_of(slot, word),
            cookie: self.cookie(tag, word),
            since: Instant(slot.since.load(Ordering::Relaxed)),
        })
    }

    /// Every slot that holds a request, in the order of the tags.
    pub fn iter(&self) -> impl Iterator<Item = SlotInfo> + '_ {
        (0..self.slots.len()).filter_map(|tag| self.info(Tag(u16::try_from(tag).ok()?)))
    }

    /// Since when the oldest request waits for the node; `None` if none does.
    pub fn oldest_in_flight(&self) -> Option<Instant> {
        self.iter()
            .filter(|info| matches!(info.state, SlotState::InFlight | SlotState::Receiving))
            .map(|info| info.since)
            .min()
    }
}
