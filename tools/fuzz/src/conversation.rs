// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A small volume and correct messages about it, from which wrong ones are made.

use neonsan_proto::{
    Capabilities, Features, Geometry, Header, Kind, Mode, NodeAddress, OpenReply, RequestFlags,
    Status, VolumeName,
};
use neonsan_session::client::{ConnectKind, Identity};
use neonsan_session::server::Command;
use neonsan_session::Generation;
use zerocopy::IntoBytes as _;

/// The name of the volume in all conversations.
pub const VOLUME: &str = "test/volume";

/// Every set of features that the two ends can agree on.
pub const FEATURE_SETS: [Features; 3] = [
    Features::NONE,
    Features::HEADER_CRC,
    Features::HEADER_CRC.union(Features::PAYLOAD_CRC),
];

/// CRC-32C.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// A volume with every ability.
pub fn geometry(size_bytes: u64, logical_block_size: u32) -> Geometry {
    let caps = Capabilities::VOLATILE_CACHE
        .union(Capabilities::FUA)
        .union(Capabilities::DISCARD)
        .union(Capabilities::DISCARD_ZEROES)
        .union(Capabilities::WRITE_ZEROES)
        .union(Capabilities::ATOMIC);
    Geometry {
        size_bytes: size_bytes.into(),
        logical_block_size: logical_block_size.into(),
        physical_block_size: 4096.into(),
        io_min_bytes: 4096.into(),
        io_opt_bytes: 65536.into(),
        max_io_bytes: (1 << 20).into(),
        discard_granularity: 4096.into(),
        max_discard_bytes: (1 << 30).into(),
        max_write_zeroes_bytes: (1 << 30).into(),
        atomic_unit_min_bytes: 4096.into(),
        atomic_unit_max_bytes: 65536.into(),
        atomic_boundary_bytes: 0.into(),
        capabilities: caps.0.into(),
        reserved: 0.into(),
    }
}

/// The answer to an OPEN or JOIN that is let in.
pub fn open_reply(geometry: Geometry, generation: u64) -> OpenReply {
    OpenReply {
        geometry,
        volume_id: *b"hostile volume 1",
        boot_id: *b"hostile boot 001",
        generation: generation.into(),
        heartbeat_interval_ms: 0.into(),
        heartbeat_timeout_ms: 0.into(),
        max_connections: 4.into(),
        max_depth: 128.into(),
        node_count: 0.into(),
        reserved: [0; 2],
        max_inflight_bytes: (32 << 20).into(),
        reserved2: [0; 20],
    }
}

/// Where the volume is said to be served.
pub fn node_address() -> NodeAddress {
    let mut ip = [0; 16];
    ip[10..].copy_from_slice(&[0xff, 0xff, 192, 0, 2, 1]);
    NodeAddress {
        ip,
        port: neonsan_proto::DEFAULT_PORT.into(),
        reserved: [0; 2],
        priority: 1.into(),
    }
}

/// The client that opens it.
pub fn identity(offered: Features) -> Identity<'static> {
    Identity {
        // The name is a constant that follows the rules.
        volume: VolumeName::parse(VOLUME).expect("a valid name"),
        mode: Mode::Exclusive,
        force: false,
        session_id: *b"session 00000001",
        host_id: *b"host 00000000001",
        host_boot: 0x6e61_2074_6f6f_6221,
        host_name: "fuzz",
        offered,
        required: Features::NONE,
        product: "neonsan-fuzz",
    }
}

/// The first OPEN of a session.
pub const FIRST_OPEN: ConnectKind = ConnectKind::Open {
    generation: Generation(1),
    epoch: 1,
    promote: false,
};

/// One message: checksums filled in as the features ask, payload behind it.
pub fn message(mut header: Header, payload: &[u8], features: Features) -> Vec<u8> {
    if features.contains(Features::PAYLOAD_CRC) && !payload.is_empty() {
        header.set_payload_crc(crc32c(payload));
    }
    if features.contains(Features::HEADER_CRC) {
        header.seal(crc32c);
    }
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

/// The content of a volume.
#[derive(Clone, Debug)]
pub struct Disk(pub Vec<u8>);

impl Disk {
    /// A volume full of zeroes.
    pub fn new(size_bytes: usize) -> Self {
        Disk(vec![0; size_bytes])
    }

    /// Carries out a command that the server's receiver has checked. `payload` is that of a WRITE.
    /// Returns the payload of the reply.
    pub fn apply(&mut self, command: &Command, payload: &[u8]) -> Result<Vec<u8>, Status> {
        let start = usize::try_from(command.offset).map_err(|_| Status::OutOfRange)?;
        let end = start
            .checked_add(command.length as usize)
            .ok_or(Status::OutOfRange)?;
        let range = self.0.get_mut(start..end).ok_or(Status::OutOfRange)?;
        match command.kind {
            Kind::Read => return Ok(range.to_vec()),
            Kind::Write if payload.len() == range.len() => range.copy_from_slice(payload),
            Kind::Write => return Err(Status::BadRequest),
            Kind::Discard | Kind::WriteZeroes => range.fill(0),
            Kind::Flush => {}
            _ => return Err(Status::BadRequest),
        }
        Ok(Vec::new())
    }
}

/// A request of the client, for tests that need some bytes of one.
pub fn request(kind: Kind, cookie: u64, offset: u64, length: u32) -> Header {
    Header::request(kind, RequestFlags::NONE, cookie, offset, length)
}
