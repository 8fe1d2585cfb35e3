// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What a client makes of replies and events: the right request is completed once, or the
//! connection is closed with the right cause.

mod common;

use common::*;
use neonsan_proto::{EventKind, Features, Geometry, Header, Kind, RequestFlags, Status};
use neonsan_session::client::{
    damage_of_copy, Received, Receiver, Slot, SlotState, SlotTable, Want,
};
use neonsan_session::{CloseCause, Cookie, Instant, Tag};
use std::collections::BTreeMap;
use zerocopy::IntoBytes as _;

const CONNECTION: u16 = 5;

struct Client {
    slots: SlotTable<Vec<Slot>>,
    receiver: Receiver,
    features: Features,
    /// Payload by tag.
    buffers: BTreeMap<u16, Vec<u8>>,
}

impl Client {
    fn new(features: Features) -> Self {
        Client {
            slots: SlotTable::new(CONNECTION, (0..8).map(|_| Slot::new()).collect()),
            receiver: Receiver::new(features, crc32c),
            features,
            buffers: BTreeMap::new(),
        }
    }

    fn send(&mut self, tag: u16, kind: Kind, length: u32) -> Cookie {
        let request = request(kind, RequestFlags::NONE, 4096, length);
        let cookie = self
            .slots
            .claim(Tag(tag), request, Instant(1))
            .expect("free");
        assert!(self.slots.sent(Tag(tag), Instant(1)));
        self.buffers.insert(tag, vec![0; length as usize]);
        cookie
    }

    fn reply(&self, cookie: Cookie, status: Status, payload: &[u8]) -> Vec<u8> {
        let header = Header::reply(status, cookie.to_wire(), payload.len() as u32);
        message(header, payload, self.features)
    }

    /// Receives in pieces of `piece` bytes until the end or a violation.
    fn hear(&mut self, mut bytes: &[u8], piece: usize) -> Result<Vec<Received>, CloseCause> {
        let mut all = Vec::new();
        while !bytes.is_empty() {
            let received = match self.receiver.want() {
                Want::Bytes(buffer) => {
                    assert!(!buffer.is_empty());
                    let n = buffer.len().min(bytes.len()).min(piece);
                    buffer[..n].copy_from_slice(&bytes[..n]);
                    bytes = &bytes[n..];
                    self.receiver.received(n, &self.slots)?
                }
                Want::Payload { tag, at, remaining } => {
                    assert!(remaining > 0);
                    let n = (remaining as usize).min(bytes.len()).min(piece);
                    let buffer = self.buffers.get_mut(&tag.0).expect("asked for");
                    let at = at as usize;
                    buffer[at..at + n].copy_from_slice(&bytes[..n]);
                    let crc = crc32c(&buffer[..at + n]);
                    bytes = &bytes[n..];
                    self.receiver.payload_received(n as u32, crc, &self.slots)?
                }
            };
            all.extend(received);
        }
        Ok(all)
    }
}

fn completed(tag: u16, status: Status) -> Received {
    let tag = Tag(tag);
    Received::Completed { tag, status }
}

fn each(check: impl Fn(Features)) {
    FEATURE_SETS.into_iter().for_each(check);
}

#[test]
fn replies_complete_their_requests_in_pieces_of_any_size() {
    each(|features| {
        for piece in (1..80).chain([511, 512, 513, 5000]) {
            let mut client = Client::new(features);
            let read = client.send(0, Kind::Read, 1024);
            let write = client.send(1, Kind::Write, 512);
            let flush = client.send(2, Kind::Flush, 0);
            let data: Vec<u8> = (0..1024).map(|i| (i * 7) as u8).collect();
            let bytes = [
                client.reply(flush, Status::Ok, &[]),
                client.reply(read, Status::Ok, &data),
                client.reply(write, Status::NoSpace, &[]),
            ]
            .concat();
            let expected = vec![
                completed(2, Status::Ok),
                Received::PayloadBegins { tag: Tag(0) },
                completed(0, Status::Ok),
                completed(1, Status::NoSpace),
            ];
            assert_eq!(
                client.hear(&bytes, piece),
                Ok(expected),
                "pieces of {piece}"
            );
            assert_eq!(client.buffers[&0], data);
            assert_eq!(client.slots.iter().count(), 0);
        }
    });
}

