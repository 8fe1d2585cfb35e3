// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The example at the end of `Documentation/protocol.rst`: both halves speak with each other, and
//! what they say must be what the document shows. `NEONSAN_BLESS=1` writes it there instead.

mod common;

use common::*;
use neonsan_proto::{Features, Header, Kind, NodeAddress, RequestFlags, Status};
use neonsan_session::client::{Received, Receiver, Request, Slot, SlotTable, Want};
use neonsan_session::server;
use neonsan_session::{Instant, Tag};
use std::fmt::Write as _;

const BEGIN: &str = ".. example begin\n";
const END: &str = ".. example end\n";

/// The conversation as text.
struct Transcript(String);

impl Transcript {
    fn say(&mut self, who: char, what: &str, bytes: &[u8]) {
        writeln!(self.0, "  {who} {what} ({} bytes)", bytes.len()).expect("text");
        let mut last: &[u8] = &[];
        let mut starred = false;
        for (line, chunk) in bytes.chunks(16).enumerate() {
            if chunk == last {
                if !starred {
                    writeln!(self.0, "    *").expect("text");
                }
                starred = true;
                continue;
            }
            (last, starred) = (chunk, false);
            let mut hex = String::new();
            for (at, byte) in chunk.iter().enumerate() {
                write!(hex, "{}{byte:02x}", if at == 8 { "  " } else { " " }).expect("text");
            }
            let text: String = chunk
                .iter()
                .map(|b| {
                    if (0x20..0x7f).contains(b) {
                        char::from(*b)
                    } else {
                        '.'
                    }
                })
                .collect();
            writeln!(self.0, "    {:04x} {hex:49}  {text}", line * 16).expect("text");
        }
        writeln!(self.0).expect("text");
    }
}

struct Client {
    slots: SlotTable<Vec<Slot>>,
    receiver: Receiver,
}

impl Client {
    /// Gives the client a reply and returns what it makes of it.
    fn receive(&mut self, mut bytes: &[u8], data: &mut [u8]) -> Option<Received> {
        let mut last = None;
        while !bytes.is_empty() {
            last = match self.receiver.want() {
                Want::Bytes(buffer) => {
                    let n = buffer.len().min(bytes.len());
                    buffer[..n].copy_from_slice(&bytes[..n]);
                    bytes = &bytes[n..];
                    self.receiver
                        .received(n, &self.slots)
                        .expect("a good message")
                }
                Want::Payload { at, remaining, .. } => {
                    let (at, n) = (at as usize, remaining as usize);
                    data[at..at + n].copy_from_slice(&bytes[..n]);
                    bytes = &bytes[n..];
                    self.receiver
                        .payload_received(remaining, crc32c(data), &self.slots)
                        .expect("a good payload")
                }
            };
        }
        last
    }
}

/// What the node makes of the bytes of one message.
fn node_receives(node: &mut server::Receiver, bytes: &[u8]) -> server::Received {
    let server::Want::Bytes(buffer) = node.want() else {
        panic!("the node is within a payload")
    };
    buffer.copy_from_slice(&bytes[..32]);
    let received = node
        .received(32)
        .expect("a good message")
        .expect("a whole header");
    match node.want() {
        server::Want::Payload { remaining, .. } => {
            assert_eq!(remaining as usize, bytes.len() - 32);
            let crc = crc32c(&bytes[32..]);
            let complete = node.payload_received(remaining, crc);
            assert_eq!(complete, Some(server::Received::WriteComplete));
        }
        _ => assert_eq!(bytes.len(), 32),
    }
    received
}

