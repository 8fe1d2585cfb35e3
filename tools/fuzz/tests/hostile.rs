// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Plays every misbehaviour of the list, over TCP, to a client made of the client machines: it must
//! close the connection with the named cause, complete nothing wrong, and go on where it can.

use neonsan_fuzz::conversation::{
    crc32c, geometry, identity, message, FEATURE_SETS, FIRST_OPEN, VOLUME,
};
use neonsan_fuzz::hostile::{self, Misbehaviour, Moment, Outcome};
use neonsan_fuzz::node::{Config, Node};
use neonsan_fuzz::random::Random;
use neonsan_proto::{Features, Kind, OpenReply, RequestFlags, Status};
use neonsan_session::client::{
    check_same_volume, ConnectKind, Handshake, Progress, Received, Receiver, Request, Slot,
    SlotTable, Want,
};
use neonsan_session::{CloseCause, Generation, Instant, Tag};
use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

const SIZE: usize = 1 << 20;
const AFTER: u64 = 3;

/// One connection in force.
struct Link {
    socket: TcpStream,
    receiver: Receiver,
    features: Features,
}

/// A device with one connection and one request at a time.
struct Client {
    address: SocketAddr,
    offered: Features,
    generation: u64,
    slots: SlotTable<Vec<Slot>>,
    before: Option<OpenReply>,
    /// How long to wait for anything: short only where silence is to be noticed, since the machine
    /// may be busy.
    patience: Duration,
    causes: Vec<CloseCause>,
}

fn socket_cause(error: &std::io::Error, timeout: CloseCause) -> CloseCause {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => timeout,
        _ => CloseCause::SocketError(error.raw_os_error().unwrap_or(0)),
    }
}

impl Client {
    fn connect(&mut self) -> Result<Link, CloseCause> {
        self.generation += 1;
        let kind = match FIRST_OPEN {
            ConnectKind::Open { epoch, .. } => ConnectKind::Open {
                generation: Generation(self.generation),
                epoch,
                promote: self.before.is_some(),
            },
            join => join,
        };
        let timeout = CloseCause::ConnectTimeout;
        let mut socket = TcpStream::connect(self.address).expect("the node listens");
        socket.set_read_timeout(Some(self.patience)).expect("set");
        socket.set_nodelay(true).expect("set");
        let mut handshake = Handshake::new(&identity(self.offered), kind, crc32c);
        loop {
            let out = handshake.poll_transmit().to_vec();
            if !out.is_empty() {
                socket
                    .write_all(&out)
                    .map_err(|e| socket_cause(&e, timeout))?;
                handshake.transmitted(out.len());
                continue;
            }
            let n = socket
                .read(handshake.want())
                .map_err(|e| socket_cause(&e, timeout))?;
            if n == 0 {
                return Err(CloseCause::PeerClosed);
            }
            if handshake.received(n)? == Progress::Opened {
                break;
            }
        }
        let opened = handshake.opened().expect("it is open");
        if let Some(before) = &self.before {
            check_same_volume(before, &opened.reply)?;
        }
        self.before = Some(opened.reply);
        Ok(Link {
            socket,
            receiver: Receiver::new(opened.features, crc32c),
            features: opened.features,
        })
    }

