// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Shaking hands with a node on one new connection: bytes in, bytes out.
//!
//! ```text
//!   SendHello ──► AwaitHello ──► SendOpen ──► AwaitHeader ──► AwaitBody ──► Done
//! ```
//!
//! Any state ends with a [`CloseCause`] instead. The deadline belongs to the caller
//! ([`Timeouts::connect_ms`](crate::Timeouts)), since only it can interrupt a socket.

use super::{promise::broken_promise, terms::ConnectKind};
use crate::{CloseCause, Generation};
use neonsan_proto::{
    ClientHello, Crc32c, Features, Geometry, Header, Kind, Mode, NodeAddress, OpenFlags, OpenReply,
    OpenRequest, Refusal, ServerHello, Status, VolumeName, HEADER_BYTES, HELLO_BYTES, MAGIC_BYTES,
    MAX_DEPTH, MAX_NODES, MAX_REFUSAL_TEXT_BYTES, NODE_ADDRESS_BYTES, OPEN_REPLY_BYTES,
    OPEN_REQUEST_BYTES, REFUSAL_BYTES,
};
use zerocopy::{FromBytes as _, IntoBytes as _};

const MAX_REPLY_BYTES: usize = OPEN_REPLY_BYTES + MAX_NODES * NODE_ADDRESS_BYTES;
const MAX_REFUSED_BYTES: usize = REFUSAL_BYTES + MAX_REFUSAL_TEXT_BYTES;
const BODY_BYTES: usize = if MAX_REPLY_BYTES > MAX_REFUSED_BYTES {
    MAX_REPLY_BYTES
} else {
    MAX_REFUSED_BYTES
};
const OPEN_BYTES: usize = HEADER_BYTES + OPEN_REQUEST_BYTES;

/// Who opens what: the same for every connection of a session.
#[derive(Clone, Copy, Debug)]
pub struct Identity<'a> {
    /// The volume.
    pub volume: VolumeName<'a>,
    /// Who else may have it open.
    pub mode: Mode,
    /// Take it from the host that holds it. Only heeded until the session was usable once: a
    /// session that was fenced must not fence back.
    pub force: bool,
    /// Identity of the session; random, not zero.
    pub session_id: [u8; 16],
    /// Identity of the host; not zero.
    pub host_id: [u8; 16],
    /// Identity of the host's boot: another one after each start of its kernel; zero: not said.
    pub host_boot: u64,
    /// The host's name for people.
    pub host_name: &'a str,
    /// The features to use if the node has them.
    pub offered: Features,
    /// The features without which there is no connection.
    pub required: Features,
    /// Name and version of this software, for the node's log.
    pub product: &'a str,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Send what [`Handshake::poll_transmit`] gives, and receive what [`Handshake::want`] asks for.
    Pending,
    /// The connection is usable; see [`Handshake::opened`].
    Opened,
}

/// The answer of a node that agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Features in force.
    pub features: Features,
    /// Size, limits, identities; checked.
    pub reply: OpenReply,
}

/// The answer of a node that refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusedOpen<'a> {
    /// Why.
    pub status: Status,
    /// Details, such as the holder.
    pub refusal: Refusal,
    /// The node's words for people; may be empty.
    pub text: &'a str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    SendHello,
    AwaitHello,
    SendOpen,
    AwaitHeader,
    AwaitBody { status: Status, length: usize },
    Done,
    Failed,
}

/// One handshake. More than 1 KiB, so not for a kernel stack: a const made by [`Handshake::empty`] goes
/// where it is to live, and [`Handshake::begin`] fills it in there.
#[derive(Debug)]
pub struct Handshake {
    state: State,
    kind: ConnectKind,
    /// Bytes of the current state that were sent or received.
    at: usize,
    hello: [u8; HELLO_BYTES],
    /// Header and body of OPEN or JOIN; the header is written when the features are known.
    open: [u8; OPEN_BYTES],
    /// What the node says, and at last its reply or refusal.
    input: [u8; BODY_BYTES],
    body_crc: u32,
    features: Features,
    refused: Option<(Status, usize)>,
    crc32c: Crc32c,
}

