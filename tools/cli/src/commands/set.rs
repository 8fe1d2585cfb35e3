// SPDX-License-Identifier: GPL-2.0 OR MIT

//! `neonsan set`

use super::attach::{check_timeouts, timeout_attrs};
use super::{find_index, get_device, get_devices};
use crate::cli::{Common, Set};
use crate::device::Device;
use crate::error::{Error, Kind, Result};
use crate::netlink::{AttrsMut, Client};
use crate::output::print_json;
use crate::uapi::{attr, cmd};
use serde_json::json;

/// Changes the timeouts of a device or of all, and takes note of data at risk.
pub fn run(common: &Common, args: &Set) -> Result<()> {
    let timeouts = args.timeouts.timeouts();
    let attrs = timeout_attrs(&timeouts);
    if attrs.is_empty() && !args.clear_data_at_risk {
        return Err(Error::new(Kind::Usage, "nothing is to be changed")
            .with_hint("name a timeout, as in --request-timeout 10s"));
    }
    check_timeouts(&timeouts)?;
    let mut client = Client::connect()?;
    let indices = match &args.device {
        Some(device) => vec![find_index(&mut client, device)?],
        None => {
            let devices = get_devices(&mut client)?;
            devices.iter().map(|device| device.index).collect()
        }
    };
    for index in &indices {
        let mut request = AttrsMut::default();
        request.u32(attr::device::INDEX, *index);
        if !attrs.is_empty() {
            request.nest(attr::device::TIMEOUTS, &attrs);
        }
        if args.clear_data_at_risk {
            request.flag(attr::device::CLEAR_AT_RISK);
        }
        let what = format!("neonsan{index} cannot be changed");
        client.request(cmd::DEVICE_SET, &request, &what)?;
    }
    match indices.as_slice() {
        _ if !common.json => Ok(()),
        [index] if !args.all => print_json(&get_device(&mut client, *index)?.shown()),
        _ => {
            let devices = get_devices(&mut client)?;
            let devices: Vec<_> = devices.iter().map(Device::shown).collect();
            print_json(&json!({ "devices": devices }))
        }
    }
}
