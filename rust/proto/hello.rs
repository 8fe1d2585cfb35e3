// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The first 64 bytes each way. Their layout never changes, so that any two versions can tell each
//! other that they do not fit.

use crate::{Features, Status, MAX_VERSION, MIN_VERSION};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::FromBytes as _;
use zerocopy_derive::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The size of either hello on the wire.
pub const HELLO_BYTES: usize = 64;

/// How many bytes at the start of a hello tell a peer from a stranger.
pub const MAGIC_BYTES: usize = 8;

const CLIENT_MAGIC: [u8; MAGIC_BYTES] = *b"NEONSANc";
const SERVER_MAGIC: [u8; MAGIC_BYTES] = *b"NEONSANs";

/// Why the first bytes of a peer are no hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HelloError {
    /// The peer speaks HTTP: most likely the port of the node's control API.
    Http,
    /// The peer is of the same side: a client reached a client, or a node a node.
    SameSide,
    /// The peer speaks something else.
    NotNeonsan,
    /// Fewer than [`HELLO_BYTES`] bytes were given.
    Short,
}

/// Names what the first bytes are if they are not `expected`.
fn check_magic(magic: &[u8; MAGIC_BYTES], expected: &[u8; MAGIC_BYTES]) -> Result<(), HelloError> {
    if magic == expected {
        Ok(())
    } else if magic == &CLIENT_MAGIC || magic == &SERVER_MAGIC {
        Err(HelloError::SameSide)
    } else if magic.starts_with(b"HTTP/")
        || magic.starts_with(b"GET ")
        || magic.starts_with(b"POST ")
    {
        Err(HelloError::Http)
    } else {
        Err(HelloError::NotNeonsan)
    }
}

/// Fits a product name into its field: cut at the end of the field, zero-filled.
fn product_field(product: &str) -> [u8; 32] {
    let mut field = [0; 32];
    for (to, from) in field.iter_mut().zip(product.bytes()) {
        *to = from;
    }
    field
}

/// The readable part of a zero-filled field; empty if it is no [plain text](plain_text).
pub(crate) fn text_of(field: &[u8]) -> &str {
    let end = field.iter().position(|&b| b == 0).unwrap_or(field.len());
    let (text, _) = field.split_at(end);
    plain_text(text)
}

/// Text of a peer that may go to logs and terminals as it is: UTF-8 without control characters,
/// which could forge log lines or steer a terminal. Anything else reads as empty.
pub(crate) fn plain_text(bytes: &[u8]) -> &str {
    match core::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text,
        _ => "",
    }
}

/// What a client says first.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ClientHello {
    magic: [u8; 8],
    min_version: U16,
    max_version: U16,
    reserved: U32,
    offered_features: U64,
    required_features: U64,
    product: [u8; 32],
}

const _: () = assert!(core::mem::size_of::<ClientHello>() == HELLO_BYTES);

impl ClientHello {
    /// The hello of this version. `required` must be a part of `offered`.
    pub fn new(offered: Features, required: Features, product: &str) -> Self {
        ClientHello {
            magic: CLIENT_MAGIC,
            min_version: U16::new(MIN_VERSION),
            max_version: U16::new(MAX_VERSION),
            reserved: U32::ZERO,
            offered_features: U64::new(offered.union(required).0),
            required_features: U64::new(required.0),
            product: product_field(product),
        }
    }

    /// The same hello for another range of versions (for tests and for probing a node).
    pub fn with_versions(self, min: u16, max: u16) -> Self {
        ClientHello {
            min_version: U16::new(min),
            max_version: U16::new(max),
            ..self
        }
    }

    /// Reads a hello from the first [`HELLO_BYTES`] of `bytes`.
    pub fn parse(bytes: &[u8]) -> Result<Self, HelloError> {
        let (hello, _) = Self::read_from_prefix(bytes).map_err(|_| HelloError::Short)?;
        check_magic(&hello.magic, &CLIENT_MAGIC)?;
        Ok(hello)
    }