impl Handshake {
    /// A handshake that has not begun.
    pub const fn empty(crc32c: Crc32c) -> Self {
        Handshake {
            state: State::Failed,
            kind: ConnectKind::Open {
                generation: Generation(0),
                epoch: 0,
                promote: false,
            },
            at: 0,
            hello: [0; HELLO_BYTES],
            open: [0; OPEN_BYTES],
            input: [0; BODY_BYTES],
            body_crc: 0,
            features: Features::NONE,
            refused: None,
            crc32c,
        }
    }

    /// A handshake for one connection as the [`Session`](super::Session) asked for it.
    // Made in the caller's frame: not in a kernel, whose stacks are small.
    #[cfg(not(MODULE))]
    pub fn new(identity: &Identity<'_>, kind: ConnectKind, crc32c: Crc32c) -> Self {
        let mut this = Handshake::empty(crc32c);
        this.begin(identity, kind);
        this
    }

    /// Begins the handshake for one connection as the [`Session`](super::Session) asked for it.
    pub fn begin(&mut self, identity: &Identity<'_>, kind: ConnectKind) {
        let hello = ClientHello::new(identity.offered, identity.required, identity.product);
        self.hello.copy_from_slice(hello.as_bytes());
        let mut request = OpenRequest::new(identity.volume, identity.host_name);
        request.session_id = identity.session_id;
        request.host_id = identity.host_id;
        request.host_boot = identity.host_boot.into();
        request.mode = identity.mode.to_wire();
        let (generation, connection, epoch) = match kind {
            ConnectKind::Open {
                generation, epoch, ..
            } => (generation, 0, epoch),
            ConnectKind::Join {
                generation,
                connection,
                epoch,
            } => (generation, connection, epoch),
        };
        request.generation = generation.0.into();
        request.connection = connection.into();
        request.epoch = epoch.into();
        if identity.force && matches!(kind, ConnectKind::Open { promote: false, .. }) {
            request.flags = OpenFlags::FORCE.0;
        }
        let (_, body) = self.open.split_at_mut(HEADER_BYTES);
        body.copy_from_slice(request.as_bytes());
        self.kind = kind;
        self.features = Features::NONE;
        self.refused = None;
        self.enter(State::SendHello);
    }

    /// What is to be sent now; may be empty.
    pub fn poll_transmit(&self) -> &[u8] {
        let rest = match self.state {
            State::SendHello => self.hello.get(self.at..),
            State::SendOpen => self.open.get(self.at..),
            State::AwaitHello
            | State::AwaitHeader
            | State::AwaitBody { .. }
            | State::Done
            | State::Failed => None,
        };
        rest.unwrap_or_default()
    }

    /// `n` bytes of [`Handshake::poll_transmit`] were sent.
    pub fn transmitted(&mut self, n: usize) {
        let (total, next) = match self.state {
            State::SendHello => (HELLO_BYTES, State::AwaitHello),
            State::SendOpen => (OPEN_BYTES, State::AwaitHeader),
            _ => return,
        };
        self.at = self.at.saturating_add(n).min(total);
        if self.at == total {
            self.enter(next);
        }
    }

    fn enter(&mut self, state: State) {
        self.state = state;
        self.at = 0;
    }

    fn wanted_len(&self) -> usize {
        match self.state {
            State::AwaitHello => HELLO_BYTES,
            State::AwaitHeader => HEADER_BYTES,
            State::AwaitBody { length, .. } => length,
            State::SendHello | State::SendOpen | State::Done | State::Failed => 0,
        }
    }

    /// Where the next bytes from the node go, and no more than these; may be empty.
    pub fn want(&mut self) -> &mut [u8] {
        let (at, end) = (self.at, self.wanted_len());
        self.input.get_mut(at..end).unwrap_or_default()
    }

    /// `n` bytes were put at the start of [`Handshake::want`]. An error ends the connection.
    pub fn received(&mut self, n: usize) -> Result<Progress, CloseCause> {
        let wanted = self.wanted_len();
        self.at = self.at.saturating_add(n).min(wanted);
        // Strangers are told apart by their first bytes: many say less than a whole hello.
        if self.state == State::AwaitHello && self.at >= MAGIC_BYTES {
            self.check_stranger()?;
        }
        if wanted == 0 || self.at < wanted {
            return Ok(self.progress());
        }
        let result = match self.state {
            State::AwaitHello => self.on_hello(),
            State::AwaitHeader => self.on_header(),
            State::AwaitBody { status, length } => self.on_body(status, length),
            State::SendHello | State::SendOpen | State::Done | State::Failed => Ok(()),
        };
        match result {
            Ok(()) => Ok(self.progress()),
            Err(cause) => {
                self.state = State::Failed;
                Err(cause)
            }
        }
    }

