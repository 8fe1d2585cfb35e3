// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What a node may do wrong instead of a reply.

use super::Moment::{Read, Request, Write};
use super::{allowed, cut_after, fails, garbage, needing, recovers, send, unchecked};
use super::{Exchange, Misbehaviour, Step, CUT};
use crate::conversation::{geometry, message};
use neonsan_proto::{EventKind, Features, Geometry, Header, Kind, Status, HEADER_BYTES};
use neonsan_session::{Cookie, Tag};
use zerocopy::IntoBytes as _;

pub(super) const LIST: &[Misbehaviour] = &[
    // ---- cookies ----
    recovers(
        Request,
        "cookie-future",
        &["unknown-cookie"],
        "answers the slot's next request",
        |x| {
            send(reply_with_cookie(x, |c| {
                c.slot_generation = c.slot_generation.wrapping_add(1)
            }))
        },
    ),
    recovers(
        Request,
        "cookie-past",
        &["duplicate-reply"],
        "answers the slot's last request",
        |x| {
            send(reply_with_cookie(x, |c| {
                c.slot_generation = c.slot_generation.wrapping_sub(1)
            }))
        },
    ),
    recovers(
        Request,
        "cookie-no-such-tag",
        &["unknown-cookie"],
        "answers tag 65535",
        |x| send(reply_with_cookie(x, |c| c.tag = Tag(u16::MAX))),
    ),
    recovers(
        Request,
        "cookie-other-connection",
        &["unknown-cookie"],
        "answers a request of another connection",
        |x| {
            send(reply_with_cookie(x, |c| {
                c.connection = c.connection.wrapping_add(1)
            }))
        },
    ),
    recovers(
        Request,
        "cookie-noise",
        &["unknown-cookie"],
        "answers a cookie made of noise",
        |x| {
            send(reply_with_cookie(x, |c| {
                *c = Cookie::from_wire(0xfeed_f00d_dead_beef)
            }))
        },
    ),
    recovers(
        Request,
        "reply-twice",
        &["duplicate-reply"],
        "answers a request twice",
        |x| send([x.answer, x.answer].concat()),
    ),
    // ---- lengths ----
    recovers(
        Read,
        "read-reply-longer",
        &["reply-length"],
        "answers a READ with 512 bytes more",
        |x| send(reply(x, Status::Ok, asked_len(x).saturating_add(512))),
    ),
    recovers(
        Read,
        "read-reply-shorter",
        &["reply-length"],
        "answers a READ with 512 bytes less",
        |x| send(reply(x, Status::Ok, asked_len(x).saturating_sub(512))),
    ),
    recovers(
        Read,
        "read-reply-empty",
        &["reply-length"],
        "answers a READ with success and no data",
        |x| send(reply(x, Status::Ok, 0)),
    ),
    recovers(
        Write,
        "write-reply-payload",
        &["reply-length"],
        "answers a WRITE with data",
        |x| send(reply(x, Status::Ok, 512)),
    ),
    recovers(
        Request,
        "error-reply-payload",
        &["reply-length"],
        "sends data with an error",
        |x| send(reply(x, Status::MediaError, 512)),
    ),
    recovers(
        Request,
        "reply-absurd-length",
        &["reply-length"],
        "announces a reply of 4 GiB",
        |x| {
            send(message(
                Header::reply(Status::Ok, x.request().cookie(), u32::MAX),
                &[],
                x.features,
            ))
        },
    ),
    // ---- kinds and statuses ----
    recovers(
        Request,
        "unknown-status",
        &["unknown-status"],
        "answers with status 0x7777",
        |x| send(reply(x, Status::Unknown(0x7777), 0)),
    ),
    recovers(
        Request,
        "unknown-kind",
        &["unknown-kind"],
        "sends a message of kind 0x7f",
        |x| send(message(Header::new(Kind::Unknown(0x7f)), &[], x.features)),
    ),
    recovers(
        Request,
        "kind-read",
        &["unexpected-kind"],
        "sends a READ to the client",
        |x| send(message(x.request(), &[], x.features)),
    ),
    recovers(
        Request,
        "kind-open-reply",
        &["unexpected-kind"],
        "sends another OPEN_REPLY",
        |x| {
            send(message(
                Header::open_reply(Status::Ok, 144),
                &[0; 144],
                x.features,
            ))
        },
    ),
    recovers(
        Request,
        "kind-close",
        &["unexpected-kind"],
        "sends a CLOSE to the client",
        |x| send(message(Header::new(Kind::Close), &[], x.features)),
    ),
    recovers(
        Request,
        "status-not-owner",
        &["refused"],
        "does not own the volume any more",
        |x| send(reply(x, Status::NotOwner, 0)),
    ),
    recovers(
        Request,
        "status-unknown-session",
        &["refused"],
        "does not know the session any more",
        |x| send(reply(x, Status::UnknownSession, 0)),
    ),
    recovers(
        Request,
        "status-checksum-mismatch",
        &["refused"],
        "says that the request was damaged",
        |x| send(reply(x, Status::ChecksumMismatch, 0)),
    ),
    allowed(
        Request,
        "status-busy",
        "asks to send the request again",
        |x| send(reply(x, Status::Busy, 0)),
    ),
    fails(
        Request,
        "status-fenced",
        &["fenced"],
        "says that another host took the volume",
        |x| send(reply(x, Status::Fenced, 0)),
    ),
    // ---- noise and damage ----
    unchecked(
        &["unknown-kind"],
        recovers(
            Request,
            "garbage",
            &["header-checksum"],
            "sends noise",
            |_| send(garbage(4096)),
        ),
    ),
    unchecked(
        &["unknown-kind"],
        recovers(
            Request,
            "zeroes",
            &["header-checksum"],
            "sends zeroes",
            |_| send(vec![0; 4096]),
        ),
    ),
    needing(
        Features::HEADER_CRC,
        recovers(
            Request,
            "header-crc",
            &["header-checksum"],
            "damages one bit of a header",
            |x| send(flipped(x.answer, 9)),
        ),
    ),
    needing(
        Features::PAYLOAD_CRC,
        recovers(
            Read,
            "payload-crc",
            &["payload-checksum"],
            "damages one bit of a payload",
            |x| send(flipped(x.answer, x.answer.len() - 1)),
        ),
    ),
    // ---- cuts and silence ----
    recovers(Request, "close", CUT, "closes instead of a reply", |_| {
        vec![Step::Close]
    }),
    recovers(Request, "reset", CUT, "resets the connection", |_| {
        vec![Step::Reset]
    }),
    recovers(
        Request,
        "half-header",
        CUT,
        "closes in the middle of a header",
        |x| cut_after(x.answer, 17),
    ),
    recovers(
        Read,
        "half-payload",
        CUT,
        "closes in the middle of a payload",
        |x| cut_after(x.answer, HEADER_BYTES + (x.answer.len() - HEADER_BYTES) / 2),
    ),
    recovers(
        Read,
        "reset-in-payload",
        CUT,
        "resets in the middle of a payload",
        |x| {
            let mut steps = cut_after(x.answer, HEADER_BYTES + 100);
            steps.pop();
            steps.push(Step::Reset);
            steps
        },
    ),
    recovers(
        Request,
        "silence",
        &["heartbeat-timeout", "request-timeout"],
        "goes silent with the connection open",
        |_| vec![Step::Silence],
    ),
    recovers(
        Request,
        "half-header-silence",
        &["heartbeat-timeout", "request-timeout"],
        "goes silent within a header",
        |x| vec![Step::Send(x.answer[..17].to_vec()), Step::Silence],
    ),
    recovers(
        Read,
        "half-payload-silence",
        &["heartbeat-timeout", "request-timeout"],
        "goes silent within a payload",
        |x| {
            vec![
                Step::Send(x.answer[..HEADER_BYTES + 100].to_vec()),
                Step::Silence,
            ]
        },
    ),
    recovers(
        Request,
        "no-reply",
        &["request-timeout"],
        "never answers one request, but lives",
        |_| vec![Step::Ignore],
    ),
    recovers(
        Request,
        "forget",
        CUT,
        "closes and does not know the session any more",
        |_| vec![Step::Forget],
    ),
    // ---- events ----
    recovers(
        Request,
        "resize-zero",
        &["bad-event"],
        "resizes the volume to nothing",
        |x| send(event(x, EventKind::Resized, 0, &[])),
    ),
    recovers(
        Request,
        "resize-unaligned",
        &["bad-event"],
        "resizes the volume to 1000 bytes",
        |x| send(event(x, EventKind::Resized, 1000, &[])),
    ),
    recovers(
        Request,
        "resize-huge",
        &["bad-event"],
        "resizes the volume to 2^64 - 512",
        |x| send(event(x, EventKind::Resized, u64::MAX - 511, &[])),
    ),
    recovers(
        Request,
        "resize-payload",
        &["bad-event"],
        "sends data with a resize",
        |x| send(event(x, EventKind::Resized, 1 << 20, &[0; 8])),
    ),
    recovers(
        Request,
        "limits-short",
        &["bad-event"],
        "sends half a geometry",
        |x| send(event(x, EventKind::Limits, 0, &[0; 32])),
    ),
    recovers(
        Request,
        "limits-long",
        &["bad-event"],
        "announces a geometry of 1 MiB",
        |x| {
            let header = Header::event(EventKind::Limits, 0, 1 << 20);
            send(message(header, &[], x.features))
        },
    ),
    recovers(
        Request,
        "limits-zero",
        &["bad-geometry"],
        "sends a geometry of zeroes",
        |x| {
            send(event(
                x,
                EventKind::Limits,
                0,
                Geometry::default().as_bytes(),
            ))
        },
    ),
    recovers(
        Request,
        "limits-block-size",
        &["bad-geometry"],
        "sends a geometry with blocks of 3 bytes",
        |x| {
            let mut geometry = geometry(1 << 20, 512);
            geometry.logical_block_size = 3.into();
            send(event(x, EventKind::Limits, 0, geometry.as_bytes()))
        },
    ),
    needing(
        Features::PAYLOAD_CRC,
        recovers(
            Request,
            "limits-crc",
            &["payload-checksum"],
            "damages a geometry",
            |x| {
                let geometry = geometry(1 << 20, 512);
                send(flipped(
                    &event(x, EventKind::Limits, 0, geometry.as_bytes()),
                    HEADER_BYTES,
                ))
            },
        ),
    ),
    recovers(
        Request,
        "going-away-payload",
        &["bad-event"],
        "says farewell with data",
        |x| send(event(x, EventKind::GoingAway, 1000, &[0; 8])),
    ),
    recovers(
        Request,
        "event-unknown-payload",
        &["bad-event"],
        "sends an unknown event with data",
        |x| send(event(x, EventKind::Unknown(0x7777), 0, &[0; 8])),
    ),
    fails(
        Request,
        "event-fenced",
        &["fenced"],
        "says that another host took the volume",
        |x| send(event(x, EventKind::Fenced, 0, &[])),
    ),
    allowed(
        Request,
        "event-unknown",
        "sends an unknown event, then the reply",
        |x| send([&event(x, EventKind::Unknown(0x7777), 7, &[]), x.answer].concat()),
    ),
    // ---- odd but allowed ----
    allowed(
        Request,
        "dribble",
        "sends the reply a byte at a time",
        |x| vec![Step::Dribble(x.answer.to_vec())],
    ),
    allowed(
        Request,
        "ping-flood",
        "sends 2000 PINGs before the reply",
        |x| {
            let mut bytes = Vec::new();
            for cookie in 0..2000 {
                let ping =
                    Header::request(Kind::Ping, neonsan_proto::RequestFlags::NONE, cookie, 0, 0);
                bytes.extend(message(ping, &[], x.features));
            }
            bytes.extend_from_slice(x.answer);
            send(bytes)
        },
    ),
    allowed(
        Request,
        "pong-unasked",
        "sends a PONG that nobody asked for, then the reply",
        |x| {
            let pong = Header::request(Kind::Pong, neonsan_proto::RequestFlags::NONE, 42, 0, 0);
            send([&message(pong, &[], x.features), x.answer].concat())
        },
    ),
];

fn asked_len(x: &Exchange<'_>) -> u32 {
    x.request().length()
}

/// A reply to the request with this status and this much payload, all of it noise.
fn reply(x: &Exchange<'_>, status: Status, len: u32) -> Vec<u8> {
    let header = Header::reply(status, x.request().cookie(), len);
    message(header, &garbage(len as usize), x.features)
}

/// The right reply to another request.
fn reply_with_cookie(x: &Exchange<'_>, change: impl FnOnce(&mut Cookie)) -> Vec<u8> {
    let mut cookie = Cookie::from_wire(x.request().cookie());
    change(&mut cookie);
    let payload = x.answer.get(HEADER_BYTES..).unwrap_or_default();
    let header = Header::reply(Status::Ok, cookie.to_wire(), payload.len() as u32);
    message(header, payload, x.features)
}

fn event(x: &Exchange<'_>, kind: EventKind, value: u64, payload: &[u8]) -> Vec<u8> {
    message(
        Header::event(kind, value, payload.len() as u32),
        payload,
        x.features,
    )
}

fn flipped(answer: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = answer.to_vec();
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 0x01;
    }
    bytes
}
