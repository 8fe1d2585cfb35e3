// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The identity of this host, which holds the volumes it attaches exclusively.

use crate::error::{Error, Kind, Result};
use sha2::{Digest, Sha256};
use std::path::Path;

/// Sixteen bytes that name this host, the same across reboots.
pub type HostId = [u8; 16];

const MACHINE_ID: &str = "/etc/machine-id";

/// Reads a UUID, with or without dashes.
pub fn parse_host_id(text: &str) -> Result<HostId> {
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    let mut id = [0; 16];
    let fits = digits.len() == 32 && digits.is_ascii();
    for (index, byte) in id.iter_mut().enumerate() {
        let pair = digits.get(2 * index..2 * index + 2).filter(|_| fits);
        match pair.map(|pair| u8::from_str_radix(pair, 16)) {
            Some(Ok(value)) => *byte = value,
            _ => {
                let message = format!("'{text}' is no host id");
                return Err(Error::new(Kind::Usage, message)
                    .with_hint("a host id is a UUID: 32 hexadecimal digits, as uuidgen prints"));
            }
        }
    }
    if id == [0; 16] {
        let message = "a host id of zeroes names no host";
        return Err(Error::new(Kind::Usage, message).with_hint("make one with uuidgen"));
    }
    Ok(id)
}

/// Shows an identity as a UUID.
pub fn show_uuid(id: &[u8]) -> String {
    let mut text = String::with_capacity(36);
    for (index, byte) in id.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) && id.len() == 16 {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// The identity made from the machine's own.
///
/// The machine id itself must not leave the machine (machine-id(5)), so it is hashed together with
/// a word of ours.
pub fn default_host_id() -> Result<HostId> {
    host_id_of(Path::new(MACHINE_ID))
}

fn host_id_of(path: &Path) -> Result<HostId> {
    let machine = std::fs::read_to_string(path).unwrap_or_default();
    let machine = machine.trim();
    if machine.len() != 32 || machine.bytes().all(|b| b == b'0') {
        let message = format!(
            "{} names no machine, so this host has no identity",
            path.display()
        );
        return Err(Error::new(Kind::Config, message).with_hint(
            "run systemd-machine-id-setup, or set host-id in /etc/neonsan/neonsan.toml, or pass --host-id",
        ));
    }
    let hash = Sha256::digest(format!("neonsan host {machine}").as_bytes());
    let mut id = [0; 16];
    for (to, from) in id.iter_mut().zip(hash) {
        *to = from;
    }
    Ok(id)
}

/// The system's name; at most 63 bytes, as the wire has room for.
pub fn default_host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    cut_host_name(name.trim())
}

/// A name cut to what the wire has room for.
pub fn cut_host_name(name: &str) -> String {
    let mut end = name.len().min(63);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name[..end].to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_read_and_shown() {
        let text = "00112233-4455-6677-8899-aabbccddeeff";
        let id = parse_host_id(text).unwrap();
        assert_eq!(show_uuid(&id), text);
        assert_eq!(parse_host_id(&text.replace('-', "")).unwrap(), id);
        for bad in [
            "",
            "1",
            "xx112233-4455-6677-8899-aabbccddeeff",
            &"é".repeat(16),
        ] {
            assert!(parse_host_id(bad).is_err(), "{bad}");
        }
        assert!(parse_host_id(&"0".repeat(32)).is_err());
    }

    #[test]
    fn the_machine_id_is_hashed_and_stable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("machine-id");
        std::fs::write(&path, "0123456789abcdef0123456789abcdef\n").unwrap();
        let id = host_id_of(&path).unwrap();
        assert_eq!(id, host_id_of(&path).unwrap());
        assert!(!show_uuid(&id).starts_with("01234567"));
        std::fs::write(&path, "uninitialized\n").unwrap();
        let error = host_id_of(&path).unwrap_err().to_string();
        assert!(error.contains("--host-id"), "{error}");
    }

    #[test]
    fn long_host_names_are_cut_between_characters() {
        assert_eq!(cut_host_name(&"é".repeat(40)).len(), 62);
    }
}