    fn progress(&self) -> Progress {
        if self.state == State::Done {
            Progress::Opened
        } else {
            Progress::Pending
        }
    }

    fn check_stranger(&mut self) -> Result<(), CloseCause> {
        let magic = self.input.first_chunk().unwrap_or(&[0; MAGIC_BYTES]);
        ServerHello::check_magic(magic).map_err(|error| {
            self.state = State::Failed;
            CloseCause::NotNeonsan(error)
        })
    }

    fn on_hello(&mut self) -> Result<(), CloseCause> {
        let hello = ServerHello::parse(&self.input).map_err(CloseCause::NotNeonsan)?;
        match hello.status() {
            Status::Ok => {}
            Status::VersionUnsupported => {
                let (min, max) = hello.versions();
                return Err(CloseCause::Version { min, max });
            }
            status => return Err(CloseCause::Refused(status)),
        }
        let (min, max) = (neonsan_proto::MIN_VERSION, neonsan_proto::MAX_VERSION);
        if !(min..=max).contains(&hello.version()) {
            let (min, max) = hello.versions();
            return Err(CloseCause::Version { min, max });
        }
        let Ok(mine) = ClientHello::parse(&self.hello) else {
            return Err(CloseCause::BadEvent);
        };
        // A node may only agree to what was offered, and must agree to what is required.
        let features = hello.features();
        if !mine.offered().contains(features) || !features.contains(mine.required()) {
            return Err(CloseCause::Refused(Status::FeatureUnsupported));
        }
        self.features = features;
        let kind = match self.kind {
            ConnectKind::Open { .. } => Kind::Open,
            ConnectKind::Join { .. } => Kind::Join,
        };
        let (head, body) = self.open.split_at_mut(HEADER_BYTES);
        let mut header = Header::request(
            kind,
            neonsan_proto::RequestFlags::NONE,
            0,
            0,
            OPEN_REQUEST_BYTES as u32,
        );
        if features.contains(Features::PAYLOAD_CRC) {
            header.set_payload_crc((self.crc32c)(body));
        }
        if features.contains(Features::HEADER_CRC) {
            header.seal(self.crc32c);
        }
        head.copy_from_slice(header.as_bytes());
        self.enter(State::SendOpen);
        Ok(())
    }

    fn on_header(&mut self) -> Result<(), CloseCause> {
        let Ok((header, _)) = Header::read_from_prefix(&self.input) else {
            return Err(CloseCause::HeaderChecksum);
        };
        if self.features.contains(Features::HEADER_CRC) && !header.is_intact(self.crc32c) {
            return Err(CloseCause::HeaderChecksum);
        }
        match header.kind() {
            Kind::OpenReply => {}
            Kind::Unknown(kind) => return Err(CloseCause::UnknownKind(kind)),
            kind => return Err(CloseCause::UnexpectedKind(kind.to_wire())),
        }
        let status = header.status();
        let length = header.length() as usize;
        let (min, max) = match status {
            Status::Ok => (OPEN_REPLY_BYTES, MAX_REPLY_BYTES),
            _ => (REFUSAL_BYTES, MAX_REFUSED_BYTES),
        };
        if !(min..=max).contains(&length) {
            return Err(CloseCause::LengthLimit(header.length()));
        }
        self.body_crc = header.payload_crc();
        self.enter(State::AwaitBody { status, length });
        Ok(())
    }

