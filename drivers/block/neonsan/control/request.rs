// SPDX-License-Identifier: GPL-2.0

//! From attributes to what a device is attached with. The core has checked types and ranges.

use crate::{
    params::{AttachParams, Node, Text, MAX_DEVICE_NODES},
    uapi::{self, attr},
};
use kernel::{init::InPlaceInit as _, prelude::*};
use neonsan_kernel::{
    genetlink::{Attributes, Refusal, Request},
    net::{IpAddr, SocketAddr},
};
use neonsan_proto::VolumeName;
use neonsan_session::Timeouts;

/// The port of a node when none is given.
const DEFAULT_PORT: u16 = 9666;

/// What an attach request asks for; what it leaves out has its default.
#[inline(never)]
pub(super) fn attach_params(request: &Request<'_>) -> Result<KBox<AttachParams>, Refusal> {
    use attr::device as a;
    let attributes = request.attributes();
    let number = |kind| attributes.get(kind).and_then(|attribute| attribute.u32());
    // Zero leaves it to the module, as does absence.
    let wish = |kind| number(kind).filter(|value| *value != 0);
    let host_id = attributes.get(a::HOST_ID).and_then(|id| id.array());
    let Some(host_id) = host_id.filter(|id| *id != [0; 16]) else {
        return Err(Refusal::new(
            EINVAL,
            format_args!(
                "name the host: its id has 16 bytes, not all zero, the same across reboots"
            ),
        ));
    };
    let host_boot = attributes.get(a::HOST_BOOT).and_then(|boot| boot.array());
    let host_boot = host_boot.map_or(0, u64::from_le_bytes);
    let mode = number(a::MODE).map_or(Some(uapi::Mode::Exclusive), uapi::Mode::from_raw);
    let Some(mode) = mode else {
        return Err(Refusal::new(
            EINVAL,
            format_args!("the mode is unknown to this version"),
        ));
    };
    let timeouts = match attributes.get(a::TIMEOUTS) {
        Some(wished) => timeouts(wished.nested(), Timeouts::DEFAULT),
        None => Timeouts::DEFAULT,
    };
    let (volume, nodes) = (volume(attributes)?, nodes(attributes)?);
    // Made where it lies: it is too large for the stack.
    let params = init!(AttachParams {
        volume,
        nodes,
        mode,
        host_id,
        host_boot,
        host_name: host_name(attributes),
        index: number(a::INDEX),
        connections: wish(a::CONNECTIONS),
        poll_queues: number(a::POLL_QUEUES).unwrap_or(0),
        queue_depth: wish(a::QUEUE_DEPTH),
        timeouts,
        checksums: number(a::CHECKSUMS).unwrap_or(0),
        force: attributes.has(a::FORCE),
        net: request.net(),
    });
    Ok(KBox::init(params, GFP_KERNEL)?)
}

#[inline(never)]
fn volume<const N: usize>(attributes: Attributes<'_>) -> Result<Text<N>, Refusal> {
    let Some(volume) = attributes.get(attr::device::VOLUME) else {
        return Err(Refusal::new(
            EINVAL,
            format_args!("name the volume, as in pool/volume"),
        ));
    };
    let Some(volume) = volume.str() else {
        return Err(Refusal::new(
            EINVAL,
            format_args!("the volume's name is not text"),
        ));
    };
    match VolumeName::parse(volume) {
        Ok(name) => Ok(Text::from_str(name.as_str())),
        Err(error) => Err(Refusal::new(EINVAL, format_args!("{error}"))),
    }
}

/// The host's name for people; one that is not text is none.
fn host_name<const N: usize>(attributes: Attributes<'_>) -> Text<N> {
    let name = attributes
        .get(attr::device::HOST_NAME)
        .and_then(|name| name.str());
    Text::from_str(name.unwrap_or(""))
}

/// The nodes that a request names, at least one.
#[inline(never)]
pub(super) fn nodes(attributes: Attributes<'_>) -> Result<KVec<Node>, Refusal> {
    let mut nodes = KVec::new();
    for node in attributes.all(attr::device::NODE) {
        if nodes.len() == MAX_DEVICE_NODES {
            return Err(Refusal::new(
                EINVAL,
                format_args!("too many nodes: name at most {MAX_DEVICE_NODES}"),
            ));
        }
        nodes
            .push(parse_node(node.nested())?, GFP_KERNEL)
            .map_err(Error::from)?;
    }
    if nodes.is_empty() {
        return Err(Refusal::new(
            EINVAL,
            format_args!("name a node that serves the volume"),
        ));
    }
    Ok(nodes)
}

#[inline(never)]
fn parse_node(attributes: Attributes<'_>) -> Result<Node, Refusal> {
    use attr::node as a;
    let v4 = attributes
        .get(a::IPV4)
        .and_then(|ip| ip.array())
        .map(IpAddr::V4);
    let v6 = attributes
        .get(a::IPV6)
        .and_then(|ip| ip.array())
        .map(IpAddr::V6);
    let ip = match (v4, v6) {
        (Some(ip), None) | (None, Some(ip)) => ip,
        (None, None) | (Some(_), Some(_)) => {
            return Err(Refusal::new(
                EINVAL,
                format_args!("a node has one address, either IPv4 or IPv6"),
            ));
        }
    };
    let port = attributes.get(a::PORT).and_then(|port| port.u16());
    let scope_id = attributes.get(a::SCOPE_ID).and_then(|scope| scope.u32());
    let name = attributes.get(a::NAME).and_then(|name| name.str());
    Ok(Node {
        addr: SocketAddr {
            ip,
            port: port.unwrap_or(DEFAULT_PORT),
            scope_id: scope_id.unwrap_or(0),
        },
        name: Text::from_str(name.unwrap_or("")),
    })
}

/// The timeouts that are named, and the others from `base`.
pub(super) fn timeouts(attributes: Attributes<'_>, base: Timeouts) -> Timeouts {
    use attr::timeouts as a;
    let number = |kind, base| {
        attributes
            .get(kind)
            .and_then(|attribute| attribute.u32())
            .unwrap_or(base)
    };
    Timeouts {
        request_ms: number(a::REQUEST, base.request_ms),
        connect_ms: number(a::CONNECT, base.connect_ms),
        heartbeat_interval_ms: number(a::HEARTBEAT_INTERVAL, base.heartbeat_interval_ms),
        heartbeat_timeout_ms: number(a::HEARTBEAT_TIMEOUT, base.heartbeat_timeout_ms),
        reconnect_delay_min_ms: number(a::RECONNECT_DELAY_MIN, base.reconnect_delay_min_ms),
        reconnect_delay_max_ms: number(a::RECONNECT_DELAY_MAX, base.reconnect_delay_max_ms),
        loss_ms: number(a::LOSS, base.loss_ms),
    }
}
