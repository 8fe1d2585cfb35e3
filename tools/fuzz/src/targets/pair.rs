// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Both halves, with bytes damaged and cut on their way, against a plain array.
//!
//! An input is: the first byte of all targets; how many requests; three bytes for each (kind,
//! place, length); then four bytes for each damage (direction, position of 2 bytes, change).

use super::{Setup, Trace, SETUPS};
use crate::conversation::{geometry, message, Disk};
use neonsan_proto::{Features, Header, Kind, RequestFlags, Status};
use neonsan_session::client::{self, Request, Slot, SlotTable};
use neonsan_session::server::{self, Command, Limits};
use neonsan_session::{CloseCause, Cookie, Instant, Tag};
use std::collections::BTreeMap;

const SIZE: usize = 1 << 16;
const MAX_REQUESTS: usize = 8;

struct Script {
    setup: Setup,
    requests: Vec<(Request, Vec<u8>)>,
    /// Changes of the stream to the node, and of the stream to the client: position and what is
    /// exclusive-or'd there; zero cuts the stream.
    damage: [Vec<(usize, u8)>; 2],
}

fn parse(bytes: &[u8]) -> Option<Script> {
    let (first, bytes) = bytes.split_first()?;
    let (count, mut bytes) = bytes.split_first()?;
    let mut requests = Vec::new();
    for i in 0..usize::from(*count) % (MAX_REQUESTS + 1) {
        let (asked, rest) = bytes.split_first_chunk::<3>()?;
        bytes = rest;
        let kinds = [
            Kind::Read,
            Kind::Write,
            Kind::Flush,
            Kind::Discard,
            Kind::WriteZeroes,
        ];
        let kind = kinds[usize::from(asked[0]) % kinds.len()];
        let flush = kind == Kind::Flush;
        let request = Request {
            kind,
            flags: RequestFlags::NONE,
            offset: if flush {
                0
            } else {
                u64::from(asked[1] % 120) * 512
            },
            length: if flush {
                0
            } else {
                u32::from(asked[2] % 8 + 1) * 512
            },
        };
        let payload = if kind == Kind::Write {
            request.length as usize
        } else {
            0
        };
        requests.push((request, vec![i as u8 + 1; payload]));
    }
    let mut damage = [Vec::new(), Vec::new()];
    for change in bytes.chunks_exact(4).take(8) {
        let at = usize::from(u16::from_le_bytes([change[1], change[2]]));
        damage[usize::from(change[0] & 1)].push((at, change[3]));
    }
    Some(Script {
        setup: Setup::of(*first),
        requests,
        damage,
    })
}

fn damaged(mut stream: Vec<u8>, damage: &[(usize, u8)]) -> Vec<u8> {
    for (at, change) in damage {
        match stream.get_mut(*at) {
            Some(byte) if *change != 0 => *byte ^= change,
            Some(_) => stream.truncate(*at),
            None => {}
        }
    }
    stream
}

/// What the node made of the stream: the replies, and the commands that it carried out.
struct Served {
    replies: Vec<u8>,
    commands: Vec<(Command, Vec<u8>)>,
    cause: Option<CloseCause>,
}

fn serve(setup: &Setup, mut bytes: &[u8]) -> Served {
    let limits = Limits {
        max_depth: MAX_REQUESTS as u16,
        max_inflight_bytes: 1 << 20,
        read_only: false,
    };
    let mut receiver = server::Receiver::new(
        geometry(SIZE as u64, 512),
        limits,
        setup.features,
        setup.crc32c,
    );
    let mut disk = Disk::new(SIZE);
    let mut served = Served {
        replies: Vec::new(),
        commands: Vec::new(),
        cause: None,
    };
    let mut write: Option<Command> = None;
    let mut payload: Vec<u8> = Vec::new();
    let features = setup.sealed;
    while !bytes.is_empty() {
        let received = match receiver.want() {
            server::Want::Bytes(buffer) => {
                let n = buffer.len().min(bytes.len()).min(setup.piece);
                buffer[..n].copy_from_slice(&bytes[..n]);
                bytes = &bytes[n..];
                match receiver.received(n) {
                    Ok(received) => received,
                    Err(cause) => {
                        served.cause = Some(cause);
                        return served;
                    }
                }
            }
            server::Want::Payload { remaining, .. } | server::Want::Skip { remaining } => {
                let n = (remaining as usize).min(bytes.len()).min(setup.piece);
                payload.extend_from_slice(&bytes[..n]);
                bytes = &bytes[n..];
                receiver.payload_received(n as u32, (setup.crc32c)(&payload))
            }
        };
        let (cookie, status, data) = match received {
            Some(server::Received::WriteBegins(command)) => {
                write = Some(command);
                payload.clear();
                continue;
            }
            Some(server::Received::Command(command)) => {
                served.commands.push((command, Vec::new()));
                carry_out(&mut disk, &command, &[])
            }
            Some(server::Received::WriteComplete) => {
                let command = write.take().expect("a write has begun");
                served.commands.push((command, payload.clone()));
                carry_out(&mut disk, &command, &payload)
            }
            Some(server::Received::WriteDamaged) => {
                let command = write.take().expect("a write has begun");
                (command.cookie, Status::ChecksumMismatch, Vec::new())
            }
            Some(server::Received::Rejected { cookie, status }) => {
                payload.clear();
                (cookie, status, Vec::new())
            }
            Some(server::Received::Close { .. }) => return served,
            Some(server::Received::Ping { .. } | server::Received::Pong { .. }) | None => continue,
        };
        receiver.answered(payload.len() as u32);
        let header = Header::reply(status, cookie, data.len() as u32);
        served.replies.extend(message(header, &data, features));
    }
    served
}

