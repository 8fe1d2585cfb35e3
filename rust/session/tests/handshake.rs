// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Both halves of the handshake against each other, and each against what it must refuse.

mod common;

use common::*;
use neonsan_proto::{
    Capabilities, ClientHello, Features, Header, HelloError, Kind, Mode, NodeAddress, OpenReply,
    Refusal, ServerHello, Status, HEADER_BYTES, HELLO_BYTES, MAX_NODES, MAX_REFUSAL_TEXT_BYTES,
    OPEN_REPLY_BYTES,
};
use neonsan_session::client::{
    check_same_volume, check_size, ConnectKind, Handshake, Identity, Progress,
};
use neonsan_session::server::{self, IntroducedAs};
use neonsan_session::{CloseCause, Generation};
use zerocopy::IntoBytes as _;

/// Moves up to `piece` bytes at a time from one half to the other until nothing moves. The node
/// answers an OPEN with `answer`.
fn shake_hands(
    client: &mut Handshake,
    node: &mut server::Handshake,
    piece: &mut dyn FnMut() -> usize,
    answer: &dyn Fn(&server::Handshake, &mut Vec<u8>),
) -> Result<(), CloseCause> {
    let mut answered = Vec::new();
    loop {
        let mut moved = false;
        let out = client.poll_transmit();
        let want = node.want();
        let n = out.len().min(want.len()).min(piece());
        if n > 0 {
            want[..n].copy_from_slice(&out[..n]);
            node.received(n)?;
            client.transmitted(n);
            moved = true;
        }
        if node.introduced().is_some() && answered.is_empty() {
            answer(node, &mut answered);
        }
        let from_node = node.poll_transmit().to_vec();
        let out = if from_node.is_empty() {
            &answered
        } else {
            &from_node
        };
        let want = client.want();
        let n = out.len().min(want.len()).min(piece());
        if n > 0 {
            want[..n].copy_from_slice(&out[..n]);
            if from_node.is_empty() {
                answered.drain(..n);
            } else {
                node.transmitted(n)?;
            }
            moved = true;
            if client.received(n)? == Progress::Opened {
                return Ok(());
            }
        }
        if !moved {
            return Ok(());
        }
    }
}

fn accept(node: &server::Handshake, out: &mut Vec<u8>) {
    let generation = node
        .introduced()
        .expect("introduced")
        .request
        .generation
        .get();
    let address = NodeAddress {
        port: 9666.into(),
        ..NodeAddress::default()
    };
    node.encode_accept(open_reply(generation), &[address; 3], out);
}

#[test]
fn both_halves_agree_in_pieces_of_any_size() {
    for offered in FEATURE_SETS {
        for piece in 1..=520 {
            let mut client = client_handshake(offered);
            let mut node = server_handshake(Features::KNOWN);
            shake_hands(&mut client, &mut node, &mut || piece, &accept).expect("they agree");
            let opened = client.opened().expect("it is open");
            assert_eq!(opened.features, offered);
            assert_eq!(node.features(), offered);
            assert_eq!(client.nodes().count(), 3);
            assert!(client.nodes().all(|n| n.port.get() == 9666));
            assert!(client.want().is_empty() && client.poll_transmit().is_empty());
        }
    }
}

#[test]
fn both_halves_agree_in_pieces_of_random_sizes() {
    for seed in 0..500 {
        let mut random = Random(seed);
        let mut client = client_handshake(Features::KNOWN);
        let mut node = server_handshake(Features::KNOWN);
        let mut piece = || 1 + random.below(70);
        let done = shake_hands(&mut client, &mut node, &mut piece, &accept);
        assert!(
            done.is_ok() && client.opened().is_some(),
            "seed {seed}: {done:?}"
        );
    }
}

#[test]
fn the_node_sees_what_the_client_asks() {
    let join = ConnectKind::Join {
        generation: Generation(7),
        connection: 3,
        epoch: 9,
    };
    let identity = Identity {
        mode: Mode::Shared,
        force: true,
        ..identity(Features::KNOWN)
    };
    let mut client = Handshake::new(&identity, join, crc32c);
    let mut node = server_handshake(Features::KNOWN);
    shake_hands(&mut client, &mut node, &mut || 100, &accept).expect("they agree");
    let introduced = node.introduced().expect("introduced");
    assert_eq!(introduced.kind, IntroducedAs::Join);
    let request = introduced.request;
    assert_eq!((request.generation.get(), request.epoch.get()), (7, 9));
    assert_eq!(
        (request.connection.get(), request.mode()),
        (3, Mode::Shared)
    );
    assert_eq!(request.flags, 0, "a JOIN never forces");
    assert_eq!(request.volume().expect("valid").as_str(), "pool/vol");
    assert_eq!(
        (request.session_id, request.host_id),
        (identity.session_id, identity.host_id)
    );
    assert_eq!(request.host_name(), "worker-1");
}

