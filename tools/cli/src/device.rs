// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What the module says about a device. The field names are those of the JSON output and part of
//! its documented form (Documentation/cli-json.rst).

use crate::host::show_uuid;
use crate::netlink::Attrs;
use crate::target::{is_unresolved, ResolvedNode};
use crate::uapi::{self, attr};
use crate::users::User;
use serde::{Serialize, Serializer};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A device, its session and its connections.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Device {
    /// Path of the block device.
    pub device: String,
    /// Name of the block device.
    pub name: String,
    /// N of `/dev/neonsanN`.
    pub index: u32,
    /// `pool/volume` or `pool/volume@snapshot`.
    pub volume: String,
    /// Identity of the volume.
    pub volume_id: Option<String>,
    /// How it is opened.
    pub mode: String,
    /// State of the session.
    pub state: String,
    /// Time without service; 0 while there is.
    pub lost_ms: u64,
    /// Size.
    pub size_bytes: u64,
    /// Whether writes are refused.
    pub read_only: bool,
    /// How many hold it open.
    pub open_count: u32,
    /// The nodes that serve it.
    pub nodes: Vec<Node>,
    /// The session.
    pub session: Session,
    /// What the block device promises.
    pub limits: Limits,
    /// What the volume can do.
    pub abilities: Vec<String>,
    /// What CRC32C protects on the wire.
    pub checksums: Vec<String>,
    /// Every time the module waits.
    pub timeouts: Timeouts,
    /// How many of the connections, the last ones, are for polled requests.
    pub poll_queues: u32,
    /// Requests in flight on each connection, at most.
    pub queue_depth: u32,
    /// Counters since attach.
    pub statistics: Statistics,
    /// The connections.
    pub connections: Vec<Connection>,
    /// Time until I/O begins to fail, if that time counts down.
    pub loss_deadline_ms: Option<u64>,
    /// What happens to new I/O, if the device is suspended.
    pub suspended: Option<String>,
    /// Bytes that a lost cache may have taken, not cleared yet.
    pub at_risk_bytes: u64,
    /// The size to which the volume was shrunk, if the device waits for somebody to decide.
    pub shrunk_bytes: Option<u64>,
    /// Why I/O fails.
    pub failure: Option<String>,
    /// From whom attach took the volume.
    pub fenced: Option<String>,
    /// Who has it open, as far as the caller can see, where that was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_by: Option<Vec<User>>,
    /// The module tells this caller only name and state; all else here is empty.
    #[serde(skip)]
    pub hidden: bool,
}

/// Why a caller sees less than all, for people.
pub const HIDDEN: &str =
    "volume, nodes, host, session, requests and statistics are shown to root only (CAP_SYS_ADMIN)";

/// A device in JSON, as far as the caller may see it.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Shown<'a> {
    /// All.
    Whole(&'a Device),
    /// Name and state.
    #[allow(missing_docs)]
    Part {
        device: &'a str,
        name: &'a str,
        index: u32,
        state: &'a str,
        lost_ms: u64,
        suspended: Option<&'a str>,
        /// Why it is not all.
        hidden: &'static str,
    },
}

/// A node's address.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Node {
    /// IPv4 or IPv6 address; `null` in JSON if it only stands for a name that is not resolved yet.
    #[serde(serialize_with = "address_or_null")]
    pub address: IpAddr,
    /// TCP port.
    pub port: u16,
    /// Index of the interface of a link-local address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope_id: Option<u32>,
    /// The host name that was resolved to it.
    pub name: Option<String>,
    /// Another node told of it.
    pub learned: bool,
}

fn address_or_null<S: Serializer>(
    address: &IpAddr,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    // The names of nodes are not at hand here, and no other address begins like that.
    match is_unresolved(*address, Some("")) {
        true => serializer.serialize_none(),
        false => address.serialize(serializer),
    }
}

/// The session behind a device.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Session {
    /// Its identity.
    pub id: Option<String>,
    /// Its fencing counter.
    pub generation: u64,
    /// Identity of the node's volatile state.
    pub boot_id: Option<String>,
    /// Who holds the volume.
    pub host_id: Option<String>,
    /// That host's name for people.
    pub host_name: Option<String>,
}

