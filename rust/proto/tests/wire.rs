// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The wire structures: round trips, negotiation, names, and what must be refused.

use neonsan_proto::*;
use zerocopy::{FromBytes as _, IntoBytes as _};

/// The slowest right CRC-32C: a bit at a time.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ 0x82f6_3b78
            } else {
                crc >> 1
            };
        }
    }
    !crc
}

fn sane() -> Geometry {
    Geometry {
        size_bytes: (1u64 << 30).into(),
        logical_block_size: 512.into(),
        physical_block_size: 4096.into(),
        max_io_bytes: (1 << 20).into(),
        ..Geometry::default()
    }
}

#[test]
fn header_bytes_are_where_the_document_says() {
    let mut header = Header::request(
        Kind::Write,
        RequestFlags::FUA,
        0x1122_3344_5566_7788,
        0x99aa,
        0x200,
    );
    header.set_payload_crc(0xdead_beef);
    header.seal(crc32c);
    let bytes = header.as_bytes();
    assert_eq!(bytes[..4], [0x02, 0x01, 0, 0]);
    assert_eq!(bytes[4..8], 0x200u32.to_le_bytes());
    assert_eq!(bytes[8..16], 0x1122_3344_5566_7788u64.to_le_bytes());
    assert_eq!(bytes[16..24], 0x99aau64.to_le_bytes());
    assert_eq!(bytes[24..28], 0xdead_beefu32.to_le_bytes());
    assert_eq!(bytes[28..32], crc32c(&bytes[..28]).to_le_bytes());
}

#[test]
fn any_flipped_bit_of_a_header_is_noticed() {
    let mut header = Header::request(Kind::Read, RequestFlags::NONE, 7, 4096, 512);
    header.seal(crc32c);
    for bit in 0..HEADER_BYTES * 8 {
        let mut bytes = [0u8; HEADER_BYTES];
        bytes.copy_from_slice(header.as_bytes());
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(
            !Header::read_from_bytes(&bytes).unwrap().is_intact(crc32c),
            "bit {bit}"
        );
    }
}

#[test]
fn unknown_values_survive_decoding() {
    for n in 0..=u8::MAX {
        assert_eq!(Kind::from_wire(n).to_wire(), n);
        assert_eq!(Mode::from_wire(n).to_wire(), n);
    }
    for n in 0..=u16::MAX {
        assert_eq!(Status::from_wire(n).to_wire(), n);
        assert_eq!(EventKind::from_wire(n).to_wire(), n);
    }
    assert_eq!(Status::from_wire(0xfff0).name(), "unknown");
}

#[test]
fn only_messages_with_payload_have_a_payload_length() {
    for &kind in Kind::ALL {
        let header = Header::request(kind, RequestFlags::NONE, 1, 0, 4096);
        let expected = matches!(
            kind,
            Kind::Write | Kind::Open | Kind::Join | Kind::OpenReply | Kind::Reply | Kind::Event
        );
        assert_eq!(header.payload_len() == 4096, expected, "{kind:?}");
    }
}

#[test]
fn hellos_agree_on_the_common_features() {
    let offered = Features::HEADER_CRC.union(Features::PAYLOAD_CRC);
    let hello = ClientHello::new(offered, Features::NONE, "test");
    let hello = ClientHello::parse(hello.as_bytes()).unwrap();
    assert_eq!(hello.negotiate(Features::KNOWN), Ok((1, offered)));
    assert_eq!(
        hello.negotiate(Features::HEADER_CRC),
        Ok((1, Features::HEADER_CRC))
    );
    // A payload checksum without a header checksum could itself be damaged unnoticed.
    assert_eq!(
        hello.negotiate(Features::PAYLOAD_CRC),
        Ok((1, Features::NONE))
    );
    let strict = ClientHello::new(Features::NONE, Features::HEADER_CRC, "test");
    assert_eq!(
        strict.negotiate(Features::NONE),
        Err(Status::FeatureUnsupported)
    );
}

#[test]
fn versions_without_overlap_are_refused_and_named() {
    let hello = ClientHello::new(Features::NONE, Features::NONE, "test");
    for (min, max) in [(2, 3), (0, 0), (3, 1)] {
        let refused = hello.with_versions(min, max).negotiate(Features::NONE);
        assert_eq!(refused, Err(Status::VersionUnsupported), "{min}..={max}");
    }
    assert_eq!(
        hello.with_versions(0, 9).negotiate(Features::NONE),
        Ok((1, Features::NONE))
    );
    let answer = ServerHello::refuse(Status::VersionUnsupported, Features::NONE, "node 9");
    let answer = ServerHello::parse(answer.as_bytes()).unwrap();
    assert_eq!(answer.versions(), (MIN_VERSION, MAX_VERSION));
    assert_eq!(answer.product(), "node 9");
    assert_eq!(answer.version(), 0);
}

