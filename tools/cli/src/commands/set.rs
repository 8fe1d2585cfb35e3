// SPDX-License-Identifier: GPL-2.0 OR MIT

//! `neonsan set`

use super::attach::{check_timeouts, timeout_attrs};
use super::{find_index, get_device};
use crate::cli::{Common, Set};
use crate::error::{Error, Kind, Result};
use crate::netlink::{AttrsMut, Client};
use crate::output::print_json;
use crate::uapi::{attr, cmd};

/// Changes the timeouts of a device.
pub fn run(common: &Common, args: &Set) -> Result<()> {
    let timeouts = args.timeouts.timeouts();
    let attrs = timeout_attrs(&timeouts);
    if attrs.is_empty() {
        return Err(Error::new(Kind::Usage, "nothing is to be changed")
            .with_hint("name a timeout, as in --request-timeout 10s"));
    }
    check_timeouts(&timeouts)?;
    let mut client = Client::connect()?;
    let index = find_index(&mut client, &args.device)?;
    let mut request = AttrsMut::default();
    request
        .u32(attr::device::INDEX, index)
        .nest(attr::device::TIMEOUTS, &attrs);
    let what = format!("the timeouts of neonsan{index} cannot be changed");
    client.request(cmd::DEVICE_SET, &request, &what)?;
    if common.json {
        print_json(&get_device(&mut client, index)?)?;
    }
    Ok(())
}
