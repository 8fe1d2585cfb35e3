// SPDX-License-Identifier: GPL-2.0

//! What a device is attached with, and why attaching or detaching may fail.

use crate::uapi;
use core::fmt;
use kernel::prelude::*;
use neonsan_kernel::net::{Net, SocketAddr};
use neonsan_proto::{HOST_NAME_BYTES, MAX_NODES, MAX_VOLUME_NAME_BYTES};
use neonsan_session::{client::MAX_CONNECTIONS, CloseCause, Timeouts};

/// Tags of a hardware queue unless told otherwise.
pub(crate) const DEFAULT_QUEUE_DEPTH: u32 = 128;

/// Most tags of a hardware queue: each has a header in a page of its connection.
pub(crate) const MAX_QUEUE_DEPTH: u32 = 1024;

/// Most poll queues: one connection at least is for all other requests.
pub(crate) const MAX_POLL_QUEUES: u32 = MAX_CONNECTIONS as u32 - 1;

/// Text of bounded length, cut where it does not fit.
#[derive(Clone, Copy)]
pub(crate) struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    /// An empty text.
    pub(crate) const fn new() -> Self {
        Text {
            bytes: [0; N],
            len: 0,
        }
    }

    /// A text from what it says.
    pub(crate) fn from_fmt(args: fmt::Arguments<'_>) -> Self {
        let mut this = Text::new();
        // Writing never fails: what does not fit is cut.
        let _ = fmt::Write::write_fmt(&mut this, args);
        this
    }

    /// A text from a string.
    pub(crate) fn from_str(s: &str) -> Self {
        Text::from_fmt(format_args!("{s}"))
    }

    /// What it says.
    pub(crate) fn as_str(&self) -> &str {
        self.bytes
            .get(..self.len)
            .and_then(|bytes| core::str::from_utf8(bytes).ok())
            .unwrap_or("")
    }
}

impl<const N: usize> fmt::Write for Text<N> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        let room = N - self.len;
        let mut len = s.len().min(room);
        while !s.is_char_boundary(len) {
            len -= 1;
        }
        if let Some(to) = self.bytes.get_mut(self.len..self.len + len) {
            to.copy_from_slice(s.as_bytes().get(..len).unwrap_or_default());
            self.len += len;
        }
        Ok(())
    }
}

impl<const N: usize> fmt::Display for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<const N: usize> kernel::fmt::Display for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A message for people: as long as an extended ack takes.
pub(crate) type Message = Text<{ uapi::MESSAGE_MAX_LEN }>;

/// A node that serves the volume.
#[derive(Clone, Copy)]
pub(crate) struct Node {
    /// Where it listens.
    pub(crate) addr: SocketAddr,
    /// The name that was resolved to the address, or empty.
    pub(crate) name: Text<{ uapi::HOST_NAME_MAX_LEN }>,
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.as_str().is_empty() {
            write!(f, "{}", self.addr)
        } else {
            write!(f, "{} ({})", self.name, self.addr)
        }
    }
}

/// What a device is attached with. Large: keep it in a box.
pub(crate) struct AttachParams {
    /// `pool/volume` or `pool/volume@snapshot`.
    pub(crate) volume: Text<MAX_VOLUME_NAME_BYTES>,
    /// At least one, in the order in which they are tried.
    pub(crate) nodes: KVec<Node>,
    /// How the volume is opened.
    pub(crate) mode: uapi::Mode,
    /// Identity of the host, not zero.
    pub(crate) host_id: [u8; 16],
    /// Identity of its boot; zero: not said.
    pub(crate) host_boot: u64,
    /// Its name for people.
    pub(crate) host_name: Text<HOST_NAME_BYTES>,
    /// The number in the device's name; `None`: the lowest that is free.
    pub(crate) index: Option<u32>,
    /// How many connections, poll queues not counted; `None`: one for each CPU. Never more than
    /// the node allows.
    pub(crate) connections: Option<u32>,
    /// How many connections more, for polled requests only.
    pub(crate) poll_queues: u32,
    /// How many requests may be in flight on each connection; `None`: [`DEFAULT_QUEUE_DEPTH`].
    pub(crate) queue_depth: Option<u32>,
    /// How long to wait for what.
    pub(crate) timeouts: Timeouts,
    /// What is protected on the wire: [`uapi::checksum`] bits.
    pub(crate) checksums: u32,
    /// Take an exclusive volume from the host that holds it.
    pub(crate) force: bool,
    /// The network namespace to connect in: that of the netlink socket, so the initial one.
    pub(crate) net: Net,
}

impl AttachParams {
    /// How many connections are wished for in all.
    pub(crate) fn all_connections(&self) -> u32 {
        let others = self
            .connections
            .unwrap_or_else(neonsan_kernel::cpu::num_online);
        let room = MAX_CONNECTIONS as u32 - self.poll_queues.min(MAX_POLL_QUEUES);
        others.clamp(1, room) + self.poll_queues.min(MAX_POLL_QUEUES)
    }
}

/// The most nodes of a device.
pub(crate) const MAX_DEVICE_NODES: usize = MAX_NODES;

/// Why a device could not be attached or detached.
#[derive(Clone)]
pub(crate) struct DeviceError {
    /// For programs.
    pub(crate) error: Error,
    /// For people: what is wrong and what to do.
    pub(crate) message: Message,
}

impl DeviceError {
    /// An error with its message.
    #[inline(never)]
    pub(crate) fn new(error: Error, args: fmt::Arguments<'_>) -> Self {
        DeviceError {
            error,
            message: Message::from_fmt(args),
        }
    }

    /// The error of a connection that could not be made; `text` is the node's own, may be empty.
    #[inline(never)]
    pub(crate) fn from_cause(cause: CloseCause, node: &Node, text: &str) -> Self {
        let error = crate::error::errno_of(cause);
        if text.is_empty() {
            DeviceError::new(error, format_args!("{node}: {cause}"))
        } else {
            DeviceError::new(error, format_args!("{node}: {text}"))
        }
    }
}

impl From<Error> for DeviceError {
    fn from(error: Error) -> Self {
        DeviceError::new(
            error,
            format_args!("the kernel refused (error {})", -error.to_errno()),
        )
    }
}
