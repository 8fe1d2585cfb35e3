// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Deframes what a node sends on one connection.
//!
//! The receiver never touches the memory of a request. It says what it wants next ([`Want`]): so
//! many bytes of its own, or so many bytes of payload for a tag. The caller copies them straight
//! from the socket to where they belong, in pieces of any size, and says how many came.
//!
//! ```text
//!            header of a reply with payload          all of it arrived
//!   Header ─────────────────────────────► Payload ─────────────────────► Header
//!     │ header of an event with payload                                    ▲
//!     └─────────────────────────────► EventBody ───────────────────────────┘
//! ```

use super::slots::{Matched, Slot, SlotTable};
use crate::{CloseCause, Tag};
use core::ops::Deref;
use neonsan_proto::{
    Crc32c, EventKind, Features, Geometry, Header, Kind, Status, GEOMETRY_BYTES, HEADER_BYTES,
};
use zerocopy::FromBytes as _;

/// What the receiver wants next.
#[derive(Debug, PartialEq, Eq)]
pub enum Want<'a> {
    /// Up to this many bytes of its own: then call [`Receiver::received`].
    Bytes(&'a mut [u8]),
    /// Payload for a request: then call [`Receiver::payload_received`].
    Payload {
        /// The request.
        tag: Tag,
        /// How many bytes of its payload have come before.
        at: u32,
        /// How many are still to come.
        remaining: u32,
    },
}

/// What has been received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// The request is answered and its slot free: complete it.
    Completed {
        /// The request.
        tag: Tag,
        /// How it ended.
        status: Status,
    },
    /// Payload for a request follows: [`Receiver::want`] says how much.
    PayloadBegins {
        /// The request.
        tag: Tag,
    },
    /// The node asks for a sign of life: send a PONG with this cookie.
    Ping {
        /// The cookie of the PING.
        cookie: u64,
    },
    /// The node answered a PING.
    Pong {
        /// The cookie of the PING.
        cookie: u64,
    },
    /// The volume has a new size, a multiple of at least 512 bytes.
    Resized {
        /// The size.
        size_bytes: u64,
    },
    /// The node will stop.
    GoingAway {
        /// The time it leaves.
        grace_ms: u64,
    },
    /// The volume has new limits; they have been checked.
    Limits(Geometry),
}

#[derive(Clone, Copy, Debug)]
enum State {
    Header {
        have: usize,
    },
    Payload {
        tag: Tag,
        length: u32,
        at: u32,
        crc: u32,
    },
    EventBody {
        have: usize,
    },
}

/// The receiving side of one connection. Owned by whoever reads the socket.
#[derive(Debug)]
pub struct Receiver {
    state: State,
    header: [u8; HEADER_BYTES],
    body: [u8; GEOMETRY_BYTES],
    body_crc: u32,
    features: Features,
    crc32c: Crc32c,
    payload_may_change: bool,
}

/// Why a connection is closed over which a write arrived damaged that nobody could have changed while
/// it was sent: the path did it.
pub const fn damage_of_copy() -> CloseCause {
    CloseCause::Refused(Status::ChecksumMismatch)
}

impl Receiver {
    /// A receiver for a connection with the given features in force.
    pub fn new(features: Features, crc32c: Crc32c) -> Self {
        Receiver {
            state: State::Header { have: 0 },
            header: [0; HEADER_BYTES],
            body: [0; GEOMETRY_BYTES],
            body_crc: 0,
            features,
            crc32c,
            payload_may_change: false,
        }
    }

    /// The same where the owner of a payload may change it while it is sent, as whoever writes with
    /// direct I/O may. A write that arrived damaged is then no sign of a bad connection: the node has
    /// done nothing with it, and it completes with `ChecksumMismatch`. The caller sends it again from
    /// a copy, which cannot change; if that arrives damaged too, [`damage_of_copy`] says what is wrong.
    pub fn with_changing_payload(mut self) -> Self {
        self.payload_may_change = true;
        self
    }

    /// Whether the caller must compute the CRC-32C of payloads.
    #[inline]
    pub fn wants_payload_crc(&self) -> bool {
        self.features.contains(Features::PAYLOAD_CRC)
    }

    /// How many bytes of payload the reply that is arriving lacks; zero between replies.
    #[inline]
    pub fn payload_left(&self) -> u32 {
        match self.state {
            State::Payload { length, at, .. } => length - at,
            State::Header { .. } | State::EventBody { .. } => 0,
        }
    }