/// Limits, in bytes; 0 where the volume has no such ability.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Limits {
    pub logical_block_size: u32,
    pub physical_block_size: u32,
    pub io_min: u32,
    pub io_opt: u32,
    pub io_max: u32,
    pub discard_granularity: u32,
    pub discard_max: u32,
    pub write_zeroes_max: u32,
    pub atomic_unit_min: u32,
    pub atomic_unit_max: u32,
    pub atomic_boundary: u32,
}

/// Timeouts. 0 of `loss_ms` is for ever.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Timeouts {
    pub request_ms: u32,
    pub connect_ms: u32,
    pub heartbeat_interval_ms: u32,
    pub heartbeat_timeout_ms: u32,
    pub reconnect_delay_min_ms: u32,
    pub reconnect_delay_max_ms: u32,
    pub loss_ms: u32,
}

/// Counters.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Statistics {
    pub reads: u64,
    pub writes: u64,
    pub flushes: u64,
    pub discards: u64,
    pub write_zeroes: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub errors: u64,
    pub resent: u64,
    pub timeouts: u64,
    pub sends: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost_bytes: Option<u64>,
}

/// One connection.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Connection {
    /// Its place in the session.
    pub index: u32,
    /// Its state.
    pub state: String,
    /// Time in this state.
    pub since_ms: u64,
    /// The node at the other end, or the next to be tried.
    pub node: Option<Node>,
    /// How often it was made.
    pub epoch: u64,
    /// Requests that hold a slot of it.
    pub in_flight: u32,
    /// Those of them that wait for recovery.
    pub parked: u32,
    /// How often it was lost.
    pub losses: u64,
    /// Why it was lost last.
    pub last_cause: Option<String>,
    /// The request that has waited longest.
    pub oldest_request: Option<Request>,
    /// Time since something was received.
    pub silent_ms: u64,
    /// Counters since attach.
    pub statistics: Statistics,
    /// Time until the next try to connect, if it waits for it.
    pub retry_ms: Option<u64>,
    /// Time until the try, or the silent connection, is given up.
    pub deadline_ms: Option<u64>,
}

/// One request in flight.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Request {
    /// Tag of the block layer.
    pub tag: u32,
    /// Cookie on the wire, in hexadecimal.
    pub cookie: String,
    /// What it does.
    pub op: String,
    /// Where it is.
    pub state: String,
    /// First byte.
    pub offset_bytes: u64,
    /// Number of bytes.
    pub length_bytes: u64,
    /// Time in this state.
    pub age_ms: u64,
    /// Time until its connection is given up for its sake, if it is sent.
    pub deadline_ms: Option<u64>,
}

/// The name of a value, or its number where this program is older than the module.
fn named<T: Copy>(
    value: Option<u32>,
    known: fn(u32) -> Option<T>,
    name: fn(T) -> &'static str,
) -> String {
    match value {
        None => "unknown".into(),
        Some(raw) => known(raw).map_or_else(|| format!("unknown-{raw}"), |v| name(v).to_owned()),
    }
}

fn flag_names(value: u32, names: &[(&str, u32)]) -> Vec<String> {
    names
        .iter()
        .filter(|(_, bit)| value & bit != 0)
        .map(|(name, _)| (*name).to_owned())
        .collect()
}

