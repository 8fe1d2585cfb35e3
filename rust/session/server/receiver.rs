// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Deframes what a client sends on one connection, and checks it against the volume.
//!
//! A request that asks for something impossible is answered with a status; a peer that breaks the
//! protocol loses its connection. The receiver never holds payload: it says where the caller is to
//! put it ([`Want`]).

use crate::CloseCause;
use neonsan_proto::{
    Capabilities, Crc32c, Features, Geometry, Header, Kind, RequestFlags, Status, HEADER_BYTES,
};
use zerocopy::FromBytes as _;

/// What the receiver wants next.
#[derive(Debug, PartialEq, Eq)]
pub enum Want<'a> {
    /// Up to this many bytes of its own: then call [`Receiver::received`].
    Bytes(&'a mut [u8]),
    /// Payload of the WRITE that was returned last: then call [`Receiver::payload_received`].
    Payload {
        /// How many bytes of it have come before.
        at: u32,
        /// How many are still to come.
        remaining: u32,
    },
    /// Payload of a WRITE that was rejected, to be thrown away: then call
    /// [`Receiver::payload_received`].
    Skip {
        /// How many bytes are still to come.
        remaining: u32,
    },
}

/// A request that passed all checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// READ, WRITE, FLUSH, DISCARD or WRITE_ZEROES.
    pub kind: Kind,
    /// Modifiers.
    pub flags: RequestFlags,
    /// Goes into the reply.
    pub cookie: u64,
    /// First byte of the range.
    pub offset: u64,
    /// Bytes of the range; zero for FLUSH.
    pub length: u32,
}

/// What has been received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// A request without payload: carry it out.
    Command(Command),
    /// A WRITE whose payload follows: get a buffer.
    WriteBegins(Command),
    /// All payload of the WRITE that was returned last has arrived: carry it out.
    WriteComplete,
    /// A request that cannot be carried out: answer with this status. Its payload, if any, is
    /// skipped.
    Rejected {
        /// Goes into the reply.
        cookie: u64,
        /// Why.
        status: Status,
    },
    /// All payload of the WRITE that was returned last has arrived, damaged: answer with
    /// `ChecksumMismatch`.
    WriteDamaged,
    /// The client asks for a sign of life: send a PONG with this cookie.
    Ping {
        /// The cookie of the PING.
        cookie: u64,
    },
    /// The client answered a PING.
    Pong {
        /// The cookie of the PING.
        cookie: u64,
    },
    /// The client closes the connection in order.
    Close {
        /// The whole session ends.
        release: bool,
    },
}

/// What the node allows on one connection.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests in flight.
    pub max_depth: u16,
    /// Bytes of unanswered WRITE payload.
    pub max_inflight_bytes: u32,
    /// The client may only read: it opened the volume read-only.
    pub read_only: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Header { have: usize },
    Payload { length: u32, at: u32, crc: u32 },
    Skip { remaining: u32 },
}

/// The receiving side of one connection. Owned by whoever reads the socket.
#[derive(Debug)]
pub struct Receiver {
    state: State,
    header: [u8; HEADER_BYTES],
    geometry: Geometry,
    limits: Limits,
    in_flight: u32,
    inflight_bytes: u64,
    features: Features,
    crc32c: Crc32c,
}

impl Receiver {
    /// A receiver for a connection that was let in.
    pub fn new(geometry: Geometry, limits: Limits, features: Features, crc32c: Crc32c) -> Self {
        Receiver {
            state: State::Header { have: 0 },
            header: [0; HEADER_BYTES],
            geometry,
            limits,
            in_flight: 0,
            inflight_bytes: 0,
            features,
            crc32c,
        }
    }

    /// The volume has a new size or new limits.
    pub fn set_geometry(&mut self, geometry: Geometry) {
        self.geometry = geometry;
    }

    /// Whether the caller must compute the CRC-32C of payloads.
    pub fn wants_payload_crc(&self) -> bool {
        self.features.contains(Features::PAYLOAD_CRC)
    }

