// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Everything that is decoded without a machine: no bytes are lost, and checks hold.

use super::Trace;
use crate::conversation::{geometry, identity, node_address, open_reply, request};
use neonsan_proto::{
    ClientHello, Features, Geometry, Header, Kind, NodeAddress, OpenReply, OpenRequest, Refusal,
    ServerHello, VolumeName, HEADER_BYTES, HELLO_BYTES, MAX_REFUSAL_TEXT_BYTES,
    MAX_VOLUME_NAME_BYTES,
};
use neonsan_session::Cookie;
use zerocopy::{FromBytes as _, IntoBytes as _};

fn plain(text: &str) {
    assert!(!text.chars().any(char::is_control));
}

pub(super) fn run(bytes: &[u8]) -> Trace {
    let mut trace = Trace::default();
    if let Ok((header, _)) = Header::read_from_prefix(bytes) {
        assert_eq!(header.as_bytes(), &bytes[..HEADER_BYTES]);
        assert_eq!(header.kind().to_wire(), bytes[0]);
        assert!(header.payload_len() == 0 || header.payload_len() == header.length());
        let cookie = header.cookie();
        assert_eq!(Cookie::from_wire(cookie).to_wire(), cookie);
        trace.note(header.kind().name());
    }
    match ClientHello::parse(bytes) {
        Ok(hello) => {
            plain(hello.product());
            assert_eq!(hello.as_bytes(), &bytes[..HELLO_BYTES]);
            let agreed = hello.negotiate(Features::KNOWN);
            if let Ok((version, features)) = agreed {
                assert!((hello.versions().0..=hello.versions().1).contains(&version));
                assert!(features.contains(hello.required()));
                assert!(Features::KNOWN.contains(features));
            }
            trace.note(format!("client {}", agreed.is_ok()));
        }
        Err(error) => trace.note(format!("client {error:?}")),
    }
    match ServerHello::parse(bytes) {
        Ok(hello) => {
            plain(hello.product());
            trace.note(format!("server {}", hello.status().name()));
        }
        Err(error) => trace.note(format!("server {error:?}")),
    }
    if let Some(request) = OpenRequest::parse(bytes) {
        plain(request.host_name());
        trace.note(format!("open {}", request.volume().is_ok()));
    }
    if let Some((reply, rest)) = OpenReply::parse(bytes) {
        assert_eq!(reply.as_bytes().len() + rest.len(), bytes.len());
    }
    if let Some((refusal, text)) = Refusal::parse(bytes) {
        plain(text);
        assert!(text.is_empty() || text.len() == usize::from(refusal.text_len.get()));
        assert!(text.len() <= MAX_REFUSAL_TEXT_BYTES);
        trace.note(format!("refusal {}", text.is_empty()));
    }
    if let Ok((geometry, _)) = Geometry::read_from_prefix(bytes) {
        let checked = geometry.check();
        if checked.is_ok() {
            let block = geometry.logical_block_size.get();
            assert!(block.is_power_of_two() && block <= geometry.physical_block_size.get());
            assert_eq!(geometry.size_bytes.get() % u64::from(block), 0);
            assert!(geometry.max_io_bytes.get() >= Geometry::MIN_MAX_IO_BYTES);
        }
        trace.note(format!("geometry {:?}", checked.err().map(|e| e.field)));
    }
    if let Ok(text) = core::str::from_utf8(bytes) {
        match VolumeName::parse(text) {
            Ok(name) => {
                assert!(text.len() <= MAX_VOLUME_NAME_BYTES && text.is_ascii());
                let snapshot = name.snapshot().map_or(String::new(), |s| format!("@{s}"));
                assert_eq!(format!("{}/{}{snapshot}", name.pool(), name.volume()), text);
                trace.note(format!("name {}", name.snapshot().is_some()));
            }
            Err(error) => {
                let kind = format!("{error:?}");
                trace.note(kind.split(' ').next().unwrap_or_default());
            }
        }
    }
    trace
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let identity = identity(Features::KNOWN);
    let mut refusal = Refusal {
        text_len: 4.into(),
        ..Refusal::default()
    }
    .as_bytes()
    .to_vec();
    refusal.extend_from_slice(b"text");
    let hello = ClientHello::new(Features::KNOWN, Features::HEADER_CRC, "fuzz 1");
    let mut seeds = vec![
        hello.as_bytes().to_vec(),
        hello.with_versions(3, 2).as_bytes().to_vec(),
        ServerHello::accept(1, Features::KNOWN, "fuzz 1")
            .as_bytes()
            .to_vec(),
        OpenRequest::new(identity.volume, "host")
            .as_bytes()
            .to_vec(),
        open_reply(geometry(1 << 30, 512), 1).as_bytes().to_vec(),
        geometry(1 << 30, 4096).as_bytes().to_vec(),
        NodeAddress::as_bytes(&node_address()).to_vec(),
        refusal,
        b"HTTP/1.1 400 Bad Request\r\n".to_vec(),
    ];
    for kind in Kind::ALL {
        seeds.push(request(*kind, 1 << 32, 4096, 512).as_bytes().to_vec());
    }
    for name in [
        "pool/vol",
        "pool/vol@snap",
        "pool",
        "/vol",
        "a/b/c",
        "a/b@",
        "a/.b",
        "a/b@c@d",
    ] {
        seeds.push(name.as_bytes().to_vec());
    }
    seeds
}
