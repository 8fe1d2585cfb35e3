// SPDX-License-Identifier: GPL-2.0 OR MIT
//! A client that breaks the protocol, is slow or greedy costs itself: its
//! connection is closed with a named cause, and others go on.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use common::wire::{Open, Wire, CHECKED};
use common::{create, directory, Node, PATIENCE};
use neonsan_proto::{
    ClientHello, Features, Header, Kind, Mode, OpenRequest, RequestFlags, ServerHello, Status,
    VolumeName, HELLO_BYTES,
};
use zerocopy::IntoBytes as _;

const MIB: u64 = 1 << 20;

/// A node with a volume `p/v`, and the connection of a host that is in order.
fn node_with_guest(dir: &std::path::Path, more: &str) -> (Node, Wire) {
    let node = Node::start_with(dir, more);
    create(&node, "p/v", MIB, 512, "mem");
    create(&node, "p/good", MIB, 512, "mem");
    let good = Wire::open(node.data, &Open::new("p/good", 200)).unwrap();
    (node, good)
}

/// How often connections were closed for `cause`.
fn closed(node: &Node, cause: &str) -> f64 {
    node.metric(&format!(
        "neonsan_node_connections_closed_total{{cause=\"{cause}\"}}"
    ))
}

/// Waits until the node has so many connections.
fn settle(node: &Node, connections: f64) {
    settle_metric(node, "neonsan_node_connections ", connections);
}

/// Waits until the node has so many sessions.
fn settle_sessions(node: &Node, sessions: f64) {
    settle_metric(node, "neonsan_node_sessions ", sessions);
}

