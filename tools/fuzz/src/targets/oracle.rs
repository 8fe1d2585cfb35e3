// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What a client must make of a stream, read off the protocol document without any machine: slow,
//! whole messages only, raw bytes.

use neonsan_proto::{Crc32c, Features, Geometry, Kind, Status};
use std::collections::BTreeMap;
use zerocopy::FromBytes as _;

/// A request of the client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    /// What a reply must call it.
    pub slot_generation: u32,
    /// What it is; `None`: there is none, or it was not sent.
    pub sent: Option<(Kind, u32)>,
}

/// Completed requests by tag, and the name of the cause if the connection must be closed.
pub(super) type Verdict = (BTreeMap<u16, (Status, Vec<u8>)>, Option<&'static str>);

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    let field = &bytes[at..at + len];
    field
        .iter()
        .rev()
        .fold(0, |n, byte| (n << 8) | u64::from(*byte))
}

/// Reads the whole stream. `asked` holds the requests of connection 1 by tag.
pub(super) fn judge(
    mut stream: &[u8],
    features: Features,
    crc32c: Crc32c,
    asked: &[Asked],
) -> Verdict {
    let mut done = BTreeMap::new();
    while let Some((header, rest)) = stream.split_at_checked(32) {
        stream = rest;
        match message(header, &mut stream, features, crc32c, asked, &mut done) {
            Ok(true) => {}
            Ok(false) => break,
            Err(cause) => return (done, Some(cause)),
        }
    }
    (done, None)
}

/// Reads one message; false if its payload has not all arrived.
fn message(
    header: &[u8],
    stream: &mut &[u8],
    features: Features,
    crc32c: Crc32c,
    asked: &[Asked],
    done: &mut BTreeMap<u16, (Status, Vec<u8>)>,
) -> Result<bool, &'static str> {
    let (status, length) = (number(header, 2, 2) as u16, number(header, 4, 4));
    let (cookie, offset) = (number(header, 8, 8), number(header, 16, 8));
    let header_crc = features.contains(Features::HEADER_CRC);
    if header_crc && u64::from(crc32c(&header[..28])) != number(header, 28, 4) {
        return Err("header-checksum");
    }
    let damaged = |payload: &[u8]| {
        let wanted = features.contains(Features::PAYLOAD_CRC);
        wanted && u64::from(crc32c(payload)) != number(header, 24, 4)
    };
    match header[0] {
        0x10 | 0x11 => Ok(true),
        0x80 => {
            let (tag, status) = check_reply(status, length, cookie, asked, done)?;
            let Some((payload, rest)) = stream.split_at_checked(length as usize) else {
                return Ok(false);
            };
            *stream = rest;
            if !payload.is_empty() && damaged(payload) {
                return Err("payload-checksum");
            }
            done.insert(tag, (status, payload.to_vec()));
            Ok(true)
        }
        0x90 => match (status, length) {
            (1, 0) if offset == 0 || offset % 512 != 0 || offset > i64::MAX as u64 => {
                Err("bad-event")
            }
            (1 | 2, 0) => Ok(true),
            (3, 64) => {
                let Some((payload, rest)) = stream.split_at_checked(64) else {
                    return Ok(false);
                };
                *stream = rest;
                if damaged(payload) {
                    return Err("payload-checksum");
                }
                match Geometry::read_from_bytes(payload).map(|g| g.check()) {
                    Ok(Ok(())) => Ok(true),
                    _ => Err("bad-geometry"),
                }
            }
            (4, 0) => Err("fenced"),
            (1..=4, _) => Err("bad-event"),
            (_, 0) => Ok(true),
            (_, _) => Err("bad-event"),
        },
        0x01..=0x05 | 0x12 | 0x20..=0x22 => Err("unexpected-kind"),
        _ => Err("unknown-kind"),
    }
}

/// Whether a REPLY answers a request, and which.
fn check_reply(
    status: u16,
    length: u64,
    cookie: u64,
    asked: &[Asked],
    done: &BTreeMap<u16, (Status, Vec<u8>)>,
) -> Result<(u16, Status), &'static str> {
    let Some(status) = Status::ALL.iter().find(|s| s.to_wire() == status) else {
        return Err("unknown-status");
    };
    match status {
        Status::Fenced => return Err("fenced"),
        Status::NotOwner
        | Status::UnknownSession
        | Status::GoingAway
        | Status::StaleGeneration
        | Status::ChecksumMismatch => return Err("refused"),
        _ => {}
    }
    let tag = cookie as u16;
    let request = match asked.get(usize::from(tag)) {
        Some(request) if (cookie >> 16) & 0xffff == 1 => request,
        _ => return Err("unknown-cookie"),
    };
    let ago = request.slot_generation.wrapping_sub((cookie >> 32) as u32);
    if ago != 0 {
        return Err(if ago < 1 << 31 {
            "duplicate-reply"
        } else {
            "unknown-cookie"
        });
    }
    let Some((kind, asked_len)) = request.sent else {
        return Err("unknown-cookie");
    };
    if done.contains_key(&tag) {
        return Err("duplicate-reply");
    }
    let data = kind == Kind::Read && *status == Status::Ok;
    let expected = if data { u64::from(asked_len) } else { 0 };
    if length != expected {
        return Err("reply-length");
    }
    Ok((tag, *status))
}
