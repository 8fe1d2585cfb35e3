// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Bodies of requests and answers.

use serde::{Deserialize, Serialize};

use crate::{SnapshotName, VolumeName};

/// Body of `POST /v1/volumes`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeCreate {
    /// `pool/volume`.
    pub name: VolumeName,
    /// Size; a multiple of `physical_block_size_bytes`, or of the logical
    /// block size where the physical one is absent.
    pub size_bytes: u64,
    /// Smallest unit of reading and writing: a power of two, 512 to 4096.
    #[serde(default = "default_logical_block_size_bytes")]
    pub logical_block_size_bytes: u32,
    /// Smallest unit the volume says it writes without tearing: a power of
    /// two, at least the logical block size, at most 65536. Absent: the
    /// largest that the engine guarantees (see [`EngineInfo`]), and at least
    /// the logical block size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub physical_block_size_bytes: Option<u32>,
    /// Which engine stores it. Absent: the node's default engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
}

/// Logical block size of a volume for which none was asked.
fn default_logical_block_size_bytes() -> u32 {
    512
}

/// Body of `POST /v1/volumes/{pool}/{volume}/resize`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeResize {
    /// The new size, with the same rules as on creation.
    pub size_bytes: u64,
    /// Allow the new size to be smaller, which destroys what lies behind it.
    #[serde(default)]
    pub allow_shrink: bool,
}

/// Body of `POST /v1/volumes/{pool}/{volume}/snapshots`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotCreate {
    /// The snapshot's name among those of its volume, with the rules of the
    /// parts of a volume's name.
    pub snapshot: String,
}

/// Body of `POST /v1/volumes/{pool}/{volume}/snapshots/{snapshot}/clone`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotClone {
    /// The new volume, `pool/volume`; it is made in the same engine.
    pub name: VolumeName,
}

/// A snapshot: the content of a volume at one moment.
///
/// Answer of `GET` and `POST` on snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// `pool/volume@snapshot`.
    pub name: SnapshotName,
    /// The volume, `pool/volume`.
    pub volume: VolumeName,
    /// Its name among those of the volume.
    pub snapshot: String,
    /// Random identity given at creation, 32 hexadecimal digits; another one
    /// than that of the volume.
    pub id: String,
    /// Size of the volume at that moment.
    pub size_bytes: u64,
    /// That moment, in seconds since 1970-01-01 UTC.
    pub created_unix_s: u64,
    /// Volumes that were cloned from it and need it. Absent in listings and
    /// where clones need nothing from the start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<VolumeName>,
    /// Sessions which read it, on this node.
    #[serde(default)]
    pub sessions: Vec<SessionInfo>,
    /// What is wrong with it; of a damaged snapshot nothing else is known but its name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// Answer of `GET /v1/volumes/{pool}/{volume}/snapshots`, the oldest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotList {
    /// The snapshots of the volume, without their children.
    pub snapshots: Vec<SnapshotInfo>,
}

/// Answer of `GET /v1/volumes`, ordered by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeList {
    /// The volumes of all engines, or of the pool asked for.
    pub volumes: Vec<VolumeInfo>,
    /// Engines whose volumes are missing above, each with the reason, for people. Empty if the list
    /// is complete.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<String>,
}

