// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Holds the tables of `Documentation/protocol.rst` against the code.

use neonsan_proto::*;
use std::collections::BTreeMap;
use zerocopy::FromBytes as _;

fn document() -> String {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../Documentation/protocol.rst"
    );
    std::fs::read_to_string(path).expect("the protocol document")
}

/// The rows of the simple table behind `.. MARKER`, each with its cells. Lines that continue the
/// last cell of a row are left out.
fn table(marker: &str) -> Vec<Vec<String>> {
    let document = document();
    let mut lines = document
        .lines()
        .skip_while(|l| *l != format!(".. {marker}"));
    assert!(lines.next().is_some(), "no table {marker:?}");
    let mut lines = lines.skip_while(|l| !l.starts_with("==")).skip(1);
    lines.next().expect("the column titles");
    let rule = lines.next().expect("the rule");
    let mut starts = vec![0];
    starts.extend(rule.match_indices(" =").map(|(at, _)| at + 1));
    let mut rows = Vec::new();
    for line in lines.take_while(|l| !l.starts_with("==")) {
        if line.starts_with(' ') {
            continue;
        }
        // Columns are counted in characters; the first ones hold ASCII only.
        let chars: Vec<char> = line.chars().collect();
        let cell = |i: usize| {
            let end = starts.get(i + 1).copied().unwrap_or(chars.len());
            let text: String = chars[starts[i].min(chars.len())..end.min(chars.len())]
                .iter()
                .collect();
            text.trim().trim_matches('`').to_owned()
        };
        rows.push((0..starts.len()).map(cell).collect());
    }
    rows
}

fn number(text: &str) -> u64 {
    match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    }
    .unwrap_or_else(|_| panic!("{text:?} is no number"))
}

/// Offset, size and name of each row of a structure's table, which must have no gaps.
fn layout(name: &str, size: usize) -> Vec<(usize, usize, String)> {
    let rows: Vec<_> = table(&format!("layout {name} {size}"))
        .into_iter()
        .map(|row| {
            (
                number(&row[0]) as usize,
                number(&row[1]) as usize,
                row[2].clone(),
            )
        })
        .collect();
    let mut at = 0;
    for (offset, len, field) in &rows {
        assert_eq!(*offset, at, "{name}.{field}");
        at += len;
    }
    assert_eq!(at, size, "{name}");
    rows
}

fn size_of_field<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

/// Offset, size and name of every public field.
macro_rules! fields {
    ($type:ident { $($field:ident),* $(,)? }) => {{
        // Fails to compile when a field is missing here.
        #[allow(unused)]
        fn complete(value: $type) {
            let $type { $($field),* } = value;
        }
        vec![$((
            core::mem::offset_of!($type, $field),
            size_of_field(|value: &$type| &value.$field),
            stringify!($field).to_owned(),
        )),*]
    }};
}

#[test]
fn tables_of_public_structures_match() {
    assert_eq!(
        layout("OpenRequest", OPEN_REQUEST_BYTES),
        fields!(OpenRequest {
            session_id,
            host_id,
            generation,
            epoch,
            connection,
            mode,
            flags,
            volume_len,
            reserved,
            host_boot,
            host_name,
            volume,
        })
    );
    assert_eq!(
        layout("OpenReply", OPEN_REPLY_BYTES),
        fields!(OpenReply {
            geometry,
            volume_id,
            boot_id,
            generation,
            heartbeat_interval_ms,
            heartbeat_timeout_ms,
            max_connections,
            max_depth,
            node_count,
            reserved,
            max_inflight_bytes,
            reserved2,
        })
    );
    assert_eq!(
        layout("NodeAddress", NODE_ADDRESS_BYTES),
        fields!(NodeAddress {
            ip,
            port,
            reserved,
            priority
        })
    );
    assert_eq!(
        layout("Refusal", REFUSAL_BYTES),
        fields!(Refusal {
            holder,
            held_since_s,
            generation,
            retry_after_ms,
            text_len,
            reserved
        })
    );
    assert_eq!(
        layout("Geometry", GEOMETRY_BYTES),
        fields!(Geometry {
            size_bytes,
            logical_block_size,
            physical_block_size,
            io_min_bytes,
            io_opt_bytes,
            max_io_bytes,
            discard_granularity,
            max_discard_bytes,
            max_write_zeroes_bytes,
            atomic_unit_min_bytes,
            atomic_unit_max_bytes,
            atomic_boundary_bytes,
            capabilities,
            reserved,
        })
    );
}

/// Checks the table of a structure with private fields: byte `i` of `bytes` was decoded, and
/// `seen` holds what the accessors returned, as the bytes of the wire.
fn check_accessors(name: &str, bytes: &[u8], seen: &[(&str, Vec<u8>)]) {
    let mut seen: BTreeMap<&str, &Vec<u8>> = seen.iter().map(|(n, v)| (*n, v)).collect();
    for (offset, len, field) in layout(name, bytes.len()) {
        // These have no accessor; the absence of gaps fixes their place.
        if ["magic", "reserved", "header_crc"].contains(&field.as_str()) {
            continue;
        }
        let value = seen
            .remove(field.as_str())
            .unwrap_or_else(|| panic!("{name}.{field}"));
        assert_eq!(
            value.as_slice(),
            &bytes[offset..offset + len],
            "{name}.{field}"
        );
    }
    assert!(seen.is_empty(), "{name} has {seen:?} too");
}

