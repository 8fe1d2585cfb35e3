// SPDX-License-Identifier: GPL-2.0 OR MIT

//! `neonsan list`

use super::get_devices;
use crate::cli::Common;
use crate::device::{Device, HIDDEN};
use crate::error::Result;
use crate::netlink::Client;
use crate::output::{print, print_json, table, warn};
use crate::units::show_size;
use serde_json::json;

/// Lists the devices.
pub fn run(common: &Common) -> Result<()> {
    let mut client = Client::connect()?;
    let devices = get_devices(&mut client)?;
    if common.json {
        let devices: Vec<_> = devices.iter().map(Device::shown).collect();
        return print_json(&json!({ "devices": devices }));
    }
    if devices.iter().any(|device| device.hidden) {
        warn(HIDDEN);
    }
    print(&show(&devices))
}

fn show(devices: &[Device]) -> String {
    let rows: Vec<Vec<String>> = devices
        .iter()
        .map(|device| {
            if device.hidden {
                let hidden = || "-".to_owned();
                let state = device.state.clone();
                let name = device.device.clone();
                return vec![name, hidden(), hidden(), hidden(), state, hidden()];
            }
            let node = device.connections.iter().find_map(|c| c.node.as_ref());
            let node = node.or(device.nodes.first());
            vec![
                device.device.clone(),
                device.volume.clone(),
                show_size(device.size_bytes),
                device.mode.clone(),
                device.state.clone(),
                node.map_or_else(String::new, ToString::to_string),
            ]
        })
        .collect();
    table(
        &["DEVICE", "VOLUME", "SIZE", "MODE", "STATE", "NODE"],
        &rows,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::tests::{hidden_message, sample_message};
    use crate::netlink::Attrs;

    #[test]
    fn each_device_has_a_row() {
        let device = Device::parse(Attrs(sample_message().as_bytes()));
        assert_eq!(
            show(&[device]),
            "DEVICE         VOLUME       SIZE    MODE       STATE       NODE\n\
             /dev/neonsan3  pool/volume  10 GiB  exclusive  recovering  192.0.2.1:9666 (node1)\n"
        );
        let device = Device::parse(Attrs(hidden_message().as_bytes()));
        assert_eq!(
            show(&[device]),
            "DEVICE         VOLUME  SIZE  MODE  STATE       NODE\n\
             /dev/neonsan3  -       -     -     recovering  -\n"
        );
    }
}
