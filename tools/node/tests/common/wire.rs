// SPDX-License-Identifier: GPL-2.0 OR MIT
//! A client that says what it is told to say, right or wrong.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use neonsan_proto::{
    ClientHello, EventKind, Features, Header, Kind, Mode, OpenFlags, OpenReply, OpenRequest,
    Refusal, RequestFlags, ServerHello, Status, VolumeName, HEADER_BYTES, HELLO_BYTES,
};
use zerocopy::{FromBytes as _, IntoBytes as _};

use super::PATIENCE;

pub const CHECKED: Features = Features::HEADER_CRC.union(Features::PAYLOAD_CRC);

/// How to open a volume.
#[derive(Clone, Copy)]
pub struct Open<'a> {
    pub volume: &'a str,
    pub host: u8,
    pub session: u8,
    /// The boot of the host; zero: it does not say.
    pub boot: u64,
    pub generation: u64,
    pub mode: Mode,
    pub force: bool,
    pub features: Features,
}

impl<'a> Open<'a> {
    pub fn new(volume: &'a str, host: u8) -> Self {
        Self {
            volume,
            host,
            session: host,
            boot: 7,
            generation: 1,
            mode: Mode::Exclusive,
            force: false,
            features: Features::NONE,
        }
    }

    fn request(&self, connection: u16, epoch: u64) -> OpenRequest {
        let name = VolumeName::parse(self.volume).unwrap();
        let mut request = OpenRequest::new(name, &format!("host{}", self.host));
        request.host_id = [self.host; 16];
        request.session_id = [self.session; 16];
        request.host_boot = self.boot.into();
        request.generation = self.generation.into();
        request.epoch = epoch.into();
        request.connection = connection.into();
        request.mode = self.mode.to_wire();
        if self.force {
            request.flags = OpenFlags::FORCE.0;
        }
        request
    }
}

/// The bytes of an OPEN as the first connection says it, without checksums.
pub fn open_message(open: &Open<'_>) -> Vec<u8> {
    let request = open.request(0, 1);
    let len = request.as_bytes().len() as u32;
    let header = Header::request(Kind::Open, RequestFlags::NONE, 0, 0, len);
    [header.as_bytes(), request.as_bytes()].concat()
}

/// A message from the node.
#[derive(Debug)]
pub struct Message {
    pub header: Header,
    pub payload: Vec<u8>,
}

/// A connection, admitted or not.
pub struct Wire {
    pub stream: TcpStream,
    features: Features,
    pub reply: OpenReply,
    next_cookie: u64,
    /// Events that came between replies.
    pub events: Vec<(EventKind, u64)>,
}

/// A refused OPEN or JOIN.
#[derive(Debug)]
pub struct Refused {
    pub status: Status,
    pub refusal: Refusal,
    pub text: String,
}

impl Wire {
    /// Connects and exchanges hellos.
    pub fn connect(node: SocketAddr, features: Features) -> Self {
        let mut stream = TcpStream::connect(node).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let hello = ClientHello::new(features, features, "test");
        stream.write_all(hello.as_bytes()).unwrap();
        let mut answer = [0; HELLO_BYTES];
        stream.read_exact(&mut answer).unwrap();
        ServerHello::parse(&answer).unwrap();
        Self {
            stream,
            features,
            reply: OpenReply::default(),
            next_cookie: 1,
            events: Vec::new(),
        }
    }

    /// Opens a volume.
    pub fn open(node: SocketAddr, open: &Open<'_>) -> Result<Self, Refused> {
        Self::introduce(node, open, Kind::Open, 0, 1)
    }

    /// Joins a session.
    pub fn join(
        node: SocketAddr,
        open: &Open<'_>,
        connection: u16,
        epoch: u64,
    ) -> Result<Self, Refused> {
        Self::introduce(node, open, Kind::Join, connection, epoch)
    }

    fn introduce(
        node: SocketAddr,
        open: &Open<'_>,
        kind: Kind,
        connection: u16,
        epoch: u64,
    ) -> Result<Self, Refused> {
        let mut wire = Self::connect(node, open.features);
        let request = open.request(connection, epoch);
        let header = Header::request(
            kind,
            RequestFlags::NONE,
            0,
            0,
            request.as_bytes().len() as u32,
        );
        wire.send(header, request.as_bytes());
        let message = wire.receive().expect("an answer to OPEN");
        assert_eq!(message.header.kind(), Kind::OpenReply);
        if message.header.status() == Status::Ok {
            let (reply, _) = OpenReply::parse(&message.payload).unwrap();
            reply.geometry.check().expect("a sensible geometry");
            wire.reply = reply;
            return Ok(wire);
        }
        let (refusal, text) = Refusal::parse(&message.payload).unwrap();
        Err(Refused {
            status: message.header.status(),
            refusal,
            text: text.to_owned(),
        })
    }

