// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What a node may do wrong before a connection is in force.

use super::Moment::{Hello, Open, Promote};
use super::{allowed, cut_after, fails, garbage, needing, recovers, send, unchecked};
use super::{Exchange, Misbehaviour, Step, CUT};
use crate::conversation::message;
use neonsan_proto::{
    Capabilities, Features, Header, Kind, OpenReply, Refusal, ServerHello, Status, HEADER_BYTES,
    MAX_VERSION,
};
use zerocopy::IntoBytes as _;

pub(super) const LIST: &[Misbehaviour] = &[
    recovers(
        Hello,
        "hello-http",
        &["not-neonsan"],
        "answers like a web server",
        |_| {
            vec![
                Step::Send(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
                Step::Close,
            ]
        },
    ),
    recovers(
        Hello,
        "hello-garbage",
        &["not-neonsan"],
        "answers with noise",
        |_| send(garbage(64)),
    ),
    recovers(
        Hello,
        "hello-banner",
        &["not-neonsan"],
        "answers like a mail server",
        |_| send(b"220 mail.example ESMTP ready\r\n".to_vec()),
    ),
    recovers(
        Hello,
        "hello-echo",
        &["not-neonsan"],
        "sends the client's hello back",
        |x| send(x.asked.to_vec()),
    ),
    recovers(
        Hello,
        "hello-half",
        CUT,
        "closes in the middle of its hello",
        |x| cut_after(x.answer, 31),
    ),
    recovers(
        Hello,
        "hello-close",
        CUT,
        "closes instead of a hello",
        |_| vec![Step::Close],
    ),
    recovers(
        Hello,
        "hello-silence",
        &["connect-timeout"],
        "never answers the hello",
        |_| vec![Step::Silence],
    ),
    recovers(
        Hello,
        "hello-refused",
        &["version"],
        "refuses the version in order",
        |_| {
            let hello = ServerHello::refuse(Status::VersionUnsupported, Features::NONE, "hostile");
            vec![Step::Send(hello.as_bytes().to_vec()), Step::Close]
        },
    ),
    recovers(
        Hello,
        "hello-future-version",
        &["version"],
        "picks a version not offered",
        |_| send(accept(MAX_VERSION + 98, Features::NONE)),
    ),
    recovers(
        Hello,
        "hello-version-zero",
        &["version"],
        "picks version zero",
        |_| send(accept(0, Features::NONE)),
    ),
    recovers(
        Hello,
        "hello-unasked-features",
        &["refused"],
        "picks features not offered",
        |_| send(accept(MAX_VERSION, Features(u64::MAX))),
    ),
    recovers(
        Hello,
        "hello-unknown-status",
        &["refused"],
        "refuses with an unknown status",
        |_| {
            let hello = ServerHello::refuse(Status::Unknown(0x7777), Features::NONE, "hostile");
            vec![Step::Send(hello.as_bytes().to_vec()), Step::Close]
        },
    ),
    allowed(
        Hello,
        "hello-dribble",
        "sends its hello a byte at a time",
        |x| vec![Step::Dribble(x.answer.to_vec())],
    ),
    recovers(
        Open,
        "open-close",
        CUT,
        "closes instead of answering OPEN",
        |_| vec![Step::Close],
    ),
    recovers(
        Open,
        "open-silence",
        &["connect-timeout"],
        "never answers OPEN",
        |_| vec![Step::Silence],
    ),
    recovers(
        Open,
        "open-half",
        CUT,
        "closes in the middle of its OPEN_REPLY",
        |x| cut_after(x.answer, 100),
    ),
    unchecked(
        &["unknown-kind"],
        recovers(
            Open,
            "open-garbage",
            &["header-checksum"],
            "answers OPEN with noise",
            |_| send(garbage(256)),
        ),
    ),
    recovers(
        Open,
        "open-unknown-kind",
        &["unknown-kind"],
        "answers OPEN with kind 0x7f",
        |x| send(message(Header::new(Kind::Unknown(0x7f)), &[], x.features)),
    ),
    recovers(
        Open,
        "open-reply-kind",
        &["unexpected-kind"],
        "answers OPEN with a REPLY",
        |x| send(message(Header::reply(Status::Ok, 0, 0), &[], x.features)),
    ),
    recovers(
        Open,
        "open-ping",
        &["unexpected-kind"],
        "sends a PING before the OPEN_REPLY",
        |x| send(message(Header::new(Kind::Ping), &[], x.features)),
    ),
    recovers(
        Open,
        "open-short",
        &["length-limit"],
        "sends an OPEN_REPLY of 8 bytes",
        |x| {
            send(message(
                Header::open_reply(Status::Ok, 8),
                &[0; 8],
                x.features,
            ))
        },
    ),
    recovers(
        Open,
        "open-huge",
        &["length-limit"],
        "announces an OPEN_REPLY of 4 GiB",
        |x| {
            send(message(
                Header::open_reply(Status::Ok, u32::MAX),
                &[],
                x.features,
            ))
        },
    ),
    needing(
        Features::HEADER_CRC,
        recovers(
            Open,
            "open-header-crc",
            &["header-checksum"],
            "damages the header",
            |x| send(flipped(x.answer, 20)),
        ),
    ),
    needing(
        Features::PAYLOAD_CRC,
        recovers(
            Open,
            "open-payload-crc",
            &["payload-checksum"],
            "damages the payload",
            |x| send(flipped(x.answer, HEADER_BYTES)),
        ),
    ),
    recovers(
        Open,
        "open-size-zero",
        &["bad-geometry"],
        "states a size of zero",
        |x| send(changed(x, |r| r.geometry.size_bytes = 0.into())),
    ),
    recovers(
        Open,
        "open-size-huge",
        &["bad-geometry"],
        "states a size of 2^64 - 1",
        |x| send(changed(x, |r| r.geometry.size_bytes = u64::MAX.into())),
    ),
    recovers(
        Open,
        "open-block-size-zero",
        &["bad-geometry"],
        "states a block size of zero",
        |x| send(changed(x, |r| r.geometry.logical_block_size = 0.into())),
    ),
    recovers(
        Open,
        "open-block-size-odd",
        &["bad-geometry"],
        "states a block size of 513",
        |x| send(changed(x, |r| r.geometry.logical_block_size = 513.into())),
    ),
    recovers(
        Open,
        "open-io-limit-zero",
        &["bad-geometry"],
        "allows I/O of 0 bytes",
        |x| send(changed(x, |r| r.geometry.max_io_bytes = 0.into())),
    ),
    recovers(
        Open,
        "open-io-limit-huge",
        &["bad-geometry"],
        "allows I/O of 4 GiB",
        |x| send(changed(x, |r| r.geometry.max_io_bytes = 0xffff_fe00.into())),
    ),
    recovers(
        Open,
        "open-depth-zero",
        &["bad-geometry"],
        "allows no request",
        |x| send(changed(x, |r| r.max_depth = 0.into())),
    ),
    recovers(
        Open,
        "open-depth-huge",
        &["bad-geometry"],
        "allows 65535 requests",
        |x| send(changed(x, |r| r.max_depth = u16::MAX.into())),
    ),
    recovers(
        Open,
        "open-no-connections",
        &["bad-geometry"],
        "allows no connection",
        |x| send(changed(x, |r| r.max_connections = 0.into())),
    ),
    recovers(
        Open,
        "open-inflight-zero",
        &["bad-geometry"],
        "allows no byte in flight",
        |x| send(changed(x, |r| r.max_inflight_bytes = 0.into())),
    ),
    recovers(
        Open,
        "open-other-generation",
        &["bad-geometry"],
        "lets in another generation",
        |x| {
            send(changed(x, |r| {
                r.generation = (r.generation.get() + 1).into()
            }))
        },
    ),
    recovers(
        Open,
        "open-false-node-count",
        &["length-limit"],
        "lies about its addresses",
        |x| send(changed(x, |r| r.node_count = 9.into())),
    ),
    recovers(
        Open,
        "open-refused-control-text",
        &["refused"],
        "steers the terminal",
        |x| {
            let text = b"\x1b[2Jowned\r\n";
            vec![
                Step::Send(refusal(x, Status::Busy, text, text.len() as u16)),
                Step::Close,
            ]
        },
    ),
    recovers(
        Open,
        "open-refused-false-text",
        &["refused"],
        "lies about its text's length",
        |x| {
            vec![
                Step::Send(refusal(x, Status::Busy, b"short", 500)),
                Step::Close,
            ]
        },
    ),
    recovers(
        Open,
        "open-refused-unknown",
        &["refused"],
        "refuses with an unknown status",
        |x| {
            vec![
                Step::Send(refusal(x, Status::Unknown(0x7777), b"", 0)),
                Step::Close,
            ]
        },
    ),
    allowed(
        Open,
        "open-dribble",
        "sends its OPEN_REPLY a byte at a time",
        |x| vec![Step::Dribble(x.answer.to_vec())],
    ),
    fails(
        Promote,
        "promote-other-volume",
        &["volume-changed"],
        "comes back with another volume",
        |x| send(changed(x, |r| r.volume_id = *b"another volume 2")),
    ),
    fails(
        Promote,
        "promote-other-block-size",
        &["volume-changed"],
        "comes back with other blocks",
        |x| {
            send(changed(x, |r| {
                let old = r.geometry.logical_block_size.get();
                r.geometry.logical_block_size = if old == 512 { 4096 } else { 512 }.into();
            }))
        },
    ),
    recovers(
        Promote,
        "promote-smaller-depth",
        &["bad-geometry"],
        "comes back with a smaller depth",
        |x| send(changed(x, |r| r.max_depth = (r.max_depth.get() - 1).into())),
    ),
    recovers(
        Promote,
        "promote-smaller-io",
        &["bad-geometry"],
        "comes back with shorter I/O",
        |x| {
            send(changed(x, |r| {
                r.geometry.max_io_bytes = (r.geometry.max_io_bytes.get() / 2).into()
            }))
        },
    ),
    recovers(
        Promote,
        "promote-without-fua",
        &["bad-geometry"],
        "comes back without FUA",
        |x| {
            send(changed(x, |r| {
                let caps = r.geometry.capabilities().difference(Capabilities::FUA);
                r.geometry.capabilities = caps.0.into();
            }))
        },
    ),
    fails(
        Promote,
        "promote-held-by-other",
        &["fenced", "refused"],
        "says that another host has it",
        |x| {
            vec![
                Step::Send(refusal(x, Status::HeldByOther, b"taken", 5)),
                Step::Close,
            ]
        },
    ),
];

fn accept(version: u16, features: Features) -> Vec<u8> {
    ServerHello::accept(version, features, "hostile")
        .as_bytes()
        .to_vec()
}

fn flipped(answer: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = answer.to_vec();
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 0x10;
    }
    bytes
}

/// The right OPEN_REPLY with a change, and right checksums.
fn changed(x: &Exchange<'_>, change: impl FnOnce(&mut OpenReply)) -> Vec<u8> {
    let body = x.answer.get(HEADER_BYTES..).unwrap_or_default();
    let Some((mut reply, addresses)) = OpenReply::parse(body) else {
        return x.answer.to_vec();
    };
    change(&mut reply);
    let body = [reply.as_bytes(), addresses].concat();
    message(
        Header::open_reply(Status::Ok, body.len() as u32),
        &body,
        x.features,
    )
}

fn refusal(x: &Exchange<'_>, status: Status, text: &[u8], stated_len: u16) -> Vec<u8> {
    let refusal = Refusal {
        text_len: stated_len.into(),
        ..Refusal::default()
    };
    let body = [refusal.as_bytes(), text].concat();
    message(
        Header::open_reply(status, body.len() as u32),
        &body,
        x.features,
    )
}
