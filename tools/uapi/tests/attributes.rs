// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The module's reader of attributes, run here on every damage of a request: it never panics, never
//! reads past the bytes it was given, and ends.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../../../rust/kernel/genetlink/attr.rs"]
mod attr;

use attr::Attributes;

/// An attribute as it stands in a message.
fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (4 + payload.len() as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn request() -> Vec<u8> {
    const NESTED: u16 = 0x8000;
    let node = [
        attribute(1, &[192, 0, 2, 1]),
        attribute(3, &9666_u16.to_ne_bytes()),
    ]
    .concat();
    [
        attribute(3, b"pool/volume\0"),
        attribute(4 | NESTED, &node),
        attribute(4 | NESTED, &attribute(2, &[1; 16])),
        attribute(5, &2_u32.to_ne_bytes()),
        attribute(13, &[]),
    ]
    .concat()
}

/// Reads all that can be read, as deep as it goes, and counts it.
fn read(attributes: Attributes<'_>, depth: usize) -> usize {
    let mut count = 0;
    for kind in 0..32 {
        for attribute in attributes.all(kind) {
            let _ = (attribute.u16(), attribute.u32(), attribute.str());
            let _: Option<[u8; 16]> = attribute.array();
            count += 1;
            if depth > 0 {
                count += read(attribute.nested(), depth - 1);
            }
        }
        let _ = (attributes.get(kind).is_some(), attributes.has(kind));
    }
    count
}

#[test]
fn a_request_is_read() {
    let bytes = request();
    let attributes = Attributes::new(&bytes);
    assert_eq!(attributes.get(3).unwrap().str(), Some("pool/volume"));
    assert_eq!(attributes.get(5).unwrap().u32(), Some(2));
    assert!(attributes.has(13) && !attributes.has(14));
    let nodes: Vec<_> = attributes.all(4).map(|node| node.nested()).collect();
    assert_eq!(nodes.len(), 2);
    assert_eq!(nodes[0].get(1).unwrap().array(), Some([192, 0, 2, 1]));
    assert_eq!(nodes[0].get(3).unwrap().u16(), Some(9666));
    assert_eq!(nodes[1].get(2).unwrap().array(), Some([1; 16]));
    assert_eq!(nodes[1].get(2).unwrap().array::<4>(), None);
}

#[test]
fn texts_end_at_a_zero_and_must_be_utf8() {
    for (payload, text) in [
        (&b"text"[..], Some("text")),
        (b"text\0more", Some("text")),
        (b"\0", Some("")),
        (b"", Some("")),
        (b"\xff", None),
    ] {
        let bytes = attribute(1, payload);
        assert_eq!(Attributes::new(&bytes).get(1).unwrap().str(), text);
    }
}

#[test]
fn every_damage_is_survived() {
    let whole = request();
    for end in 0..whole.len() {
        read(Attributes::new(&whole[..end]), 3);
    }
    for at in 0..whole.len() {
        for value in 0..=255 {
            let mut bytes = whole.clone();
            bytes[at] = value;
            assert!(read(Attributes::new(&bytes), 3) < 200);
        }
    }
    // Bytes with no sense at all, from a small generator with a fixed seed.
    let mut state = 42_u64;
    for _ in 0..2000 {
        let bytes: Vec<u8> = (0..64)
            .map(|_| {
                state = state
                    .wrapping_mul(6364136223846793005)
                    .wrapping_add(1442695040888963407);
                (state >> 60) as u8
            })
            .collect();
        read(Attributes::new(&bytes), 3);
    }
}