#[test]
fn force_is_sent_only_until_the_session_was_usable() {
    for promote in [false, true] {
        let identity = Identity {
            force: true,
            ..identity(Features::NONE)
        };
        let open = ConnectKind::Open {
            generation: Generation(4),
            epoch: 4,
            promote,
        };
        let mut client = Handshake::new(&identity, open, crc32c);
        let mut node = server_handshake(Features::NONE);
        shake_hands(&mut client, &mut node, &mut || 999, &accept).expect("they agree");
        let flags = node.introduced().expect("introduced").request.flags;
        assert_eq!(flags == 1, !promote);
    }
}

#[test]
fn a_refusal_reaches_the_client_with_its_text() {
    for offered in FEATURE_SETS {
        let mut client = client_handshake(offered);
        let mut node = server_handshake(Features::KNOWN);
        let refuse = |node: &server::Handshake, out: &mut Vec<u8>| {
            let refusal = Refusal {
                holder: [7; 16],
                ..Refusal::default()
            };
            node.encode_refusal(Status::HeldByOther, refusal, "held by worker-2", out);
        };
        let result = shake_hands(&mut client, &mut node, &mut || 33, &refuse);
        assert_eq!(result, Err(CloseCause::Refused(Status::HeldByOther)));
        let refused = client.refused().expect("with words");
        assert_eq!(refused.text, "held by worker-2");
        assert_eq!(refused.refusal.holder, [7; 16]);
        assert_eq!(client.opened(), None);
    }
}

#[test]
fn a_text_that_is_too_long_is_cut_between_characters() {
    let mut node = server_handshake(Features::NONE);
    let mut client = client_handshake(Features::NONE);
    let text = format!("x{}", "\u{e9}".repeat(600));
    let refuse = |node: &server::Handshake, out: &mut Vec<u8>| {
        node.encode_refusal(Status::Ok, Refusal::default(), &text, out);
    };
    let result = shake_hands(&mut client, &mut node, &mut || 99, &refuse);
    // A refusal can never look like an agreement.
    assert_eq!(result, Err(CloseCause::Refused(Status::Internal)));
    let said = client.refused().expect("with words").text;
    assert_eq!(said.len(), MAX_REFUSAL_TEXT_BYTES - 1);
    assert!(text.starts_with(said));
}

#[test]
fn more_addresses_than_allowed_are_left_out() {
    let mut node = server_handshake(Features::NONE);
    let mut client = client_handshake(Features::NONE);
    let many = |node: &server::Handshake, out: &mut Vec<u8>| {
        node.encode_accept(open_reply(1), &[NodeAddress::default(); 40], out);
    };
    shake_hands(&mut client, &mut node, &mut || 999, &many).expect("they agree");
    assert_eq!(client.nodes().count(), MAX_NODES);
}

#[test]
fn the_node_refuses_versions_it_does_not_speak_and_names_its_own() {
    let hello = ClientHello::new(Features::NONE, Features::NONE, "old").with_versions(7, 9);
    let mut node = server_handshake(Features::NONE);
    node.want().copy_from_slice(hello.as_bytes());
    node.received(HELLO_BYTES).expect("an answer comes first");
    let answer = ServerHello::parse(node.poll_transmit()).expect("a hello");
    assert_eq!(answer.status(), Status::VersionUnsupported);
    assert_eq!(node.transmitted(10), Ok(()));
    let cause = CloseCause::Version { min: 7, max: 9 };
    assert_eq!(node.transmitted(HELLO_BYTES - 10), Err(cause));
    assert!(node.want().is_empty() && node.poll_transmit().is_empty());
}

#[test]
fn the_node_refuses_when_a_required_feature_is_missing() {
    let identity = Identity {
        required: Features::HEADER_CRC,
        ..identity(Features::HEADER_CRC)
    };
    let mut client = Handshake::new(&identity, OPEN, crc32c);
    let mut node = server_handshake(Features::NONE);
    let result = shake_hands(&mut client, &mut node, &mut || 64, &accept);
    assert_eq!(result, Err(CloseCause::Refused(Status::FeatureUnsupported)));
}

fn client_hears(bytes: &[u8], piece: usize) -> Result<Progress, CloseCause> {
    feed_client(&mut client_handshake(Features::KNOWN), bytes, piece)
}

