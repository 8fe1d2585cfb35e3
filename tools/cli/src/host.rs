// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The identity of this host, which holds the volumes it attaches exclusively.
//!
//! It is made of the machine id and of the UUID that the firmware gives, so that clones of a disk
//! image are hosts of their own. Documentation/protocol.rst says how, for other clients.

use crate::error::{Error, Kind, Result};
use crate::root::Root;
use sha2::{Digest, Sha256};
use std::path::Path;

/// Sixteen bytes that name this host, the same across reboots.
pub type HostId = [u8; 16];

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

/// Who this host is, and which life of its kernel asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Host {
    /// The identity, the same across reboots.
    pub id: HostId,
    /// The boot; zero: better not said.
    pub boot: u64,
}

/// Where a host's identity is read.
struct Sources<'a> {
    machine_id: &'a str,
    product_uuid: &'a str,
    boot_id: &'a str,
}

const SOURCES: Sources<'static> = Sources {
    machine_id: "/etc/machine-id",
    product_uuid: "/sys/class/dmi/id/product_uuid",
    boot_id: "/proc/sys/kernel/random/boot_id",
};

/// UUIDs that many machines share, since their makers did not set one, as 32 digits. Those whose
/// bytes are all the same, or all but the first four 0xff, are known by that.
const SHARED_UUIDS: [&str; 10] = [
    "03000200040005000006000700080009",
    "00020003000400050006000700080009",
    "03d40274043505dc8506010700080009",
    "07090201010303010807060504030201",
    "000102030405060708090a0b0c0d0e0f",
    "deadbeefdeadbeefdeadbeefdeadbeef",
    "123456781234567890abcddeefaabbcc",
    "dc698397fa544cf282c8b1b5307a6a7f",
    "8e275844178f44a8aceba7d7e5178c63",
    "890e2d14cacd45d1ae66bc80e8bfeb0f",
];

/// What the firmware says.
#[derive(Debug, PartialEq, Eq)]
enum Product {
    /// A UUID of this machine's own, in lower case with dashes.
    Uuid(String),
    /// None, or one that many machines share.
    Nothing,
    /// Only root may read it.
    Hidden,
}

impl Host {
    /// This host, with the identity that the operator has set if there is one.
    pub fn this(set: Option<&str>) -> Result<Self> {
        Self::from_sources(set, &SOURCES)
    }

    /// The same of another root.
    pub fn of(set: Option<&str>, root: &Root) -> Result<Self> {
        let path = |file: &str| root.path(file).to_string_lossy().into_owned();
        Self::from_sources(
            set,
            &Sources {
                machine_id: &path(SOURCES.machine_id),
                product_uuid: &path(SOURCES.product_uuid),
                boot_id: &path(SOURCES.boot_id),
            },
        )
    }

    fn from_sources(set: Option<&str>, sources: &Sources<'_>) -> Result<Self> {
        let boot = boot_of(Path::new(sources.boot_id));
        if let Some(id) = set {
            let id = parse_host_id(id)?;
            return Ok(Host { id, boot });
        }
        let machine = machine_id(Path::new(sources.machine_id))?;
        Ok(match product(Path::new(sources.product_uuid)) {
            Product::Uuid(uuid) => Host {
                id: hashed(&format!("neonsan host {machine} {uuid}")),
                boot,
            },
            Product::Nothing => Host {
                id: hashed(&format!("neonsan host {machine}")),
                boot,
            },
            // A clone of this machine may have the same identity then, and must not pass for
            // another boot of it.
            Product::Hidden => Host {
                id: hashed(&format!("neonsan host {machine}")),
                boot: 0,
            },
        })
    }
}

/// The machine id itself must not leave the machine (machine-id(5)), so it is hashed together with
/// a word of ours.
fn hashed<const N: usize>(text: &str) -> [u8; N] {
    let hash = Sha256::digest(text.as_bytes());
    let mut id = [0; N];
    for (to, from) in id.iter_mut().zip(hash) {
        *to = from;
    }
    id
}

fn machine_id(path: &Path) -> Result<String> {
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
    Ok(machine.to_ascii_lowercase())
}

fn product(path: &Path) -> Product {
    let uuid = match std::fs::read_to_string(path) {
        Ok(uuid) => uuid.trim().to_ascii_lowercase(),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return Product::Hidden
        }
        Err(_) => return Product::Nothing,
    };
    let Ok(id) = parse_host_id(&uuid) else {
        return Product::Nothing;
    };
    let digits = uuid.replace('-', "");
    let is_filler = id.iter().all(|byte| *byte == id[0]) || id[4..].iter().all(|b| *b == 0xff);
    if is_filler || SHARED_UUIDS.contains(&digits.as_str()) {
        Product::Nothing
    } else {
        Product::Uuid(show_uuid(&id))
    }
}

