// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What a node makes of requests: good ones become commands, impossible ones get a status, and a
//! peer that breaks the protocol loses its connection.

mod common;

use common::*;
use neonsan_proto::{Capabilities, Features, Geometry, Header, Kind, RequestFlags, Status};
use neonsan_session::server::{Command, Limits, Received, Receiver, Want};
use neonsan_session::CloseCause;

const LIMITS: Limits = Limits {
    max_depth: 4,
    max_inflight_bytes: 128 * 1024,
    read_only: false,
};

struct Node {
    receiver: Receiver,
    payload: Vec<u8>,
    skipped: usize,
}

fn node_with(geometry: Geometry, limits: Limits, features: Features) -> Node {
    Node {
        receiver: Receiver::new(geometry, limits, features, crc32c),
        payload: Vec::new(),
        skipped: 0,
    }
}

fn node(features: Features) -> Node {
    node_with(geometry(), LIMITS, features)
}

impl Node {
    fn hear(&mut self, mut bytes: &[u8], piece: usize) -> Result<Vec<Received>, CloseCause> {
        let mut all = Vec::new();
        while !bytes.is_empty() {
            let received = match self.receiver.want() {
                Want::Bytes(buffer) => {
                    assert!(!buffer.is_empty());
                    let n = buffer.len().min(bytes.len()).min(piece);
                    buffer[..n].copy_from_slice(&bytes[..n]);
                    bytes = &bytes[n..];
                    self.receiver.received(n)?
                }
                Want::Payload { at, remaining } => {
                    assert!(remaining > 0);
                    self.payload.truncate(at as usize);
                    let n = (remaining as usize).min(bytes.len()).min(piece);
                    self.payload.extend_from_slice(&bytes[..n]);
                    bytes = &bytes[n..];
                    self.receiver
                        .payload_received(n as u32, crc32c(&self.payload))
                }
                Want::Skip { remaining } => {
                    let n = (remaining as usize).min(bytes.len()).min(piece);
                    self.skipped += n;
                    bytes = &bytes[n..];
                    self.receiver.payload_received(n as u32, 0)
                }
            };
            all.extend(received);
        }
        Ok(all)
    }

