// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The node's machines against any client.

use super::{features_of, input, Setup, Trace, SETUPS};
use crate::conversation::{geometry, identity, message, FIRST_OPEN};
use neonsan_proto::{
    ClientHello, Features, Header, Kind, OpenRequest, RequestFlags, Status, OPEN_REQUEST_BYTES,
};
use neonsan_session::client;
use neonsan_session::server::{Command, Handshake, Limits, Received, Receiver, Want};
use neonsan_session::CloseCause;
use zerocopy::IntoBytes as _;

const SIZE: u64 = 1 << 20;
const LIMITS: Limits = Limits {
    max_depth: 8,
    max_inflight_bytes: 2 << 20,
    read_only: false,
};

/// What must be true of a request that is carried out, in other words than the receiver's.
fn check_command(command: &Command) {
    let (offset, length) = (u128::from(command.offset), u128::from(command.length));
    if command.kind == Kind::Flush {
        assert_eq!((offset, length, command.flags.0), (0, 0, 0));
        return;
    }
    assert!(
        offset + length <= u128::from(SIZE),
        "beyond the volume: {command:?}"
    );
    assert!(
        length > 0 && offset % 512 == 0 && length % 512 == 0,
        "{command:?}"
    );
    let allowed = match command.kind {
        Kind::Read | Kind::Discard => 0,
        Kind::Write => 0b0011,
        Kind::WriteZeroes => 0b0101,
        other => panic!("{other:?} is no command"),
    };
    assert_eq!(command.flags.0 & !allowed, 0, "{command:?}");
    if command.flags.contains(RequestFlags::ATOMIC) {
        assert!(length.is_power_of_two() && offset % length == 0);
        assert!((4096..=65536).contains(&length));
    }
}

/// Feeds `bytes` to a receiver in pieces; answers the oldest request whenever `answer_at` are in
/// flight.
fn hear(setup: &Setup, mut bytes: &[u8], answer_at: usize) -> (Vec<Received>, Option<CloseCause>) {
    let mut receiver = Receiver::new(geometry(SIZE, 512), LIMITS, setup.features, setup.crc32c);
    let mut all = Vec::new();
    // Payload lengths of what is in flight.
    let mut in_flight: Vec<u32> = Vec::new();
    let mut write: Option<(Command, Vec<u8>)> = None;
    while !bytes.is_empty() {
        let received = match receiver.want() {
            Want::Bytes(buffer) => {
                assert!(!buffer.is_empty(), "it wants nothing");
                let n = buffer.len().min(bytes.len()).min(setup.piece);
                buffer[..n].copy_from_slice(&bytes[..n]);
                bytes = &bytes[n..];
                match receiver.received(n) {
                    Ok(received) => received,
                    Err(cause) => return (all, Some(cause)),
                }
            }
            Want::Payload { at, remaining } => {
                let (command, payload) = write.as_mut().expect("a write has begun");
                assert_eq!(at + remaining, command.length);
                assert_eq!(at as usize, payload.len());
                let n = (remaining as usize).min(bytes.len()).min(setup.piece);
                payload.extend_from_slice(&bytes[..n]);
                bytes = &bytes[n..];
                receiver.payload_received(n as u32, (setup.crc32c)(payload))
            }
            Want::Skip { remaining } => {
                assert!(remaining > 0 && remaining <= 1 << 20);
                let n = (remaining as usize).min(bytes.len()).min(setup.piece);
                bytes = &bytes[n..];
                receiver.payload_received(n as u32, 0)
            }
        };
        match received {
            None => continue,
            Some(Received::WriteBegins(command)) => {
                check_command(&command);
                assert!(write.is_none(), "a write within a write");
                write = Some((command, Vec::new()));
            }
            Some(Received::Command(command)) => {
                check_command(&command);
                in_flight.push(0);
            }
            Some(Received::WriteComplete | Received::WriteDamaged) => {
                let (command, payload) = write.take().expect("a write has begun");
                assert_eq!(payload.len(), command.length as usize);
                in_flight.push(command.length);
            }
            Some(Received::Rejected { status, .. }) => {
                assert_ne!(status, Status::Ok);
                in_flight.push(0);
            }
            Some(Received::Ping { .. } | Received::Pong { .. }) => {}
            Some(Received::Close { .. }) => {
                all.extend(received);
                return (all, None);
            }
        }
        all.extend(received);
        let counted = in_flight.len() + usize::from(write.is_some());
        assert_eq!(receiver.in_flight() as usize, counted);
        assert!(
            counted <= usize::from(LIMITS.max_depth),
            "more in flight than agreed"
        );
        if in_flight.len() >= answer_at {
            receiver.answered(in_flight.remove(0));
        }
    }
    (all, None)
}

