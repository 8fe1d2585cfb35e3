// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Opening a volume: what a client asks, and what a node answers.

use crate::hello::{plain_text, text_of};
use crate::open_enum::open_enum;
use crate::{
    Geometry, NameError, OpenFlags, VolumeName, MAX_REFUSAL_TEXT_BYTES, MAX_VOLUME_NAME_BYTES,
};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::FromBytes as _;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The size of an [`OpenRequest`] on the wire.
pub const OPEN_REQUEST_BYTES: usize = 384;

/// The size of an [`OpenReply`] on the wire, without the node addresses behind it.
pub const OPEN_REPLY_BYTES: usize = 144;

/// The size of one [`NodeAddress`] on the wire.
pub const NODE_ADDRESS_BYTES: usize = 24;

/// The size of a [`Refusal`] on the wire, without the text behind it.
pub const REFUSAL_BYTES: usize = 40;

/// The size of the field for a host's name.
pub const HOST_NAME_BYTES: usize = 64;

open_enum! {
    /// Who else may have the volume open.
    pub enum Mode(u8) {
        /// This host alone, for reading and writing.
        Exclusive = 0,
        /// Several hosts for reading and writing; they keep out of each other's way themselves.
        Shared = 1,
        /// Reading only; any number of hosts.
        ReadOnly = 2,
    }
}

impl Mode {
    /// Whether a session in this mode keeps out a session in the other mode, and the other way
    /// round. A mode that nobody defined keeps out all but readers.
    pub const fn conflicts_with(self, other: Mode) -> bool {
        match (self, other) {
            (Mode::ReadOnly, _) | (_, Mode::ReadOnly) => false,
            (Mode::Shared, Mode::Shared) => false,
            (Mode::Exclusive | Mode::Shared | Mode::Unknown(_), _) => true,
        }
    }
}

/// The payload of OPEN and of JOIN.
///
/// The fields are public and unchecked: the server machine of the session crate checks them.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct OpenRequest {
    /// Identity of the session: random, chosen by the client at attach. Not all zero.
    pub session_id: [u8; 16],
    /// Identity of the host: the same for all its sessions, across reboots. Not all zero.
    pub host_id: [u8; 16],
    /// Fencing counter of the session: higher than any that it used before in an OPEN, the one in
    /// force in a JOIN. Not zero.
    pub generation: U64,
    /// How often this connection was made in this session: higher than any before for the same
    /// `connection`. Not zero.
    pub epoch: U64,
    /// Index of the connection in the session; zero in an OPEN.
    pub connection: U16,
    /// A [`Mode`]. The same in all requests of a session.
    pub mode: u8,
    /// [`OpenFlags`].
    pub flags: u8,
    /// Length of `volume` in bytes.
    pub volume_len: U16,
    /// Zero.
    pub reserved: [u8; 2],
    /// Identity of the host's boot: another one after each start of its kernel, the same for all
    /// sessions of one boot. Zero: the client does not say.
    pub host_boot: U64,
    /// The host's name for people, zero-filled UTF-8.
    pub host_name: [u8; HOST_NAME_BYTES],
    /// `pool/volume` or `pool/volume@snapshot`, zero-filled.
    pub volume: [u8; 256],
}

const _: () = assert!(core::mem::size_of::<OpenRequest>() == OPEN_REQUEST_BYTES);

impl OpenRequest {
    /// A request with the given volume and host name, and all else zero. A host name that is too
    /// long is cut.
    pub fn new(volume: VolumeName<'_>, host_name: &str) -> Self {
        let mut request = OpenRequest {
            session_id: [0; 16],
            host_id: [0; 16],
            generation: U64::ZERO,
            epoch: U64::ZERO,
            connection: U16::ZERO,
            mode: 0,
            flags: 0,
            volume_len: U16::ZERO,
            reserved: [0; 2],
            host_boot: U64::ZERO,
            host_name: [0; HOST_NAME_BYTES],
            volume: [0; 256],
        };
        for (to, from) in request.volume.iter_mut().zip(volume.as_str().bytes()) {
            *to = from;
        }
        // A checked name has at most 255 bytes.
        request.volume_len = U16::new(volume.as_str().len() as u16);
        for (to, from) in request.host_name.iter_mut().zip(host_name.bytes()) {
            *to = from;
        }
        request
    }

