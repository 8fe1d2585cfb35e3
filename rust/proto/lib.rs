// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The NeonSAN wire protocol, version 1, and nothing else.
//!
//! Every structure here is fixed-size, little-endian, without padding, and is declared once for
//! the kernel module and for the user-space tools. The normative text is
//! `Documentation/protocol.rst`; a test in this crate holds its tables against these types.
//!
//! # No-panic contract
//!
//! Nothing in this crate panics, allocates or reads memory it was not given, whatever the bytes.
//! Values that this version does not know survive decoding (`Status::Unknown(n)` and the like), so
//! that a peer can be answered, and its mistake named, instead of being misread.

#![cfg_attr(not(any(MODULE, test)), no_std)]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod features;
mod geometry;
mod header;
mod hello;
mod name;
mod open;
mod open_enum;
mod status;

pub use features::{Capabilities, Features, OpenFlags, RequestFlags};
pub use geometry::{Geometry, GeometryError, GEOMETRY_BYTES};
pub use header::{EventKind, Header, Kind, HEADER_BYTES};
pub use hello::{ClientHello, HelloError, ServerHello, HELLO_BYTES, MAGIC_BYTES};
pub use name::{NameError, VolumeName, MAX_VOLUME_NAME_BYTES};
pub use open::{
    Mode, NodeAddress, OpenReply, OpenRequest, Refusal, HOST_NAME_BYTES, NODE_ADDRESS_BYTES,
    OPEN_REPLY_BYTES, OPEN_REQUEST_BYTES, REFUSAL_BYTES,
};
pub use status::Status;

/// The lowest protocol version that this code speaks.
pub const MIN_VERSION: u16 = 1;

/// The highest protocol version that this code speaks.
pub const MAX_VERSION: u16 = 1;

/// The TCP port that a node listens on unless told otherwise. It is in the range that IANA leaves
/// to users (1024 to 49151), without a registration.
pub const DEFAULT_PORT: u16 = 9666;

/// The most node addresses that an [`OpenReply`] may be followed by.
pub const MAX_NODES: usize = 16;

/// The most bytes of readable text in a [`Refusal`].
pub const MAX_REFUSAL_TEXT_BYTES: usize = 512;

/// The most bytes that one message may carry behind its header, whatever a node offers.
///
/// A reader refuses more before it reserves anything. 32 MiB is far above any `max_io_bytes` that
/// makes sense and far below what could hurt a host.
pub const MAX_PAYLOAD_BYTES: u32 = 32 * 1024 * 1024;

/// The most connections that one session may have.
pub const MAX_CONNECTIONS: u16 = 64;

/// The most requests in flight on one connection: the width of a tag in a cookie.
pub const MAX_DEPTH: u16 = 4096;

/// A function that computes CRC-32C (Castagnoli, as in RFC 3720 appendix B.4) of some bytes.
///
/// The kernel has its own implementation and user space another; this crate takes either.
pub type Crc32c = fn(&[u8]) -> u32;