#[test]
fn any_order_of_replies_in_random_pieces_completes_each_once() {
    for seed in 0..300 {
        let mut random = Random(seed);
        let features = FEATURE_SETS[random.below(3)];
        let mut client = Client::new(features);
        let mut replies = Vec::new();
        for tag in 0..8 {
            let kind = [Kind::Read, Kind::Write, Kind::Flush][random.below(3)];
            let length = if kind == Kind::Flush {
                0
            } else {
                512 * (1 + random.below(4))
            };
            let cookie = client.send(tag, kind, length as u32);
            let ok = !random.one_in(4);
            let payload = if ok && kind == Kind::Read {
                random.bytes(length)
            } else {
                Vec::new()
            };
            let status = if ok { Status::Ok } else { Status::MediaError };
            let at = random.below(replies.len() + 1);
            replies.insert(
                at,
                (tag, status, client.reply(cookie, status, &payload), payload),
            );
        }
        let bytes: Vec<u8> = replies.iter().flat_map(|r| r.2.clone()).collect();
        let heard = client
            .hear(&bytes, 1 + random.below(600))
            .expect("good replies");
        let done: Vec<Received> = heard
            .into_iter()
            .filter(|r| matches!(r, Received::Completed { .. }))
            .collect();
        let expected: Vec<Received> = replies.iter().map(|r| completed(r.0, r.1)).collect();
        assert_eq!(done, expected, "seed {seed}");
        for (tag, _, _, payload) in replies.iter().filter(|r| !r.3.is_empty()) {
            assert_eq!(&client.buffers[tag], payload, "seed {seed}");
        }
    }
}

#[test]
fn late_reply_closes_connection() {
    each(|features| {
        let mut client = Client::new(features);
        let old = client.send(3, Kind::Write, 512);
        let reply = client.reply(old, Status::Ok, &[]);
        assert!(client.hear(&reply, 32).is_ok());
        // The tag is in use again: the reply to its old request must not complete the new one.
        client.send(3, Kind::Write, 512);
        assert_eq!(client.hear(&reply, 32), Err(CloseCause::DuplicateReply));
        assert!(client.slots.park(Tag(3)), "the new request is still there");
    });
}

#[test]
fn duplicate_reply_closes_connection() {
    each(|features| {
        let mut client = Client::new(features);
        let cookie = client.send(0, Kind::Flush, 0);
        let reply = client.reply(cookie, Status::Ok, &[]);
        assert!(client.hear(&reply, 32).is_ok());
        assert_eq!(client.hear(&reply, 32), Err(CloseCause::DuplicateReply));
    });
}

#[test]
fn reply_of_a_request_that_is_to_come_closes_connection() {
    let mut client = Client::new(Features::NONE);
    let mut cookie = client.send(0, Kind::Flush, 0);
    cookie.slot_generation += 1;
    let reply = client.reply(cookie, Status::Ok, &[]);
    assert_eq!(client.hear(&reply, 32), Err(CloseCause::UnknownCookie));
}

#[test]
fn wrong_connection_in_cookie_closes_connection() {
    let mut client = Client::new(Features::NONE);
    let mut cookie = client.send(0, Kind::Flush, 0);
    cookie.connection ^= 1;
    let reply = client.reply(cookie, Status::Ok, &[]);
    assert_eq!(client.hear(&reply, 32), Err(CloseCause::UnknownCookie));
}

#[test]
fn tag_beyond_the_table_closes_connection() {
    for tag in [8, 9, u16::MAX] {
        let mut client = Client::new(Features::NONE);
        let mut cookie = client.send(0, Kind::Flush, 0);
        cookie.tag = Tag(tag);
        let reply = client.reply(cookie, Status::Ok, &[]);
        assert_eq!(client.hear(&reply, 32), Err(CloseCause::UnknownCookie));
    }
}

#[test]
fn reply_to_a_slot_that_was_never_used_closes_connection() {
    let mut client = Client::new(Features::NONE);
    let cookie = Cookie {
        slot_generation: 0,
        connection: CONNECTION,
        tag: Tag(0),
    };
    let reply = client.reply(cookie, Status::Ok, &[]);
    assert_eq!(client.hear(&reply, 32), Err(CloseCause::UnknownCookie));
}

#[test]
fn reply_to_a_request_that_was_not_sent_closes_connection() {
    let mut client = Client::new(Features::NONE);
    let flush = request(Kind::Flush, RequestFlags::NONE, 0, 0);
    let cookie = client.slots.claim(Tag(0), flush, Instant(0)).expect("free");
    let reply = client.reply(cookie, Status::Ok, &[]);
    assert_eq!(client.hear(&reply, 32), Err(CloseCause::UnknownCookie));
    assert!(client.slots.abort(Tag(0)), "the request is still there");
}

#[test]
fn reply_longer_or_shorter_than_asked_closes_connection() {
    each(|features| {
        for got in [0, 1, 511, 513, 1024, u32::MAX] {
            let mut client = Client::new(features);
            let cookie = client.send(0, Kind::Read, 512);
            let header = Header::reply(Status::Ok, cookie.to_wire(), got);
            let bytes = message(header, &[], features);
            let cause = CloseCause::ReplyLength { expected: 512, got };
            assert_eq!(client.hear(&bytes, 32), Err(cause));
            assert!(client.slots.park(Tag(0)));
        }
    });
}