    /// What is wanted next. Never empty.
    #[inline]
    pub fn want(&mut self) -> Want<'_> {
        match self.state {
            State::Header { have } => Want::Bytes(self.header.get_mut(have..).unwrap_or_default()),
            State::EventBody { have } => Want::Bytes(self.body.get_mut(have..).unwrap_or_default()),
            State::Payload {
                tag, length, at, ..
            } => Want::Payload {
                tag,
                at,
                remaining: length - at,
            },
        }
    }

    /// `n` bytes were put at the start of what [`Want::Bytes`] offered. An error ends the
    /// connection; nothing may be received afterwards.
    pub fn received<S: Deref<Target = [Slot]>>(
        &mut self,
        n: usize,
        slots: &SlotTable<S>,
    ) -> Result<Option<Received>, CloseCause> {
        match self.state {
            State::Header { have } => {
                let have = have.saturating_add(n).min(HEADER_BYTES);
                self.state = State::Header { have };
                if have < HEADER_BYTES {
                    return Ok(None);
                }
                self.on_header(slots)
            }
            State::EventBody { have } => {
                let have = have.saturating_add(n).min(GEOMETRY_BYTES);
                self.state = State::EventBody { have };
                if have < GEOMETRY_BYTES {
                    return Ok(None);
                }
                self.state = State::Header { have: 0 };
                self.on_limits().map(Some)
            }
            // The caller mixed up the two kinds of bytes: nothing is lost.
            State::Payload { .. } => Ok(None),
        }
    }

    /// `n` bytes of payload were copied to the request that [`Want::Payload`] named; `crc` is the
    /// CRC-32C of all payload of this reply so far (any value if not
    /// [wanted](Receiver::wants_payload_crc)). An error ends the connection.
    pub fn payload_received<S: Deref<Target = [Slot]>>(
        &mut self,
        n: u32,
        crc: u32,
        slots: &SlotTable<S>,
    ) -> Result<Option<Received>, CloseCause> {
        let State::Payload {
            tag,
            length,
            at,
            crc: expected,
        } = self.state
        else {
            return Ok(None);
        };
        let at = at.saturating_add(n).min(length);
        self.state = State::Payload {
            tag,
            length,
            at,
            crc: expected,
        };
        if at < length {
            return Ok(None);
        }
        if self.wants_payload_crc() && crc != expected {
            // The slot stays where it is: the request is sent again on the next connection.
            return Err(CloseCause::PayloadChecksum);
        }
        self.state = State::Header { have: 0 };
        if !slots.finish(tag) {
            return Err(CloseCause::DuplicateReply);
        }
        Ok(Some(Received::Completed {
            tag,
            status: Status::Ok,
        }))
    }

    fn on_header<S: Deref<Target = [Slot]>>(
        &mut self,
        slots: &SlotTable<S>,
    ) -> Result<Option<Received>, CloseCause> {
        self.state = State::Header { have: 0 };
        let Ok(header) = Header::read_from_bytes(&self.header) else {
            return Err(CloseCause::HeaderChecksum);
        };
        if self.features.contains(Features::HEADER_CRC) && !header.is_intact(self.crc32c) {
            return Err(CloseCause::HeaderChecksum);
        }
        match header.kind() {
            Kind::Reply => self.on_reply(&header, slots).map(Some),
            Kind::Ping => Ok(Some(Received::Ping {
                cookie: header.cookie(),
            })),
            Kind::Pong => Ok(Some(Received::Pong {
                cookie: header.cookie(),
            })),
            Kind::Event => self.on_event(&header),
            Kind::Unknown(kind) => Err(CloseCause::UnknownKind(kind)),
            Kind::Read
            | Kind::Write
            | Kind::Flush
            | Kind::Discard
            | Kind::WriteZeroes
            | Kind::Close
            | Kind::Open
            | Kind::Join
            | Kind::OpenReply => Err(CloseCause::UnexpectedKind(header.kind().to_wire())),
        }
    }

    fn on_reply<S: Deref<Target = [Slot]>>(
        &mut self,
        header: &Header,
        slots: &SlotTable<S>,
    ) -> Result<Received, CloseCause> {
        match header.status() {
            Status::Unknown(status) => return Err(CloseCause::UnknownStatus(status)),
            // These say that the session is over on this node, or that the bytes were damaged on
            // their way; the request stays in flight and is sent again on another connection.
            Status::Fenced => return Err(CloseCause::Fenced),
            status @ (Status::NotOwner
            | Status::UnknownSession
            | Status::GoingAway
            | Status::StaleGeneration) => return Err(CloseCause::Refused(status)),
            Status::ChecksumMismatch if !self.payload_may_change => return Err(damage_of_copy()),
            _ => {}
        }
        let (tag, matched) = slots.on_reply(header)?;
        Ok(match matched {
            Matched::Done => Received::Completed {
                tag,
                status: header.status(),
            },
            Matched::Payload(length) => {
                self.state = State::Payload {
                    tag,
                    length,
                    at: 0,
                    crc: header.payload_crc(),
                };
                Received::PayloadBegins { tag }
            }
        })
    }

    fn on_event(&mut self, header: &Header) -> Result<Option<Received>, CloseCause> {
        let length = header.length() as usize;
        match header.event_kind() {
            EventKind::Limits if length == GEOMETRY_BYTES => {
                self.body_crc = header.payload_crc();
                self.state = State::EventBody { have: 0 };
                Ok(None)
            }
            EventKind::Resized if length == 0 => {
                let size_bytes = header.offset();
                if size_bytes == 0 || size_bytes % 512 != 0 || size_bytes > Geometry::MAX_SIZE_BYTES
                {
                    return Err(CloseCause::BadEvent);
                }
                Ok(Some(Received::Resized { size_bytes }))
            }
            EventKind::GoingAway if length == 0 => Ok(Some(Received::GoingAway {
                grace_ms: header.offset(),
            })),
            EventKind::Fenced if length == 0 => Err(CloseCause::Fenced),
            // An event that this version does not know must carry nothing, so it can be skipped.
            EventKind::Unknown(_) if length == 0 => Ok(None),
            EventKind::Limits
            | EventKind::Resized
            | EventKind::GoingAway
            | EventKind::Fenced
            | EventKind::Unknown(_) => Err(CloseCause::BadEvent),
        }
    }

    fn on_limits(&mut self) -> Result<Received, CloseCause> {
        if self.wants_payload_crc() && (self.crc32c)(&self.body) != self.body_crc {
            return Err(CloseCause::PayloadChecksum);
        }
        let Ok(geometry) = Geometry::read_from_bytes(&self.body) else {
            return Err(CloseCause::BadEvent);
        };
        geometry
            .check()
            .map_err(|e| CloseCause::BadGeometry(e.field))?;
        Ok(Received::Limits(geometry))
    }
}
