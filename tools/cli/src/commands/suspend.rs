// SPDX-License-Identifier: GPL-2.0 OR MIT

//! `neonsan suspend` and `neonsan resume`

use super::{find_index, get_device};
use crate::cli::{Common, Resume, Suspend, SuspendMode};
use crate::error::Result;
use crate::netlink::{AttrsMut, Client};
use crate::output::print_json;
use crate::uapi::{self, attr, cmd};

/// Lets no new I/O through.
pub fn suspend(common: &Common, args: &Suspend) -> Result<()> {
    let mode = match args.mode {
        SuspendMode::Normal => uapi::SuspendMode::Normal,
        SuspendMode::Error => uapi::SuspendMode::Error,
    };
    run(common, &args.device, cmd::SUSPEND, Some(mode))
}

/// Lets I/O through again.
pub fn resume(common: &Common, args: &Resume) -> Result<()> {
    run(common, &args.device, cmd::RESUME, None)
}

fn run(common: &Common, device: &str, cmd: u8, mode: Option<uapi::SuspendMode>) -> Result<()> {
    let mut client = Client::connect()?;
    let index = find_index(&mut client, device)?;
    let mut request = AttrsMut::default();
    request.u32(attr::device::INDEX, index);
    let what = match mode {
        Some(mode) => {
            request.u32(attr::device::SUSPEND, mode as u32);
            format!("neonsan{index} cannot be suspended")
        }
        None => format!("neonsan{index} cannot be resumed"),
    };
    client.request(cmd, &request, &what)?;
    if common.json {
        print_json(&get_device(&mut client, index)?.shown())?;
    }
    Ok(())
}