fn carry_out(disk: &mut Disk, command: &Command, payload: &[u8]) -> (u64, Status, Vec<u8>) {
    match disk.apply(command, payload) {
        Ok(data) => (command.cookie, Status::Ok, data),
        Err(status) => (command.cookie, status, Vec::new()),
    }
}

pub(super) fn run(bytes: &[u8]) -> Trace {
    let mut trace = Trace::default();
    let Some(script) = parse(bytes) else {
        return trace;
    };
    let setup = &script.setup;
    let features = setup.sealed;
    let protected = setup.sealed.contains(Features::PAYLOAD_CRC);

    let slots = SlotTable::new(
        0,
        (0..MAX_REQUESTS).map(|_| Slot::new()).collect::<Vec<_>>(),
    );
    let mut stream = Vec::new();
    for (tag, (request, payload)) in script.requests.iter().enumerate() {
        let tag = Tag(tag as u16);
        let cookie = slots.claim(tag, *request, Instant(0)).expect("free");
        assert!(slots.sent(tag, Instant(0)));
        stream.extend(message(request.header(cookie), payload, features));
    }
    let served = serve(setup, &damaged(stream, &script.damage[0]));
    if protected {
        // Whatever the node carried out is what the client asked for, once and in order.
        let mut last = None;
        for (command, payload) in &served.commands {
            let tag = Cookie::from_wire(command.cookie).tag.0;
            assert!(last < Some(tag), "out of order");
            last = Some(tag);
            let (request, data) = &script.requests[usize::from(tag)];
            assert_eq!(
                (command.kind, command.offset),
                (request.kind, request.offset)
            );
            assert_eq!((command.length, payload), (request.length, data));
        }
    }
    let stream = damaged(served.replies, &script.damage[1]);
    let (done, cause) = hear(&script, &slots, &stream);
    if protected {
        check_against_array(&script, &done);
    }
    for tag in 0..script.requests.len() as u16 {
        let there = slots.park(Tag(tag));
        assert_eq!(there, !done.contains_key(&tag), "lost or completed twice");
    }
    trace.note(format!("{} of {}", done.len(), script.requests.len()));
    trace.note(served.cause.map_or("served", |c| c.name()));
    trace.note(cause.map_or("heard", |c| c.name()));
    trace
}

/// What the client completed: status and payload by tag.
type Done = BTreeMap<u16, (Status, Vec<u8>)>;

fn hear(
    script: &Script,
    slots: &SlotTable<Vec<Slot>>,
    mut bytes: &[u8],
) -> (Done, Option<CloseCause>) {
    let setup = &script.setup;
    let mut receiver = client::Receiver::new(setup.features, setup.crc32c);
    let mut done = Done::new();
    let mut buffer: Vec<u8> = Vec::new();
    while !bytes.is_empty() {
        let result = match receiver.want() {
            client::Want::Bytes(header) => {
                let n = header.len().min(bytes.len()).min(setup.piece);
                header[..n].copy_from_slice(&bytes[..n]);
                bytes = &bytes[n..];
                receiver.received(n, slots)
            }
            client::Want::Payload { tag, at, remaining } => {
                assert_eq!(at + remaining, script.requests[usize::from(tag.0)].0.length);
                buffer.truncate(at as usize);
                let n = (remaining as usize).min(bytes.len()).min(setup.piece);
                buffer.extend_from_slice(&bytes[..n]);
                bytes = &bytes[n..];
                receiver.payload_received(n as u32, (setup.crc32c)(&buffer), slots)
            }
        };
        match result {
            Ok(Some(client::Received::Completed { tag, status })) => {
                let payload = core::mem::take(&mut buffer);
                assert!(
                    done.insert(tag.0, (status, payload)).is_none(),
                    "completed twice"
                );
            }
            Ok(_) => {}
            Err(cause) => return (done, Some(cause)),
        }
    }
    (done, None)
}

/// Every completed request did what the same request does to an array.
fn check_against_array(script: &Script, done: &Done) {
    let mut array = vec![0u8; SIZE];
    for (tag, (request, payload)) in script.requests.iter().enumerate() {
        let start = request.offset as usize;
        let range = &mut array[start..start + request.length as usize];
        match request.kind {
            Kind::Write => range.copy_from_slice(payload),
            Kind::Discard | Kind::WriteZeroes => range.fill(0),
            _ => {}
        }
        let Some((status, data)) = done.get(&(tag as u16)) else {
            // Replies come in order: nothing behind a missing one is complete.
            assert!(done.keys().all(|t| usize::from(*t) < tag));
            return;
        };
        assert_eq!(*status, Status::Ok);
        if request.kind == Kind::Read {
            assert!(data == range, "a READ returned something else");
        }
    }
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let requests = [
        [1, 0, 3],
        [0, 0, 7],
        [1, 2, 1],
        [2, 0, 0],
        [0, 1, 3],
        [3, 0, 1],
        [4, 8, 2],
        [0, 0, 7],
    ];
    let damages: [&[[u8; 4]]; 8] = [
        &[],
        &[[0, 5, 0, 1]],
        &[[0, 0x40, 0, 0x80]],
        &[[1, 5, 0, 1]],
        &[[1, 0x50, 0, 0x10]],
        &[[0, 0, 4, 0]],
        &[[1, 0, 2, 0]],
        &[[0, 0x30, 0, 3], [1, 0x31, 0, 7]],
    ];
    let mut seeds = Vec::new();
    for setup in SETUPS {
        for damage in damages {
            let mut seed = vec![setup, requests.len() as u8];
            seed.extend(requests.iter().flatten());
            seed.extend(damage.iter().flatten());
            seeds.push(seed);
        }
    }
    seeds
}