    /// Sends a message, with checksums if they were agreed.
    pub fn send(&mut self, mut header: Header, payload: &[u8]) {
        if self.features.contains(Features::PAYLOAD_CRC) && !payload.is_empty() {
            header.set_payload_crc(crc32c::crc32c(payload));
        }
        if self.features.contains(Features::HEADER_CRC) {
            header.seal(crc32c::crc32c);
        }
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(payload);
        // A node that has closed the connection is noticed while receiving.
        let _ = self.stream.write_all(&bytes);
    }

    /// The next message; `None` when the node has closed the connection.
    pub fn receive(&mut self) -> Option<Message> {
        let mut bytes = [0; HEADER_BYTES];
        if let Err(error) = self.stream.read_exact(&mut bytes) {
            assert_ne!(
                error.kind(),
                std::io::ErrorKind::WouldBlock,
                "the node says nothing"
            );
            return None;
        }
        let header = Header::read_from_bytes(&bytes).unwrap();
        let mut payload = vec![0; header.payload_len() as usize];
        self.stream.read_exact(&mut payload).unwrap();
        if self.features.contains(Features::HEADER_CRC) {
            assert!(header.is_intact(crc32c::crc32c));
        }
        if self.features.contains(Features::PAYLOAD_CRC) && !payload.is_empty() {
            assert_eq!(header.payload_crc(), crc32c::crc32c(&payload));
        }
        Some(Message { header, payload })
    }

    /// The next reply; pings are answered and events kept.
    pub fn receive_reply(&mut self) -> Option<Message> {
        loop {
            let message = self.receive()?;
            match message.header.kind() {
                Kind::Reply => return Some(message),
                Kind::Ping => {
                    let cookie = message.header.cookie();
                    let pong = Header::request(Kind::Pong, RequestFlags::NONE, cookie, 0, 0);
                    self.send(pong, &[]);
                }
                Kind::Event => self
                    .events
                    .push((message.header.event_kind(), message.header.offset())),
                other => panic!("unexpected {other:?}"),
            }
        }
    }

    /// Waits for an event.
    pub fn receive_event(&mut self) -> (EventKind, u64) {
        while self.events.is_empty() {
            let message = self.receive().expect("an event");
            match message.header.kind() {
                Kind::Event => self
                    .events
                    .push((message.header.event_kind(), message.header.offset())),
                Kind::Ping => {
                    let cookie = message.header.cookie();
                    let pong = Header::request(Kind::Pong, RequestFlags::NONE, cookie, 0, 0);
                    self.send(pong, &[]);
                }
                other => panic!("unexpected {other:?}"),
            }
        }
        self.events.remove(0)
    }

    /// The cookie of the next request.
    pub fn next_cookie(&self) -> u64 {
        self.next_cookie
    }

    /// Sends a request without waiting; its cookie.
    pub fn ask(
        &mut self,
        kind: Kind,
        flags: RequestFlags,
        offset: u64,
        length: u32,
        payload: &[u8],
    ) -> u64 {
        let cookie = self.next_cookie;
        self.next_cookie += 1;
        self.send(
            Header::request(kind, flags, cookie, offset, length),
            payload,
        );
        cookie
    }

    /// Sends a request and waits for its reply.
    pub fn call(
        &mut self,
        kind: Kind,
        flags: RequestFlags,
        offset: u64,
        length: u32,
        payload: &[u8],
    ) -> (Status, Vec<u8>) {
        let cookie = self.ask(kind, flags, offset, length, payload);
        let message = self.receive_reply().expect("a reply");
        assert_eq!(message.header.cookie(), cookie);
        (message.header.status(), message.payload)
    }

    pub fn write(&mut self, offset: u64, data: &[u8]) -> Status {
        self.call(
            Kind::Write,
            RequestFlags::NONE,
            offset,
            data.len() as u32,
            data,
        )
        .0
    }

    pub fn read(&mut self, offset: u64, length: u32) -> Vec<u8> {
        let (status, data) = self.call(Kind::Read, RequestFlags::NONE, offset, length, &[]);
        assert_eq!(status, Status::Ok);
        assert_eq!(data.len(), length as usize);
        data
    }

    pub fn flush(&mut self) -> Status {
        self.call(Kind::Flush, RequestFlags::NONE, 0, 0, &[]).0
    }

    /// Ends the session in order, and waits until the node has closed.
    pub fn release(mut self) {
        let close = Header::request(Kind::Close, RequestFlags::RELEASE, 0, 0, 0);
        self.send(close, &[]);
        self.wait_closed();
    }

    /// Waits until the node has closed the connection.
    pub fn wait_closed(&mut self) {
        while let Some(message) = self.receive() {
            if message.header.kind() == Kind::Event {
                self.events
                    .push((message.header.event_kind(), message.header.offset()));
            }
        }
    }
}