    /// Whether the first bytes of a peer begin a client's hello.
    pub fn check_magic(magic: &[u8; MAGIC_BYTES]) -> Result<(), HelloError> {
        check_magic(magic, &CLIENT_MAGIC)
    }

    /// The lowest and the highest version that the client speaks.
    pub fn versions(&self) -> (u16, u16) {
        (self.min_version.get(), self.max_version.get())
    }

    /// The features that the client can use.
    pub fn offered(&self) -> Features {
        Features(self.offered_features.get())
    }

    /// The features without which the client does not want the connection.
    pub fn required(&self) -> Features {
        Features(self.required_features.get())
    }

    /// Name and version of the client's software, for logs.
    pub fn product(&self) -> &str {
        text_of(&self.product)
    }

    /// The version and features that a node with `supported` features agrees to, or the refusal.
    pub fn negotiate(&self, supported: Features) -> Result<(u16, Features), Status> {
        let (min, max) = self.versions();
        let version = if max < MAX_VERSION { max } else { MAX_VERSION };
        if min > max || version < min || version < MIN_VERSION {
            return Err(Status::VersionUnsupported);
        }
        let mut agreed = self
            .offered()
            .union(self.required())
            .intersection(supported);
        if !agreed.contains(Features::HEADER_CRC) {
            agreed = agreed.difference(Features::PAYLOAD_CRC);
        }
        if !agreed.contains(self.required()) {
            return Err(Status::FeatureUnsupported);
        }
        Ok((version, agreed))
    }
}

/// What a node answers first.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned,
)]
#[repr(C)]
pub struct ServerHello {
    magic: [u8; 8],
    version: U16,
    min_version: U16,
    max_version: U16,
    status: U16,
    features: U64,
    reserved: U64,
    product: [u8; 32],
}

const _: () = assert!(core::mem::size_of::<ServerHello>() == HELLO_BYTES);

impl ServerHello {
    /// The answer that agrees to `version` and `features`.
    pub fn accept(version: u16, features: Features, product: &str) -> Self {
        ServerHello {
            magic: SERVER_MAGIC,
            version: U16::new(version),
            min_version: U16::new(MIN_VERSION),
            max_version: U16::new(MAX_VERSION),
            status: U16::ZERO,
            features: U64::new(features.0),
            reserved: U64::ZERO,
            product: product_field(product),
        }
    }

    /// The answer that refuses; `supported` tells what the node could have agreed to.
    pub fn refuse(status: Status, supported: Features, product: &str) -> Self {
        ServerHello {
            status: U16::new(status.to_wire()),
            ..Self::accept(0, supported, product)
        }
    }

    /// Reads a hello from the first [`HELLO_BYTES`] of `bytes`.
    pub fn parse(bytes: &[u8]) -> Result<Self, HelloError> {
        let (hello, _) = Self::read_from_prefix(bytes).map_err(|_| HelloError::Short)?;
        check_magic(&hello.magic, &SERVER_MAGIC)?;
        Ok(hello)
    }

    /// Whether the first bytes of a peer begin a node's hello.
    pub fn check_magic(magic: &[u8; MAGIC_BYTES]) -> Result<(), HelloError> {
        check_magic(magic, &SERVER_MAGIC)
    }

    /// The version that the node chose; zero in a refusal.
    pub fn version(&self) -> u16 {
        self.version.get()
    }

    /// The lowest and the highest version that the node speaks.
    pub fn versions(&self) -> (u16, u16) {
        (self.min_version.get(), self.max_version.get())
    }

    /// Whether the node agrees, or why not.
    pub fn status(&self) -> Status {
        Status::from_wire(self.status.get())
    }

    /// The features in force; in a refusal, those that the node has.
    pub fn features(&self) -> Features {
        Features(self.features.get())
    }

    /// Name and version of the node's software, for logs.
    pub fn product(&self) -> &str {
        text_of(&self.product)
    }
}