impl Device {
    /// Reads the reply to device-get.
    pub fn parse(attrs: Attrs<'_>) -> Device {
        use attr::device as a;
        let name = attrs.text(a::NAME).unwrap_or_default();
        let uuid = |kind| attrs.bytes(kind).map(show_uuid);
        let limits = attrs.nested(a::LIMITS).unwrap_or(Attrs(&[]));
        let abilities = limits.u32(attr::limits::ABILITIES).unwrap_or(0);
        Device {
            device: format!("/dev/{name}"),
            index: attrs.u32(a::INDEX).unwrap_or(0),
            volume: attrs.text(a::VOLUME).unwrap_or_default(),
            volume_id: uuid(a::VOLUME_ID),
            mode: named(attrs.u32(a::MODE), uapi::Mode::from_raw, uapi::Mode::name),
            state: named(
                attrs.u32(a::STATE),
                uapi::SessionState::from_raw,
                uapi::SessionState::name,
            ),
            lost_ms: attrs.number(a::LOST_MS).unwrap_or(0),
            size_bytes: attrs.number(a::SIZE).unwrap_or(0),
            read_only: abilities & uapi::ability::READ_ONLY != 0,
            open_count: attrs.u32(a::OPEN_COUNT).unwrap_or(0),
            nodes: attrs.all_nested(a::NODE).filter_map(Node::parse).collect(),
            session: Session {
                id: uuid(a::SESSION_ID),
                generation: attrs.number(a::GENERATION).unwrap_or(0),
                boot_id: uuid(a::BOOT_ID),
                host_id: uuid(a::HOST_ID),
                host_name: attrs.text(a::HOST_NAME),
            },
            limits: Limits::parse(limits),
            abilities: flag_names(abilities, uapi::ability::NAMES),
            checksums: flag_names(attrs.u32(a::CHECKSUMS).unwrap_or(0), uapi::checksum::NAMES),
            timeouts: Timeouts::parse(attrs.nested(a::TIMEOUTS).unwrap_or(Attrs(&[]))),
            poll_queues: attrs.u32(a::POLL_QUEUES).unwrap_or(0),
            queue_depth: attrs.u32(a::QUEUE_DEPTH).unwrap_or(0),
            statistics: Statistics {
                lost_bytes: attrs
                    .nested(a::STATISTICS)
                    .map(|s| s.number(attr::statistics::LOST_BYTES).unwrap_or(0)),
                ..Statistics::parse(attrs.nested(a::STATISTICS))
            },
            connections: attrs
                .all_nested(a::CONNECTION)
                .map(Connection::parse)
                .collect(),
            loss_deadline_ms: attrs.number(a::LOSS_DEADLINE_MS),
            suspended: attrs.u32(a::SUSPEND).map(|mode| {
                named(
                    Some(mode),
                    uapi::SuspendMode::from_raw,
                    uapi::SuspendMode::name,
                )
            }),
            at_risk_bytes: attrs.number(a::AT_RISK_BYTES).unwrap_or(0),
            shrunk_bytes: attrs.number(a::SHRUNK_SIZE),
            failure: attrs.text(a::FAILURE),
            fenced: attrs.text(a::FENCED),
            used_by: None,
            hidden: attrs.text(a::VOLUME).is_none(),
            name,
        }
    }

    /// The device in JSON, as far as the caller may see it.
    pub fn shown(&self) -> Shown<'_> {
        if !self.hidden {
            return Shown::Whole(self);
        }
        Shown::Part {
            device: &self.device,
            name: &self.name,
            index: self.index,
            state: &self.state,
            lost_ms: self.lost_ms,
            suspended: self.suspended.as_deref(),
            hidden: HIDDEN,
        }
    }
}

impl Node {
    fn parse(attrs: Attrs<'_>) -> Option<Node> {
        use attr::node as a;
        let v4 = attrs
            .bytes(a::IPV4)
            .and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
        let v6 = attrs
            .bytes(a::IPV6)
            .and_then(|bytes| <[u8; 16]>::try_from(bytes).ok());
        let address = match (v4, v6) {
            (Some(v4), _) => IpAddr::V4(Ipv4Addr::from(v4)),
            (None, Some(v6)) => IpAddr::V6(Ipv6Addr::from(v6)),
            (None, None) => return None,
        };
        Some(Node {
            address,
            port: attrs
                .number(a::PORT)
                .and_then(|port| port.try_into().ok())?,
            scope_id: attrs.u32(a::SCOPE_ID),
            name: attrs.text(a::NAME),
            learned: attrs.bytes(a::LEARNED).is_some(),
        })
    }

    /// The same as it is given to the module.
    pub fn resolved(&self) -> ResolvedNode {
        ResolvedNode {
            address: self.address,
            scope_id: self.scope_id,
            port: self.port,
            name: self.name.clone(),
        }
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.resolved().fmt(f)
    }
}

