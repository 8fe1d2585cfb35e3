// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What can go wrong, in kinds that code can match and words for people.

use neonsan_proto::{Kind, Status};
use neonsan_session::CloseCause;
use std::net::SocketAddr;

/// What can go wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The caller asked for something impossible.
    #[error("{0}")]
    Misuse(String),
    /// No node could be reached, or none speaks the protocol: the last one's failure.
    #[error("node {node}: {cause}")]
    Connect {
        /// The node that was tried last.
        node: SocketAddr,
        /// Why it failed.
        cause: CloseCause,
    },
    /// A node refused to open the volume.
    #[error("node {node} refused: {}", if .text.is_empty() { .status.to_string() } else { .text.clone() })]
    Refused {
        /// The node.
        node: SocketAddr,
        /// Why.
        status: Status,
        /// The node's words.
        text: String,
    },
    /// The node answered a request with another status than `Ok`.
    #[error("{kind:?} of {length} bytes at offset {offset} failed: {status}")]
    Io {
        /// What was asked.
        kind: Kind,
        /// Where.
        offset: u64,
        /// How much.
        length: u32,
        /// The answer.
        status: Status,
    },
    /// The node restarted, and writes that it had answered but not made durable may be gone.
    #[error("the node restarted: writes since the last flush may be gone")]
    WritesLost,
    /// The volume is lost for longer than the loss timeout, or for good.
    #[error("the volume is lost: {0}")]
    Lost(CloseCause),
    /// The client was detached.
    #[error("the client was detached")]
    Detached,
}
