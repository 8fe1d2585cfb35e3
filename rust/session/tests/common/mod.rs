// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What the tests of this crate share.
#![allow(dead_code)]

pub mod device;

use neonsan_proto::{
    Capabilities, Features, Geometry, Header, Kind, Mode, OpenReply, RequestFlags, VolumeName,
};
use neonsan_session::client::{self, ConnectKind, Identity};
use neonsan_session::server;
use neonsan_session::{CloseCause, Generation};
use zerocopy::IntoBytes as _;

/// The slowest right CRC-32C: a bit at a time.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ 0x82f6_3b78
            } else {
                crc >> 1
            };
        }
    }
    !crc
}

/// Every set of features that two ends can agree on.
pub const FEATURE_SETS: [Features; 3] = [
    Features::NONE,
    Features::HEADER_CRC,
    Features::HEADER_CRC.union(Features::PAYLOAD_CRC),
];

/// Random numbers that a seed repeats (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.number() % limit as u64) as usize
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.number() as u8).collect()
    }
}

pub fn geometry() -> Geometry {
    let caps = Capabilities::VOLATILE_CACHE
        .union(Capabilities::FUA)
        .union(Capabilities::DISCARD)
        .union(Capabilities::WRITE_ZEROES)
        .union(Capabilities::ATOMIC);
    Geometry {
        size_bytes: (1 << 20).into(),
        logical_block_size: 512.into(),
        physical_block_size: 4096.into(),
        io_min_bytes: 4096.into(),
        io_opt_bytes: 65536.into(),
        max_io_bytes: 65536.into(),
        discard_granularity: 4096.into(),
        max_discard_bytes: (1 << 19).into(),
        max_write_zeroes_bytes: (1 << 18).into(),
        atomic_unit_min_bytes: 1024.into(),
        atomic_unit_max_bytes: 16384.into(),
        atomic_boundary_bytes: 32768.into(),
        capabilities: caps.0.into(),
        reserved: 0.into(),
    }
}

pub fn open_reply(generation: u64) -> OpenReply {
    OpenReply {
        geometry: geometry(),
        volume_id: *b"volume 000000001",
        boot_id: *b"boot 00000000001",
        generation: generation.into(),
        heartbeat_interval_ms: 3000.into(),
        heartbeat_timeout_ms: 9000.into(),
        max_connections: 4.into(),
        max_depth: 8.into(),
        max_inflight_bytes: (1 << 20).into(),
        ..OpenReply::default()
    }
}

pub fn identity(offered: Features) -> Identity<'static> {
    Identity {
        volume: VolumeName::parse("pool/vol").expect("a valid name"),
        mode: Mode::Exclusive,
        force: false,
        session_id: *b"session 00000001",
        host_id: *b"host 00000000001",
        host_boot: 0x6e61_2074_6f6f_6221,
        host_name: "worker-1",
        offered,
        required: Features::NONE,
        product: "client 1.0",
    }
}

pub const OPEN: ConnectKind = ConnectKind::Open {
    generation: Generation(1),
    epoch: 1,
    promote: false,
};

pub fn client_handshake(features: Features) -> client::Handshake {
    client::Handshake::new(&identity(features), OPEN, crc32c)
}

pub fn server_handshake(features: Features) -> server::Handshake {
    server::Handshake::new(features, "node 1.0", crc32c)
}

/// One message with the checksums that the features ask for.
pub fn message(mut header: Header, payload: &[u8], features: Features) -> Vec<u8> {
    if features.contains(Features::PAYLOAD_CRC) && !payload.is_empty() {
        header.set_payload_crc(crc32c(payload));
    }
    if features.contains(Features::HEADER_CRC) {
        header.seal(crc32c);
    }
    [header.as_bytes(), payload].concat()
}

pub fn request(kind: Kind, flags: RequestFlags, offset: u64, length: u32) -> client::Request {
    client::Request {
        kind,
        flags,
        offset,
        length,
    }
}

/// Gives `bytes` to a client's handshake in pieces of `piece` bytes.
pub fn feed_client(
    handshake: &mut client::Handshake,
    mut bytes: &[u8],
    piece: usize,
) -> Result<client::Progress, CloseCause> {
    let mut progress = client::Progress::Pending;
    loop {
        let out = handshake.poll_transmit().len();
        handshake.transmitted(out);
        let want = handshake.want();
        let n = want.len().min(bytes.len()).min(piece);
        if n == 0 {
            return Ok(progress);
        }
        want[..n].copy_from_slice(&bytes[..n]);
        bytes = &bytes[n..];
        progress = handshake.received(n)?;
    }
}

/// Gives `bytes` to a node's handshake in pieces of `piece` bytes; throws away what it sends.
pub fn feed_server(
    handshake: &mut server::Handshake,
    mut bytes: &[u8],
    piece: usize,
) -> Result<(), CloseCause> {
    loop {
        let out = handshake.poll_transmit().len();
        handshake.transmitted(out)?;
        let want = handshake.want();
        let n = want.len().min(bytes.len()).min(piece);
        if n == 0 {
            return Ok(());
        }
        want[..n].copy_from_slice(&bytes[..n]);
        bytes = &bytes[n..];
        handshake.received(n)?;
    }
}
