// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The header in front of every message but the hellos.

use crate::open_enum::open_enum;
use crate::{Crc32c, RequestFlags, Status};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::IntoBytes as _;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The size of a [`Header`] on the wire.
pub const HEADER_BYTES: usize = 32;

open_enum! {
    /// What a message is.
    pub enum Kind(u8) {
        /// Client to node: read `length` bytes at `offset`. The reply carries them.
        Read = 0x01,
        /// Client to node: write the `length` bytes of payload at `offset`.
        Write = 0x02,
        /// Client to node: make every write that was answered before this was sent durable.
        Flush = 0x03,
        /// Client to node: the content of `length` bytes at `offset` is no longer needed.
        Discard = 0x04,
        /// Client to node: `length` bytes at `offset` must read as zeroes.
        WriteZeroes = 0x05,
        /// Both ways: are you there? The cookie comes back in a [`Kind::Pong`].
        Ping = 0x10,
        /// Both ways: the answer to a [`Kind::Ping`].
        Pong = 0x11,
        /// Client to node: this connection ends in order; with [`RequestFlags::RELEASE`] the
        /// whole session does.
        Close = 0x12,
        /// Client to node, first message after the hellos: begin or promote a session.
        Open = 0x20,
        /// Client to node, first message after the hellos: add or replace one connection of a
        /// session.
        Join = 0x21,
        /// Node to client: the answer to [`Kind::Open`] and [`Kind::Join`].
        OpenReply = 0x22,
        /// Node to client: the answer to a request; the cookie says to which.
        Reply = 0x80,
        /// Node to client: something happened; `status` holds the [`EventKind`].
        Event = 0x90,
    }
}

open_enum! {
    /// What a [`Kind::Event`] tells.
    pub enum EventKind(u16) {
        /// The volume has a new size: `offset` is the size in bytes.
        Resized = 1,
        /// The node will stop: `offset` is the time it leaves, in milliseconds.
        GoingAway = 2,
        /// The limits of the volume changed: the payload is a whole `Geometry`.
        Limits = 3,
        /// Another host took the volume: nothing more will be answered on this session.
        Fenced = 4,
    }
}

/// The header in front of every message but the hellos.
///
/// | field | meaning |
/// |---|---|
/// | `kind` | a [`Kind`] |
/// | `flags` | [`RequestFlags`] |
/// | `status` | a [`Status`] in replies, an [`EventKind`] in events, zero elsewhere |
/// | `length` | in requests the bytes of the range; in replies, events and handshakes the bytes of payload that follow |
/// | `cookie` | chosen by the side that asks, returned by the side that answers |
/// | `offset` | first byte of the range; the value of an event |
/// | `payload_crc` | CRC-32C of the payload if negotiated and there is one, else zero |
/// | `header_crc` | CRC-32C of the 28 bytes before it if negotiated, else zero |
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct Header {
    kind: u8,
    flags: u8,
    status: U16,
    length: U32,
    cookie: U64,
    offset: U64,
    payload_crc: U32,
    header_crc: U32,
}

const _: () = assert!(core::mem::size_of::<Header>() == HEADER_BYTES);

impl Header {
    /// The number of bytes that `header_crc` covers: all before it.
    const CRC_COVERS: usize = HEADER_BYTES - 4;

    /// A header of `kind` with every other field zero.
    #[inline]
    pub const fn new(kind: Kind) -> Self {
        Header {
            kind: kind.to_wire(),
            flags: 0,
            status: U16::ZERO,
            length: U32::ZERO,
            cookie: U64::ZERO,
            offset: U64::ZERO,
            payload_crc: U32::ZERO,
            header_crc: U32::ZERO,
        }
    }

    /// A request for `length` bytes at `offset`.
    #[inline]
    pub fn request(kind: Kind, flags: RequestFlags, cookie: u64, offset: u64, length: u32) -> Self {
        Header {
            flags: flags.0,
            cookie: U64::new(cookie),
            offset: U64::new(offset),
            length: U32::new(length),
            ..Header::new(kind)
        }
    }

    /// The answer to the request with `cookie`, with `length` bytes of payload behind it.
    #[inline]
    pub fn reply(status: Status, cookie: u64, length: u32) -> Self {
        Header {
            status: U16::new(status.to_wire()),
            cookie: U64::new(cookie),
            length: U32::new(length),
            ..Header::new(Kind::Reply)
        }
    }

    /// An event with its value and `length` bytes of payload behind it.
    pub fn event(event: EventKind, value: u64, length: u32) -> Self {
        Header {
            status: U16::new(event.to_wire()),
            offset: U64::new(value),
            length: U32::new(length),
            ..Header::new(Kind::Event)
        }
    }

    /// The answer to [`Kind::Open`] or [`Kind::Join`], with `length` bytes of payload behind it.
    pub fn open_reply(status: Status, length: u32) -> Self {
        Header {
            status: U16::new(status.to_wire()),
            length: U32::new(length),
            ..Header::new(Kind::OpenReply)
        }
    }

    /// Fills in the checksum of the payload. Must come before [`Header::seal`].
    #[inline]
    pub fn set_payload_crc(&mut self, crc: u32) {
        self.payload_crc = U32::new(crc);
    }

    /// Fills in the checksum of the header. Nothing may change afterwards.
    #[inline]
    pub fn seal(&mut self, crc32c: Crc32c) {
        self.header_crc = U32::new(self.checksum(crc32c));
    }

    /// Whether the checksum of the header is right.
    #[inline]
    pub fn is_intact(&self, crc32c: Crc32c) -> bool {
        self.header_crc.get() == self.checksum(crc32c)
    }

    fn checksum(&self, crc32c: Crc32c) -> u32 {
        let (covered, _) = self.as_bytes().split_at(Self::CRC_COVERS);
        crc32c(covered)
    }

    /// What the message is.
    #[inline]
    pub fn kind(&self) -> Kind {
        Kind::from_wire(self.kind)
    }

    /// The flags of a request.
    #[inline]
    pub fn flags(&self) -> RequestFlags {
        RequestFlags(self.flags)
    }

    /// The status of a reply.
    #[inline]
    pub fn status(&self) -> Status {
        Status::from_wire(self.status.get())
    }

    /// The kind of an event.
    pub fn event_kind(&self) -> EventKind {
        EventKind::from_wire(self.status.get())
    }

    /// The length of the range, or of the payload: see the table at [`Header`].
    #[inline]
    pub fn length(&self) -> u32 {
        self.length.get()
    }

    /// The cookie.
    #[inline]
    pub fn cookie(&self) -> u64 {
        self.cookie.get()
    }

    /// The first byte of the range, or the value of an event.
    #[inline]
    pub fn offset(&self) -> u64 {
        self.offset.get()
    }

    /// The checksum of the payload as the sender gave it.
    #[inline]
    pub fn payload_crc(&self) -> u32 {
        self.payload_crc.get()
    }

    /// How many bytes of payload follow this header.
    ///
    /// A request other than a write has none: its `length` is that of the range.
    pub fn payload_len(&self) -> u32 {
        match self.kind() {
            Kind::Write | Kind::Open | Kind::Join | Kind::OpenReply | Kind::Reply | Kind::Event => {
                self.length()
            }
            Kind::Read
            | Kind::Flush
            | Kind::Discard
            | Kind::WriteZeroes
            | Kind::Ping
            | Kind::Pong
            | Kind::Close
            | Kind::Unknown(_) => 0,
        }
    }
}
