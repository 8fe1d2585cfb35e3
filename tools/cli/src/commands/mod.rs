// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The commands.

pub mod attach;
pub mod detach;
pub mod doctor;
pub mod export;
pub mod import;
pub mod info;
pub mod list;
pub mod node;
pub mod resolve;
pub mod set;
pub mod snapshot;
pub mod suspend;
pub mod transfer;
pub mod volume;
pub mod watch;

use crate::device::{Device, Node};
use crate::error::{Error, Kind, Result};
use crate::netlink::{AttrsMut, Client};
use crate::target::{NodeAddress, Target};
use crate::uapi::{attr, cmd};

/// How a person may name a device.
enum DeviceName {
    Index(u32),
    /// By the volume that it is of, and perhaps by nodes that serve that: another node may have a
    /// volume of the same name.
    Volume(Target),
    /// Nothing that could be a device or volume.
    Unknown(String),
}

fn parse_device_name(text: &str) -> DeviceName {
    // A link that udev made, such as /dev/neonsan/POOL/VOLUME, leads to it.
    let link = text.starts_with('/').then(|| std::fs::canonicalize(text));
    let link = link.and_then(|path| path.ok()?.into_os_string().into_string().ok());
    let path = link.as_deref().unwrap_or(text);
    let name = path.strip_prefix("/dev/").unwrap_or(path);
    let number = name.strip_prefix("neonsan").unwrap_or(name);
    match number.parse() {
        Ok(index) if !number.starts_with('+') => DeviceName::Index(index),
        _ => match text.parse() {
            Ok(target) => DeviceName::Volume(target),
            Err(_) => DeviceName::Unknown(text.to_owned()),
        },
    }
}

fn no_such_device(text: &str) -> Error {
    Error::new(Kind::NotFound, format!("no device is named '{text}'")).with_hint(
        "`neonsan list` shows the devices; write neonsan0, /dev/neonsan0, 0, or a link to it",
    )
}

/// Everything the module says about the device with this number.
fn get_device(client: &mut Client, index: u32) -> Result<Device> {
    let mut request = AttrsMut::default();
    request.u32(attr::device::INDEX, index);
    let what = format!("the kernel does not tell about neonsan{index}");
    let replies = client.request(cmd::DEVICE_GET, &request, &what)?;
    replies
        .first()
        .map(|reply| Device::parse(reply.attrs()))
        .ok_or_else(|| Error::new(Kind::Other, what))
}

/// Every device, ordered by number.
fn get_devices(client: &mut Client) -> Result<Vec<Device>> {
    let replies = client.dump(cmd::DEVICE_GET, "the kernel does not list its devices")?;
    let mut devices: Vec<_> = replies.iter().map(|r| Device::parse(r.attrs())).collect();
    devices.sort_by_key(|device| device.index);
    Ok(devices)
}

/// The number of the device that a person named.
fn find_index(client: &mut Client, text: &str) -> Result<u32> {
    match parse_device_name(text) {
        DeviceName::Index(index) => Ok(index),
        DeviceName::Volume(target) => select(&get_devices(client)?, &target, text),
        DeviceName::Unknown(text) => Err(no_such_device(&text)),
    }
}

/// The device of a volume. Where the target names nodes, one of them must be among those of the
/// device, which include what other nodes told of.
fn select(devices: &[Device], target: &Target, text: &str) -> Result<u32> {
    let volume = &target.volume;
    if devices.iter().any(|device| device.hidden) {
        let message = format!("which device '{volume}' is attached as is not shown to you");
        return Err(Error::new(Kind::Permission, message).with_hint(
            "name the device, as in neonsan0, or run the command as root: it needs CAP_SYS_ADMIN",
        ));
    }
    let of_name = devices.iter().filter(|device| device.volume == *volume);
    let (found, others): (Vec<_>, Vec<_>) =
        of_name.partition(|device| target.nodes.is_empty() || is_served_by(device, &target.nodes));
    match (found.as_slice(), others.as_slice()) {
        ([device], _) => Ok(device.index),
        ([], []) => Err(no_such_device(text)),
        ([], [other, ..]) => {
            let nodes: Vec<_> = other.nodes.iter().map(ToString::to_string).collect();
            let (name, nodes) = (&other.name, nodes.join(", "));
            let message = format!("{name} is {volume}, but from other nodes: {nodes}");
            Err(Error::new(Kind::NotFound, message)
                .with_hint(format!("if that is the one, name the device, as in {name}")))
        }
        ([first, ..], _) => {
            let message = format!("'{volume}' is attached {} times", found.len());
            Err(Error::new(Kind::Usage, message)
                .with_hint(format!("name the device, as in {}", first.name)))
        }
    }
}

