// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The terms in which the control machine and its caller speak: what it is made for, what it says
//! is to be done, and the states that people see. The machine itself is in `session.rs`.

use crate::{CloseCause, Generation, Instant, Timeouts};
use neonsan_proto::Status;

/// The index of a node that is in use, and that the caller's list of addresses has no more (see
/// [`Session::replace_nodes`](super::Session::replace_nodes)).
pub const UNLISTED: u16 = u16::MAX;

/// How long a device is without service before people are told again.
pub const STILL_LOST_FIRST_MS: u64 = 5_000;

/// After how long they are told each time from then on.
pub const STILL_LOST_EVERY_MS: u64 = 30_000;

/// How long the machine waits before it looks again whether a volume that was shrunk has grown.
pub const SHRUNK_RETRY_MS: u64 = 5_000;

/// What the machine is made for.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// How many connections the client would like; the node may allow fewer.
    pub connections: u16,
    /// How many addresses the caller knows; the machine picks one by its index.
    pub nodes: u16,
    /// The named timeouts.
    pub timeouts: Timeouts,
    /// Spreads retries of many hosts; any value.
    pub seed: u64,
    /// What the session has used before; [`Used::default`] for one that begins.
    pub used: Used,
}

/// How far a session has counted: with its identity, all that is needed to resume it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Its highest generation.
    pub generation: Generation,
    /// The highest epoch of any of its connections.
    pub epoch: u64,
}

/// Whether a node that answers an OPEN of a *resumed* session like this is to be asked again as a
/// new session: the old one is lost, but the volume may be had, or the refusal of a new one says
/// who has it.
///
/// Resuming is an offer to a node that may still hold the volume for a session which was left
/// without telling it. Nothing waits to be sent again, so nothing is lost with the old session.
pub const fn is_resumption_refused(cause: CloseCause) -> bool {
    matches!(
        cause,
        CloseCause::Refused(
            Status::Fenced | Status::StaleGeneration | Status::BadOpen | Status::HeldByOther
        )
    )
}

/// How a new connection introduces itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectKind {
    /// Begin the session, or promote it to a newer generation; always connection 0.
    Open {
        /// The new generation.
        generation: Generation,
        /// How often this connection was made.
        epoch: u64,
        /// The device was usable before: the volume is only to be had back, never to be taken.
        promote: bool,
    },
    /// Add a connection to the session, or replace one.
    Join {
        /// The generation in force.
        generation: Generation,
        /// The index of the connection.
        connection: u16,
        /// How often this connection was made.
        epoch: u64,
    },
}

/// What the caller is to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Connect to the node, shake hands, and report [`Session::on_opened`](super::Session::on_opened) or
    /// [`Session::on_connect_failed`](super::Session::on_connect_failed) before the deadline.
    Connect {
        /// The connection.
        connection: u16,
        /// Index of the node's address, or [`UNLISTED`].
        node: u16,
        /// How to introduce it.
        kind: ConnectKind,
        /// When to give up by itself.
        deadline: Instant,
    },
    /// The connection is in force: send its parked requests again, then let new ones through.
    Resume {
        /// The connection.
        connection: u16,
    },
    /// Let no new request through, close the socket, wait until neither side of it touches a
    /// request, park all requests of the connection, report [`Session::on_drained`](super::Session::on_drained).
    Stop {
        /// The connection.
        connection: u16,
        /// Why.
        cause: CloseCause,
    },
    /// Send a PING.
    Ping {
        /// The connection.
        connection: u16,
    },
    /// End all parked requests with an error, and fail new ones at once, until the next `Resume`.
    /// The connections are idle.
    FailRequests {
        /// Why.
        cause: CloseCause,
    },
    /// Tell people.
    Notify(Notice),
}

/// Something people want to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The device has no service: its requests wait.
    Lost {
        /// Why.
        cause: CloseCause,
    },
    /// The device has had no service for [`STILL_LOST_FIRST_MS`], and then for each
    /// [`STILL_LOST_EVERY_MS`] more.
    StillLost {
        /// For how long.
        lost_for_ms: u64,
        /// Why the last try came to nothing.
        cause: CloseCause,
    },
    /// The device has service again.
    Recovered {
        /// How long it had none.
        lost_for_ms: u64,
    },
}

/// Where a connection is. See the module's diagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// Waiting for its next try.
    Idle {
        /// When that is; `None`: when the session is live.
        retry_at: Option<Instant>,
    },
    /// Being made.
    Connecting {
        /// When that is given up.
        deadline: Instant,
    },
    /// In force.
    Live,
    /// Lost; its requests may still be touched.
    Stopping,
}

impl ConnectionState {
    /// A short name, for state dumps.
    pub const fn name(&self) -> &'static str {
        match self {
            ConnectionState::Idle { .. } => "idle",
            ConnectionState::Connecting { .. } => "connecting",
            ConnectionState::Live => "live",
            ConnectionState::Stopping => "stopping",
        }
    }
}

/// Where the session is. See the module's diagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// Connection 0 is to be opened with a new generation; no other exists.
    Opening,
    /// The node knows the session.
    Live,
    /// The node does not know the session any more: all connections are being stopped.
    Reopening,
    /// Nothing can be done without a person.
    Failed(CloseCause),
    /// The device is being detached.
    Closed,
}

impl SessionState {
    /// A short name, for state dumps.
    pub const fn name(&self) -> &'static str {
        match self {
            SessionState::Opening => "opening",
            SessionState::Live => "live",
            SessionState::Reopening => "reopening",
            SessionState::Failed(_) => "failed",
            SessionState::Closed => "closed",
        }
    }
}