#[test]
fn the_client_tells_strangers_apart_before_a_whole_hello() {
    let cases: [(&[u8], HelloError); 4] = [
        (b"HTTP/1.0", HelloError::Http),
        (b"NEONSANc", HelloError::SameSide),
        (b"220 smtp", HelloError::NotNeonsan),
        (b"\0\0\0\0\0\0\0\0", HelloError::NotNeonsan),
    ];
    for (bytes, error) in cases {
        for piece in [1, 3, 8] {
            assert_eq!(
                client_hears(bytes, piece),
                Err(CloseCause::NotNeonsan(error))
            );
        }
        assert_eq!(client_hears(&bytes[..7], 7), Ok(Progress::Pending));
    }
}

#[test]
fn the_node_tells_strangers_apart_before_a_whole_hello() {
    let cases: [(&[u8], HelloError); 4] = [
        (b"GET / HTTP/1.1\r\n", HelloError::Http),
        (b"POST /v1", HelloError::Http),
        (b"NEONSANs", HelloError::SameSide),
        (b"SSH-2.0-", HelloError::NotNeonsan),
    ];
    for (bytes, error) in cases {
        let mut node = server_handshake(Features::KNOWN);
        assert_eq!(
            feed_server(&mut node, bytes, 5),
            Err(CloseCause::NotNeonsan(error))
        );
        assert!(node.want().is_empty(), "nothing is received after the end");
    }
}

#[test]
fn the_client_refuses_what_it_did_not_offer() {
    let hello = |version, features| {
        let hello = ServerHello::accept(version, features, "node");
        client_hears(hello.as_bytes(), 64)
    };
    let version = CloseCause::Version { min: 1, max: 1 };
    assert_eq!(hello(0, Features::NONE), Err(version));
    assert_eq!(hello(2, Features::NONE), Err(version));
    let unsupported = Err(CloseCause::Refused(Status::FeatureUnsupported));
    assert_eq!(hello(1, Features(1 << 40)), unsupported);
    assert_eq!(hello(1, Features::NONE), Ok(Progress::Pending));
}

/// What a client makes of an answer to its OPEN.
fn client_hears_answer(features: Features, answer: &[u8]) -> Result<Progress, CloseCause> {
    let hello = ServerHello::accept(1, features, "node");
    feed_client(
        &mut client_handshake(features),
        &[hello.as_bytes(), answer].concat(),
        7,
    )
}

#[test]
fn the_client_refuses_other_messages_than_an_answer() {
    for features in FEATURE_SETS {
        let hears = |header| client_hears_answer(features, &message(header, &[], features));
        assert_eq!(
            hears(Header::new(Kind::Unknown(0x66))),
            Err(CloseCause::UnknownKind(0x66))
        );
        for kind in Kind::ALL.iter().filter(|k| **k != Kind::OpenReply) {
            let cause = CloseCause::UnexpectedKind(kind.to_wire());
            assert_eq!(hears(Header::new(*kind)), Err(cause));
        }
        for length in [0, 39, 143, 144 + 16 * 24 + 1, u32::MAX] {
            let cause = CloseCause::LengthLimit(length);
            assert_eq!(hears(Header::open_reply(Status::Ok, length)), Err(cause));
        }
        for length in [0, 39, 40 + 513, u32::MAX] {
            let cause = CloseCause::LengthLimit(length);
            assert_eq!(hears(Header::open_reply(Status::Busy, length)), Err(cause));
        }
    }
}

#[test]
fn a_damaged_answer_closes_the_connection() {
    let reply = open_reply(1);
    let all = Features::KNOWN;
    let header = Header::open_reply(Status::Ok, OPEN_REPLY_BYTES as u32);
    let answer = message(header, reply.as_bytes(), all);
    assert_eq!(client_hears_answer(all, &answer), Ok(Progress::Opened));
    for bit in 0..answer.len() * 8 {
        let mut damaged = answer.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let cause = if bit / 8 < HEADER_BYTES {
            CloseCause::HeaderChecksum
        } else {
            CloseCause::PayloadChecksum
        };
        assert_eq!(client_hears_answer(all, &damaged), Err(cause), "bit {bit}");
    }
}

#[test]
fn an_answer_that_makes_no_sense_closes_the_connection() {
    type Break = fn(&mut OpenReply);
    let cases: &[(&str, Break)] = &[
        ("size", |r| r.geometry.size_bytes = 0.into()),
        ("logical block size", |r| {
            r.geometry.logical_block_size = 3.into()
        }),
        ("number of connections", |r| r.max_connections = 0.into()),
        ("number of requests in flight", |r| r.max_depth = 0.into()),
        ("number of requests in flight", |r| {
            r.max_depth = 4097.into()
        }),
        ("number of bytes in flight", |r| {
            r.max_inflight_bytes = 65535.into()
        }),
        ("generation", |r| r.generation = 2.into()),
    ];
    for (field, break_it) in cases {
        let mut reply = open_reply(1);
        break_it(&mut reply);
        let header = Header::open_reply(Status::Ok, OPEN_REPLY_BYTES as u32);
        let answer = message(header, reply.as_bytes(), Features::NONE);
        let result = client_hears_answer(Features::NONE, &answer);
        assert_eq!(result, Err(CloseCause::BadGeometry(field)));
    }
    let mut reply = open_reply(1);
    reply.node_count = 2.into();
    let header = Header::open_reply(Status::Ok, OPEN_REPLY_BYTES as u32);
    let answer = message(header, reply.as_bytes(), Features::NONE);
    let cause = CloseCause::LengthLimit(OPEN_REPLY_BYTES as u32);
    assert_eq!(client_hears_answer(Features::NONE, &answer), Err(cause));
}