impl Limits {
    fn parse(attrs: Attrs<'_>) -> Limits {
        use attr::limits as a;
        let number = |kind| attrs.u32(kind).unwrap_or(0);
        Limits {
            logical_block_size: number(a::LOGICAL_BLOCK_SIZE),
            physical_block_size: number(a::PHYSICAL_BLOCK_SIZE),
            io_min: number(a::IO_MIN),
            io_opt: number(a::IO_OPT),
            io_max: number(a::IO_MAX),
            discard_granularity: number(a::DISCARD_GRANULARITY),
            discard_max: number(a::DISCARD_MAX),
            write_zeroes_max: number(a::WRITE_ZEROES_MAX),
            atomic_unit_min: number(a::ATOMIC_UNIT_MIN),
            atomic_unit_max: number(a::ATOMIC_UNIT_MAX),
            atomic_boundary: number(a::ATOMIC_BOUNDARY),
        }
    }
}

impl Timeouts {
    fn parse(attrs: Attrs<'_>) -> Timeouts {
        use attr::timeouts as a;
        let number = |kind| attrs.u32(kind).unwrap_or(0);
        Timeouts {
            request_ms: number(a::REQUEST),
            connect_ms: number(a::CONNECT),
            heartbeat_interval_ms: number(a::HEARTBEAT_INTERVAL),
            heartbeat_timeout_ms: number(a::HEARTBEAT_TIMEOUT),
            reconnect_delay_min_ms: number(a::RECONNECT_DELAY_MIN),
            reconnect_delay_max_ms: number(a::RECONNECT_DELAY_MAX),
            loss_ms: number(a::LOSS),
        }
    }
}

impl Statistics {
    fn parse(attrs: Option<Attrs<'_>>) -> Statistics {
        use attr::statistics as a;
        let attrs = attrs.unwrap_or(Attrs(&[]));
        let number = |kind| attrs.number(kind).unwrap_or(0);
        Statistics {
            reads: number(a::READS),
            writes: number(a::WRITES),
            flushes: number(a::FLUSHES),
            discards: number(a::DISCARDS),
            write_zeroes: number(a::WRITE_ZEROES),
            read_bytes: number(a::READ_BYTES),
            written_bytes: number(a::WRITTEN_BYTES),
            errors: number(a::ERRORS),
            resent: number(a::RESENT),
            timeouts: number(a::TIMEOUTS),
            sends: number(a::SENDS),
            // Of connections the module says zero.
            lost_bytes: None,
        }
    }
}

impl Connection {
    fn parse(attrs: Attrs<'_>) -> Connection {
        use attr::connection as a;
        let state = attrs.u32(a::STATE);
        Connection {
            index: attrs.u32(a::INDEX).unwrap_or(0),
            state: named(
                state,
                uapi::ConnectionState::from_raw,
                uapi::ConnectionState::name,
            ),
            since_ms: attrs.number(a::SINCE_MS).unwrap_or(0),
            node: attrs.nested(a::NODE).and_then(Node::parse),
            epoch: attrs.number(a::EPOCH).unwrap_or(0),
            in_flight: attrs.u32(a::IN_FLIGHT).unwrap_or(0),
            parked: attrs.u32(a::PARKED).unwrap_or(0),
            losses: attrs.number(a::LOSSES).unwrap_or(0),
            last_cause: attrs.text(a::LAST_CAUSE),
            oldest_request: attrs.nested(a::OLDEST_REQUEST).map(Request::parse),
            silent_ms: attrs.number(a::SILENT_MS).unwrap_or(0),
            statistics: Statistics::parse(attrs.nested(a::STATISTICS)),
            retry_ms: attrs.number(a::RETRY_MS),
            deadline_ms: attrs.number(a::DEADLINE_MS),
        }
    }
}

