// SPDX-License-Identifier: GPL-2.0

//! From a device to attributes.

use super::{put_fenced, put_name};
use crate::{
    device::{Device, Volume},
    info::{ConnectionInfo, DeviceInfo, RequestInfo, Statistics},
    params::Node,
    uapi::{self, attr},
};
use kernel::prelude::*;
use neonsan_kernel::{genetlink::GenlMsg, net::IpAddr};
use neonsan_proto::{Features, Geometry};
use neonsan_session::Timeouts;

/// What a message about a device shows, read once: the message may be written several times, until
/// its buffer is large enough.
pub(super) struct Shown<'a> {
    device: &'a Device,
    info: KBox<DeviceInfo>,
    /// `None` for a reader without CAP_SYS_ADMIN, who is told the device's name and state and nothing
    /// of its volume, nodes, host, session or requests.
    details: Option<Details>,
}

/// What only an administrator is told.
struct Details {
    connections: KVec<(u16, ConnectionInfo)>,
    statistics: Statistics,
}

impl<'a> Shown<'a> {
    /// Reads the state of a device, for an administrator or for any user. Sleeps.
    pub(super) fn new(device: &'a Device, admin: bool) -> Result<Self> {
        let info = device.info()?;
        let details = match admin {
            true => Some(Details::new(device)?),
            false => None,
        };
        Ok(Shown {
            device,
            info,
            details,
        })
    }

    /// Writes the message, with or without the connections.
    pub(super) fn put(&self, msg: &mut GenlMsg<'_>, with_connections: bool) -> Result {
        use attr::device as a;
        put_name(msg, self.device)?;
        msg.put_u32(a::STATE, self.info.state as u32)?;
        msg.put_uint(a::LOST_MS, self.info.lost_for_ms)?;
        if let Some(mode) = self.info.suspend {
            msg.put_u32(a::SUSPEND, mode as u32)?;
        }
        match &self.details {
            Some(details) => details.put(msg, self.device, &self.info, with_connections),
            None => Ok(()),
        }
    }
}

impl Details {
    fn new(device: &Device) -> Result<Self> {
        let connections = device.connection_infos()?;
        Ok(Details {
            statistics: device.statistics(&connections),
            connections,
        })
    }

    fn put(
        &self,
        msg: &mut GenlMsg<'_>,
        device: &Device,
        info: &DeviceInfo,
        with_connections: bool,
    ) -> Result {
        use attr::device as a;
        let params = device.params();
        msg.put_str(a::VOLUME, params.volume.as_str())?;
        put_nodes(msg, device)?;
        msg.put_u32(a::MODE, params.mode as u32)?;
        msg.put_bytes(a::HOST_ID, &params.host_id)?;
        msg.put_str(a::HOST_NAME, params.host_name.as_str())?;
        msg.put_u32(a::CONNECTIONS, info.connections.into())?;
        msg.put_u32(a::QUEUE_DEPTH, info.queue_depth)?;
        msg.nest(a::TIMEOUTS, |msg| put_timeouts(msg, &device.timeouts()))?;
        msg.put_bytes(a::SESSION_ID, &info.session_id)?;
        msg.put_uint(a::GENERATION, info.generation)?;
        msg.put_u32(a::OPEN_COUNT, info.openers)?;
        if let Some(volume) = &info.volume {
            put_volume(msg, volume)?;
        }
        msg.nest(a::STATISTICS, |msg| put_statistics(msg, &self.statistics))?;
        if with_connections {
            for (index, connection) in &self.connections {
                msg.nest(a::CONNECTION, |msg| put_connection(msg, *index, connection))?;
            }
        }
        if let Some(ms) = info.loss_deadline_ms {
            msg.put_uint(a::LOSS_DEADLINE_MS, ms)?;
        }
        msg.put_u32(a::POLL_QUEUES, info.poll_queues.into())?;
        msg.put_uint(a::AT_RISK_BYTES, info.at_risk_bytes)?;
        if let Some(bytes) = info.shrunk_bytes {
            msg.put_uint(a::SHRUNK_SIZE, bytes)?;
        }
        if let Some(failure) = &info.failure {
            msg.put_str(a::FAILURE, failure.as_str())?;
        }
        put_fenced(msg, device)
    }
}