    /// Requests that were returned and not yet answered.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// A request that was returned as command or as rejected is being answered. `write_len`: the
    /// payload of a WRITE, else zero.
    pub fn answered(&mut self, write_len: u32) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.inflight_bytes = self.inflight_bytes.saturating_sub(u64::from(write_len));
    }

    /// What is wanted next. Never empty.
    pub fn want(&mut self) -> Want<'_> {
        match self.state {
            State::Header { have } => Want::Bytes(self.header.get_mut(have..).unwrap_or_default()),
            State::Payload { length, at, .. } => Want::Payload {
                at,
                remaining: length - at,
            },
            State::Skip { remaining } => Want::Skip { remaining },
        }
    }

    /// `n` bytes were put at the start of what [`Want::Bytes`] offered. An error ends the
    /// connection; nothing may be received afterwards.
    pub fn received(&mut self, n: usize) -> Result<Option<Received>, CloseCause> {
        let State::Header { have } = self.state else {
            // The caller mixed up the two kinds of bytes: nothing is lost.
            return Ok(None);
        };
        let have = have.saturating_add(n).min(HEADER_BYTES);
        self.state = State::Header { have };
        if have < HEADER_BYTES {
            return Ok(None);
        }
        self.state = State::Header { have: 0 };
        let Ok(header) = Header::read_from_bytes(&self.header) else {
            return Err(CloseCause::HeaderChecksum);
        };
        if self.features.contains(Features::HEADER_CRC) && !header.is_intact(self.crc32c) {
            return Err(CloseCause::HeaderChecksum);
        }
        self.on_header(&header).map(Some)
    }

    /// `n` bytes of payload were copied to where they belong, or thrown away; `crc` is the CRC-32C
    /// of all payload of this WRITE so far (any value if not
    /// [wanted](Receiver::wants_payload_crc)).
    pub fn payload_received(&mut self, n: u32, crc: u32) -> Option<Received> {
        match self.state {
            State::Payload {
                length,
                at,
                crc: expected,
            } => {
                let at = at.saturating_add(n).min(length);
                self.state = State::Payload {
                    length,
                    at,
                    crc: expected,
                };
                if at < length {
                    return None;
                }
                self.state = State::Header { have: 0 };
                Some(if self.wants_payload_crc() && crc != expected {
                    Received::WriteDamaged
                } else {
                    Received::WriteComplete
                })
            }
            State::Skip { remaining } => {
                let remaining = remaining.saturating_sub(n);
                self.state = match remaining {
                    0 => State::Header { have: 0 },
                    _ => State::Skip { remaining },
                };
                None
            }
            State::Header { .. } => None,
        }
    }

    fn on_header(&mut self, header: &Header) -> Result<Received, CloseCause> {
        match header.kind() {
            Kind::Ping => {
                return Ok(Received::Ping {
                    cookie: header.cookie(),
                })
            }
            Kind::Pong => {
                return Ok(Received::Pong {
                    cookie: header.cookie(),
                })
            }
            Kind::Close => {
                return Ok(Received::Close {
                    release: header.flags().contains(RequestFlags::RELEASE),
                })
            }
            Kind::Read | Kind::Write | Kind::Flush | Kind::Discard | Kind::WriteZeroes => {}
            Kind::Unknown(kind) => return Err(CloseCause::UnknownKind(kind)),
            Kind::Open | Kind::Join | Kind::OpenReply | Kind::Reply | Kind::Event => {
                return Err(CloseCause::UnexpectedKind(header.kind().to_wire()))
            }
        }
        let payload = header.payload_len();
        if payload > self.geometry.max_io_bytes.get() {
            // Not worth reading so much only to throw it away.
            return Err(CloseCause::LengthLimit(payload));
        }
        self.in_flight += 1;
        self.inflight_bytes += u64::from(payload);
        if self.in_flight > u32::from(self.limits.max_depth)
            || self.inflight_bytes > u64::from(self.limits.max_inflight_bytes)
        {
            return Err(CloseCause::TooMuchInFlight);
        }
        let command = Command {
            kind: header.kind(),
            flags: header.flags(),
            cookie: header.cookie(),
            offset: header.offset(),
            length: header.length(),
        };
        match self.check(&command) {
            Ok(()) if command.kind == Kind::Write => {
                self.state = State::Payload {
                    length: payload,
                    at: 0,
                    crc: header.payload_crc(),
                };
                Ok(Received::WriteBegins(command))
            }
            Ok(()) => Ok(Received::Command(command)),
            Err(status) => {
                if payload > 0 {
                    // Only the payload of a command that is carried out counts as in flight.
                    self.inflight_bytes -= u64::from(payload);
                    self.state = State::Skip { remaining: payload };
                }
                Ok(Received::Rejected {
                    cookie: command.cookie,
                    status,
                })
            }
        }
    }

    /// Whether a request can be carried out at all.
    fn check(&self, command: &Command) -> Result<(), Status> {
        let g = &self.geometry;
        let caps = g.capabilities();
        let needs = |ability| {
            if caps.contains(ability) {
                Ok(())
            } else {
                Err(Status::Unsupported)
            }
        };
        let (allowed, max) = match command.kind {
            Kind::Read => (RequestFlags::NONE, g.max_io_bytes.get()),
            Kind::Write => (
                RequestFlags::FUA.union(RequestFlags::ATOMIC),
                g.max_io_bytes.get(),
            ),
            Kind::Discard => (RequestFlags::NONE, g.max_discard_bytes.get()),
            Kind::WriteZeroes => (
                RequestFlags::FUA.union(RequestFlags::NO_UNMAP),
                g.max_write_zeroes_bytes.get(),
            ),
            Kind::Flush => {
                let empty = command.flags.is_empty() && command.offset == 0 && command.length == 0;
                return if empty {
                    Ok(())
                } else {
                    Err(Status::BadRequest)
                };
            }
            _ => return Err(Status::BadRequest),
        };
        if !allowed.contains(command.flags) {
            return Err(Status::BadRequest);
        }
        if command.kind != Kind::Read
            && (self.limits.read_only || caps.contains(Capabilities::READ_ONLY))
        {
            return Err(Status::ReadOnly);
        }
        match command.kind {
            Kind::Discard => needs(Capabilities::DISCARD)?,
            Kind::WriteZeroes => needs(Capabilities::WRITE_ZEROES)?,
            _ => {}
        }
        if command.flags.contains(RequestFlags::FUA) {
            needs(Capabilities::FUA)?;
        }
        let lbs = u64::from(g.logical_block_size.get());
        let length = u64::from(command.length);
        if length == 0 {
            return Err(Status::BadRequest);
        }
        if command.offset % lbs != 0 || length % lbs != 0 {
            return Err(Status::Misaligned);
        }
        if command.length > max {
            return Err(Status::TooLarge);
        }
        match command.offset.checked_add(length) {
            Some(end) if end <= g.size_bytes.get() => {}
            _ => return Err(Status::OutOfRange),
        }
        if command.flags.contains(RequestFlags::ATOMIC) {
            needs(Capabilities::ATOMIC)?;
            self.check_atomic(command)?;
        }
        Ok(())
    }

    fn check_atomic(&self, command: &Command) -> Result<(), Status> {
        let g = &self.geometry;
        let (offset, length) = (command.offset, u64::from(command.length));
        let min = u64::from(g.atomic_unit_min_bytes.get());
        let max = u64::from(g.atomic_unit_max_bytes.get());
        let boundary = u64::from(g.atomic_boundary_bytes.get());
        // Linux's rule for RWF_ATOMIC: a power of two in size, aligned to its size.
        let shaped = length.is_power_of_two() && offset % length == 0;
        let crosses =
            boundary != 0 && offset / boundary != (offset.saturating_add(length) - 1) / boundary;
        if shaped && (min..=max).contains(&length) && !crosses {
            Ok(())
        } else {
            Err(Status::AtomicLimit)
        }
    }
}
