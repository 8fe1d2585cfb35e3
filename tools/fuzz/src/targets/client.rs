// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The client's machines against any node.

use super::oracle::{judge, Asked};
use super::{features_of, input, Setup, Trace, SETUPS};
use crate::conversation::{geometry, identity, message, node_address, open_reply, FIRST_OPEN};
use neonsan_proto::{
    EventKind, Features, Header, Kind, Refusal, RequestFlags, ServerHello, Status, HELLO_BYTES,
    MAX_DEPTH, MAX_NODES,
};
use neonsan_session::client::{
    Handshake, Matched, Progress, Received, Receiver, Request, Slot, SlotTable, Want,
};
use neonsan_session::{CloseCause, Cookie, Instant, Tag};
use std::collections::BTreeMap;
use zerocopy::IntoBytes as _;

const SLOTS: u16 = 6;
const CONNECTION: u16 = 1;

/// The requests in flight when the bytes begin: kind and length by tag. Tag 4 is claimed and not
/// sent, tag 5 is free; tag 3 is in its second use.
const REQUESTS: [(Kind, u32); 4] = [
    (Kind::Read, 512),
    (Kind::Write, 512),
    (Kind::Flush, 0),
    (Kind::Read, 1024),
];

fn request(kind: Kind, length: u32) -> Request {
    Request {
        kind,
        flags: RequestFlags::NONE,
        offset: 4096,
        length,
    }
}

fn slots() -> SlotTable<Vec<Slot>> {
    let slots = SlotTable::new(
        CONNECTION,
        (0..SLOTS).map(|_| Slot::new()).collect::<Vec<_>>(),
    );
    let flush = request(Kind::Flush, 0);
    let old = slots.claim(Tag(3), flush, Instant(0)).expect("free");
    slots.sent(Tag(3), Instant(0));
    let header = Header::reply(Status::Ok, old.to_wire(), 0);
    assert_eq!(slots.on_reply(&header), Ok((Tag(3), Matched::Done)));
    for (tag, (kind, length)) in REQUESTS.into_iter().enumerate() {
        let tag = Tag(tag as u16);
        assert!(slots
            .claim(tag, request(kind, length), Instant(0))
            .is_some());
        assert!(slots.sent(tag, Instant(0)));
    }
    assert!(slots.claim(Tag(4), flush, Instant(0)).is_some());
    slots
}

/// The same requests for the oracle.
fn asked() -> Vec<Asked> {
    let mut asked: Vec<Asked> = (0..4)
        .map(|tag| Asked {
            slot_generation: cookie(tag).slot_generation,
            sent: Some(REQUESTS[usize::from(tag)]),
        })
        .collect();
    for slot_generation in [1, 0] {
        let sent = None;
        asked.push(Asked {
            slot_generation,
            sent,
        });
    }
    asked
}

fn cookie(tag: u16) -> Cookie {
    Cookie {
        slot_generation: if tag == 3 { 2 } else { 1 },
        connection: CONNECTION,
        tag: Tag(tag),
    }
}