#[test]
fn the_node_refuses_other_messages_than_an_introduction() {
    for features in FEATURE_SETS {
        let hears = |header: Header| {
            let hello = ClientHello::new(features, Features::NONE, "client");
            let bytes = [hello.as_bytes(), &message(header, &[], features)].concat();
            feed_server(&mut server_handshake(Features::KNOWN), &bytes, 9)
        };
        for kind in Kind::ALL {
            if matches!(kind, Kind::Open | Kind::Join) {
                let cause = CloseCause::LengthLimit(0);
                assert_eq!(hears(Header::new(*kind)), Err(cause));
            } else {
                let cause = CloseCause::UnexpectedKind(kind.to_wire());
                assert_eq!(hears(Header::new(*kind)), Err(cause));
            }
        }
        assert_eq!(
            hears(Header::new(Kind::Unknown(9))),
            Err(CloseCause::UnknownKind(9))
        );
    }
}

#[test]
fn a_reopened_volume_must_be_the_same() {
    let before = open_reply(1);
    assert_eq!(check_same_volume(&before, &open_reply(2)), Ok(()));
    type Change = fn(&mut OpenReply);
    let others: &[(&str, Change)] = &[
        ("volume-changed", |r| r.volume_id = [9; 16]),
        ("volume-changed", |r| {
            r.geometry.logical_block_size = 4096.into()
        }),
        ("bad-geometry", |r| r.geometry.max_io_bytes = 512.into()),
        ("bad-geometry", |r| r.max_depth = 7.into()),
        ("bad-geometry", |r| r.max_inflight_bytes = 65536.into()),
        ("bad-geometry", |r| r.geometry.capabilities = 0x2.into()),
        ("bad-geometry", |r| {
            r.geometry.max_discard_bytes = 4096.into()
        }),
        ("bad-geometry", |r| {
            r.geometry.max_write_zeroes_bytes = 4096.into()
        }),
        ("bad-geometry", |r| {
            r.geometry.atomic_unit_max_bytes = r.geometry.atomic_unit_min_bytes
        }),
        ("bad-geometry", |r| {
            r.geometry.atomic_boundary_bytes = r.geometry.atomic_unit_max_bytes.get().into()
        }),
        ("bad-geometry", |r| {
            let read_only = Capabilities::READ_ONLY.0;
            r.geometry.capabilities = (r.geometry.capabilities.get() | read_only).into()
        }),
    ];
    for (name, change) in others {
        let mut now = open_reply(2);
        change(&mut now);
        let cause = check_same_volume(&before, &now).expect_err("it changed");
        assert_eq!(cause.name(), *name);
    }
    // A write cache that nobody flushes loses data without a word.
    let mut cacheless = before;
    cacheless.geometry.capabilities = (before.geometry.capabilities.get() & !0x2).into();
    assert!(check_same_volume(&cacheless, &before).is_err());
    assert_eq!(check_same_volume(&before, &cacheless), Ok(()));
}

#[test]
fn a_device_grows_with_its_volume_and_shrinks_only_by_a_persons_word() {
    const MIB: u64 = 1 << 20;
    for (device, volume, accepted, goes_on) in [
        (64, 64, None, true),
        (64, 65, None, true),
        (64, 63, None, false),
        (64, 63, Some(63), true),
        // It was shrunk once more since the person has looked, or has grown a little.
        (64, 62, Some(63), false),
        (64, 63, Some(62), false),
        // What was accepted is no matter any more.
        (64, 128, Some(63), true),
    ] {
        let checked = check_size(device * MIB, volume * MIB, accepted.map(|size| size * MIB));
        let expected = match goes_on {
            true => Ok(()),
            false => Err(CloseCause::VolumeShrunk(volume * MIB)),
        };
        assert_eq!(checked, expected, "{device} {volume} {accepted:?}");
    }
    let cause = CloseCause::VolumeShrunk(512);
    assert_eq!(cause.name(), "volume-shrunk");
    assert!(!cause.is_violation());
    assert!(cause.to_string().contains("only 512 bytes now"), "{cause}");
}
