// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What clients are answered to an OPEN or JOIN: parameters, or a refusal
//! that says what to do.

use std::net::{IpAddr, SocketAddr};

use neonsan_api::{show_time, ApiError, ErrorCode, SessionInfo};
use neonsan_engine::{Error, ErrorKind};
use neonsan_proto::{Capabilities, Geometry, Mode, NodeAddress, OpenReply, Refusal, Status};
use neonsan_session::server::{Holder, RefuseReason};

use super::entry::{Entry, OpenVolume};
use super::OpenName;
use crate::shared::{Clock, Shared};

/// What goes into the answer to an admitted connection.
pub(super) struct OpenParameters<'a> {
    pub(super) open: &'a OpenVolume,
    pub(super) mode: Mode,
    pub(super) generation: u64,
    /// How many connections the session may have.
    pub(super) max_connections: u16,
    /// Identity of the engine's volatile state, as the session's OPEN was told.
    pub(super) boot_id: [u8; 16],
}

impl OpenParameters<'_> {
    pub(super) fn is_read_only(&self) -> bool {
        self.mode == Mode::ReadOnly
    }

    fn geometry(&self) -> Geometry {
        let OpenVolume { stat, limits, .. } = self.open;
        let mut capabilities = Capabilities::NONE;
        let mut has = |condition, capability| {
            if condition {
                capabilities = capabilities.union(capability);
            }
        };
        let discard = limits.discard_granularity > 0;
        has(self.is_read_only(), Capabilities::READ_ONLY);
        has(limits.volatile_cache, Capabilities::VOLATILE_CACHE);
        has(limits.fua, Capabilities::FUA);
        has(discard, Capabilities::DISCARD);
        has(discard, Capabilities::DISCARD_ZEROES);
        has(
            limits.max_write_zeroes_bytes > 0,
            Capabilities::WRITE_ZEROES,
        );
        has(limits.atomic_max_bytes > 0, Capabilities::ATOMIC);
        has(limits.rotational, Capabilities::ROTATIONAL);
        Geometry {
            size_bytes: stat.size_bytes.into(),
            logical_block_size: stat.logical_block_size.into(),
            physical_block_size: stat.physical_block_size.into(),
            io_min_bytes: limits.io_min_bytes.max(stat.physical_block_size).into(),
            io_opt_bytes: limits.io_opt_bytes.into(),
            max_io_bytes: limits.max_io_bytes.into(),
            discard_granularity: limits.discard_granularity.into(),
            max_discard_bytes: limits.max_discard_bytes.into(),
            max_write_zeroes_bytes: limits.max_write_zeroes_bytes.into(),
            atomic_unit_min_bytes: limits.atomic_min_bytes.into(),
            atomic_unit_max_bytes: limits.atomic_max_bytes.into(),
            atomic_boundary_bytes: 0.into(),
            capabilities: capabilities.0.into(),
            reserved: 0.into(),
        }
    }

    /// The answer, and the limits that requests are checked against.
    pub(super) fn reply(&self, shared: &Shared) -> (OpenReply, Geometry) {
        let geometry = self.geometry();
        let live = shared.live();
        let config = &live.config;
        let max_io_bytes = self.open.limits.max_io_bytes;
        // As much as the session may have, but a whole request at least.
        let max_inflight_bytes = u32::try_from(config.limits.max_session_in_flight_bytes)
            .unwrap_or(u32::MAX)
            .max(max_io_bytes);
        let reply = OpenReply {
            geometry,
            volume_id: self.open.stat.id,
            boot_id: self.boot_id,
            generation: self.generation.into(),
            heartbeat_interval_ms: config.timeouts.heartbeat_interval_ms.into(),
            heartbeat_timeout_ms: config.timeouts.heartbeat_timeout_ms.into(),
            max_connections: self.max_connections.into(),
            max_depth: config.limits.max_depth.into(),
            max_inflight_bytes: max_inflight_bytes.into(),
            ..OpenReply::default()
        };
        (reply, geometry)
    }
}

/// A configured address as it goes to clients.
pub(crate) fn node_address(address: SocketAddr, priority: u32) -> NodeAddress {
    let ip = match address.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    NodeAddress {
        ip: ip.octets(),
        port: address.port().into(),
        priority: priority.into(),
        ..NodeAddress::default()
    }
}

