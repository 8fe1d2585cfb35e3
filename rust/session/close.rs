// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Why a connection ends: one list for both halves, with a sentence for people.

use core::fmt;
use neonsan_proto::{HelloError, Status};

/// Why a connection ended, or was never made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCause {
    // What the network did.
    /// The connection could not be made: the error number of the operating system, positive.
    ConnectFailed(i32),
    /// Connecting and shaking hands took longer than the connect timeout.
    ConnectTimeout,
    /// The peer closed the connection.
    PeerClosed,
    /// The socket reported this error number (positive).
    SocketError(i32),
    /// A request was not answered within the request timeout.
    RequestTimeout,
    /// Nothing was heard within the heartbeat timeout.
    HeartbeatTimeout,

    // What the handshake found.
    /// The peer's first bytes were no hello.
    NotNeonsan(HelloError),
    /// The versions do not overlap; the peer's are these.
    Version {
        /// Lowest version of the peer.
        min: u16,
        /// Highest version of the peer.
        max: u16,
    },
    /// The peer refused with this status.
    Refused(Status),
    /// The peer stated a size or limits that make no sense: the field.
    BadGeometry(&'static str),
    /// The volume came back with another identity, or smaller limits than the device was made for.
    VolumeChanged(&'static str),
    /// The volume came back with this size in bytes, which is smaller than the device's: it waits until a
    /// person decides, or the volume has grown again.
    VolumeShrunk(u64),

    // What the peer did wrong afterwards.
    /// The checksum of a header was wrong.
    HeaderChecksum,
    /// The checksum of a payload was wrong.
    PayloadChecksum,
    /// A message of a kind that nobody defined.
    UnknownKind(u8),
    /// A message of a kind that has no place here.
    UnexpectedKind(u8),
    /// A length beyond what was agreed.
    LengthLimit(u32),
    /// A reply to a request that was never made on this connection.
    UnknownCookie,
    /// A reply to a request that has been answered before.
    DuplicateReply,
    /// A reply with another amount of payload than the request asked for.
    ReplyLength {
        /// What the request asked for.
        expected: u32,
        /// What the reply announced.
        got: u32,
    },
    /// A status that this version does not define.
    UnknownStatus(u16),
    /// An event that makes no sense.
    BadEvent,
    /// More requests, or more bytes of writes, in flight than agreed.
    TooMuchInFlight,

    // What was decided.
    /// A newer connection took this one's place, or a newer generation of the session began.
    Replaced,
    /// Another host took the volume.
    Fenced,
    /// The node is about to stop.
    GoingAway,
    /// The node's storage may have lost answered writes: the session must be opened again, which
    /// tells the client of another boot id.
    WritesLost,
    /// The session ended in order.
    Released,
    /// The device was detached.
    Detached,
    /// A resource of the own side ran out.
    NoMemory,
}

impl CloseCause {
    /// Whether the peer broke the protocol (and not the network, or a decision).
    pub const fn is_violation(&self) -> bool {
        match self {
            CloseCause::NotNeonsan(_)
            | CloseCause::BadGeometry(_)
            | CloseCause::HeaderChecksum
            | CloseCause::PayloadChecksum
            | CloseCause::UnknownKind(_)
            | CloseCause::UnexpectedKind(_)
            | CloseCause::LengthLimit(_)
            | CloseCause::UnknownCookie
            | CloseCause::DuplicateReply
            | CloseCause::ReplyLength { .. }
            | CloseCause::UnknownStatus(_)
            | CloseCause::BadEvent
            | CloseCause::TooMuchInFlight => true,
            CloseCause::ConnectFailed(_)
            | CloseCause::ConnectTimeout
            | CloseCause::PeerClosed
            | CloseCause::SocketError(_)
            | CloseCause::RequestTimeout
            | CloseCause::HeartbeatTimeout
            | CloseCause::Version { .. }
            | CloseCause::Refused(_)
            | CloseCause::VolumeChanged(_)
            | CloseCause::VolumeShrunk(_)
            | CloseCause::Replaced
            | CloseCause::Fenced
            | CloseCause::GoingAway
            | CloseCause::WritesLost
            | CloseCause::Released
            | CloseCause::Detached
            | CloseCause::NoMemory => false,
        }
    }

    /// A short name in kebab case, for counters, events and JSON.
    pub const fn name(&self) -> &'static str {
        match self {
            CloseCause::ConnectFailed(_) => "connect-failed",
            CloseCause::ConnectTimeout => "connect-timeout",
            CloseCause::PeerClosed => "peer-closed",
            CloseCause::SocketError(_) => "socket-error",
            CloseCause::RequestTimeout => "request-timeout",
            CloseCause::HeartbeatTimeout => "heartbeat-timeout",
            CloseCause::NotNeonsan(_) => "not-neonsan",
            CloseCause::Version { .. } => "version",
            CloseCause::Refused(_) => "refused",
            CloseCause::BadGeometry(_) => "bad-geometry",
            CloseCause::VolumeChanged(_) => "volume-changed",
            CloseCause::VolumeShrunk(_) => "volume-shrunk",
            CloseCause::HeaderChecksum => "header-checksum",
            CloseCause::PayloadChecksum => "payload-checksum",
            CloseCause::UnknownKind(_) => "unknown-kind",
            CloseCause::UnexpectedKind(_) => "unexpected-kind",
            CloseCause::LengthLimit(_) => "length-limit",
            CloseCause::UnknownCookie => "unknown-cookie",
            CloseCause::DuplicateReply => "duplicate-reply",
            CloseCause::ReplyLength { .. } => "reply-length",
            CloseCause::UnknownStatus(_) => "unknown-status",
            CloseCause::BadEvent => "bad-event",
            CloseCause::TooMuchInFlight => "too-much-in-flight",
            CloseCause::Replaced => "replaced",
            CloseCause::Fenced => "fenced",
            CloseCause::GoingAway => "going-away",
            CloseCause::WritesLost => "writes-lost",
            CloseCause::Released => "released",
            CloseCause::Detached => "detached",
            CloseCause::NoMemory => "no-memory",
        }
    }
}