#[test]
fn strangers_are_told_apart() {
    let mut http = [b' '; HELLO_BYTES];
    http[..12].copy_from_slice(b"HTTP/1.1 400");
    assert_eq!(ServerHello::parse(&http), Err(HelloError::Http));
    assert_eq!(
        ClientHello::parse(&[0; HELLO_BYTES]),
        Err(HelloError::NotNeonsan)
    );
    let client = ClientHello::new(Features::NONE, Features::NONE, "test");
    assert_eq!(
        ServerHello::parse(client.as_bytes()),
        Err(HelloError::SameSide)
    );
    assert_eq!(ServerHello::parse(&[]), Err(HelloError::Short));
}

#[test]
fn names_follow_the_rules() {
    let name = VolumeName::parse("pool/vol-1.img@before_upgrade").unwrap();
    assert_eq!((name.pool(), name.volume()), ("pool", "vol-1.img"));
    assert_eq!(name.snapshot(), Some("before_upgrade"));
    let at = |byte, at| Err(NameError::BadCharacter { byte, at });
    for (text, expected) in [
        ("vol", Err(NameError::NoPool)),
        ("/vol", Err(NameError::EmptyPart)),
        ("pool/", Err(NameError::EmptyPart)),
        ("pool/vol@", Err(NameError::EmptyPart)),
        ("pool/a/b", at(b'/', 6)),
        ("pool@s/a", at(b'@', 4)),
        ("pool/a@b@c", at(b'@', 8)),
        ("pool/a b", at(b' ', 6)),
        ("pool/..", Err(NameError::BadStart)),
        ("../etc", Err(NameError::BadStart)),
        ("pool/-v", Err(NameError::BadStart)),
        ("pool/vol\u{e9}", at(0xc3, 8)),
    ] {
        assert_eq!(VolumeName::parse(text).map(|_| ()), expected, "{text}");
    }
    let long = format!("p/{}", "v".repeat(254));
    assert_eq!(VolumeName::parse(&long), Err(NameError::TooLong));
    assert!(VolumeName::parse(&long[..255]).is_ok());
}

#[test]
fn an_open_request_carries_its_name() {
    let long = format!("p/{}", "v".repeat(253));
    let request = OpenRequest::new(VolumeName::parse(&long).unwrap(), &"h".repeat(100));
    let request = OpenRequest::parse(request.as_bytes()).unwrap();
    assert_eq!(request.volume().unwrap().as_str(), long);
    assert_eq!(request.host_name(), "h".repeat(HOST_NAME_BYTES));
    let mut lying = request;
    lying.volume_len = 300.into();
    assert_eq!(lying.volume(), Err(NameError::TooLong));
    assert!(OpenRequest::parse(&request.as_bytes()[1..]).is_none());
}

#[test]
fn a_refusal_with_a_false_length_reads_without_text() {
    let mut bytes = Refusal {
        text_len: 5.into(),
        ..Refusal::default()
    }
    .as_bytes()
    .to_vec();
    bytes.extend_from_slice(b"hello");
    assert_eq!(Refusal::parse(&bytes).unwrap().1, "hello");
    assert_eq!(Refusal::parse(&bytes[..bytes.len() - 1]).unwrap().1, "");
    assert!(Refusal::parse(&bytes[..10]).is_none());
}

#[test]
fn geometry_is_checked_field_by_field() {
    assert_eq!(sane().check(), Ok(()));
    let mut atomic = sane();
    atomic.capabilities = Capabilities::ATOMIC.0.into();
    atomic.atomic_unit_min_bytes = 4096.into();
    atomic.atomic_unit_max_bytes = 65536.into();
    assert_eq!(atomic.check(), Ok(()));

    type Break = fn(&mut Geometry);
    let cases: &[(&str, Break)] = &[
        ("logical block size", |g| g.logical_block_size = 0.into()),
        ("logical block size", |g| g.logical_block_size = 768.into()),
        ("logical block size", |g| g.logical_block_size = 8192.into()),
        ("physical block size", |g| g.physical_block_size = 0.into()),
        ("physical block size", |g| {
            g.logical_block_size = 4096.into()
        }),
        ("size", |g| g.size_bytes = 0.into()),
        ("size", |g| g.size_bytes = 513.into()),
        ("size", |g| g.size_bytes = u64::MAX.into()),
        ("longest I/O size", |g| g.max_io_bytes = 512.into()),
        ("longest I/O size", |g| g.max_io_bytes = u32::MAX.into()),
        ("discard limit (without the ability)", |g| {
            g.max_discard_bytes = 512.into()
        }),
        ("write-zeroes limit (without the ability)", |g| {
            g.max_write_zeroes_bytes = 512.into()
        }),
        ("atomic write limit", |g| {
            g.atomic_unit_max_bytes = 4096.into()
        }),
    ];
    for (field, break_it) in cases {
        let mut geometry = sane();
        break_it(&mut geometry);
        if *field == "physical block size" {
            geometry.physical_block_size = 512.into();
            geometry.logical_block_size = 4096.into();
        }
        assert_eq!(geometry.check().map_err(|e| e.field), Err(*field));
    }
}
