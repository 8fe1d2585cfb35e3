// SPDX-License-Identifier: GPL-2.0 OR MIT

//! `neonsan set`

use super::attach::{check_timeouts, node_attrs, resolve_all, say_unresolved, timeout_attrs};
use super::{find_index, get_device, get_devices};
use crate::cli::{Common, Set};
use crate::config::Timeouts;
use crate::device::Device;
use crate::error::{Error, Kind, Result};
use crate::netlink::{AttrsMut, Client};
use crate::output::print_json;
use crate::target::ResolvedNode;
use crate::uapi::{attr, cmd};
use serde_json::json;

/// What is to be changed, of one device or of each.
struct Change {
    timeouts: Timeouts,
    /// In place of those named before; empty: they stay.
    nodes: Vec<ResolvedNode>,
    clear_data_at_risk: bool,
    /// To that which the module tells of.
    accept_size: bool,
}

/// Changes the timeouts of a device or of all, or the nodes of one, and takes note of data at risk.
pub fn run(common: &Common, args: &Set) -> Result<()> {
    let change = Change::new(args)?;
    let mut client = Client::connect()?;
    let indices = match &args.device {
        Some(device) => vec![find_index(&mut client, device)?],
        None => {
            let devices = get_devices(&mut client)?;
            devices.iter().map(|device| device.index).collect()
        }
    };
    for index in &indices {
        change.make(&mut client, *index)?;
    }
    say_unresolved(&change.nodes);
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

/// Gives a device other nodes, and changes nothing else.
pub fn set_nodes(client: &mut Client, index: u32, nodes: Vec<ResolvedNode>) -> Result<()> {
    let change = Change {
        timeouts: Timeouts::default(),
        nodes,
        clear_data_at_risk: false,
        accept_size: false,
    };
    change.make(client, index)
}

impl Change {
    fn new(args: &Set) -> Result<Self> {
        let timeouts = args.timeouts.timeouts();
        let nothing = timeout_attrs(&timeouts).is_empty();
        let is_flagged = args.clear_data_at_risk || args.accept_size;
        if nothing && args.nodes.is_empty() && !is_flagged {
            return Err(Error::new(Kind::Usage, "nothing is to be changed")
                .with_hint("name a timeout, as in --request-timeout 10s, or nodes, with --node"));
        }
        check_timeouts(&timeouts)?;
        let addresses = args.nodes.iter().map(|node| node.parse());
        Ok(Change {
            timeouts,
            nodes: resolve_all(&addresses.collect::<Result<Vec<_>>>()?)?,
            clear_data_at_risk: args.clear_data_at_risk,
            accept_size: args.accept_size,
        })
    }

    fn to_attrs(&self, index: u32) -> AttrsMut {
        let mut request = AttrsMut::default();
        request.u32(attr::device::INDEX, index);
        let timeouts = timeout_attrs(&self.timeouts);
        if !timeouts.is_empty() {
            request.nest(attr::device::TIMEOUTS, &timeouts);
        }
        for node in &self.nodes {
            request.nest(attr::device::NODE, &node_attrs(node));
        }
        if self.clear_data_at_risk {
            request.flag(attr::device::CLEAR_AT_RISK);
        }
        request
    }

    fn make(&self, client: &mut Client, index: u32) -> Result<()> {
        let what = format!("neonsan{index} cannot be changed");
        let mut request = self.to_attrs(index);
        if self.accept_size {
            let device = get_device(client, index)?;
            let size = shrunk_size(&device)?;
            request.bytes(attr::device::ACCEPT_SIZE, &size.to_ne_bytes());
        }
        match client.request_known(cmd::DEVICE_SET, &request, &what)? {
            Some(_) => Ok(()),
            None => Err(Error::new(
                Kind::Module,
                format!("{what}: the kernel module that is loaded is older than this command"),
            )
            .with_hint("load the new one when no device is attached, or attach the volume again")),
        }
    }
}

/// The size that can be accepted.
fn shrunk_size(device: &Device) -> Result<u64> {
    device.shrunk_bytes.ok_or_else(|| {
        let message = format!(
            "{} does not wait for a decision on its size: its volume was not shrunk",
            device.name
        );
        Error::new(Kind::Refused, message).with_hint(format!(
            "`neonsan info {}` says what it waits for",
            device.name
        ))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cli::{Command, Neonsan};
    use crate::netlink::Attrs;
    use clap::Parser as _;

    fn change(line: &[&str]) -> Result<Change> {
        let line = ["neonsan", "set"].iter().chain(line);
        match Neonsan::try_parse_from(line).unwrap().command {
            Command::Set(args) => Change::new(&args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_become_attributes() {
        let line = [
            "0",
            "--node=192.0.2.7",
            "--node=[2001:db8::1]:7",
            "--loss-timeout=1m",
        ];
        let attrs = change(&line).unwrap().to_attrs(5);
        let attrs = Attrs(attrs.as_bytes());
        assert_eq!(attrs.u32(attr::device::INDEX), Some(5));
        let nodes: Vec<_> = attrs.all_nested(attr::device::NODE).collect();
        assert_eq!(nodes.len(), 2);
        assert_eq!(nodes[0].bytes(attr::node::IPV4), Some(&[192, 0, 2, 7][..]));
        assert_eq!(nodes[0].number(attr::node::PORT), Some(9666));
        assert_eq!(nodes[1].number(attr::node::PORT), Some(7));
        let timeouts = attrs.nested(attr::device::TIMEOUTS).unwrap();
        assert_eq!(timeouts.u32(attr::timeouts::LOSS), Some(60_000));
        assert_eq!(attrs.bytes(attr::device::CLEAR_AT_RISK), None);
        // What is not named is not touched.
        let attrs = change(&["0", "--clear-data-at-risk"]).unwrap().to_attrs(0);
        let attrs = Attrs(attrs.as_bytes());
        assert_eq!(attrs.all_nested(attr::device::NODE).count(), 0);
        assert!(attrs.nested(attr::device::TIMEOUTS).is_none());
    }

    #[test]
    fn only_a_size_that_was_told_can_be_accepted() {
        let mut device = Device {
            name: "neonsan0".into(),
            ..Device::default()
        };
        let error = shrunk_size(&device).unwrap_err();
        assert_eq!(error.kind(), Kind::Refused);
        assert!(error.to_string().contains("was not shrunk"), "{error}");
        device.shrunk_bytes = Some(1 << 20);
        assert_eq!(shrunk_size(&device).unwrap(), 1 << 20);
        assert!(change(&["0", "--accept-size"]).unwrap().accept_size);
    }

    #[test]
    fn what_cannot_work_is_refused_before_the_kernel_is_asked() {
        for (line, kind, said) in [
            (&["0"][..], Kind::Usage, "with --node"),
            (&["0", "--node=h:0"], Kind::Usage, "not from 1 to 65535"),
            (&["0", "--node="], Kind::Usage, "the host is missing"),
            (
                &["0", "--node=no.such.name.invalid"],
                Kind::Unreachable,
                "'no.such.name.invalid' cannot be resolved",
            ),
        ] {
            let error = change(line).err().unwrap();
            assert_eq!(error.kind(), kind, "{line:?}");
            assert!(error.to_string().contains(said), "{error}");
        }
        // Each device has nodes of its own.
        let line = ["neonsan", "set", "--all", "--node=192.0.2.7"];
        assert!(Neonsan::try_parse_from(line).is_err());
    }
}