    /// What becomes of one request.
    fn ask(&mut self, kind: Kind, flags: RequestFlags, offset: u64, length: u32) -> Answer {
        let header = Header::request(kind, flags, 9, offset, length);
        let payload = vec![
            0;
            if kind == Kind::Write {
                length as usize
            } else {
                0
            }
        ];
        let bytes = message(header, &payload, Features::NONE);
        let heard = self.hear(&bytes, usize::MAX).map_err(|cause| cause.name());
        match heard?.first() {
            Some(Received::Command(_) | Received::WriteBegins(_)) => {
                self.receiver.answered(payload.len() as u32);
                Ok(None)
            }
            Some(Received::Rejected { cookie: 9, status }) => {
                self.receiver.answered(0);
                Ok(Some(*status))
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A status if it was rejected; the name of the cause if the connection was closed.
type Answer = Result<Option<Status>, &'static str>;

const NONE: RequestFlags = RequestFlags::NONE;
const FUA: RequestFlags = RequestFlags::FUA;
const ATOMIC: RequestFlags = RequestFlags::ATOMIC;

#[test]
fn good_requests_become_commands_in_pieces_of_any_size() {
    for features in FEATURE_SETS {
        for piece in (1..70).chain([512, 1000, 100_000]) {
            let mut node = node(features);
            let data: Vec<u8> = (0..1024).map(|i| (i * 3) as u8).collect();
            let write = Header::request(Kind::Write, FUA, 1, 512, 1024);
            let read = Header::request(Kind::Read, NONE, 2, 0, 65536);
            let flush = Header::request(Kind::Flush, NONE, 3, 0, 0);
            let ping = Header::request(Kind::Ping, NONE, 4, 0, 0);
            let close = Header::request(Kind::Close, RequestFlags::RELEASE, 0, 0, 0);
            let bytes = [
                message(write, &data, features),
                message(read, &[], features),
                message(flush, &[], features),
                message(ping, &[], features),
                message(close, &[], features),
            ]
            .concat();
            let command = |kind, flags, cookie, offset, length| Command {
                kind,
                flags,
                cookie,
                offset,
                length,
            };
            let expected = vec![
                Received::WriteBegins(command(Kind::Write, FUA, 1, 512, 1024)),
                Received::WriteComplete,
                Received::Command(command(Kind::Read, NONE, 2, 0, 65536)),
                Received::Command(command(Kind::Flush, NONE, 3, 0, 0)),
                Received::Ping { cookie: 4 },
                Received::Close { release: true },
            ];
            assert_eq!(node.hear(&bytes, piece), Ok(expected), "pieces of {piece}");
            assert_eq!(node.payload, data);
            assert_eq!(node.receiver.in_flight(), 3);
        }
    }
}

#[test]
fn impossible_requests_get_the_status_that_says_why() {
    let unmap = RequestFlags::NO_UNMAP;
    let size = 1 << 20;
    let cases: &[(Kind, RequestFlags, u64, u32, Option<Status>)] = &[
        (Kind::Read, NONE, 0, 512, None),
        (Kind::Read, NONE, size - 512, 512, None),
        (Kind::Read, NONE, 0, 65536, None),
        (Kind::Read, FUA, 0, 512, Some(Status::BadRequest)),
        (Kind::Read, NONE, 0, 0, Some(Status::BadRequest)),
        (Kind::Read, NONE, 1, 512, Some(Status::Misaligned)),
        (Kind::Read, NONE, 0, 513, Some(Status::Misaligned)),
        (Kind::Read, NONE, 0, 65536 + 512, Some(Status::TooLarge)),
        (Kind::Read, NONE, size, 512, Some(Status::OutOfRange)),
        (Kind::Read, NONE, size - 512, 1024, Some(Status::OutOfRange)),
        (
            Kind::Read,
            NONE,
            u64::MAX - 511,
            512,
            Some(Status::OutOfRange),
        ),
        (
            Kind::Read,
            NONE,
            u64::MAX - 511,
            1024,
            Some(Status::OutOfRange),
        ),
        (Kind::Write, FUA, 0, 512, None),
        (Kind::Write, unmap, 0, 512, Some(Status::BadRequest)),
        (
            Kind::Write,
            RequestFlags(0x80),
            0,
            512,
            Some(Status::BadRequest),
        ),
        (Kind::Write, NONE, 0, 0, Some(Status::BadRequest)),
        (Kind::Write, NONE, size, 512, Some(Status::OutOfRange)),
        (Kind::Flush, NONE, 0, 0, None),
        (Kind::Flush, FUA, 0, 0, Some(Status::BadRequest)),
        (Kind::Flush, NONE, 512, 0, Some(Status::BadRequest)),
        (Kind::Flush, NONE, 0, 512, Some(Status::BadRequest)),
        (Kind::Discard, NONE, 512, 512, None),
        (Kind::Discard, FUA, 0, 4096, Some(Status::BadRequest)),
        (Kind::Discard, NONE, 0, 1 << 19, None),
        (
            Kind::Discard,
            NONE,
            0,
            (1 << 19) + 512,
            Some(Status::TooLarge),
        ),
        (Kind::WriteZeroes, FUA.union(unmap), 0, 1 << 18, None),
        (
            Kind::WriteZeroes,
            NONE,
            0,
            (1 << 18) + 512,
            Some(Status::TooLarge),
        ),
        (Kind::WriteZeroes, ATOMIC, 0, 512, Some(Status::BadRequest)),
        // Atomic writes: 1 to 16 KiB, within 32 KiB, a power of two, aligned to its size.
        (Kind::Write, ATOMIC, 0, 512, Some(Status::AtomicLimit)),
        (Kind::Write, ATOMIC, 1024, 1024, None),
        (Kind::Write, ATOMIC, 512, 1024, Some(Status::AtomicLimit)),
        (Kind::Write, ATOMIC, 0, 1536, Some(Status::AtomicLimit)),
        (Kind::Write, ATOMIC.union(FUA), 16384, 16384, None),
        (Kind::Write, ATOMIC, 0, 32768, Some(Status::AtomicLimit)),
    ];
    for (kind, flags, offset, length, expected) in cases {
        let got = node(Features::NONE).ask(*kind, *flags, *offset, *length);
        assert_eq!(got, Ok(*expected), "{kind:?} {flags:?} {offset} {length}");
    }
}

#[test]
fn abilities_that_the_volume_lacks_are_unsupported() {
    let mut bare = geometry();
    bare.capabilities = 0.into();
    for field in [&mut bare.discard_granularity, &mut bare.max_discard_bytes] {
        *field = 0.into();
    }
    for (kind, flags, length) in [
        (Kind::Discard, NONE, 512),
        (Kind::WriteZeroes, NONE, 512),
        (Kind::Write, FUA, 512),
        (Kind::Write, ATOMIC, 1024),
    ] {
        let got = node_with(bare, LIMITS, Features::NONE).ask(kind, flags, 0, length);
        assert_eq!(got, Ok(Some(Status::Unsupported)), "{kind:?} {flags:?}");
    }
}

#[test]
fn what_can_only_be_read_is_not_written() {
    let mut snapshot = geometry();
    snapshot.capabilities = (snapshot.capabilities.get() | Capabilities::READ_ONLY.0).into();
    let reader = Limits {
        read_only: true,
        ..LIMITS
    };
    for (geometry, limits) in [(snapshot, LIMITS), (geometry(), reader)] {
        let mut node = node_with(geometry, limits, Features::NONE);
        for kind in [Kind::Write, Kind::Discard, Kind::WriteZeroes] {
            assert_eq!(node.ask(kind, NONE, 0, 512), Ok(Some(Status::ReadOnly)));
        }
        assert_eq!(node.ask(Kind::Read, NONE, 0, 512), Ok(None));
        assert_eq!(node.ask(Kind::Flush, NONE, 0, 0), Ok(None));
    }
}

#[test]
fn the_payload_of_a_rejected_write_is_skipped() {
    let mut node = node(Features::NONE);
    let write = Header::request(Kind::Write, NONE, 1, 1, 1024);
    let read = Header::request(Kind::Read, NONE, 2, 0, 512);
    // The payload looks like a message: it must not become one.
    let close = Header::new(Kind::Close);
    let mut payload = message(close, &[], Features::NONE).repeat(32);
    payload.truncate(1024);
    let bytes = [
        message(write, &payload, Features::NONE),
        message(read, &[], Features::NONE),
    ]
    .concat();
    let heard = node.hear(&bytes, 100).expect("no violation");
    let (cookie, status) = (1, Status::Misaligned);
    assert_eq!(heard[0], Received::Rejected { cookie, status });
    assert!(matches!(heard[1], Received::Command(c) if c.cookie == 2));
    assert_eq!((heard.len(), node.skipped), (2, 1024));
}

#[test]
fn a_damaged_write_is_told_and_not_carried_out() {
    let features = Features::KNOWN;
    let mut node = node(features);
    let write = Header::request(Kind::Write, NONE, 1, 0, 512);
    let mut bytes = message(write, &[3; 512], features);
    bytes[300] ^= 1;
    let heard = node.hear(&bytes, 64).expect("no violation");
    assert!(matches!(heard[0], Received::WriteBegins(_)));
    assert_eq!(heard[1], Received::WriteDamaged);
    node.receiver.answered(512);
    assert_eq!(node.receiver.in_flight(), 0);
}

#[test]
fn damaged_header_closes_connection() {
    let features = Features::HEADER_CRC;
    let good = message(Header::request(Kind::Read, NONE, 1, 0, 512), &[], features);
    for bit in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(
            node(features).hear(&bad, 32),
            Err(CloseCause::HeaderChecksum)
        );
    }
}

#[test]
fn messages_of_the_wrong_side_close_the_connection() {
    for kind in [
        Kind::Open,
        Kind::Join,
        Kind::OpenReply,
        Kind::Reply,
        Kind::Event,
    ] {
        let bytes = message(Header::new(kind), &[], Features::NONE);
        let cause = CloseCause::UnexpectedKind(kind.to_wire());
        assert_eq!(node(Features::NONE).hear(&bytes, 32), Err(cause));
    }
    let bytes = message(Header::new(Kind::Unknown(0)), &[], Features::NONE);
    assert_eq!(
        node(Features::NONE).hear(&bytes, 32),
        Err(CloseCause::UnknownKind(0))
    );
}

#[test]
fn absurd_write_closes_connection_before_a_byte_of_it_is_read() {
    for length in [65537, 1 << 24, u32::MAX] {
        let mut node = node(Features::NONE);
        let header = Header::request(Kind::Write, NONE, 1, 0, length);
        let bytes = message(header, &[], Features::NONE);
        assert_eq!(node.hear(&bytes, 32), Err(CloseCause::LengthLimit(length)));
    }
}

#[test]
fn more_requests_than_agreed_close_the_connection() {
    let mut node = node(Features::NONE);
    let flush = message(Header::new(Kind::Flush), &[], Features::NONE);
    for _ in 0..4 {
        assert!(node.hear(&flush, 32).is_ok());
    }
    node.receiver.answered(0);
    assert!(node.hear(&flush, 32).is_ok());
    assert_eq!(node.hear(&flush, 32), Err(CloseCause::TooMuchInFlight));
}

#[test]
fn rejected_requests_count_as_in_flight_until_they_are_answered() {
    let mut node = node(Features::NONE);
    let bad = message(
        Header::request(Kind::Read, NONE, 1, 3, 512),
        &[],
        Features::NONE,
    );
    for _ in 0..4 {
        assert!(node.hear(&bad, 32).is_ok());
    }
    assert_eq!(node.hear(&bad, 32), Err(CloseCause::TooMuchInFlight));
}

#[test]
fn more_bytes_than_agreed_close_the_connection() {
    let mut node = node(Features::NONE);
    let header = Header::request(Kind::Write, NONE, 1, 0, 65536);
    let write = message(header, &vec![0; 65536], Features::NONE);
    assert!(node.hear(&write, 4096).is_ok());
    assert!(node.hear(&write, 4096).is_ok());
    node.receiver.answered(65536);
    assert!(node.hear(&write, 4096).is_ok());
    assert_eq!(node.hear(&write, 4096), Err(CloseCause::TooMuchInFlight));
}

#[test]
fn a_new_geometry_holds_at_once() {
    let mut node = node(Features::NONE);
    assert_eq!(
        node.ask(Kind::Read, NONE, 1 << 20, 512),
        Ok(Some(Status::OutOfRange))
    );
    let mut grown = geometry();
    grown.size_bytes = (1 << 21).into();
    node.receiver.set_geometry(grown);
    assert_eq!(node.ask(Kind::Read, NONE, 1 << 20, 512), Ok(None));
}