    /// Reads a request; `None` if `bytes` is not exactly one.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        Self::read_from_bytes(bytes).ok()
    }

    /// The name of the volume, checked.
    pub fn volume(&self) -> Result<VolumeName<'_>, NameError> {
        let len = usize::from(self.volume_len.get());
        if len > MAX_VOLUME_NAME_BYTES {
            return Err(NameError::TooLong);
        }
        let bytes = self.volume.get(..len).unwrap_or(&[]);
        let name = core::str::from_utf8(bytes).map_err(|error| NameError::BadCharacter {
            byte: bytes.get(error.valid_up_to()).copied().unwrap_or(0),
            at: error.valid_up_to(),
        })?;
        VolumeName::parse(name)
    }

    /// The host's name for people; empty if it has none.
    pub fn host_name(&self) -> &str {
        text_of(&self.host_name)
    }

    /// Who else may have the volume open.
    pub fn mode(&self) -> Mode {
        Mode::from_wire(self.mode)
    }

    /// The modifiers.
    pub fn flags(&self) -> OpenFlags {
        OpenFlags(self.flags)
    }
}

/// The payload of an OPEN_REPLY with status `Ok`, followed by `node_count` [`NodeAddress`]es.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct OpenReply {
    /// Size, limits and abilities.
    pub geometry: Geometry,
    /// Identity of the volume, for `/dev/disk/by-id`; stays the same wherever it is served.
    pub volume_id: [u8; 16],
    /// Identity of the node's volatile state: another one means that what was answered but not
    /// flushed may be gone.
    pub boot_id: [u8; 16],
    /// The generation in force.
    pub generation: U64,
    /// How often the node sends PING when it has nothing else to say, in milliseconds; zero: never.
    pub heartbeat_interval_ms: U32,
    /// After how much silence the node gives a connection up, in milliseconds; zero: never.
    pub heartbeat_timeout_ms: U32,
    /// How many connections the session may have; at least 1.
    pub max_connections: U16,
    /// How many requests may be in flight on each; at least 1.
    pub max_depth: U16,
    /// How many node addresses follow.
    pub node_count: U16,
    /// Zero.
    pub reserved: [u8; 2],
    /// How many bytes of unanswered WRITE payload may be on one connection; at least
    /// `max_io_bytes`.
    pub max_inflight_bytes: U32,
    /// Zero.
    pub reserved2: [u8; 20],
}

const _: () = assert!(core::mem::size_of::<OpenReply>() == OPEN_REPLY_BYTES);

impl OpenReply {
    /// Reads the fixed part; the rest of `bytes` is the node addresses.
    pub fn parse(bytes: &[u8]) -> Option<(Self, &[u8])> {
        Self::read_from_prefix(bytes).ok()
    }
}

/// Where a node can be reached.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct NodeAddress {
    /// An IPv6 address in network order; IPv4 as `::ffff:a.b.c.d`.
    pub ip: [u8; 16],
    /// TCP port.
    pub port: U16,
    /// Zero.
    pub reserved: [u8; 2],
    /// Lower is tried first.
    pub priority: U32,
}

const _: () = assert!(core::mem::size_of::<NodeAddress>() == NODE_ADDRESS_BYTES);

/// The payload of an OPEN_REPLY with another status, followed by `text_len` bytes of UTF-8 that
/// say what is wrong and what to do.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    FromBytes,
    IntoBytes,
    KnownLayout,
    Immutable,
    Unaligned,
)]
#[repr(C)]
pub struct Refusal {
    /// `HeldByOther`: the host that holds the volume; else zero.
    pub holder: [u8; 16],
    /// `HeldByOther`: since when, in seconds of Unix time; else zero.
    pub held_since_s: U64,
    /// `StaleGeneration`: the generation in force; else zero.
    pub generation: U64,
    /// When it makes sense to try again, in milliseconds; zero: not without a change.
    pub retry_after_ms: U32,
    /// Length of the text.
    pub text_len: U16,
    /// Zero.
    pub reserved: [u8; 2],
}

const _: () = assert!(core::mem::size_of::<Refusal>() == REFUSAL_BYTES);

impl Refusal {
    /// Reads a refusal and its text; `None` if `bytes` is too short. A text that is too long, cut
    /// short, not UTF-8 or with control characters in it reads as empty.
    pub fn parse(bytes: &[u8]) -> Option<(Self, &str)> {
        let (refusal, rest) = Self::read_from_prefix(bytes).ok()?;
        let len = usize::from(refusal.text_len.get());
        let text = if len <= MAX_REFUSAL_TEXT_BYTES {
            rest.get(..len)
        } else {
            None
        };
        Some((refusal, plain_text(text.unwrap_or_default())))
    }
}