impl fmt::Display for CloseCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CloseCause::ConnectFailed(errno) => {
                write!(f, "cannot connect (error {errno}): is the node running there, and its port right?")
            }
            CloseCause::ConnectTimeout => f.write_str("no answer to connecting within the connect timeout"),
            CloseCause::PeerClosed => f.write_str("the peer closed the connection"),
            CloseCause::SocketError(errno) => write!(f, "the socket failed (error {errno})"),
            CloseCause::RequestTimeout => f.write_str("a request was not answered within the request timeout"),
            CloseCause::HeartbeatTimeout => f.write_str("nothing was heard within the heartbeat timeout"),
            CloseCause::NotNeonsan(HelloError::Http) => {
                f.write_str("the peer speaks HTTP, which is for the node's control API: is the port right?")
            }
            CloseCause::NotNeonsan(HelloError::SameSide) => {
                f.write_str("the peer speaks the same side of the protocol: is the address right?")
            }
            CloseCause::NotNeonsan(HelloError::NotNeonsan | HelloError::Short) => {
                f.write_str("the peer does not speak NeonSAN: is the port right?")
            }
            CloseCause::Version { min, max }
                if *min <= neonsan_proto::MAX_VERSION && neonsan_proto::MIN_VERSION <= *max =>
            {
                write!(
                    f,
                    "the peer did not agree to a version of the protocol, though it claims to speak \
                     {min} to {max} as this side does: its software is faulty"
                )
            }
            CloseCause::Version { min, max } => write!(
                f,
                "the peer speaks versions {min} to {max} of the protocol, this side {} to {}: upgrade the older one",
                neonsan_proto::MIN_VERSION,
                neonsan_proto::MAX_VERSION
            ),
            CloseCause::Refused(status) => write!(f, "refused: {status}"),
            CloseCause::BadGeometry(field) => write!(f, "the node stated a {field} that makes no sense"),
            CloseCause::VolumeChanged(field) => write!(f, "the volume came back with another {field}"),
            CloseCause::VolumeShrunk(bytes) => {
                write!(f, "the volume has only {bytes} bytes now, fewer than the device: a person must decide")
            }
            CloseCause::HeaderChecksum => f.write_str("a header arrived damaged"),
            CloseCause::PayloadChecksum => f.write_str("a payload arrived damaged"),
            CloseCause::UnknownKind(kind) => write!(f, "a message of unknown kind {kind:#04x} arrived"),
            CloseCause::UnexpectedKind(kind) => {
                write!(f, "a message of kind {kind:#04x} arrived where it has no place")
            }
            CloseCause::LengthLimit(length) => write!(f, "a message announced {length} bytes, more than agreed"),
            CloseCause::UnknownCookie => f.write_str("a reply arrived to a request that was not made"),
            CloseCause::DuplicateReply => f.write_str("a second reply arrived to one request"),
            CloseCause::ReplyLength { expected, got } => {
                write!(f, "a reply carries {got} bytes where {expected} were asked for")
            }
            CloseCause::UnknownStatus(status) => write!(f, "a reply has the unknown status {status}"),
            CloseCause::BadEvent => f.write_str("an event arrived that makes no sense"),
            CloseCause::TooMuchInFlight => f.write_str("more was sent at once than was agreed"),
            CloseCause::Replaced => f.write_str("a newer connection took the place of this one"),
            CloseCause::Fenced => f.write_str("another host took the volume"),
            CloseCause::GoingAway => f.write_str("the node is about to stop"),
            CloseCause::WritesLost => {
                f.write_str("the node's storage may have lost answered writes: the session must be opened again")
            }
            CloseCause::Released => f.write_str("the session ended"),
            CloseCause::Detached => f.write_str("the device was detached"),
            CloseCause::NoMemory => f.write_str("out of memory"),
        }
    }
}