/// A volume, its limits and who holds it.
///
/// Answer of `GET` and `POST` on volumes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// `pool/volume`.
    pub name: VolumeName,
    /// Random identity given at creation, 32 hexadecimal digits. It tells a
    /// volume from another one made later with the same name.
    pub id: String,
    /// The engine which stores it.
    pub engine: String,
    /// Size.
    pub size_bytes: u64,
    /// Bytes the engine has allocated for it; absent where it cannot tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocated_bytes: Option<u64>,
    /// Smallest unit of reading and writing.
    pub logical_block_size_bytes: u32,
    /// Smallest unit the volume says it writes without tearing.
    pub physical_block_size_bytes: u32,
    /// Creation time in seconds since 1970-01-01 UTC.
    pub created_unix_s: u64,
    /// The snapshot that it was cloned from, as long as it needs that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<SnapshotName>,
    /// What the engine can do with it. Absent in listings.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<VolumeLimits>,
    /// Sessions which hold it, on this node.
    #[serde(default)]
    pub sessions: Vec<SessionInfo>,
    /// Where the other volumes are that have the same identity: one is a copy of the
    /// other, and none of them is opened. Normally empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub same_identity: Vec<String>,
    /// Sentences for the operator, such as a physical block size for which
    /// the storage below gives no guarantee. Normally empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What an engine does with one volume; what clients are told on opening it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeLimits {
    /// Acknowledged writes can be lost with the node's power until a flush.
    pub volatile_write_cache: bool,
    /// A single write can be made durable by itself.
    pub fua: bool,
    /// Longest read or write in bytes.
    pub max_io_bytes: u32,
    /// Alignment and multiple at which I/O is cheapest.
    pub optimal_io_bytes: u32,
    /// Unit in which discards free space; 0: no discard.
    pub discard_granularity_bytes: u32,
    /// Longest discard; 0: no discard.
    pub max_discard_bytes: u64,
    /// Longest write-zeroes; 0: none.
    pub max_write_zeroes_bytes: u64,
    /// Smallest write that can be asked to be atomic; 0: no atomic writes.
    pub atomic_write_min_bytes: u32,
    /// Largest write that can be asked to be atomic; 0: no atomic writes.
    pub atomic_write_max_bytes: u32,
}

/// How a session opened its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum OpenMode {
    /// One host reads and writes.
    Exclusive,
    /// Several hosts read and write.
    Shared,
    /// This host only reads.
    ReadOnly,
    /// A mode this reader does not know.
    #[serde(other)]
    Other,
}

/// One session that holds a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    /// `pool/volume`.
    pub volume: VolumeName,
    /// The snapshot of the volume that it reads; absent if it has the volume
    /// itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// Session id, 32 hexadecimal digits.
    pub id: String,
    /// What the client says it is: the attaching host's identity.
    pub host: String,
    /// How it holds the volume.
    pub mode: OpenMode,
    /// Fencing counter of the session.
    pub generation: u64,
    /// Addresses of its connections as the node sees them.
    pub connections: Vec<String>,
    /// Seconds since the session was opened on this node.
    pub age_s: u64,
}

/// Answer of `GET /v1/node`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Version of the program.
    pub version: String,
    /// Identity of this run of the node process, 32 hexadecimal digits.
    /// Clients of the data protocol see [`EngineInfo::boot_id`].
    pub boot_id: String,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// Lowest and highest version of the data protocol that it speaks.
    pub protocol_versions: [u16; 2],
    /// Addresses on which it takes data connections.
    pub data_addresses: Vec<String>,
    /// The engines; the default one first.
    pub engines: Vec<EngineInfo>,
    /// Configured bounds.
    pub limits: NodeLimits,
    /// Sessions open now.
    pub sessions: u32,
    /// Data connections open now.
    pub connections: u32,
}

/// One engine of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineInfo {
    /// Name by which [`VolumeCreate::engine`] asks for it.
    pub name: String,
    /// What it is: `mem`, `file` or `rbd`.
    pub kind: String,
    /// Identity of the engine's volatile state, 32 hexadecimal digits: another
    /// one when writes that were answered but not flushed may have been lost.
    #[serde(default)]
    pub boot_id: String,
    /// Whether data outlives the node process.
    pub persistent: bool,
    /// Bytes that can be stored in all; absent where there is no fixed bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_bytes: Option<u64>,
    /// Bytes that can still be stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<u64>,
    /// Largest block that it guarantees to write without tearing.
    pub untorn_write_bytes: u32,
    /// How it reaches its storage, for people (for example `direct I/O` or
    /// why not).
    pub notes: Vec<String>,
}

/// Configured bounds of a node; 0 means that there is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLimits {
    /// Sessions at a time.
    pub max_sessions: u32,
    /// Data connections at a time.
    pub max_connections: u32,
    /// Bytes of requests in flight per session.
    pub max_session_in_flight_bytes: u64,
    /// Bytes of requests in flight in all.
    pub max_in_flight_bytes: u64,
    /// Time for a connection to complete its handshake.
    pub handshake_timeout_ms: u32,
    /// Time after which a silent connection is closed.
    pub idle_timeout_ms: u32,
}

