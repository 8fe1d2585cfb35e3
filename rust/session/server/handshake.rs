// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Shaking hands with a client on one new connection: bytes in, bytes out.
//!
//! ```text
//!   AwaitHello ──► SendHello ──► AwaitHeader ──► AwaitBody ──► Introduced
//! ```
//!
//! Once introduced, the caller asks the volume's [`Gate`](super::Gate) and sends the answer with
//! [`encode_accept`](Handshake::encode_accept) or [`encode_refusal`](Handshake::encode_refusal).
//! The deadline for the whole belongs to the caller.

use crate::CloseCause;
use alloc::vec::Vec;
use neonsan_proto::{
    ClientHello, Crc32c, Features, Header, Kind, NodeAddress, OpenReply, OpenRequest, Refusal,
    ServerHello, Status, HEADER_BYTES, HELLO_BYTES, MAGIC_BYTES, MAX_NODES, MAX_REFUSAL_TEXT_BYTES,
    OPEN_REQUEST_BYTES,
};
use zerocopy::{FromBytes as _, IntoBytes as _};

/// How a client introduced its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntroducedAs {
    /// It begins or promotes a session.
    Open,
    /// It adds or replaces a connection of one.
    Join,
}

/// A client that has introduced itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Introduced {
    /// Whether it opens or joins.
    pub kind: IntroducedAs,
    /// What it asks; fields unchecked.
    pub request: OpenRequest,
    /// Features in force.
    pub features: Features,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    AwaitHello,
    SendHello { then: Option<CloseCause> },
    AwaitHeader,
    AwaitBody { kind: IntroducedAs, crc: u32 },
    Introduced(IntroducedAs),
    Failed,
}

const INPUT_BYTES: usize = OPEN_REQUEST_BYTES;

/// One handshake.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    at: usize,
    input: [u8; INPUT_BYTES],
    hello: [u8; HELLO_BYTES],
    supported: Features,
    features: Features,
    product: &'static str,
    crc32c: Crc32c,
}

impl Handshake {
    /// A handshake for a connection that was just accepted.
    pub fn new(supported: Features, product: &'static str, crc32c: Crc32c) -> Self {
        Handshake {
            state: State::AwaitHello,
            at: 0,
            input: [0; INPUT_BYTES],
            hello: [0; HELLO_BYTES],
            supported,
            features: Features::NONE,
            product,
            crc32c,
        }
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.at = 0;
    }

    /// What is to be sent now; may be empty.
    pub fn poll_transmit(&self) -> &[u8] {
        match self.state {
            State::SendHello { .. } => self.hello.get(self.at..).unwrap_or_default(),
            State::AwaitHello
            | State::AwaitHeader
            | State::AwaitBody { .. }
            | State::Introduced(_)
            | State::Failed => &[],
        }
    }

    /// `n` bytes of [`Handshake::poll_transmit`] were sent. An error means that the last of a
    /// refusal has gone out: close the connection.
    pub fn transmitted(&mut self, n: usize) -> Result<(), CloseCause> {
        let State::SendHello { then } = self.state else {
            return Ok(());
        };
        self.at = self.at.saturating_add(n).min(HELLO_BYTES);
        if self.at < HELLO_BYTES {
            return Ok(());
        }
        match then {
            None => {
                self.enter(State::AwaitHeader);
                Ok(())
            }
            Some(cause) => {
                self.enter(State::Failed);
                Err(cause)
            }
        }
    }

    fn wanted_len(&self) -> usize {
        match self.state {
            State::AwaitHello => HELLO_BYTES,
            State::AwaitHeader => HEADER_BYTES,
            State::AwaitBody { .. } => OPEN_REQUEST_BYTES,
            State::SendHello { .. } | State::Introduced(_) | State::Failed => 0,
        }
    }

    /// Where the next bytes from the client go, and no more than these; may be empty.
    pub fn want(&mut self) -> &mut [u8] {
        let (at, end) = (self.at, self.wanted_len());
        self.input.get_mut(at..end).unwrap_or_default()
    }

    /// `n` bytes were put at the start of [`Handshake::want`]. An error ends the connection.
    pub fn received(&mut self, n: usize) -> Result<(), CloseCause> {
        let wanted = self.wanted_len();
        self.at = self.at.saturating_add(n).min(wanted);
        // Strangers are told apart by their first bytes; do not wait for a whole hello of them.
        if self.state == State::AwaitHello && self.at >= MAGIC_BYTES {
            self.check_stranger()?;
        }
        if wanted == 0 || self.at < wanted {
            return Ok(());
        }
        let result = match self.state {
            State::AwaitHello => self.on_hello(),
            State::AwaitHeader => self.on_header(),
            State::AwaitBody { kind, crc } => self.on_body(kind, crc),
            State::SendHello { .. } | State::Introduced(_) | State::Failed => Ok(()),
        };
        if result.is_err() {
            self.state = State::Failed;
        }
        result
    }