/// What a refusal of the gate says.
pub(super) fn refusal_text(
    name: &OpenName,
    reason: &RefuseReason,
    entry: &Entry,
    clock: &Clock,
) -> (Refusal, String) {
    let mut refusal = Refusal {
        generation: reason.generation.into(),
        retry_after_ms: reason.retry_after_ms.into(),
        ..Refusal::default()
    };
    let text = match (reason.status, reason.holder) {
        (Status::HeldByOther, Some(holder)) => {
            let since = clock.unix_s(holder.since);
            refusal.holder = holder.host_id;
            refusal.held_since_s = since.into();
            let host = show_holder(entry, &holder, clock);
            match reason.retry_after_ms {
                0 => format!(
                    "the volume {name} is held by host {host}: \
                     detach it there, or attach with --force to take it away from that host"
                ),
                left_ms => format!(
                    "the volume {name} is held by host {host}: free in {} unless it comes back, \
                     wait until then or attach with --force",
                    show_wait(left_ms, clock)
                ),
            }
        }
        (Status::StaleGeneration, _) => format!(
            "a newer generation ({}) of the session exists",
            reason.generation
        ),
        (Status::Fenced, _) => {
            let taker = match entry.gate.holders().next() {
                Some(holder) => format!("host {}", show_holder(entry, &holder, clock)),
                None => "another host, which has left it since".to_owned(),
            };
            format!("the volume {name} was taken by {taker}: detach it here")
        }
        (Status::Draining, _) => {
            "requests of an older connection are still being worked on: try again".to_owned()
        }
        (Status::UnknownSession, _) => {
            "the node does not know the session (was it restarted?): open it again".to_owned()
        }
        (Status::TooManySessions, _) => format!(
            "the volume {name} has as many sessions as it may have (limits.max_sessions of the \
             node): detach it somewhere, or raise the limit"
        ),
        (Status::TooManyConnections, _) => "the session has as many connections as it may have \
             (limits.max_session_connections of the node): use fewer, or raise the limit"
            .to_owned(),
        (Status::GoingAway, _) => "the node is stopping: use another".to_owned(),
        (Status::BadOpen, _) => "the request to open makes no sense".to_owned(),
        (status, _) => format!("refused: {status}"),
    };
    (refusal, text)
}

/// How long to wait, and until when that is.
fn show_wait(left_ms: u32, clock: &Clock) -> String {
    let left_s = left_ms.div_ceil(1000);
    let until_unix_s = clock.unix_s(clock.now()) + u64::from(left_s);
    format!("{left_s} s, at {}", show_time(until_unix_s))
}

/// Who has the volume: name and identity of the host, from where, since when.
fn show_holder(entry: &Entry, holder: &Holder, clock: &Clock) -> String {
    let host = entry.host(&holder.session_id, &holder.host_id);
    let since = show_time(clock.unix_s(holder.since));
    match entry.peer(&holder.session_id) {
        Some(peer) => format!("{host} from {peer} since {since}"),
        None => format!("{host}, without a connection at the moment, since {since}"),
    }
}

/// What clients are told when the engine cannot open the volume.
pub(super) fn refusal_for_open_error(name: &OpenName, error: &Error) -> (Status, String) {
    match error.kind() {
        ErrorKind::NotFound => (
            Status::NoSuchVolume,
            format!(
                "there is no volume {name} on this node: `neonsan volume list` shows what there is"
            ),
        ),
        ErrorKind::NoSuchSnapshot => (
            Status::NoSuchSnapshot,
            format!(
                "there is no snapshot {name} on this node: `neonsan volume snapshot list {}` shows \
                 what there is",
                name.volume()
            ),
        ),
        ErrorKind::Corrupt | ErrorKind::Conflict => (Status::VolumeDamaged, error.to_string()),
        ErrorKind::Busy => (
            Status::Busy,
            format!("{error}: is another neonsan-node still running?"),
        ),
        // It may be there in a moment: a host waits rather than fail for good.
        ErrorKind::NoResources | ErrorKind::Unavailable => (Status::Busy, error.to_string()),
        ErrorKind::NotOwner => (Status::NotOwner, error.to_string()),
        ErrorKind::NotPermitted => (Status::NotPermitted, error.to_string()),
        ErrorKind::AlreadyExists
        | ErrorKind::NoSpace
        | ErrorKind::BadSize
        | ErrorKind::OutOfRange
        | ErrorKind::Misaligned
        | ErrorKind::TooLarge
        | ErrorKind::AtomicLimit
        | ErrorKind::Unsupported
        | ErrorKind::Io => (Status::Internal, error.to_string()),
    }
}

/// What the control API answers when sessions are in the way.
pub(super) fn held_error(name: &OpenName, sessions: &[SessionInfo]) -> ApiError {
    let message = match sessions.first() {
        Some(session) => format!("the volume {name} is held by host {}", session.host),
        None => format!("the volume {name} is being closed"),
    };
    let hint = match sessions.first() {
        Some(session) if session.connections.is_empty() => {
            "the session has no connection; it ends by itself soon unless its host comes back"
        }
        Some(_) => "detach it there first",
        None => "try again in a moment",
    };
    ApiError::new(ErrorCode::Busy, message).with_hint(hint)
}