/// Answer of `GET /v1/health`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// The state in a word.
    pub status: HealthStatus,
    /// What is wrong; empty when all is well.
    #[serde(default)]
    pub problems: Vec<String>,
    /// How each engine is, the default one first.
    #[serde(default)]
    pub engines: Vec<EngineHealth>,
}

/// How an engine of a node is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineHealth {
    /// Its name in the node's configuration.
    pub name: String,
    /// What it is: `mem`, `file` or `rbd`.
    pub kind: String,
    /// The state in a word.
    pub state: EngineState,
    /// What is wrong, one sentence each; empty when all is well.
    #[serde(default)]
    pub problems: Vec<String>,
}

/// State of an engine in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum EngineState {
    /// Its volumes are served.
    Ok,
    /// Its volumes are served; something needs to be looked at.
    Degraded,
    /// It is open, and its storage does not work or does not answer.
    Failing,
    /// It cannot be opened, so its volumes are not served; it is tried again.
    Down,
    /// It is being opened for the first time.
    Starting,
    /// A state this reader does not know.
    #[serde(other)]
    Other,
}

/// State of a node in a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum HealthStatus {
    /// Serves.
    Ok,
    /// Serves, with the problems listed.
    Degraded,
    /// Serves nothing: no engine works.
    Failed,
    /// Shuts down: sessions are being moved away, new ones are refused.
    ShuttingDown,
    /// A state this reader does not know.
    #[serde(other)]
    Other,
}

/// Answer of `GET /v1/nodes`: the node that answers first, then the others by
/// address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeList {
    /// The nodes which have the same volumes.
    pub nodes: Vec<NodeEntry>,
}

/// A node, as it has told of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEntry {
    /// Where hosts reach it, `address:port`; empty for a node that does not
    /// know.
    pub addresses: Vec<String>,
    /// It is the node that answers.
    pub is_this: bool,
    /// How it is.
    pub state: NodeState,
    /// Names, on the node that answers, of the engines whose volumes both have.
    pub engines: Vec<String>,
    /// Version of its program.
    pub version: String,
    /// Identity of its process, 32 hexadecimal digits.
    pub boot_id: String,
    /// Sessions open on it.
    pub sessions: u64,
    /// Data connections open on it.
    pub connections: u64,
    /// Bytes of requests in flight on it.
    pub in_flight_bytes: u64,
    /// Milliseconds since it was last heard of; 0 for the node that answers.
    pub heard_ms: u64,
}

/// State of a node as others see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum NodeState {
    /// Serves.
    Ok,
    /// Serves, and has problems that it lists itself (`/v1/health`).
    Degraded,
    /// Shuts down.
    ShuttingDown,
    /// Has not been heard of for a while: dead, or cut off.
    Silent,
    /// A state this reader does not know.
    #[serde(other)]
    Other,
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn create_has_defaults_and_refuses_unknown_fields() {
        let create: VolumeCreate =
            serde_json::from_str(r#"{"name":"p/v","size_bytes":4096}"#).unwrap();
        assert_eq!(create.logical_block_size_bytes, 512);
        assert_eq!(create.physical_block_size_bytes, None);
        let error = serde_json::from_str::<VolumeCreate>(
            r#"{"name":"p/v","size_bytes":4096,"logical_blocksize":4096}"#,
        )
        .unwrap_err();
        assert!(error.to_string().contains("logical_blocksize"));
    }

    #[test]
    fn names_are_checked_while_reading() {
        let error = serde_json::from_str::<VolumeCreate>(r#"{"name":"../etc","size_bytes":1}"#)
            .unwrap_err();
        assert!(error.to_string().contains("must start"), "{error}");
    }

    #[test]
    fn answers_tolerate_fields_from_the_future() {
        let health: Health = serde_json::from_str(r#"{"status":"meditating","since":3}"#).unwrap();
        assert_eq!(health.status, HealthStatus::Other);
    }
}