#[test]
fn payload_where_none_was_asked_for_closes_connection() {
    each(|features| {
        for (kind, status) in [
            (Kind::Write, Status::Ok),
            (Kind::Flush, Status::Ok),
            (Kind::Discard, Status::Ok),
            (Kind::WriteZeroes, Status::Ok),
            (Kind::Read, Status::MediaError),
        ] {
            let mut client = Client::new(features);
            let cookie = client.send(0, kind, 512);
            let reply = client.reply(cookie, status, &[0; 512]);
            let cause = CloseCause::ReplyLength {
                expected: 0,
                got: 512,
            };
            assert_eq!(client.hear(&reply, 600), Err(cause));
        }
    });
}

#[test]
fn unknown_status_closes_connection() {
    each(|features| {
        let mut client = Client::new(features);
        let cookie = client.send(0, Kind::Read, 512);
        let reply = client.reply(cookie, Status::Unknown(999), &[]);
        assert_eq!(client.hear(&reply, 32), Err(CloseCause::UnknownStatus(999)));
        assert!(client.slots.park(Tag(0)), "it is sent again, not failed");
    });
}

#[test]
fn statuses_that_end_the_session_do_not_complete_the_request() {
    for status in [
        Status::NotOwner,
        Status::UnknownSession,
        Status::GoingAway,
        Status::StaleGeneration,
        Status::ChecksumMismatch,
        Status::Fenced,
    ] {
        let mut client = Client::new(Features::NONE);
        let cookie = client.send(0, Kind::Write, 512);
        let reply = client.reply(cookie, status, &[]);
        let cause = match status {
            Status::Fenced => CloseCause::Fenced,
            other => CloseCause::Refused(other),
        };
        assert_eq!(client.hear(&reply, 32), Err(cause));
        assert!(client.slots.park(Tag(0)));
    }
}

#[test]
fn messages_of_the_wrong_side_close_the_connection() {
    each(|features| {
        for kind in Kind::ALL {
            let expected = match kind {
                Kind::Ping | Kind::Pong => continue,
                Kind::Reply => CloseCause::UnknownCookie,
                Kind::Event => CloseCause::BadEvent,
                other => CloseCause::UnexpectedKind(other.to_wire()),
            };
            let mut client = Client::new(features);
            let header = match kind {
                // An event with payload that is not defined.
                Kind::Event => Header::event(EventKind::Unknown(77), 0, 1),
                kind => Header::request(*kind, RequestFlags::NONE, 0, 0, 0),
            };
            let bytes = message(header, &[], features);
            assert_eq!(client.hear(&bytes, 32), Err(expected));
        }
        let unknown = message(Header::new(Kind::Unknown(0xfe)), &[], features);
        let cause = CloseCause::UnknownKind(0xfe);
        assert_eq!(Client::new(features).hear(&unknown, 32), Err(cause));
    });
}

#[test]
fn damaged_header_closes_connection() {
    let features = Features::HEADER_CRC;
    let mut client = Client::new(features);
    let cookie = client.send(0, Kind::Flush, 0);
    let good = client.reply(cookie, Status::Ok, &[]);
    for bit in 0..good.len() * 8 {
        let mut client = Client::new(features);
        client.send(0, Kind::Flush, 0);
        let mut bad = good.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(
            client.hear(&bad, 32),
            Err(CloseCause::HeaderChecksum),
            "bit {bit}"
        );
    }
}

#[test]
fn damaged_payload_closes_connection_and_the_read_is_kept() {
    let features = Features::KNOWN;
    let mut client = Client::new(features);
    let cookie = client.send(0, Kind::Read, 512);
    let mut reply = client.reply(cookie, Status::Ok, &[1; 512]);
    reply[100] ^= 4;
    assert_eq!(client.hear(&reply, 50), Err(CloseCause::PayloadChecksum));
    let info = client.slots.info(Tag(0)).expect("still there");
    assert_eq!(info.state, SlotState::Receiving);
    assert!(client.slots.park(Tag(0)));
    let (cookie, again) = client.slots.reclaim(Tag(0), Instant(9)).expect("parked");
    assert_eq!(
        (again.kind, again.length, cookie.slot_generation),
        (Kind::Read, 512, 2)
    );
}