pub(super) fn receiver(bytes: &[u8]) -> Trace {
    let Some((first, bytes)) = bytes.split_first() else {
        return Trace::default();
    };
    let setup = Setup::of(*first);
    let answer_at = if first & 0x08 != 0 { 100 } else { 4 };
    let (received, cause) = hear(&setup, bytes, answer_at);
    let again = Setup {
        piece: if setup.piece == 1 { 1000 } else { 1 },
        ..setup
    };
    let same = hear(&again, bytes, answer_at);
    assert_eq!((&received, cause), (&same.0, same.1));
    let mut trace = Trace::default();
    for what in &received {
        match what {
            Received::Command(c) | Received::WriteBegins(c) => trace.note(c.kind.name()),
            Received::Rejected { status, .. } => trace.note(status.name()),
            other => trace.note(format!("{other:?}").split(' ').next().unwrap_or_default()),
        }
    }
    trace.note(cause.map_or("end", |c| c.name()));
    trace
}

pub(super) fn receiver_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for setup in SETUPS {
        let features = features_of(setup);
        let ask = |kind, flags, offset, length: u32| {
            let payload = vec![
                1;
                if kind == Kind::Write {
                    length as usize
                } else {
                    0
                }
            ];
            let header = Header::request(kind, flags, 1, offset, length);
            message(header, &payload, features)
        };
        let none = RequestFlags::NONE;
        seeds.push(input(
            setup,
            &[
                ask(Kind::Write, RequestFlags::FUA, 512, 512),
                ask(Kind::Read, none, 0, 65536),
                ask(Kind::Flush, none, 0, 0),
                ask(Kind::Discard, none, 4096, 4096),
                ask(Kind::WriteZeroes, RequestFlags::NO_UNMAP, 0, 8192),
                ask(Kind::Ping, none, 0, 0),
                ask(Kind::Close, RequestFlags::RELEASE, 0, 0),
            ],
        ));
        let flushes = vec![ask(Kind::Flush, none, 0, 0); 10];
        seeds.push(input(setup, &flushes));
        seeds.push(input(setup | 0x08, &flushes));
        seeds.push(input(
            setup,
            &[ask(Kind::Write, none, 3, 512), ask(Kind::Pong, none, 0, 0)],
        ));
        seeds.push(input(setup, &[ask(Kind::Read, none, SIZE - 512, 1024)]));
        seeds.push(input(
            setup,
            &[ask(Kind::Write, RequestFlags::ATOMIC, 4096, 2048)],
        ));
        seeds.push(input(setup, &[ask(Kind::Reply, none, 0, 0)]));
    }
    seeds
}

pub(super) fn handshake(bytes: &[u8]) -> Trace {
    let mut trace = Trace::default();
    let Some((first, mut bytes)) = bytes.split_first() else {
        return trace;
    };
    let setup = Setup::of(*first);
    let mut handshake = Handshake::new(setup.features, "fuzz", setup.crc32c);
    loop {
        let out = handshake.poll_transmit().len();
        for n in [out.min(5), out.saturating_sub(5)] {
            if let Err(cause) = handshake.transmitted(n) {
                assert!(handshake.want().is_empty());
                trace.note(format!("refuses {cause:?}"));
                return trace;
            }
        }
        if let Some(introduced) = handshake.introduced() {
            assert!(setup.features.contains(introduced.features));
            assert!(handshake.want().is_empty());
            let volume = introduced.request.volume().is_ok();
            trace.note(format!("{:?} {volume}", introduced.kind));
            return trace;
        }
        let want = handshake.want();
        let n = want.len().min(bytes.len()).min(setup.piece);
        if n == 0 {
            trace.note("pending");
            return trace;
        }
        want[..n].copy_from_slice(&bytes[..n]);
        bytes = &bytes[n..];
        if let Err(cause) = handshake.received(n) {
            assert!(handshake.introduced().is_none() && handshake.want().is_empty());
            assert!(handshake.poll_transmit().is_empty());
            trace.note(format!("{cause:?}"));
            return trace;
        }
    }
}

pub(super) fn handshake_seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![
        input(0xc0, &[b"GET / HTTP/1.1\r\n\r\n".to_vec()]),
        input(
            0xc0,
            &[b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec()],
        ),
    ];
    for setup in SETUPS {
        let features = features_of(setup);
        let agreed = Setup::of(setup).features;
        let who = identity(agreed);
        let client = client::Handshake::new(&who, FIRST_OPEN, Setup::of(setup).crc32c);
        let hello = client.poll_transmit().to_vec();
        let mut request = OpenRequest::new(who.volume, who.host_name);
        request.session_id = who.session_id;
        request.host_id = who.host_id;
        request.host_boot = who.host_boot.into();
        request.generation = 1.into();
        request.epoch = 1.into();
        for kind in [Kind::Open, Kind::Join, Kind::Read] {
            let none = RequestFlags::NONE;
            let header = Header::request(kind, none, 0, 0, OPEN_REQUEST_BYTES as u32);
            let open = message(header, request.as_bytes(), features);
            seeds.push(input(setup, &[hello.clone(), open]));
        }
        let old = ClientHello::new(agreed, Features::NONE, "old").with_versions(2, 9);
        seeds.push(input(setup, &[old.as_bytes().to_vec()]));
        let strict = ClientHello::new(Features::KNOWN, Features::KNOWN, "strict");
        seeds.push(input(setup, &[strict.as_bytes().to_vec()]));
    }
    seeds
}