    fn check_stranger(&mut self) -> Result<(), CloseCause> {
        let magic = self.input.first_chunk().unwrap_or(&[0; MAGIC_BYTES]);
        ClientHello::check_magic(magic).map_err(|error| {
            self.state = State::Failed;
            CloseCause::NotNeonsan(error)
        })
    }

    fn on_hello(&mut self) -> Result<(), CloseCause> {
        let hello = ClientHello::parse(&self.input).map_err(CloseCause::NotNeonsan)?;
        let (answer, then) = match hello.negotiate(self.supported) {
            Ok((version, features)) => {
                self.features = features;
                (ServerHello::accept(version, features, self.product), None)
            }
            Err(status) => {
                let (min, max) = hello.versions();
                let cause = match status {
                    Status::VersionUnsupported => CloseCause::Version { min, max },
                    other => CloseCause::Refused(other),
                };
                (
                    ServerHello::refuse(status, self.supported, self.product),
                    Some(cause),
                )
            }
        };
        self.hello.copy_from_slice(answer.as_bytes());
        self.enter(State::SendHello { then });
        Ok(())
    }

    fn on_header(&mut self) -> Result<(), CloseCause> {
        let Ok((header, _)) = Header::read_from_prefix(&self.input) else {
            return Err(CloseCause::HeaderChecksum);
        };
        if self.features.contains(Features::HEADER_CRC) && !header.is_intact(self.crc32c) {
            return Err(CloseCause::HeaderChecksum);
        }
        let kind = match header.kind() {
            Kind::Open => IntroducedAs::Open,
            Kind::Join => IntroducedAs::Join,
            Kind::Unknown(kind) => return Err(CloseCause::UnknownKind(kind)),
            other => return Err(CloseCause::UnexpectedKind(other.to_wire())),
        };
        if header.length() as usize != OPEN_REQUEST_BYTES {
            return Err(CloseCause::LengthLimit(header.length()));
        }
        self.enter(State::AwaitBody {
            kind,
            crc: header.payload_crc(),
        });
        Ok(())
    }

    fn on_body(&mut self, kind: IntroducedAs, crc: u32) -> Result<(), CloseCause> {
        if self.features.contains(Features::PAYLOAD_CRC) && (self.crc32c)(&self.input) != crc {
            return Err(CloseCause::PayloadChecksum);
        }
        self.enter(State::Introduced(kind));
        Ok(())
    }

    /// What the client asks, once it has been received.
    pub fn introduced(&self) -> Option<Introduced> {
        let State::Introduced(kind) = self.state else {
            return None;
        };
        let request = OpenRequest::parse(&self.input)?;
        Some(Introduced {
            kind,
            request,
            features: self.features,
        })
    }

    /// Features in force.
    pub fn features(&self) -> Features {
        self.features
    }

    fn encode(&self, status: Status, body: &[u8], out: &mut Vec<u8>) {
        let mut header = Header::open_reply(status, body.len() as u32);
        if self.features.contains(Features::PAYLOAD_CRC) {
            header.set_payload_crc((self.crc32c)(body));
        }
        if self.features.contains(Features::HEADER_CRC) {
            header.seal(self.crc32c);
        }
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(body);
    }

    /// Appends the answer that agrees. At most [`MAX_NODES`] addresses are told; `node_count` is
    /// filled in.
    pub fn encode_accept(&self, reply: OpenReply, nodes: &[NodeAddress], out: &mut Vec<u8>) {
        let nodes = nodes.get(..nodes.len().min(MAX_NODES)).unwrap_or_default();
        let reply = OpenReply {
            node_count: (nodes.len() as u16).into(),
            ..reply
        };
        let mut body = Vec::with_capacity(size_of::<OpenReply>() + size_of_val(nodes));
        body.extend_from_slice(reply.as_bytes());
        body.extend_from_slice(nodes.as_bytes());
        self.encode(Status::Ok, &body, out);
    }

    /// Appends the answer that refuses with a text for people, which is cut if it is too long.
    /// `status` must not be `Ok`.
    pub fn encode_refusal(&self, status: Status, refusal: Refusal, text: &str, out: &mut Vec<u8>) {
        let mut end = text.len().min(MAX_REFUSAL_TEXT_BYTES);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let text = text.get(..end).unwrap_or_default();
        let refusal = Refusal {
            text_len: (end as u16).into(),
            ..refusal
        };
        let mut body = Vec::with_capacity(size_of::<Refusal>() + end);
        body.extend_from_slice(refusal.as_bytes());
        body.extend_from_slice(text.as_bytes());
        let status = if status == Status::Ok {
            Status::Internal
        } else {
            status
        };
        self.encode(status, &body, out);
    }
}