fn settle_metric(node: &Node, sample: &str, value: f64) {
    let until = Instant::now() + PATIENCE;
    while node.metric(sample) != value {
        assert!(Instant::now() < until, "{sample}is not {value}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends bytes on a new connection; all that comes back until it is closed.
fn say(node: &Node, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(node.data).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    // A reset is as good as an end here.
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    }
    answer
}

#[test]
fn strangers_are_closed_by_what_they_are() {
    let dir = directory();
    let (mut node, mut good) = node_with_guest(dir.path(), "");
    assert!(say(&node, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").is_empty());
    node.wait_for("speaks HTTP");
    assert!(say(&node, &[0xff; 4096]).is_empty());
    let server = ServerHello::accept(1, Features::NONE, "x");
    assert!(say(&node, server.as_bytes()).is_empty());
    node.wait_for("same side");
    assert_eq!(closed(&node, "not-neonsan"), 3.0);
    assert_eq!(good.read(0, 512), [0; 512]);
}

#[test]
fn a_version_that_is_not_spoken_is_refused_with_both_ranges() {
    let dir = directory();
    let (mut node, _good) = node_with_guest(dir.path(), "");
    let hello = ClientHello::new(Features::NONE, Features::NONE, "future").with_versions(7, 9);
    let answer = say(&node, hello.as_bytes());
    assert_eq!(answer.len(), HELLO_BYTES);
    let answer = ServerHello::parse(&answer).unwrap();
    assert_eq!(answer.status(), Status::VersionUnsupported);
    assert_eq!(answer.versions(), (1, 1));
    let line = node.wait_for("versions 7 to 9");
    assert!(line.contains("cause=\"version\""), "{line}");
}

#[test]
fn malformed_messages_close_the_connection_with_a_named_cause() {
    let dir = directory();
    let (node, mut good) = node_with_guest(dir.path(), "");
    let none = RequestFlags::NONE;
    let mut unknown = Header::request(Kind::Ping, none, 1, 0, 0);
    unknown.as_mut_bytes()[0] = 0x77;
    let cases: [(&str, Features, Header); 6] = [
        ("unknown-kind", Features::NONE, unknown),
        (
            "unexpected-kind",
            Features::NONE,
            Header::reply(Status::Ok, 1, 0),
        ),
        (
            "unexpected-kind",
            Features::NONE,
            Header::request(Kind::Open, none, 1, 0, 384),
        ),
        (
            "length-limit",
            Features::NONE,
            Header::request(Kind::Write, none, 1, 0, u32::MAX),
        ),
        (
            "length-limit",
            Features::NONE,
            Header::request(Kind::Write, none, 1, 0, (1 << 20) + 512),
        ),
        (
            "header-checksum",
            CHECKED,
            // Not sealed: see below.
            Header::request(Kind::Read, none, 1, 0, 512),
        ),
    ];
    for (generation, (cause, features, header)) in (1..).zip(cases) {
        let before = closed(&node, cause);
        let mut open = Open::new("p/v", 1);
        open.features = features;
        // The session is without a connection; its own host gets it back.
        open.generation = generation;
        let mut wire = Wire::open(node.data, &open).unwrap();
        wire.stream.write_all(header.as_bytes()).unwrap();
        wire.wait_closed();
        assert_eq!(closed(&node, cause), before + 1.0, "{cause}");
    }
    assert_eq!(good.read(0, 512), [0; 512]);
}

#[test]
fn an_open_that_makes_no_sense_is_refused() {
    let dir = directory();
    let (node, _good) = node_with_guest(dir.path(), "");
    let name = VolumeName::parse("p/v").unwrap();
    let mut good = OpenRequest::new(name, "h");
    good.session_id = [1; 16];
    good.host_id = [1; 16];
    good.generation = 1.into();
    good.epoch = 1.into();
    let change = |change: fn(&mut OpenRequest)| {
        let mut request = good;
        change(&mut request);
        request
    };
    for (request, status) in [
        (change(|r| r.session_id = [0; 16]), Status::BadOpen),
        (change(|r| r.host_id = [0; 16]), Status::BadOpen),
        (change(|r| r.generation = 0.into()), Status::BadOpen),
        (change(|r| r.connection = 3.into()), Status::BadOpen),
        (change(|r| r.mode = 9), Status::BadOpen),
        (change(|r| r.flags = 0x80), Status::BadOpen),
        (change(|r| r.volume_len = 0.into()), Status::BadName),
        (change(|r| r.volume_len = 300.into()), Status::BadName),
        (change(|r| r.volume[0] = b'/'), Status::BadName),
        (
            change(|r| r.volume[..3].copy_from_slice(b"../")),
            Status::BadName,
        ),
        (change(|r| r.volume[2] = 0xff), Status::BadName),
    ] {
        let mut wire = Wire::connect(node.data, Features::NONE);
        wire.send(
            Header::request(Kind::Open, RequestFlags::NONE, 0, 0, 384),
            request.as_bytes(),
        );
        let answer = wire.receive().unwrap();
        assert_eq!(answer.header.kind(), Kind::OpenReply);
        assert_eq!(answer.header.status(), status, "{request:?}");
        wire.wait_closed();
    }
}

#[test]
fn a_damaged_payload_is_told_and_not_written() {
    let dir = directory();
    let (node, _good) = node_with_guest(dir.path(), "");
    let mut open = Open::new("p/v", 1);
    open.features = CHECKED;
    let mut wire = Wire::open(node.data, &open).unwrap();
    let mut header = Header::request(Kind::Write, RequestFlags::NONE, 5, 0, 65536);
    header.set_payload_crc(crc32c::crc32c(&[1; 65536]));
    header.seal(crc32c::crc32c);
    wire.stream.write_all(header.as_bytes()).unwrap();
    let mut damaged = [1; 65536];
    damaged[40_000] = 2;
    wire.stream.write_all(&damaged).unwrap();
    let reply = wire.receive_reply().unwrap();
    assert_eq!(reply.header.status(), Status::ChecksumMismatch);
    assert_eq!(wire.read(0, 65536), [0; 65536]);
    assert_eq!(wire.write(0, &[1; 65536]), Status::Ok);
    assert_eq!(node.metric("neonsan_node_in_flight_bytes"), 0.0);
}

#[test]
fn more_in_flight_than_agreed_closes_the_connection() {
    let dir = directory();
    let (node, mut good) = node_with_guest(dir.path(), "[limits]\nmax_depth = 4\n");
    let mut wire = Wire::open(node.data, &Open::new("p/v", 1)).unwrap();
    assert_eq!(wire.reply.max_depth.get(), 4);
    // One more than agreed in one piece, so that none is answered between.
    let mut bytes = Vec::new();
    for cookie in 0..5 {
        let header = Header::request(Kind::Read, RequestFlags::NONE, cookie, 0, 512);
        bytes.extend_from_slice(header.as_bytes());
    }
    wire.stream.write_all(&bytes).unwrap();
    wire.wait_closed();
    assert_eq!(closed(&node, "too-much-in-flight"), 1.0);
    assert_eq!(good.read(0, 512), [0; 512]);
}

#[test]
fn silence_is_closed_in_every_phase() {
    let dir = directory();
    let more = "[timeouts]\nhandshake_ms = 300\nheartbeat_interval_ms = 100\n\
                heartbeat_timeout_ms = 400\n";
    let node = Node::start_with(dir.path(), more);
    create(&node, "p/v", MIB, 512, "mem");
    // Says nothing, and stops within the hello.
    for bytes in [&b""[..], &b"NEONSANc"[..]] {
        let began = Instant::now();
        assert!(say(&node, bytes).is_empty());
        assert!(began.elapsed() >= Duration::from_millis(250));
    }
    assert_eq!(closed(&node, "connect-timeout"), 2.0);
    // Does not answer pings.
    let mut wire = Wire::open(node.data, &Open::new("p/v", 1)).unwrap();
    let ping = wire.receive().unwrap();
    assert_eq!(ping.header.kind(), Kind::Ping);
    while wire.receive().is_some() {}
    assert_eq!(closed(&node, "heartbeat-timeout"), 1.0);
    // Answers them.
    let mut open = Open::new("p/v", 1);
    open.generation = 2;
    let mut wire = Wire::open(node.data, &open).unwrap();
    let until = Instant::now() + Duration::from_millis(1200);
    while Instant::now() < until {
        let ping = wire.receive().unwrap();
        assert_eq!(ping.header.kind(), Kind::Ping);
        let cookie = ping.header.cookie();
        wire.send(
            Header::request(Kind::Pong, RequestFlags::NONE, cookie, 0, 0),
            &[],
        );
    }
    assert_eq!(wire.read(0, 512), [0; 512]);
}

/// Memory of the node, in bytes.
fn memory(node: &Node) -> u64 {
    let status = format!("/proc/{}/status", node.pid().as_raw_nonzero());
    let status = std::fs::read_to_string(status).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    let kib = line.split_whitespace().nth(1).unwrap();
    kib.parse::<u64>().unwrap() << 10
}

#[test]
fn answers_that_nobody_takes_do_not_fill_the_memory() {
    let dir = directory();
    let more = "[timeouts]\nheartbeat_interval_ms = 1000\nheartbeat_timeout_ms = 4000\n";
    let (node, mut good) = node_with_guest(dir.path(), more);
    let none = RequestFlags::NONE;
    // Neither answer counts against a budget: a PONG, and that a request is refused.
    let ping = Header::request(Kind::Ping, none, 1, 0, 0);
    let misaligned = Header::request(Kind::Read, none, 1, 1, 512);
    for (round, header) in (1..).zip([ping, misaligned]) {
        let mut open = Open::new("p/v", 1);
        open.generation = round;
        let mut flood = Wire::open(node.data, &open).unwrap();
        let before = memory(&node);
        let patience = Some(Duration::from_millis(500));
        flood.stream.set_write_timeout(patience).unwrap();
        let bytes = header.as_bytes().repeat(1 << 15);
        let mut sent = 0;
        let error = loop {
            match flood.stream.write(&bytes) {
                Ok(len) => sent += len as u64,
                Err(error) => break error,
            }
            assert!(sent < 64 * MIB, "the node takes whatever is sent");
        };
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}");
        let more = memory(&node).saturating_sub(before);
        assert!(more < 8 * MIB, "{more} bytes of memory for {sent} bytes");
        assert_eq!(good.read(0, 512), [0; 512]);
        // It takes none of them, so it is given up in the end.
        let until = Instant::now() + PATIENCE;
        while closed(&node, "heartbeat-timeout") < round as f64 {
            assert_eq!(good.read(0, 512), [0; 512]);
            assert!(Instant::now() < until, "it is still there");
        }
    }
}

#[test]
fn answers_that_are_taken_late_all_come() {
    let dir = directory();
    let (node, _good) = node_with_guest(dir.path(), "[limits]\nmax_depth = 1\n");
    let mut wire = Wire::open(node.data, &Open::new("p/v", 1)).unwrap();
    // More than the node keeps, and than the socket holds until it is read.
    let count: u64 = 600_000;
    let mut stream = wire.stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        for first in (0..count).step_by(1000) {
            let mut bytes = Vec::new();
            for cookie in first..first + 1000 {
                let ping = Header::request(Kind::Ping, RequestFlags::NONE, cookie, 0, 0);
                bytes.extend_from_slice(ping.as_bytes());
            }
            stream.write_all(&bytes).unwrap();
        }
    });
    std::thread::sleep(Duration::from_secs(2));
    let mut pongs = std::io::BufReader::new(wire.stream.try_clone().unwrap());
    for cookie in 0..count {
        let mut pong = [0; 32];
        pongs.read_exact(&mut pong).unwrap();
        let expected = Header::request(Kind::Pong, RequestFlags::NONE, cookie, 0, 0);
        assert_eq!(pong, expected.as_bytes());
    }
    sender.join().unwrap();
    drop(pongs);
    assert_eq!(wire.read(0, 512), [0; 512]);
}

#[test]
fn a_greedy_session_waits_and_others_do_not() {
    let dir = directory();
    let more = "[limits]\nmax_session_in_flight_bytes = 1048576\nmax_in_flight_bytes = 4194304\n\
                [timeouts]\nheartbeat_interval_ms = 500\nheartbeat_timeout_ms = 1500\n";
    let (node, mut good) = node_with_guest(dir.path(), more);
    let mut greedy = Wire::open(node.data, &Open::new("p/v", 1)).unwrap();
    // 100 MiB of answers, of which it reads none.
    for _ in 0..100 {
        greedy.ask(Kind::Read, RequestFlags::NONE, 0, 1 << 20, &[]);
    }
    let until = Instant::now() + Duration::from_secs(1);
    let mut most: f64 = 0.0;
    while Instant::now() < until {
        assert_eq!(good.read(0, 65536), [0; 65536]);
        most = most.max(node.metric("neonsan_node_in_flight_bytes"));
    }
    assert!(most <= f64::from(2 << 20), "{most} bytes in flight");
    assert!(node.metric("neonsan_node_stalls_total") >= 1.0);
    // It takes none of its answers, so it is given up in the end.
    let until = Instant::now() + PATIENCE;
    while closed(&node, "heartbeat-timeout") == 0.0 {
        assert_eq!(good.read(0, 512), [0; 512]);
        assert!(Instant::now() < until, "it is still there");
    }
    // The cause is counted first, for who looks when the connection ends.
    while node.metric("neonsan_node_in_flight_bytes") > 0.0 {
        assert!(Instant::now() < until, "its bytes are still there");
    }
}

#[test]
fn greedy_sessions_together_do_not_keep_others_from_going_on() {
    let dir = directory();
    // As much as two of them have: nothing of the node's budget is left.
    let more = "[limits]\nmax_session_in_flight_bytes = 4194304\nmax_in_flight_bytes = 8388608\n\
                [timeouts]\nheartbeat_interval_ms = 4000\nheartbeat_timeout_ms = 12000\n";
    let (node, mut good) = node_with_guest(dir.path(), more);
    let mut greedy = Vec::new();
    for host in 1..=3 {
        let mut open = Open::new("p/v", host);
        open.mode = Mode::ReadOnly;
        let mut wire = Wire::open(node.data, &open).unwrap();
        for _ in 0..100 {
            wire.ask(Kind::Read, RequestFlags::NONE, 0, 1 << 20, &[]);
        }
        greedy.push(wire);
    }
    let in_flight = || node.metric("neonsan_node_in_flight_bytes");
    let until = Instant::now() + PATIENCE;
    while in_flight() < f64::from(8 << 20) {
        assert!(Instant::now() < until, "they are not greedy enough");
    }
    for _ in 0..100 {
        let began = Instant::now();
        assert_eq!(good.read(0, 65536), [0; 65536]);
        assert_eq!(good.write(0, &[0; 65536]), Status::Ok);
        let took = began.elapsed();
        assert!(took < Duration::from_secs(2), "it took {took:?}");
    }
    // One request of each session may go beyond.
    let most = in_flight();
    assert!(most <= f64::from(12 << 20), "{most} bytes in flight");
    drop(greedy);
    let until = Instant::now() + PATIENCE;
    while in_flight() > 0.0 {
        assert!(Instant::now() < until, "their bytes are still there");
    }
}

#[test]
fn a_slow_reader_is_given_up_and_a_slow_link_is_not() {
    let dir = directory();
    // The least rate is 1 MiB in 8 seconds.
    let more = "[timeouts]\nheartbeat_interval_ms = 500\nheartbeat_timeout_ms = 2000\n";
    let node = Node::start_with(dir.path(), more);
    create(&node, "p/v", MIB, 512, "mem");
    let causes = || {
        let causes = ["heartbeat-timeout", "request-timeout"];
        causes.map(|cause| closed(&node, cause) as u32)
    };
    // A host that has asked for 20 MiB, takes a little ten times a second, and says nothing.
    let take = |generation, chunk: usize, time: Duration| {
        let mut open = Open::new("p/v", 1);
        open.mode = Mode::ReadOnly;
        open.generation = generation;
        let mut slow = Wire::open(node.data, &open).unwrap();
        rustix::net::sockopt::set_socket_recv_buffer_size(&slow.stream, 65536).unwrap();
        for _ in 0..20 {
            slow.ask(Kind::Read, RequestFlags::NONE, 0, 1 << 20, &[]);
        }
        let began = Instant::now();
        let mut bytes = vec![0; chunk];
        while began.elapsed() < time && causes() == [0, 0] {
            slow.stream.read_exact(&mut bytes).unwrap();
            std::thread::sleep(Duration::from_millis(100));
        }
    };
    take(1, 64 << 10, Duration::from_secs(9));
    settle(&node, 0.0);
    assert_eq!(causes(), [0, 0]);
    // It never is silent, nor blocked for long.
    take(2, 10 << 10, PATIENCE);
    assert_eq!(causes(), [0, 1]);
}

#[test]
fn a_write_that_trickles_in_is_given_up() {
    let dir = directory();
    let more = "[timeouts]\nheartbeat_interval_ms = 100\nheartbeat_timeout_ms = 400\n";
    let (node, _good) = node_with_guest(dir.path(), more);
    let mut wire = Wire::open(node.data, &Open::new("p/v", 1)).unwrap();
    let header = Header::request(Kind::Write, RequestFlags::NONE, 1, 0, 65536);
    wire.send(header, &[]);
    let began = Instant::now();
    while closed(&node, "request-timeout") == 0.0 {
        assert!(began.elapsed() < PATIENCE, "it is still there");
        // Never silent for long, and never done.
        let _ = wire.stream.write(&[1]);
        std::thread::sleep(Duration::from_millis(50));
    }
    // Not before four heartbeat timeouts.
    assert!(began.elapsed() >= Duration::from_millis(1500));
    let until = Instant::now() + PATIENCE;
    while node.metric("neonsan_node_in_flight_bytes") > 0.0 {
        assert!(Instant::now() < until, "its bytes are still there");
    }
}

#[test]
fn a_released_volume_does_not_wait_for_answers_that_are_not_taken() {
    let dir = directory();
    let more = "[timeouts]\ndrain_ms = 1000\nheartbeat_timeout_ms = 60000\n";
    let (node, _good) = node_with_guest(dir.path(), more);
    let mut wire = Wire::open(node.data, &Open::new("p/v", 1)).unwrap();
    settle_sessions(&node, 2.0);
    for _ in 0..60 {
        wire.ask(Kind::Read, RequestFlags::NONE, 0, 1 << 20, &[]);
    }
    let release = Header::request(Kind::Close, RequestFlags::RELEASE, 0, 0, 0);
    wire.send(release, &[]);
    settle_sessions(&node, 1.0);
    // It takes none of the answers, and a host by force has to wait for it no longer than stated.
    let mut other = Open::new("p/v", 2);
    other.force = true;
    let began = Instant::now();
    while Wire::open(node.data, &other).is_err() {
        other.generation += 1;
        let waited = began.elapsed();
        assert!(waited < Duration::from_secs(5), "refused for {waited:?}");
    }
    assert_eq!(closed(&node, "released"), 1.0);
}

#[test]
fn a_stalled_connection_goes_on_when_there_is_room() {
    let dir = directory();
    let more = "[limits]\nmax_session_in_flight_bytes = 1048576\nmax_in_flight_bytes = 1048576\n";
    let (node, _good) = node_with_guest(dir.path(), more);
    let mut wire = Wire::open(node.data, &Open::new("p/v", 1)).unwrap();
    for round in 0..3u8 {
        for i in 0..8u64 {
            wire.ask(
                Kind::Write,
                RequestFlags::NONE,
                i * 131_072,
                131_072,
                &[round + i as u8; 131_072],
            );
        }
        let first = wire.next_cookie();
        for _ in 0..20 {
            wire.ask(Kind::Read, RequestFlags::NONE, 0, 1 << 20, &[]);
        }
        let mut reads = 0;
        for _ in 0..28 {
            let reply = wire.receive_reply().unwrap();
            assert_eq!(reply.header.status(), Status::Ok);
            if reply.header.cookie() >= first {
                assert_eq!(reply.payload.len(), 1 << 20);
                reads += 1;
            }
        }
        assert_eq!(reads, 20);
    }
    assert!(node.metric("neonsan_node_stalls_total") >= 1.0);
    assert_eq!(node.metric("neonsan_node_in_flight_bytes"), 0.0);
}

#[test]
fn connections_and_sessions_are_limited() {
    let dir = directory();
    let more = "[limits]\nmax_connections = 3\nmax_sessions = 2\nmax_session_connections = 2\n";
    let (node, _good) = node_with_guest(dir.path(), more);
    let open = Open::new("p/v", 1);
    let first = Wire::open(node.data, &open).unwrap();
    let mut reader = Open::new("p/v", 3);
    reader.mode = Mode::ReadOnly;
    let refused = Wire::open(node.data, &reader).err().unwrap();
    assert_eq!(refused.status, Status::TooManySessions);
    assert!(refused.text.contains("max_sessions"), "{}", refused.text);
    settle(&node, 2.0);
    let refused = Wire::join(node.data, &open, 2, 1).err().unwrap();
    assert_eq!(refused.status, Status::TooManyConnections);
    let limit = "max_session_connections";
    assert!(refused.text.contains(limit), "{}", refused.text);
    settle(&node, 2.0);
    let second = Wire::join(node.data, &open, 1, 1).unwrap();
    // The third connection of three is taken: a fourth is closed at once.
    assert!(say(&node, b"").is_empty());
    assert_eq!(
        node.metric("neonsan_node_connections_over_limit_total"),
        1.0
    );
    drop((first, second));
}

#[test]
fn a_storm_of_connections_leaves_nothing_behind() {
    let dir = directory();
    let (node, mut good) = node_with_guest(dir.path(), "[timeouts]\nsession_linger_ms = 200\n");
    for round in 0..100u64 {
        let mut open = Open::new("p/v", 1);
        // The generation before may not be noticed as gone yet: it is drained.
        open.generation = 1 + round;
        let mut wire = Wire::open(node.data, &open).unwrap();
        for i in 0..8 {
            wire.ask(Kind::Write, RequestFlags::NONE, i * 512, 512, &[1; 512]);
        }
        match round % 3 {
            0 => drop(wire),
            1 => wire.stream.shutdown(Shutdown::Write).unwrap(),
            _ => {
                // Ends in the middle of a payload.
                let half = Header::request(Kind::Write, RequestFlags::NONE, 99, 0, 65536);
                wire.send(half, &[1; 1000]);
            }
        }
    }
    let until = Instant::now() + PATIENCE;
    while node.metric("neonsan_node_connections ") > 1.0
        || node.metric("neonsan_node_sessions ") > 1.0
    {
        assert!(Instant::now() < until, "something is left");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(node.metric("neonsan_node_in_flight_bytes"), 0.0);
    assert_eq!(good.read(0, 512), [0; 512]);
}