    /// Sends the request of tag 0 again and again until it is answered or the device ends.
    fn carry_out(
        &mut self,
        link: &mut Option<Link>,
        request: Request,
        data: &mut [u8],
    ) -> Result<(), CloseCause> {
        let tag = Tag(0);
        let mut cookie = self.slots.claim(tag, request, Instant(0)).expect("free");
        loop {
            let live = match link {
                Some(live) => live,
                None => match self.connect() {
                    Ok(live) => link.insert(live),
                    Err(cause) => {
                        self.causes.push(cause);
                        let taken = CloseCause::Refused(Status::HeldByOther);
                        if matches!(cause, CloseCause::VolumeChanged(_)) || cause == taken {
                            return Err(cause);
                        }
                        assert!(self.causes.len() < 5, "no way back: {:?}", self.causes);
                        continue;
                    }
                },
            };
            assert!(self.slots.sent(tag, Instant(0)));
            let payload = if request.kind == Kind::Write {
                &data[..]
            } else {
                &[]
            };
            let bytes = message(request.header(cookie), payload, live.features);
            let answered = live
                .socket
                .write_all(&bytes)
                .map_err(|e| socket_cause(&e, CloseCause::RequestTimeout))
                .and_then(|()| receive(live, &self.slots, data));
            match answered {
                Ok(Status::Ok) => return Ok(()),
                Ok(Status::Busy) => {
                    cookie = self.slots.claim(tag, request, Instant(0)).expect("free");
                }
                Ok(other) => panic!("the request ended with {other:?}"),
                Err(cause) => {
                    self.causes.push(cause);
                    *link = None;
                    assert!(self.slots.park(tag), "it was completed and lost at once");
                    if cause == CloseCause::Fenced {
                        return Err(cause);
                    }
                    (cookie, _) = self.slots.reclaim(tag, Instant(0)).expect("parked");
                }
            }
        }
    }
}

/// Receives until the request of tag 0 is answered.
fn receive(
    link: &mut Link,
    slots: &SlotTable<Vec<Slot>>,
    data: &mut [u8],
) -> Result<Status, CloseCause> {
    let timeout = CloseCause::RequestTimeout;
    loop {
        let received = match link.receiver.want() {
            Want::Bytes(buffer) => {
                assert!(!buffer.is_empty());
                let n = link
                    .socket
                    .read(buffer)
                    .map_err(|e| socket_cause(&e, timeout))?;
                if n == 0 {
                    return Err(CloseCause::PeerClosed);
                }
                link.receiver.received(n, slots)?
            }
            Want::Payload { at, remaining, .. } => {
                let (at, end) = (at as usize, (at + remaining) as usize);
                assert_eq!(end, data.len(), "payload of another length");
                let n = link
                    .socket
                    .read(&mut data[at..end])
                    .map_err(|e| socket_cause(&e, timeout))?;
                if n == 0 {
                    return Err(CloseCause::PeerClosed);
                }
                let crc = crc32c(&data[..at + n]);
                link.receiver.payload_received(n as u32, crc, slots)?
            }
        };
        if let Some(Received::Completed { tag, status }) = received {
            assert_eq!(tag, Tag(0));
            return Ok(status);
        }
    }
}

fn node(
    misbehaviour: Option<&'static Misbehaviour>,
    after: u64,
) -> (SocketAddr, std::sync::Arc<Node>) {
    let node = std::sync::Arc::new(Node::new(Config {
        volume: VOLUME.to_owned(),
        geometry: geometry(SIZE as u64, 512),
        features: Features::KNOWN,
        misbehaviour,
        after,
        times: 1,
    }));
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("bound");
    let serving = node.clone();
    // Ends with the process.
    std::thread::spawn(move || serving.serve(&listener));
    (address, node)
}