/// Feeds `bytes` to a receiver in pieces and checks each thing that it says.
fn hear(
    setup: &Setup,
    mut bytes: &[u8],
    slots: &SlotTable<Vec<Slot>>,
    done: &mut BTreeMap<u16, (Status, Vec<u8>)>,
) -> (Vec<Received>, Option<CloseCause>) {
    let mut receiver = Receiver::new(setup.features, setup.crc32c);
    let mut all = Vec::new();
    let mut buffers: BTreeMap<u16, Vec<u8>> = BTreeMap::new();
    while !bytes.is_empty() {
        let result = match receiver.want() {
            Want::Bytes(buffer) => {
                assert!(!buffer.is_empty(), "it wants nothing");
                let n = buffer.len().min(bytes.len()).min(setup.piece);
                buffer[..n].copy_from_slice(&bytes[..n]);
                bytes = &bytes[n..];
                receiver.received(n, slots)
            }
            Want::Payload { tag, at, remaining } => {
                let (kind, length) = REQUESTS[usize::from(tag.0)];
                assert_eq!(
                    kind,
                    Kind::Read,
                    "payload for a request that asked for none"
                );
                assert_eq!(at + remaining, length, "payload beyond the request");
                let n = (remaining as usize).min(bytes.len()).min(setup.piece);
                let buffer = buffers.entry(tag.0).or_default();
                assert_eq!(buffer.len(), at as usize);
                buffer.extend_from_slice(&bytes[..n]);
                bytes = &bytes[n..];
                let crc = (setup.crc32c)(buffer);
                receiver.payload_received(n as u32, crc, slots)
            }
        };
        match result {
            Ok(None) => {}
            Ok(Some(received)) => {
                if let Received::Completed { tag, status } = received {
                    let payload = buffers.remove(&tag.0).unwrap_or_default();
                    let (kind, length) = REQUESTS[usize::from(tag.0)];
                    let ok_read = kind == Kind::Read && status == Status::Ok;
                    let expected = if ok_read { length } else { 0 };
                    assert_eq!(payload.len(), expected as usize, "a short completion");
                    let before = done.insert(tag.0, (status, payload));
                    assert!(before.is_none(), "{tag:?} was completed twice");
                }
                all.push(received);
            }
            Err(cause) => return (all, Some(cause)),
        }
    }
    (all, None)
}

pub(super) fn receiver(bytes: &[u8]) -> Trace {
    let Some((first, bytes)) = bytes.split_first() else {
        return Trace::default();
    };
    let setup = Setup::of(*first);
    let slots = slots();
    let mut done = BTreeMap::new();
    let (received, cause) = hear(&setup, bytes, &slots, &mut done);

    // It is what the document says.
    let verdict = judge(bytes, setup.features, setup.crc32c, &asked());
    assert_eq!((&done, cause.map(|c| c.name())), (&verdict.0, verdict.1));
    // Every request is completed or still there, never both, never neither.
    for tag in 0..SLOTS {
        let there = slots.park(Tag(tag));
        let asked = tag < 5;
        assert_eq!(there, asked && !done.contains_key(&tag), "tag {tag}");
    }
    // The size of the pieces changes nothing.
    let again = Setup {
        piece: if setup.piece == 1 { 1000 } else { 1 },
        ..setup
    };
    let mut done_again = BTreeMap::new();
    let same = hear(&again, bytes, &self::slots(), &mut done_again);
    assert_eq!((&received, cause), (&same.0, same.1));
    assert_eq!(done, done_again);

    let mut trace = Trace::default();
    for what in &received {
        let text = format!("{what:?}");
        trace.note(
            text.split(|c: char| !c.is_alphabetic())
                .next()
                .unwrap_or_default(),
        );
        if let Received::Completed { tag, status } = what {
            trace.note(format!("{} {}", tag.0, status.name()));
        }
    }
    trace.note(cause.map_or("end", |c| c.name()));
    trace
}

pub(super) fn receiver_seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for setup in SETUPS {
        let features = features_of(setup);
        let reply = |tag, status, payload: &[u8]| {
            let header = Header::reply(status, cookie(tag).to_wire(), payload.len() as u32);
            message(header, payload, features)
        };
        let ping = Header::request(Kind::Ping, RequestFlags::NONE, 7, 0, 0);
        let limits = Header::event(EventKind::Limits, 0, 64);
        let event = |kind, value| message(Header::event(kind, value, 0), &[], features);
        seeds.push(input(
            setup,
            &[
                reply(2, Status::Ok, &[]),
                reply(0, Status::Ok, &[5; 512]),
                message(ping, &[], features),
                reply(1, Status::NoSpace, &[]),
                event(EventKind::Resized, 1 << 30),
                reply(3, Status::Ok, &[6; 1024]),
            ],
        ));
        let limits = message(limits, geometry(1 << 30, 512).as_bytes(), features);
        seeds.push(input(setup, &[limits, event(EventKind::GoingAway, 100)]));
        seeds.push(input(
            setup,
            &[
                event(EventKind::Unknown(99), 1),
                reply(2, Status::Busy, &[]),
            ],
        ));
        seeds.push(input(setup, &[reply(4, Status::Ok, &[])]));
        seeds.push(input(setup, &[reply(5, Status::Ok, &[])]));
        seeds.push(input(
            setup,
            &[reply(2, Status::Ok, &[]), reply(2, Status::Ok, &[])],
        ));
        seeds.push(input(setup, &[reply(1, Status::Fenced, &[])]));
        seeds.push(input(setup, &[reply(1, Status::NotOwner, &[])]));
    }
    seeds
}