/// Whether one of these nodes is among those of the device: under the name that was given when it was
/// attached, which needs no resolver, or at an address that a name has now.
fn is_served_by(device: &Device, nodes: &[NodeAddress]) -> bool {
    nodes.iter().any(|node| {
        device.nodes.iter().any(|known| {
            known.port == node.port()
                && known.name.is_some()
                && known.name.as_deref() == node.name()
        }) || node.resolve().is_ok_and(|addresses| {
            addresses.iter().any(|address| {
                let matches =
                    |known: &Node| (known.address, known.port) == (address.address, address.port);
                device.nodes.iter().any(matches)
            })
        })
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_by_path_name_number_or_volume() {
        for text in ["/dev/neonsan7", "neonsan7", "7"] {
            assert!(
                matches!(parse_device_name(text), DeviceName::Index(7)),
                "{text}"
            );
        }
        for (text, volume) in [("p/v", "p/v"), ("neonsan://h/p/v@s", "p/v@s")] {
            match parse_device_name(text) {
                DeviceName::Volume(found) => assert_eq!(found.volume, volume),
                _ => panic!("{text} is no volume"),
            }
        }
        for text in ["sda", "neonsan", "/dev/neonsan7p1", "+7"] {
            assert!(
                matches!(parse_device_name(text), DeviceName::Unknown(_)),
                "{text}"
            );
        }
    }

    fn device(index: u32, nodes: &[(&str, u16, Option<&str>)]) -> Device {
        Device {
            index,
            name: format!("neonsan{index}"),
            volume: "p/v".into(),
            nodes: nodes
                .iter()
                .map(|(address, port, name)| Node {
                    address: address.parse().unwrap(),
                    port: *port,
                    scope_id: None,
                    name: name.map(str::to_owned),
                    learned: false,
                })
                .collect(),
            ..Device::default()
        }
    }

    fn select_of(devices: &[Device], text: &str) -> Result<u32> {
        select(devices, &text.parse().unwrap(), text)
    }

    #[test]
    fn a_volume_of_the_same_name_on_another_node_is_another_one() {
        let devices = [
            // A name that no resolver knows, as when the network is gone.
            device(0, &[("192.0.2.1", 9666, Some("a.invalid"))]),
            // The second one was learned later.
            device(4, &[("192.0.2.7", 9666, None), ("2001:db8::8", 9700, None)]),
        ];
        for (text, index) in [
            ("neonsan://a.invalid/p/v", 0),
            ("neonsan://192.0.2.1/p/v", 0),
            ("neonsan://192.0.2.7/p/v", 4),
            ("neonsan://[2001:db8::8]:9700/p/v", 4),
            ("neonsan://192.0.2.99,192.0.2.7/p/v", 4),
        ] {
            assert_eq!(select_of(&devices, text).unwrap(), index, "{text}");
        }
        for text in [
            "neonsan://192.0.2.9/p/v",
            "neonsan://192.0.2.1:9667/p/v",
            "neonsan://b.invalid/p/v",
        ] {
            let error = select_of(&devices, text).unwrap_err();
            assert_eq!(error.kind(), Kind::NotFound, "{text}");
            let message = error.to_string();
            assert!(message.contains("from other nodes: 192.0.2.1:9666 (a.invalid)"));
            assert!(message.contains("as in neonsan0"), "{message}");
        }
        let hidden = Device {
            hidden: true,
            ..Device::default()
        };
        let error = select_of(&[hidden], "p/v").unwrap_err();
        assert_eq!(error.kind(), Kind::Permission);
        let error = select_of(&devices, "p/v").unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        assert_eq!(select_of(&devices[1..], "p/v").unwrap(), 4);
        let error = select_of(&devices, "neonsan://192.0.2.1/p/w").unwrap_err();
        assert!(error.to_string().contains("no device is named"));
    }
}