/// Writes and reads for a while and compares with a model. Returns the causes of the lost
/// connections, and how the device ended if it did.
fn exercise(
    address: SocketAddr,
    offered: Features,
    what: Option<&Misbehaviour>,
) -> (Vec<CloseCause>, Option<CloseCause>) {
    let silent = what.is_some_and(|m| m.causes.iter().any(|c| c.ends_with("timeout")));
    let mut client = Client {
        address,
        offered,
        generation: 0,
        slots: SlotTable::new(0, (0..4).map(|_| Slot::new()).collect()),
        before: None,
        patience: Duration::from_millis(if silent { 400 } else { 20_000 }),
        causes: Vec::new(),
    };
    let mut random = Random::new(7);
    let mut model = vec![0u8; SIZE];
    let mut link = None;
    for round in 0..30 {
        let length = 512 * (2 + random.below(8));
        let offset = 512 * random.below((SIZE - length) / 512);
        let mut request = Request {
            kind: Kind::Write,
            flags: RequestFlags::NONE,
            offset: offset as u64,
            length: length as u32,
        };
        let mut data = vec![0u8; length];
        if round % 3 == 0 {
            random.fill(&mut data);
            if let Err(cause) = client.carry_out(&mut link, request, &mut data) {
                return (client.causes, Some(cause));
            }
            model[offset..offset + length].copy_from_slice(&data);
        }
        data.fill(0xaa);
        request.kind = Kind::Read;
        if let Err(cause) = client.carry_out(&mut link, request, &mut data) {
            return (client.causes, Some(cause));
        }
        assert_eq!(data, model[offset..offset + length], "round {round}");
    }
    (client.causes, None)
}

fn play(what: &'static Misbehaviour, offered: Features) {
    let (address, node) = node(Some(what), AFTER);
    let (mut causes, end) = exercise(address, offered, Some(what));
    let about = format!("{} with {offered:?}: {causes:?}, {end:?}", what.name);
    if !offered.contains(what.needs) {
        assert_eq!((node.misbehaved(), causes.len()), (0, 0), "{about}");
        return;
    }
    assert_eq!(node.misbehaved(), 1, "{about}");
    if matches!(what.moment, Moment::Hello | Moment::Open | Moment::Promote) {
        // The node had to cut the connection to get its turn.
        assert!(matches!(
            causes.remove(0),
            CloseCause::PeerClosed | CloseCause::SocketError(_)
        ));
    }
    let names: Vec<&str> = causes.iter().map(CloseCause::name).collect();
    let expected = what.causes(offered);
    match what.outcome {
        Outcome::Allowed => assert!(names.is_empty(), "{about}"),
        Outcome::Recovers | Outcome::Fails => {
            assert_eq!(names.len(), 1, "{about}");
            assert!(expected.contains(&names[0]), "{about}");
        }
    }
    assert_eq!(end.is_some(), what.outcome == Outcome::Fails, "{about}");
}

#[test]
fn a_node_that_behaves_loses_no_connection() {
    for features in FEATURE_SETS {
        let (address, _) = node(None, 0);
        assert_eq!(exercise(address, features, None), (Vec::new(), None));
    }
}

#[test]
fn every_misbehaviour_closes_the_connection_with_its_cause() {
    // Most of the time is spent waiting for silent nodes.
    std::thread::scope(|scope| {
        for features in FEATURE_SETS {
            scope.spawn(move || {
                for what in hostile::all() {
                    play(what, features);
                }
            });
        }
    });
}

#[test]
fn a_misbehaviour_of_the_first_handshake_is_named_at_once() {
    for what in hostile::all() {
        if !matches!(what.moment, Moment::Hello | Moment::Open) {
            continue;
        }
        let (address, _) = node(Some(what), 0);
        let (causes, _) = exercise(address, Features::KNOWN, Some(what));
        let names: Vec<&str> = causes.iter().map(CloseCause::name).collect();
        match what.outcome {
            Outcome::Allowed => assert!(names.is_empty(), "{}: {names:?}", what.name),
            Outcome::Recovers | Outcome::Fails => {
                assert_eq!(names.len(), 1, "{}", what.name);
                assert!(what.causes.contains(&names[0]), "{}: {names:?}", what.name);
            }
        }
    }
}

#[test]
fn names_are_unique_and_causes_exist() {
    let names: BTreeSet<&str> = hostile::all().map(|m| m.name).collect();
    assert_eq!(names.len(), hostile::all().count());
    for m in hostile::all() {
        let plain = m.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
        assert!(plain && !m.about.is_empty(), "{}", m.name);
        assert_eq!(
            m.causes.is_empty(),
            m.outcome == Outcome::Allowed,
            "{}",
            m.name
        );
    }
}