#[test]
fn pings_pongs_and_events_are_told() {
    each(|features| {
        let mut client = Client::new(features);
        let ping = Header::request(Kind::Ping, RequestFlags::NONE, 11, 0, 0);
        let pong = Header::request(Kind::Pong, RequestFlags::NONE, 12, 0, 0);
        let limits = Header::event(EventKind::Limits, 0, 64);
        let mut wider = geometry();
        wider.max_io_bytes = (1 << 20).into();
        let bytes = [
            message(ping, &[], features),
            message(pong, &[], features),
            message(Header::event(EventKind::Resized, 1 << 30, 0), &[], features),
            message(Header::event(EventKind::GoingAway, 1500, 0), &[], features),
            message(limits, wider.as_bytes(), features),
            message(Header::event(EventKind::Unknown(55), 3, 0), &[], features),
        ]
        .concat();
        let expected = vec![
            Received::Ping { cookie: 11 },
            Received::Pong { cookie: 12 },
            Received::Resized {
                size_bytes: 1 << 30,
            },
            Received::GoingAway { grace_ms: 1500 },
            Received::Limits(wider),
        ];
        for piece in [1, 13, 32, 64, 1000] {
            assert_eq!(client.hear(&bytes, piece), Ok(expected.clone()));
        }
    });
}

#[test]
fn events_that_make_no_sense_close_the_connection() {
    each(|features| {
        let hear = |header, payload: &[u8]| {
            Client::new(features).hear(&message(header, payload, features), 32)
        };
        for size in [0, 511, 513, (i64::MAX as u64) + 1, u64::MAX - 511] {
            let header = Header::event(EventKind::Resized, size, 0);
            assert_eq!(hear(header, &[]), Err(CloseCause::BadEvent), "size {size}");
        }
        for (kind, length) in [
            (EventKind::Resized, 1),
            (EventKind::GoingAway, 8),
            (EventKind::Fenced, 8),
            (EventKind::Limits, 0),
            (EventKind::Limits, 63),
            (EventKind::Limits, u32::MAX),
            (EventKind::Unknown(9), 1),
        ] {
            let header = Header::event(kind, 512, length);
            assert_eq!(hear(header, &[]), Err(CloseCause::BadEvent), "{kind:?}");
        }
        let limits = Header::event(EventKind::Limits, 0, 64);
        let nothing = Geometry::default();
        let cause = CloseCause::BadGeometry("logical block size");
        assert_eq!(hear(limits, nothing.as_bytes()), Err(cause));
        let fenced = Header::event(EventKind::Fenced, 0, 0);
        assert_eq!(hear(fenced, &[]), Err(CloseCause::Fenced));
    });
}

#[test]
fn damaged_limits_close_the_connection() {
    let limits = Header::event(EventKind::Limits, 0, 64);
    let mut bytes = message(limits, geometry().as_bytes(), Features::KNOWN);
    bytes[40] ^= 1;
    let heard = Client::new(Features::KNOWN).hear(&bytes, 64);
    assert_eq!(heard, Err(CloseCause::PayloadChecksum));
}

/// Whoever writes with direct I/O may change the data while it is sent.
#[test]
fn a_write_that_changed_on_its_way_is_sent_again_on_the_same_connection() {
    let mut client = Client::new(Features::KNOWN);
    client.receiver = Receiver::new(Features::KNOWN, crc32c).with_changing_payload();
    let damaged = Status::ChecksumMismatch;
    let completed = |tag, status| {
        let tag = Tag(tag);
        Ok(vec![Received::Completed { tag, status }])
    };
    let answer = |client: &mut Client, status| {
        let cookie = client.send(1, Kind::Write, 512);
        let reply = Header::reply(status, cookie.to_wire(), 0);
        client.hear(&message(reply, &[], Features::KNOWN), 32)
    };
    // As many as may be in flight, all of one careless owner, and more: each is sent again from a copy.
    for _ in 0..1000 {
        assert_eq!(answer(&mut client, damaged), completed(1, damaged));
    }
    assert_eq!(answer(&mut client, Status::Ok), completed(1, Status::Ok));
    let path = Err(CloseCause::Refused(damaged));
    assert_eq!(damage_of_copy(), CloseCause::Refused(damaged));
    // Where nobody changes payloads, damage is the path's.
    assert_eq!(answer(&mut Client::new(Features::KNOWN), damaged), path);
}

/// A request without payload cannot have changed: sent again from a copy, a read would give the node
/// what its memory held before.
#[test]
fn only_a_write_can_arrive_damaged() {
    let damaged = Status::ChecksumMismatch;
    for (kind, length) in [
        (Kind::Read, 512),
        (Kind::Flush, 0),
        (Kind::Discard, 512),
        (Kind::WriteZeroes, 512),
    ] {
        let mut client = Client::new(Features::KNOWN);
        client.receiver = Receiver::new(Features::KNOWN, crc32c).with_changing_payload();
        let cookie = client.send(1, kind, length);
        let reply = Header::reply(damaged, cookie.to_wire(), 0);
        let heard = client.hear(&message(reply, &[], Features::KNOWN), 32);
        assert_eq!(heard, Err(CloseCause::Refused(damaged)), "{kind:?}");
        assert!(client.slots.park(Tag(1)), "it is sent again, not failed");
    }
}