    fn on_body(&mut self, status: Status, length: usize) -> Result<(), CloseCause> {
        let body = self.input.get(..length).unwrap_or_default();
        if self.features.contains(Features::PAYLOAD_CRC) && (self.crc32c)(body) != self.body_crc {
            return Err(CloseCause::PayloadChecksum);
        }
        if status != Status::Ok {
            self.refused = Some((status, length));
            return Err(CloseCause::Refused(status));
        }
        let Some((reply, addresses)) = OpenReply::parse(body) else {
            return Err(CloseCause::LengthLimit(length as u32));
        };
        if addresses.len() != usize::from(reply.node_count.get()) * NODE_ADDRESS_BYTES {
            return Err(CloseCause::LengthLimit(length as u32));
        }
        check_reply(&reply, self.kind)?;
        self.enter(State::Done);
        Ok(())
    }

    /// What the node agreed to, once [`Progress::Opened`] was returned.
    pub fn opened(&self) -> Option<Opened> {
        Some(Opened {
            features: self.features,
            reply: self.reply()?,
        })
    }

    /// The reply of a node that agreed, checked when it came.
    fn reply(&self) -> Option<OpenReply> {
        if self.state != State::Done {
            return None;
        }
        let (reply, _) = OpenReply::read_from_prefix(&self.input).ok()?;
        Some(reply)
    }

    /// The addresses of the nodes that serve the volume, as the node listed them.
    pub fn nodes(&self) -> impl Iterator<Item = NodeAddress> + '_ {
        let count = self
            .reply()
            .map_or(0, |reply| usize::from(reply.node_count.get()));
        self.input
            .get(OPEN_REPLY_BYTES..)
            .unwrap_or_default()
            .chunks_exact(NODE_ADDRESS_BYTES)
            .take(count)
            .filter_map(|bytes| NodeAddress::read_from_bytes(bytes).ok())
    }

    /// What the node said when it refused, once [`CloseCause::Refused`] was returned. `None` if
    /// it refused in the hello, without words.
    pub fn refused(&self) -> Option<RefusedOpen<'_>> {
        let (status, length) = self.refused?;
        let (refusal, text) = Refusal::parse(self.input.get(..length)?)?;
        Some(RefusedOpen {
            status,
            refusal,
            text,
        })
    }
}

/// Checks what the node states before anyone relies on it.
fn check_reply(reply: &OpenReply, kind: ConnectKind) -> Result<(), CloseCause> {
    let geometry: &Geometry = &reply.geometry;
    geometry
        .check()
        .map_err(|e| CloseCause::BadGeometry(e.field))?;
    if reply.max_connections.get() == 0 {
        return Err(CloseCause::BadGeometry("number of connections"));
    }
    if reply.max_depth.get() == 0 || reply.max_depth.get() > MAX_DEPTH {
        return Err(CloseCause::BadGeometry("number of requests in flight"));
    }
    if reply.max_inflight_bytes.get() < geometry.max_io_bytes.get() {
        return Err(CloseCause::BadGeometry("number of bytes in flight"));
    }
    let (ConnectKind::Open { generation, .. } | ConnectKind::Join { generation, .. }) = kind;
    if reply.generation.get() != generation.0 {
        return Err(CloseCause::BadGeometry("generation"));
    }
    Ok(())
}

/// Checks that a volume which was opened again is the one that the device was made for.
///
/// Another identity or block size is [`CloseCause::VolumeChanged`]: nothing that waits may ever go
/// there. Smaller limits, fewer abilities and new duties are [`CloseCause::BadGeometry`]: requests
/// that were made before could not be sent, so this node is no use now, but may be later.
pub fn check_same_volume(before: &OpenReply, now: &OpenReply) -> Result<(), CloseCause> {
    let (old, new) = (&before.geometry, &now.geometry);
    if before.volume_id != now.volume_id {
        return Err(CloseCause::VolumeChanged("identity"));
    }
    if old.logical_block_size != new.logical_block_size {
        return Err(CloseCause::VolumeChanged("logical block size"));
    }
    if now.max_depth.get() < before.max_depth.get() {
        return Err(CloseCause::BadGeometry(
            "number of requests in flight (smaller than before)",
        ));
    }
    if now.max_inflight_bytes.get() < before.max_inflight_bytes.get() {
        return Err(CloseCause::BadGeometry(
            "number of bytes in flight (smaller than before)",
        ));
    }
    match broken_promise(old, new) {
        Some(field) => Err(CloseCause::BadGeometry(field)),
        None => Ok(()),
    }
}