pub(super) fn handshake(bytes: &[u8]) -> Trace {
    let mut trace = Trace::default();
    let Some((first, mut bytes)) = bytes.split_first() else {
        return trace;
    };
    let setup = Setup::of(*first);
    let mut handshake = Handshake::new(&identity(setup.features), FIRST_OPEN, setup.crc32c);
    loop {
        let out = handshake.poll_transmit().len();
        let first = out.min(3);
        handshake.transmitted(first);
        handshake.transmitted(out - first);
        let want = handshake.want();
        let n = want.len().min(bytes.len()).min(setup.piece);
        if n == 0 {
            trace.note("pending");
            return trace;
        }
        want[..n].copy_from_slice(&bytes[..n]);
        bytes = &bytes[n..];
        match handshake.received(n) {
            Ok(Progress::Pending) => assert!(handshake.opened().is_none()),
            Ok(Progress::Opened) => break,
            Err(cause) => {
                assert!(handshake.opened().is_none() && handshake.nodes().count() == 0);
                let refused = handshake.refused();
                if let Some(refused) = refused {
                    assert_eq!(cause, CloseCause::Refused(refused.status));
                    assert!(!refused.text.chars().any(char::is_control));
                }
                // Nothing is sent or received after the end.
                assert!(handshake.want().is_empty() && handshake.poll_transmit().is_empty());
                trace.note(format!("{cause:?}"));
                return trace;
            }
        }
    }
    let opened = handshake.opened().expect("it is open");
    assert!(setup.features.contains(opened.features));
    assert_eq!(opened.reply.geometry.check(), Ok(()));
    assert!((1..=MAX_DEPTH).contains(&opened.reply.max_depth.get()));
    assert!(opened.reply.max_connections.get() > 0);
    assert!(opened.reply.max_inflight_bytes >= opened.reply.geometry.max_io_bytes);
    assert_eq!(opened.reply.generation.get(), 1);
    let nodes = handshake.nodes().count();
    assert_eq!(nodes, usize::from(opened.reply.node_count.get()));
    assert!(nodes <= MAX_NODES);
    trace.note(format!("opened {nodes}"));
    trace
}

pub(super) fn handshake_seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![
        input(0xc0, &[b"HTTP/1.1 400 Bad Request\r\n".to_vec()]),
        input(0xc0, &[vec![0; HELLO_BYTES]]),
    ];
    for setup in SETUPS {
        let features = features_of(setup);
        let agreed = Setup::of(setup).features;
        let hello = |version, features| {
            let hello = ServerHello::accept(version, features, "node 1");
            hello.as_bytes().to_vec()
        };
        let mut reply = open_reply(geometry(1 << 30, 512), 1);
        reply.node_count = 2.into();
        let addresses = [node_address(), node_address()];
        let body = [reply.as_bytes(), addresses.as_bytes()].concat();
        let header = Header::open_reply(Status::Ok, body.len() as u32);
        seeds.push(input(
            setup,
            &[hello(1, agreed), message(header, &body, features)],
        ));
        let refusal = Refusal {
            text_len: 4.into(),
            ..Refusal::default()
        };
        let body = [refusal.as_bytes(), b"held"].concat();
        let header = Header::open_reply(Status::HeldByOther, body.len() as u32);
        seeds.push(input(
            setup,
            &[hello(1, agreed), message(header, &body, features)],
        ));
        seeds.push(input(setup, &[hello(2, agreed)]));
        seeds.push(input(setup, &[hello(1, Features(u64::MAX))]));
        let refusal = ServerHello::refuse(Status::VersionUnsupported, agreed, "node 9");
        seeds.push(input(setup, &[refusal.as_bytes().to_vec()]));
    }
    seeds
}