#[inline(never)]
fn put_nodes(msg: &mut GenlMsg<'_>, device: &Device) -> Result {
    // Copied out: the lock is not held while the message is written.
    let listed = |index| device.nodes().lock().listed(index);
    for (node, is_learned) in (0..).map_while(listed) {
        msg.nest(attr::device::NODE, |msg| {
            put_node(msg, &node)?;
            if is_learned {
                msg.put_flag(attr::node::LEARNED)?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

fn put_volume(msg: &mut GenlMsg<'_>, volume: &Volume) -> Result {
    use attr::device as a;
    let mut checksums = 0;
    if volume.features.contains(Features::HEADER_CRC) {
        checksums |= uapi::checksum::HEADER;
    }
    if volume.features.contains(Features::PAYLOAD_CRC) {
        checksums |= uapi::checksum::PAYLOAD;
    }
    msg.put_bytes(a::VOLUME_ID, &volume.volume_id)?;
    msg.put_bytes(a::BOOT_ID, &volume.boot_id)?;
    msg.put_u32(a::CHECKSUMS, checksums)?;
    msg.put_uint(a::SIZE, volume.geometry.size_bytes.get())?;
    msg.nest(a::LIMITS, |msg| put_limits(msg, &volume.geometry))
}

fn put_limits(msg: &mut GenlMsg<'_>, geometry: &Geometry) -> Result {
    use attr::limits as a;
    for (kind, value) in [
        (a::LOGICAL_BLOCK_SIZE, geometry.logical_block_size),
        (a::PHYSICAL_BLOCK_SIZE, geometry.physical_block_size),
        (a::IO_MIN, geometry.io_min_bytes),
        (a::IO_OPT, geometry.io_opt_bytes),
        (a::IO_MAX, geometry.max_io_bytes),
        (a::DISCARD_GRANULARITY, geometry.discard_granularity),
        (a::DISCARD_MAX, geometry.max_discard_bytes),
        (a::WRITE_ZEROES_MAX, geometry.max_write_zeroes_bytes),
        (a::ATOMIC_UNIT_MIN, geometry.atomic_unit_min_bytes),
        (a::ATOMIC_UNIT_MAX, geometry.atomic_unit_max_bytes),
        (a::ATOMIC_BOUNDARY, geometry.atomic_boundary_bytes),
        (a::ABILITIES, geometry.capabilities),
    ] {
        msg.put_u32(kind, value.get())?;
    }
    Ok(())
}

fn put_timeouts(msg: &mut GenlMsg<'_>, timeouts: &Timeouts) -> Result {
    use attr::timeouts as a;
    msg.put_u32(a::REQUEST, timeouts.request_ms)?;
    msg.put_u32(a::CONNECT, timeouts.connect_ms)?;
    msg.put_u32(a::HEARTBEAT_INTERVAL, timeouts.heartbeat_interval_ms)?;
    msg.put_u32(a::HEARTBEAT_TIMEOUT, timeouts.heartbeat_timeout_ms)?;
    msg.put_u32(a::RECONNECT_DELAY_MIN, timeouts.reconnect_delay_min_ms)?;
    msg.put_u32(a::RECONNECT_DELAY_MAX, timeouts.reconnect_delay_max_ms)?;
    msg.put_u32(a::LOSS, timeouts.loss_ms)
}

fn put_node(msg: &mut GenlMsg<'_>, node: &Node) -> Result {
    use attr::node as a;
    match &node.addr.ip {
        IpAddr::V4(ip) => msg.put_bytes(a::IPV4, ip)?,
        IpAddr::V6(ip) => msg.put_bytes(a::IPV6, ip)?,
    }
    msg.put_u16(a::PORT, node.addr.port)?;
    if node.addr.scope_id != 0 {
        msg.put_u32(a::SCOPE_ID, node.addr.scope_id)?;
    }
    match node.name.as_str() {
        "" => Ok(()),
        name => msg.put_str(a::NAME, name),
    }
}

fn put_statistics(msg: &mut GenlMsg<'_>, statistics: &Statistics) -> Result {
    use attr::statistics as a;
    msg.put_uint(a::READS, statistics.reads)?;
    msg.put_uint(a::WRITES, statistics.writes)?;
    msg.put_uint(a::FLUSHES, statistics.flushes)?;
    msg.put_uint(a::DISCARDS, statistics.discards)?;
    msg.put_uint(a::WRITE_ZEROES, statistics.write_zeroes)?;
    msg.put_uint(a::READ_BYTES, statistics.read_bytes)?;
    msg.put_uint(a::WRITTEN_BYTES, statistics.written_bytes)?;
    msg.put_uint(a::ERRORS, statistics.errors)?;
    msg.put_uint(a::RESENT, statistics.resent)?;
    msg.put_uint(a::TIMEOUTS, statistics.timeouts)?;
    msg.put_uint(a::SENDS, statistics.sends)?;
    msg.put_uint(a::LOST_BYTES, statistics.lost_bytes)
}

fn put_connection(msg: &mut GenlMsg<'_>, index: u16, info: &ConnectionInfo) -> Result {
    use attr::connection as a;
    msg.put_u32(a::INDEX, index.into())?;
    msg.put_u32(a::STATE, info.state as u32)?;
    msg.put_uint(a::SINCE_MS, info.since_ms)?;
    if let Some(node) = &info.node {
        msg.nest(a::NODE, |msg| put_node(msg, node))?;
    }
    msg.put_uint(a::EPOCH, info.epoch)?;
    msg.put_u32(a::IN_FLIGHT, info.in_flight)?;
    msg.put_u32(a::PARKED, info.parked)?;
    msg.put_uint(a::LOSSES, info.losses)?;
    if let Some(cause) = &info.last_cause {
        msg.put_str(a::LAST_CAUSE, cause.as_str())?;
    }
    if let Some(request) = &info.oldest {
        msg.nest(a::OLDEST_REQUEST, |msg| put_request(msg, request))?;
    }
    msg.put_uint(a::SILENT_MS, info.silent_for_ms)?;
    msg.nest(a::STATISTICS, |msg| put_statistics(msg, &info.statistics))?;
    if let Some(ms) = info.retry_in_ms {
        msg.put_uint(a::RETRY_MS, ms)?;
    }
    match info.deadline_in_ms {
        Some(ms) => msg.put_uint(a::DEADLINE_MS, ms),
        None => Ok(()),
    }
}

fn put_request(msg: &mut GenlMsg<'_>, request: &RequestInfo) -> Result {
    use attr::request as a;
    msg.put_u32(a::TAG, request.tag)?;
    msg.put_u64(a::COOKIE, request.cookie)?;
    msg.put_u32(a::OP, request.op as u32)?;
    msg.put_u32(a::STATE, request.state as u32)?;
    msg.put_uint(a::OFFSET, request.offset)?;
    msg.put_uint(a::LENGTH, request.length.into())?;
    msg.put_uint(a::AGE_MS, request.age_ms)?;
    match request.deadline_in_ms {
        Some(ms) => msg.put_uint(a::DEADLINE_MS, ms),
        None => Ok(()),
    }
}