impl Request {
    fn parse(attrs: Attrs<'_>) -> Request {
        use attr::request as a;
        let state = attrs.u32(a::STATE);
        Request {
            tag: attrs.u32(a::TAG).unwrap_or(0),
            cookie: format!("{:#018x}", attrs.number(a::COOKIE).unwrap_or(0)),
            op: named(attrs.u32(a::OP), uapi::Op::from_raw, uapi::Op::name),
            state: named(
                state,
                uapi::RequestState::from_raw,
                uapi::RequestState::name,
            ),
            offset_bytes: attrs.number(a::OFFSET).unwrap_or(0),
            length_bytes: attrs.number(a::LENGTH).unwrap_or(0),
            age_ms: attrs.number(a::AGE_MS).unwrap_or(0),
            deadline_ms: attrs.number(a::DEADLINE_MS),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::netlink::AttrsMut;

    /// The same as the module describes it to a caller without privilege.
    pub fn hidden_message() -> AttrsMut {
        let mut device = AttrsMut::default();
        device
            .u32(attr::device::INDEX, 3)
            .text(attr::device::NAME, "neonsan3")
            .u32(attr::device::STATE, uapi::SessionState::Recovering as u32)
            .u32(attr::device::LOST_MS, 12_345);
        device
    }

    /// A device as the module would describe it: recovering, with one stuck request.
    pub fn sample_message() -> AttrsMut {
        let mut node = AttrsMut::default();
        node.bytes(attr::node::IPV4, &[192, 0, 2, 1])
            .u16(attr::node::PORT, 9666)
            .text(attr::node::NAME, "node1");
        let mut other = AttrsMut::default();
        other
            .bytes(attr::node::IPV6, &Ipv6Addr::LOCALHOST.octets())
            .u16(attr::node::PORT, 9700)
            .flag(attr::node::LEARNED);
        let mut timeouts = AttrsMut::default();
        timeouts
            .u32(attr::timeouts::REQUEST, 30_000)
            .u32(attr::timeouts::CONNECT, 5_000)
            .u32(attr::timeouts::HEARTBEAT_INTERVAL, 2_000)
            .u32(attr::timeouts::HEARTBEAT_TIMEOUT, 10_000)
            .u32(attr::timeouts::RECONNECT_DELAY_MIN, 100)
            .u32(attr::timeouts::RECONNECT_DELAY_MAX, 5_000)
            .u32(attr::timeouts::LOSS, 0);
        let mut limits = AttrsMut::default();
        limits
            .u32(attr::limits::LOGICAL_BLOCK_SIZE, 512)
            .u32(attr::limits::PHYSICAL_BLOCK_SIZE, 4096)
            .u32(attr::limits::IO_MIN, 4096)
            .u32(attr::limits::IO_OPT, 0)
            .u32(attr::limits::IO_MAX, 1 << 20)
            .u32(attr::limits::DISCARD_GRANULARITY, 4096)
            .u32(attr::limits::DISCARD_MAX, 1 << 30)
            .u32(attr::limits::WRITE_ZEROES_MAX, 1 << 30)
            .u32(
                attr::limits::ABILITIES,
                uapi::ability::VOLATILE_CACHE | uapi::ability::FUA | uapi::ability::DISCARD,
            );
        let mut request = AttrsMut::default();
        request
            .u32(attr::request::TAG, 5)
            .bytes(attr::request::COOKIE, &0x1_0001_0005_u64.to_ne_bytes())
            .u32(attr::request::OP, uapi::Op::Write as u32)
            .u32(attr::request::STATE, uapi::RequestState::Parked as u32)
            .bytes(attr::request::OFFSET, &(5_u64 << 32).to_ne_bytes())
            .u32(attr::request::LENGTH, 4096)
            .u32(attr::request::AGE_MS, 12_345);
        let mut statistics = AttrsMut::default();
        statistics
            .u32(attr::statistics::READS, 10)
            .u32(attr::statistics::WRITES, 20)
            .bytes(
                attr::statistics::WRITTEN_BYTES,
                &(1_u64 << 40).to_ne_bytes(),
            );
        let mut connection = AttrsMut::default();
        connection
            .u32(attr::connection::INDEX, 1)
            .u32(
                attr::connection::STATE,
                uapi::ConnectionState::Waiting as u32,
            )
            .u32(attr::connection::SINCE_MS, 400)
            .nest(attr::connection::NODE, &node)
            .u32(attr::connection::EPOCH, 3)
            .u32(attr::connection::IN_FLIGHT, 1)
            .u32(attr::connection::PARKED, 1)
            .u32(attr::connection::LOSSES, 2)
            .text(
                attr::connection::LAST_CAUSE,
                "the node closed the connection",
            )
            .nest(attr::connection::OLDEST_REQUEST, &request)
            .u32(attr::connection::SILENT_MS, 12_001)
            .nest(attr::connection::STATISTICS, &statistics)
            .u32(attr::connection::RETRY_MS, 312);
        let mut message = AttrsMut::default();
        message
            .u32(attr::device::INDEX, 3)
            .text(attr::device::NAME, "neonsan3")
            .text(attr::device::VOLUME, "pool/volume")
            .nest(attr::device::NODE, &node)
            .nest(attr::device::NODE, &other)
            .u32(attr::device::MODE, uapi::Mode::Exclusive as u32)
            .bytes(attr::device::HOST_ID, &[0x11; 16])
            .text(attr::device::HOST_NAME, "host1")
            .bytes(attr::device::VOLUME_ID, &[0x22; 16])
            .u32(attr::device::CONNECTIONS, 1)
            .u32(attr::device::QUEUE_DEPTH, 128)
            .nest(attr::device::TIMEOUTS, &timeouts)
            .u32(attr::device::CHECKSUMS, uapi::checksum::HEADER)
            .u32(attr::device::STATE, uapi::SessionState::Recovering as u32)
            .u32(attr::device::LOST_MS, 12_000)
            .bytes(attr::device::SESSION_ID, &[0x33; 16])
            .u32(attr::device::GENERATION, 2)
            .bytes(attr::device::BOOT_ID, &[0x44; 16])
            .bytes(attr::device::SIZE, &(10_u64 << 30).to_ne_bytes())
            .nest(attr::device::LIMITS, &limits)
            .u32(attr::device::OPEN_COUNT, 1)
            .nest(attr::device::STATISTICS, &statistics)
            .nest(attr::device::CONNECTION, &connection)
            .u32(attr::device::LOSS_DEADLINE_MS, 48_000)
            .u32(attr::device::SUSPEND, uapi::SuspendMode::Normal as u32)
            .u32(attr::device::AT_RISK_BYTES, 3 << 20)
            .bytes(attr::device::SHRUNK_SIZE, &(5_u64 << 30).to_ne_bytes())
            .u32(attr::device::POLL_QUEUES, 1)
            .text(
                attr::device::FENCED,
                "the volume pool/volume is held by host host2 (22)",
            );
        message
    }

    #[test]
    fn a_message_becomes_a_device() {
        let message = sample_message();
        let device = Device::parse(Attrs(message.as_bytes()));
        assert_eq!(device.device, "/dev/neonsan3");
        assert_eq!(device.nodes.len(), 2);
        assert_eq!(device.state, "recovering");
        assert_eq!(device.size_bytes, 10 << 30);
        let stuck = device.connections[0].oldest_request.as_ref();
        assert_eq!(
            stuck.map(|r| (r.offset_bytes, r.state.as_str())),
            Some((5 << 32, "parked"))
        );
    }

    #[test]
    fn a_name_that_is_not_resolved_yet_has_no_address() {
        let late = ResolvedNode::unresolved("late.test", 9666);
        let node = Node {
            address: late.address,
            port: late.port,
            scope_id: None,
            name: late.name,
            learned: false,
        };
        assert_eq!(node.to_string(), "late.test:9666 (not resolved yet)");
        let json = serde_json::to_value(&node).ok();
        let expected = serde_json::json!({
            "address": null, "port": 9666, "name": "late.test", "learned": false,
        });
        assert_eq!(json, Some(expected));
    }

    #[test]
    fn values_from_a_newer_module_are_shown_as_numbers() {
        let mut message = AttrsMut::default();
        message.u32(attr::device::STATE, 77).u32(999, 1);
        let device = Device::parse(Attrs(message.as_bytes()));
        assert_eq!(device.state, "unknown-77");
        assert_eq!(device.mode, "unknown");
    }
}
