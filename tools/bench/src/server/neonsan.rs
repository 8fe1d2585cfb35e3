// SPDX-License-Identifier: GPL-2.0 OR MIT

//! NeonSAN: everyone is let in, and nothing is fenced.

use super::{Command, Protocol};
use crate::memory::Region;
use neonsan_proto::{
    Capabilities, Features, Geometry, Header, Kind, OpenReply, RequestFlags, Status, HEADER_BYTES,
};
use neonsan_session::server::Handshake;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use zerocopy::{FromBytes as _, IntoBytes as _};

/// Bytes of the volume, set before the first client comes.
static SIZE: AtomicU64 = AtomicU64::new(0);

/// Settles the size of the volume.
pub fn set_size(bytes: u64) {
    SIZE.store(bytes, Ordering::Relaxed);
}

fn crc32c(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// One connection.
pub struct Neonsan {
    features: Features,
    /// The request last parsed.
    request: Header,
}

fn protocol_error(cause: neonsan_session::CloseCause) -> io::Error {
    io::Error::other(cause.to_string())
}

fn geometry() -> Geometry {
    Geometry {
        size_bytes: SIZE.load(Ordering::Relaxed).into(),
        logical_block_size: 512.into(),
        physical_block_size: 4096.into(),
        io_min_bytes: 4096.into(),
        max_io_bytes: (1 << 20).into(),
        capabilities: Capabilities::FUA.0.into(),
        ..Geometry::default()
    }
}

impl Neonsan {
    /// Shakes hands.
    pub fn accept(mut socket: &TcpStream) -> io::Result<Self> {
        let mut handshake = Handshake::new(Features::KNOWN, "neonsan-bench", crc32c);
        let introduced = loop {
            let out = handshake.poll_transmit().to_vec();
            if !out.is_empty() {
                socket.write_all(&out)?;
                handshake.transmitted(out.len()).map_err(protocol_error)?;
            }
            if let Some(introduced) = handshake.introduced() {
                break introduced;
            }
            let n = socket.read(handshake.want())?;
            if n == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            handshake.received(n).map_err(protocol_error)?;
        };
        let reply = OpenReply {
            geometry: geometry(),
            volume_id: *b"bench volume 001",
            boot_id: *b"bench boot 00001",
            generation: introduced.request.generation,
            max_connections: 64.into(),
            max_depth: 1024.into(),
            max_inflight_bytes: (64 << 20).into(),
            ..OpenReply::default()
        };
        let mut out = Vec::new();
        handshake.encode_accept(reply, &[], &mut out);
        socket.write_all(&out)?;
        Ok(Neonsan {
            features: introduced.features,
            request: Header::new(Kind::Ping),
        })
    }
}

impl Protocol for Neonsan {
    fn header_bytes(&self) -> usize {
        HEADER_BYTES
    }

    fn parse(&mut self, header: &[u8]) -> io::Result<Command> {
        let header = Header::read_from_bytes(header).map_err(|_| io::ErrorKind::InvalidData)?;
        if self.features.contains(Features::HEADER_CRC) && !header.is_intact(crc32c) {
            return Err(io::Error::other("a header arrived damaged"));
        }
        self.request = header;
        let (offset, len) = (header.offset(), header.length());
        Ok(match header.kind() {
            Kind::Read => Command::Read { offset, len },
            Kind::Write => Command::Write { offset, len },
            Kind::Close => Command::Close,
            Kind::Ping | Kind::Pong | Kind::Flush | Kind::Discard | Kind::WriteZeroes => {
                Command::Other
            }
            other => return Err(io::Error::other(format!("unexpected {other:?}"))),
        })
    }

    fn reply(&mut self, command: &Command, memory: &Region, to: &mut [u8]) -> io::Result<usize> {
        let cookie = self.request.cookie();
        let mut header = match (command, self.request.kind()) {
            (_, Kind::Pong) => return Ok(0),
            (_, Kind::Ping) => Header::request(Kind::Pong, RequestFlags::NONE, cookie, 0, 0),
            (Command::Read { len, .. }, _) => Header::reply(Status::Ok, cookie, *len),
            _ => Header::reply(Status::Ok, cookie, 0),
        };
        if self.features.contains(Features::PAYLOAD_CRC) {
            match command {
                Command::Read { offset, len } => {
                    header.set_payload_crc(memory.crc32c(*offset, *len as usize)?);
                }
                Command::Write { offset, len } => {
                    if memory.crc32c(*offset, *len as usize)? != self.request.payload_crc() {
                        return Err(io::Error::other("a payload arrived damaged"));
                    }
                }
                Command::Other | Command::Close => {}
            }
        }
        if self.features.contains(Features::HEADER_CRC) {
            header.seal(crc32c);
        }
        to[..HEADER_BYTES].copy_from_slice(header.as_bytes());
        Ok(HEADER_BYTES)
    }
}