fn conversation() -> String {
    let mut script = Transcript(String::from("::\n\n"));
    let all = Features::HEADER_CRC.union(Features::PAYLOAD_CRC);

    let mut client = client_handshake(all);
    let mut node = server_handshake(all);
    let hello = client.poll_transmit().to_vec();
    script.say('C', "ClientHello", &hello);
    client.transmitted(hello.len());
    node.want().copy_from_slice(&hello);
    node.received(hello.len()).expect("a good hello");
    let hello = node.poll_transmit().to_vec();
    script.say('N', "ServerHello", &hello);
    node.transmitted(hello.len()).expect("no refusal");
    client.want().copy_from_slice(&hello);
    client.received(hello.len()).expect("a good hello");
    let open = client.poll_transmit().to_vec();
    script.say('C', "OPEN", &open);
    client.transmitted(open.len());
    feed_server(&mut node, &open, usize::MAX).expect("a good OPEN");
    let introduced = node.introduced().expect("it is whole");
    assert_eq!(introduced.kind, server::IntroducedAs::Open);
    let mut reply = Vec::new();
    let mut address = NodeAddress {
        port: 9666.into(),
        ..NodeAddress::default()
    };
    address.ip[10..].copy_from_slice(&[0xff, 0xff, 192, 0, 2, 1]);
    node.encode_accept(open_reply(1), &[address], &mut reply);
    script.say('N', "OPEN_REPLY, Ok", &reply);
    feed_client(&mut client, &reply, usize::MAX).expect("a good OPEN_REPLY");
    let opened = client.opened().expect("it is open");
    assert_eq!(opened.features, all);

    let limits = server::Limits {
        max_depth: 8,
        max_inflight_bytes: 1 << 20,
        read_only: false,
    };
    let mut node = server::Receiver::new(geometry(), limits, all, crc32c);
    let mut client = Client {
        slots: SlotTable::new(0, (0..8).map(|_| Slot::new()).collect()),
        receiver: Receiver::new(all, crc32c),
    };
    let data: Vec<u8> = b"NeonSAN block 8!".repeat(32);
    let requests = [
        (
            "WRITE, FUA, 512 bytes at 4096",
            request(Kind::Write, RequestFlags::FUA, 4096, 512),
        ),
        (
            "READ, 512 bytes at 4096",
            request(Kind::Read, RequestFlags::NONE, 4096, 512),
        ),
        ("FLUSH", request(Kind::Flush, RequestFlags::NONE, 0, 0)),
    ];
    for (tag, (what, request)) in requests.into_iter().enumerate() {
        exchange(
            &mut script,
            &mut client,
            &mut node,
            Tag(tag as u16),
            what,
            request,
            &data,
        );
    }

    let ping = Header::request(Kind::Ping, RequestFlags::NONE, 1, 0, 0);
    let ping = message(ping, &[], all);
    script.say('N', "PING", &ping);
    assert_eq!(
        client.receive(&ping, &mut []),
        Some(Received::Ping { cookie: 1 })
    );
    let pong = Header::request(Kind::Pong, RequestFlags::NONE, 1, 0, 0);
    let pong = message(pong, &[], all);
    script.say('C', "PONG", &pong);
    assert_eq!(
        node_receives(&mut node, &pong),
        server::Received::Pong { cookie: 1 }
    );
    let close = Header::request(Kind::Close, RequestFlags::RELEASE, 0, 0, 0);
    let close = message(close, &[], all);
    script.say('C', "CLOSE, RELEASE", &close);
    let released = server::Received::Close { release: true };
    assert_eq!(node_receives(&mut node, &close), released);
    script.0
}

/// One request and its reply.
fn exchange(
    script: &mut Transcript,
    client: &mut Client,
    node: &mut server::Receiver,
    tag: Tag,
    what: &str,
    request: Request,
    data: &[u8],
) {
    let all = Features::HEADER_CRC.union(Features::PAYLOAD_CRC);
    let is_write = request.kind == Kind::Write;
    let payload = if is_write { data } else { &[] };
    let cookie = client.slots.claim(tag, request, Instant(0)).expect("free");
    assert!(client.slots.sent(tag, Instant(0)));
    let bytes = message(request.header(cookie), payload, all);
    script.say('C', what, &bytes);
    let command = match node_receives(node, &bytes) {
        server::Received::Command(command) | server::Received::WriteBegins(command) => command,
        other => panic!("{other:?}"),
    };
    assert_eq!(command.cookie, cookie.to_wire());
    node.answered(payload.len() as u32);
    let answer = if request.kind == Kind::Read {
        data
    } else {
        &[]
    };
    let header = Header::reply(Status::Ok, command.cookie, answer.len() as u32);
    let bytes = message(header, answer, all);
    script.say('N', "REPLY, Ok", &bytes);
    let mut buffer = vec![0; answer.len()];
    let status = Status::Ok;
    assert_eq!(
        client.receive(&bytes, &mut buffer),
        Some(Received::Completed { tag, status })
    );
    assert_eq!(buffer, answer);
}

#[test]
fn the_example_in_the_document_is_what_both_halves_say() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../Documentation/protocol.rst"
    );
    let document = std::fs::read_to_string(path).expect("the protocol document");
    let (before, rest) = document
        .split_once(BEGIN)
        .expect("the begin of the example");
    let (shown, after) = rest.split_once(END).expect("the end of the example");
    let said = format!("\n{}", conversation());
    if std::env::var_os("NEONSAN_BLESS").is_some() {
        std::fs::write(path, format!("{before}{BEGIN}{said}{END}{after}")).expect("written");
    } else {
        assert!(
            said == shown,
            "run this test with NEONSAN_BLESS=1; it says:\n{said}"
        );
    }
}
