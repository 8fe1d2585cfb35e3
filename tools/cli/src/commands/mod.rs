// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The commands.

pub mod attach;
pub mod detach;
pub mod info;
pub mod list;
pub mod node;
pub mod set;
pub mod snapshot;
pub mod suspend;
pub mod transfer;
pub mod volume;
pub mod watch;

use crate::device::Device;
use crate::error::{Error, Kind, Result};
use crate::netlink::{AttrsMut, Client};
use crate::uapi::{attr, cmd};

/// How a person may name a device.
enum DeviceName {
    Index(u32),
    Volume(String),
}

fn parse_device_name(text: &str) -> DeviceName {
    let name = text.strip_prefix("/dev/").unwrap_or(text);
    let number = name.strip_prefix("neonsan").unwrap_or(name);
    match number.parse() {
        Ok(index) if !number.starts_with('+') => DeviceName::Index(index),
        _ => {
            let volume = match text.parse::<crate::target::Target>() {
                Ok(target) => target.volume,
                Err(_) => text.to_owned(),
            };
            DeviceName::Volume(volume)
        }
    }
}

fn no_such_device(text: &str) -> Error {
    Error::new(Kind::NotFound, format!("no device is named '{text}'"))
        .with_hint("`neonsan list` shows the devices; write neonsan0, /dev/neonsan0 or 0")
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
        DeviceName::Volume(volume) => {
            let mut found = get_devices(client)?;
            found.retain(|device| device.volume == volume);
            match found.as_slice() {
                [device] => Ok(device.index),
                [] => Err(no_such_device(text)),
                [first, ..] => {
                    let message = format!("'{volume}' is attached {} times", found.len());
                    Err(Error::new(Kind::Usage, message)
                        .with_hint(format!("name the device, as in {}", first.name)))
                }
            }
        }
    }
}

#[cfg(test)]
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
        for (text, volume) in [
            ("p/v", "p/v"),
            ("neonsan://h/p/v@s", "p/v@s"),
            ("sda", "sda"),
            ("neonsan", "neonsan"),
            ("/dev/neonsan7p1", "/dev/neonsan7p1"),
        ] {
            match parse_device_name(text) {
                DeviceName::Volume(found) => assert_eq!(found, volume),
                DeviceName::Index(index) => panic!("{text} is device {index}"),
            }
        }
    }
}
