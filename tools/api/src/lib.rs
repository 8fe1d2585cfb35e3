// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The control API of a NeonSAN storage node: HTTP with JSON bodies.
//!
//! The node serves these types, the command line and tests use them; the same
//! description for other languages is `Documentation/node-api/openapi.yaml`.
//!
//! Conventions that hold for every type here:
//!
//! * sizes and counts of bytes are plain integers in bytes and say so in
//!   their names (`size_bytes`);
//! * fields may be added within version 1 of the API, so a reader ignores
//!   fields it does not know; fields are neither renamed nor removed;
//! * a request with a field the node does not know is refused, since a typing
//!   error must not silently give a volume other properties than asked for;
//! * an answer with a status of 400 or above has an [`ApiError`] as its body.

mod error;
mod name;
mod time;
mod types;

#[cfg(feature = "client")]
mod client;

pub use error::{ApiError, ErrorCode};
pub use name::{NameError, SnapshotName, VolumeName, MAX_NAME_BYTES};
pub use time::show_time;
pub use types::{
    EngineHealth, EngineInfo, EngineState, Health, HealthStatus, NodeEntry, NodeInfo, NodeLimits,
    NodeList, NodeState, OpenMode, SessionInfo, SnapshotClone, SnapshotCreate, SnapshotInfo,
    SnapshotList, VolumeCreate, VolumeInfo, VolumeLimits, VolumeList, VolumeResize,
};

#[cfg(feature = "client")]
pub use client::{Client, ClientError, Endpoint, DEFAULT_PATIENCE};

/// Where the control API listens when nothing else is configured.
pub const DEFAULT_CONTROL_SOCKET: &str = "/run/neonsan/control.sock";

/// The port of the control API where an address is given without one.
pub const DEFAULT_CONTROL_PORT: u16 = 9667;

/// Where the data protocol listens when nothing else is configured.
pub const DEFAULT_DATA_PORT: u16 = 9666;

/// First segment of every path of this version of the API.
pub const API_PREFIX: &str = "/v1";