#[test]
fn tables_of_the_header_and_the_hellos_match() {
    // Printable bytes, so that they are a product name too; all different.
    let bytes: Vec<u8> = (0x21..0x21 + HELLO_BYTES as u8).collect();
    let le16 = |v: u16| v.to_le_bytes().to_vec();
    let le64 = |v: u64| v.to_le_bytes().to_vec();

    let header = Header::read_from_bytes(&bytes[..HEADER_BYTES]).expect("enough bytes");
    check_accessors(
        "Header",
        &bytes[..HEADER_BYTES],
        &[
            ("kind", vec![header.kind().to_wire()]),
            ("flags", vec![header.flags().0]),
            ("status", le16(header.status().to_wire())),
            ("length", header.length().to_le_bytes().to_vec()),
            ("cookie", le64(header.cookie())),
            ("offset", le64(header.offset())),
            ("payload_crc", header.payload_crc().to_le_bytes().to_vec()),
        ],
    );
    assert_eq!(header.event_kind().to_wire(), header.status().to_wire());

    let hello = ClientHello::read_from_bytes(&bytes).expect("enough bytes");
    check_accessors(
        "ClientHello",
        &bytes,
        &[
            ("min_version", le16(hello.versions().0)),
            ("max_version", le16(hello.versions().1)),
            ("offered_features", le64(hello.offered().0)),
            ("required_features", le64(hello.required().0)),
            ("product", hello.product().as_bytes().to_vec()),
        ],
    );

    let hello = ServerHello::read_from_bytes(&bytes).expect("enough bytes");
    check_accessors(
        "ServerHello",
        &bytes,
        &[
            ("version", le16(hello.version())),
            ("min_version", le16(hello.versions().0)),
            ("max_version", le16(hello.versions().1)),
            ("status", le16(hello.status().to_wire())),
            ("features", le64(hello.features().0)),
            ("product", hello.product().as_bytes().to_vec()),
        ],
    );
}

#[test]
fn the_magics_match() {
    let text = document();
    for magic in ["NEONSANc", "NEONSANs"] {
        assert!(text.contains(&format!("the bytes ``{magic}``")));
        let magic: &[u8; MAGIC_BYTES] = magic.as_bytes().try_into().expect("8 bytes");
        let known = [
            ClientHello::check_magic(magic),
            ServerHello::check_magic(magic),
        ];
        assert_eq!(known.iter().filter(|r| r.is_ok()).count(), 1);
    }
}

/// Value and name of each row of an enumeration's table.
fn numbers(marker: &str) -> Vec<(u64, String)> {
    table(marker)
        .into_iter()
        .map(|row| (number(&row[0]), row[1].clone()))
        .collect()
}

#[test]
fn numbers_of_kinds_statuses_events_and_modes_match() {
    macro_rules! check {
        ($type:ident) => {
            let code: Vec<(u64, String)> = $type::ALL
                .iter()
                .map(|v| (u64::from(v.to_wire()), v.name().to_owned()))
                .collect();
            assert_eq!(numbers(concat!("enum ", stringify!($type))), code);
        };
    }
    check!(Kind);
    check!(Status);
    check!(EventKind);
    check!(Mode);
}

#[test]
fn bits_of_features_flags_and_capabilities_match() {
    macro_rules! check {
        ($type:ident) => {
            let code: Vec<(String, u64)> = $type::NAMES
                .iter()
                .map(|(name, bit)| ((*name).to_owned(), u64::from(*bit)))
                .collect();
            let text: Vec<(String, u64)> = table(concat!("bits ", stringify!($type)))
                .into_iter()
                .map(|row| (row[0].clone(), number(&row[1])))
                .collect();
            assert_eq!(text, code);
        };
    }
    check!(Features);
    check!(RequestFlags);
    check!(OpenFlags);
    check!(Capabilities);
}

#[test]
fn constants_match() {
    let code: Vec<(String, u64)> = [
        ("MIN_VERSION", u64::from(MIN_VERSION)),
        ("MAX_VERSION", u64::from(MAX_VERSION)),
        ("DEFAULT_PORT", u64::from(DEFAULT_PORT)),
        ("MAX_NODES", MAX_NODES as u64),
        ("MAX_REFUSAL_TEXT_BYTES", MAX_REFUSAL_TEXT_BYTES as u64),
        ("MAX_PAYLOAD_BYTES", u64::from(MAX_PAYLOAD_BYTES)),
        ("MIN_MAX_IO_BYTES", u64::from(Geometry::MIN_MAX_IO_BYTES)),
        ("MAX_CONNECTIONS", u64::from(MAX_CONNECTIONS)),
        ("MAX_DEPTH", u64::from(MAX_DEPTH)),
        ("MAX_VOLUME_NAME_BYTES", MAX_VOLUME_NAME_BYTES as u64),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec();
    let text: Vec<(String, u64)> = table("constants")
        .into_iter()
        .map(|row| (row[0].clone(), number(&row[1])))
        .collect();
    assert_eq!(text, code);
}

#[test]
fn kinds_with_payload_match_the_sentence() {
    let text = document();
    let sentence = "follows the headers of WRITE, OPEN, JOIN, OPEN_REPLY, REPLY and EVENT,";
    assert!(text.contains(sentence));
    let with: Vec<Kind> = Kind::ALL
        .iter()
        .copied()
        .filter(|k| Header::request(*k, RequestFlags::NONE, 0, 0, 7).payload_len() == 7)
        .collect();
    let expected = [
        Kind::Write,
        Kind::Open,
        Kind::Join,
        Kind::OpenReply,
        Kind::Reply,
        Kind::Event,
    ];
    assert_eq!(with, expected);
}
