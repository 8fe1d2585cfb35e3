// SPDX-License-Identifier: GPL-2.0 OR MIT

//! `neonsan detach`

use super::{find_index, get_devices};
use crate::cli::{Common, Detach};
use crate::error::Result;
use crate::netlink::{AttrsMut, Client};
use crate::output::print_json;
use crate::uapi::{attr, cmd};
use serde_json::json;

/// Detaches devices. The first that refuses ends the command; those before it stay detached.
pub fn run(common: &Common, args: &Detach) -> Result<()> {
    let mut client = Client::connect()?;
    let indices = if args.all {
        let devices = get_devices(&mut client)?;
        devices.iter().map(|device| device.index).collect()
    } else {
        let found = args
            .devices
            .iter()
            .map(|name| find_index(&mut client, name));
        found.collect::<Result<Vec<_>>>()?
    };
    let mut detached = Vec::new();
    for index in indices {
        let mut request = AttrsMut::default();
        request.u32(attr::device::INDEX, index);
        if args.force {
            request.flag(attr::device::FORCE);
        }
        let what = format!("neonsan{index} cannot be detached");
        client.request(cmd::DETACH, &request, &what)?;
        detached.push(format!("neonsan{index}"));
    }
    if common.json {
        print_json(&json!({ "detached": detached }))?;
    }
    Ok(())
}