fn boot_of(path: &Path) -> u64 {
    match std::fs::read_to_string(path) {
        Ok(boot) if !boot.trim().is_empty() => {
            let text = format!("neonsan boot {}", boot.trim().to_ascii_lowercase());
            // Zero says nothing.
            u64::from_le_bytes(hashed(&text)).max(1)
        }
        Ok(_) | Err(_) => 0,
    }
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

    /// A machine whose files say this; `None` for one that is not there.
    fn host(machine: &str, uuid: Option<&str>, boot: &str) -> Result<Host> {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        std::fs::write(path("machine-id"), format!("{machine}\n")).unwrap();
        std::fs::write(path("boot_id"), format!("{boot}\n")).unwrap();
        if let Some(uuid) = uuid {
            std::fs::write(path("product_uuid"), format!("{uuid}\n")).unwrap();
        }
        let sources = Sources {
            machine_id: &path("machine-id"),
            product_uuid: &path("product_uuid"),
            boot_id: &path("boot_id"),
        };
        Host::from_sources(None, &sources)
    }

    const MACHINE: &str = "0123456789abcdef0123456789abcdef";
    const UUID: &str = "4c4c4544-0042-3510-8052-b3c04f4b4e32";
    const BOOT: &str = "6a2dd1a8-1a4e-4d77-8d5c-0f3a1c2b3d4e";

    #[test]
    fn a_clone_of_a_machine_id_is_another_host() {
        let one = host(MACHINE, Some(UUID), BOOT).unwrap();
        let same = host(MACHINE, Some(&UUID.to_uppercase()), BOOT).unwrap();
        assert_eq!(
            one, same,
            "firmware and kernel differ in upper and lower case"
        );
        let clone = host(MACHINE, Some(&UUID.replace("4e32", "4e33")), BOOT).unwrap();
        assert_ne!(one.id, clone.id);
        assert!(!show_uuid(&one.id).starts_with("01234567"), "it is hashed");
        let other = host(&MACHINE.replace("ef", "00"), Some(UUID), BOOT).unwrap();
        assert_ne!(one.id, other.id);
    }

    #[test]
    fn a_uuid_that_many_machines_share_says_nothing() {
        let without = host(MACHINE, None, BOOT).unwrap();
        for shared in [
            "00000000-0000-0000-0000-000000000000",
            "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
            "FEFEFEFE-FEFE-FEFE-FEFE-FEFEFEFEFEFE",
            "56F49712-FFFF-FFFF-FFFF-FFFFFFFFFFFF",
            "03000200-0400-0500-0006-000700080009",
            "00020003-0004-0005-0006-000700080009",
            "Not Settable",
            "",
        ] {
            assert_eq!(
                host(MACHINE, Some(shared), BOOT).unwrap(),
                without,
                "{shared}"
            );
        }
        assert!(SHARED_UUIDS.iter().all(|uuid| uuid.len() == 32));
        assert_ne!(without.boot, 0);
    }

    #[test]
    fn the_identity_stays_what_it_is() {
        // Others make it like this too (Documentation/protocol.rst), and volumes are held by it.
        let shown = |host: Host| (show_uuid(&host.id), format!("{:016x}", host.boot));
        let with = shown(host(MACHINE, Some(UUID), BOOT).unwrap());
        let without = shown(host(MACHINE, None, BOOT).unwrap());
        assert_eq!(with.0, "3f1e9a51-ff24-5e29-0ce1-a7fe76f7fe7b");
        assert_eq!(without.0, "0c5121dd-1dda-4b94-57a4-16608853258a");
        assert_eq!(with.1, "daafe0b000df0c63");
    }

    #[test]
    fn another_start_of_the_kernel_is_another_boot_of_the_same_host() {
        let one = host(MACHINE, Some(UUID), BOOT).unwrap();
        let again = host(MACHINE, Some(UUID), &BOOT.replace("6a", "6b")).unwrap();
        assert_eq!(one.id, again.id);
        assert_ne!(one.boot, again.boot);
        assert_eq!(host(MACHINE, Some(UUID), "").unwrap().boot, 0);
    }

    #[test]
    fn the_identity_that_is_set_wins() {
        let sources = Sources {
            machine_id: "/nonexistent",
            product_uuid: "/nonexistent",
            boot_id: SOURCES.boot_id,
        };
        let set = Host::from_sources(Some(UUID), &sources).unwrap();
        assert_eq!(show_uuid(&set.id), UUID);
        assert_ne!(set.boot, 0);
    }

    #[test]
    fn a_machine_without_an_identity_is_told_how_to_get_one() {
        let error = host("uninitialized", Some(UUID), BOOT)
            .unwrap_err()
            .to_string();
        assert!(error.contains("--host-id"), "{error}");
    }

    #[test]
    fn long_host_names_are_cut_between_characters() {
        assert_eq!(cut_host_name(&"é".repeat(40)).len(), 62);
    }
}
