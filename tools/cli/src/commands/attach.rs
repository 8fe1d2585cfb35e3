// SPDX-License-Identifier: GPL-2.0 OR MIT

//! `neonsan attach`

use super::set::set_nodes;
use crate::cli::{Attach, Common, Mode};
use crate::config::{Config, Timeouts};
use crate::device_node;
use crate::error::{Error, Kind, Result};
use crate::host;
use crate::netlink::{AttrsMut, Client};
use crate::output::{print, print_json, warn};
use crate::root::Root;
use crate::target::{resolve_each, NodeAddress, ResolvedNode, Target, FORM};
use crate::uapi::{self, attr, cmd};
use neonsan_session::Timeouts as Bounds;
use serde::Serialize;
use std::net::IpAddr;
use std::time::Instant;

/// The answer, as in Documentation/cli-json.rst.
#[derive(Serialize)]
struct Attached<'a> {
    device: &'a str,
    name: &'a str,
    index: u32,
    volume: &'a str,
    /// From whom it was taken.
    fenced: Option<String>,
}

/// Everything that an attach asks for, names resolved.
struct Request {
    volume: String,
    nodes: Vec<ResolvedNode>,
    mode: uapi::Mode,
    host: host::Host,
    host_name: String,
    connections: Option<u32>,
    poll_queues: Option<u32>,
    queue_depth: Option<u32>,
    index: Option<u32>,
    checksums: u32,
    force: bool,
    timeouts: Timeouts,
}

/// Attaches a volume and prints the path of its device.
pub fn run(common: &Common, config: &Config, args: &Attach) -> Result<()> {
    let request = Request::new(config, args)?;
    let mut client = Client::connect()?;
    let what = format!("the volume {} cannot be attached", request.volume);
    let attrs = request.to_attrs(true);
    let since = device_node::moment();
    let replies = match client.request_known(cmd::ATTACH, &attrs, &what)? {
        Some(replies) => replies,
        None => {
            warn(
                "the kernel module that is loaded is older than this command: it does not tell \
                 nodes of the host's boot; load the new one when no device is attached",
            );
            client.request(cmd::ATTACH, &request.to_attrs(false), &what)?
        }
    };
    let reply = replies.first().map(|reply| reply.attrs());
    let index = reply.and_then(|attrs| attrs.u32(attr::device::INDEX));
    let name = reply.and_then(|attrs| attrs.text(attr::device::NAME));
    let (Some(index), Some(name)) = (index, name) else {
        let message = "the kernel module does not name the device: it is of another version";
        return Err(Error::new(Kind::Module, message));
    };
    let fenced = reply.and_then(|attrs| attrs.text(attr::device::FENCED));
    if let Some(fenced) = &fenced {
        warn(&format!("taken by force, and the holder fenced: {fenced}"));
    }
    let device = format!("/dev/{name}");
    wait_for_node(&mut client, &name, index, since)?;
    if request.nodes.iter().any(ResolvedNode::is_unresolved) {
        keep_unresolved(&mut client, index, &request.nodes);
    }
    if let Some(other) = device_node::other_of_name(&Root::system(), &name, &request.volume) {
        let said = device_node::say_other_of_name(&name, &other, &request.volume);
        warn(&format!(
            "{said}; use that of its identity, in /dev/disk/by-id"
        ));
    }
    if common.json {
        print_json(&Attached {
            device: &device,
            name: &name,
            index,
            volume: &request.volume,
            fenced,
        })
    } else {
        print(&format!("{device}\n"))
    }
}

/// The kernel's device is usable by now; its node in /dev may be a moment behind. What is not that device
/// must not be handed out as it: the device goes again.
fn wait_for_node(client: &mut Client, name: &str, index: u32, since: u64) -> Result<()> {
    let end = Instant::now() + device_node::WAIT;
    let wrong = match device_node::wait(&Root::system(), name, since, end) {
        Ok(true) => return Ok(()),
        Ok(false) => {
            warn(&format!(
                "udev has not been through with /dev/{name} yet: its links may come later; \
                 `udevadm settle` waits for them"
            ));
            return Ok(());
        }
        Err(wrong) => wrong,
    };
    let end = Instant::now() + device_node::WAIT;
    let what = match super::detach::detach(client, index, false, end) {
        Ok(()) => "it is detached again".to_owned(),
        Err(error) => format!("it could not be detached again: {}", error.message()),
    };
    let message = format!("{name} was attached, but /dev/{name} {wrong}; {what}");
    Err(Error::new(Kind::Other, message).with_hint(
        "devtmpfs or udev makes the node: `findmnt /dev` shows whether /dev is a devtmpfs, \
         `systemctl status systemd-udevd` whether udev runs; remove what else has the name",
    ))
}

/// Gives the device the names too that have no address yet. Only now: attaching tries each node, and what it
/// says of a failure is to be of one that there is.
fn keep_unresolved(client: &mut Client, index: u32, nodes: &[ResolvedNode]) {
    match set_nodes(client, index, nodes.to_vec()) {
        Ok(()) => say_unresolved(nodes),
        Err(error) => warn(&format!(
            "the names that are not resolved are not looked up again later: {}",
            error.message()
        )),
    }
}

/// Says what becomes of names that have no address yet.
pub fn say_unresolved(nodes: &[ResolvedNode]) {
    let nodes = nodes.iter().filter(|node| node.is_unresolved());
    let names: Vec<_> = nodes.filter_map(|node| node.name.as_deref()).collect();
    if !names.is_empty() {
        warn(&format!(
            "neonsan-resolve.service (or `neonsan resolve`) looks up again until there is an address: {}",
            names.join(", ")
        ));
    }
}

impl Request {
    fn new(config: &Config, args: &Attach) -> Result<Self> {
        let target: Target = args.target.parse()?;
        let snapshot = target.volume.contains('@');
        let mode = match (args.mode, args.read_only, config.attach.mode) {
            (Some(mode), _, _) => mode,
            (None, true, _) => Mode::ReadOnly,
            _ if snapshot => Mode::ReadOnly,
            (None, false, Some(mode)) => mode,
            (None, false, None) => Mode::Exclusive,
        };
        if snapshot && mode != Mode::ReadOnly {
            let message = format!("{} is a snapshot, which can only be read", target.volume);
            return Err(Error::new(Kind::Usage, message).with_hint("leave --mode out"));
        }
        // What is wrong with the command comes before what is wrong with the machine.
        let nodes = resolve(&target, &args.nodes, config)?;
        let set = args.host_id.as_deref().or(config.host_id.as_deref());
        let host = host::Host::this(set)?;
        let payload_crc = args.payload_crc || config.attach.payload_crc.unwrap_or(false);
        let header_crc = args.header_crc || config.attach.header_crc.unwrap_or(false);
        let timeouts = args.timeouts.timeouts().or(&config.timeouts);
        check_timeouts(&timeouts)?;
        Ok(Request {
            nodes,
            volume: target.volume,
            mode: match mode {
                Mode::Exclusive => uapi::Mode::Exclusive,
                Mode::Shared => uapi::Mode::Shared,
                Mode::ReadOnly => uapi::Mode::ReadOnly,
            },
            host,
            host_name: match &config.host_name {
                Some(name) => host::cut_host_name(name),
                None => host::default_host_name(),
            },
            connections: args.connections.or(config.attach.connections),
            poll_queues: args.poll_queues.or(config.attach.poll_queues),
            queue_depth: args.queue_depth.or(config.attach.queue_depth),
            index: args.index,
            checksums: match (header_crc, payload_crc) {
                // The checksum of a payload stands in the header, which then needs its own.
                (_, true) => uapi::checksum::HEADER | uapi::checksum::PAYLOAD,
                (true, false) => uapi::checksum::HEADER,
                (false, false) => 0,
            },
            force: args.force,
            timeouts,
        })
    }

    /// `boot`: with that of the host, which older modules do not know.
    fn to_attrs(&self, boot: bool) -> AttrsMut {
        use attr::device as a;
        let mut attrs = AttrsMut::default();
        attrs
            .text(a::VOLUME, &self.volume)
            .u32(a::MODE, self.mode as u32)
            .bytes(a::HOST_ID, &self.host.id)
            .text(a::HOST_NAME, &self.host_name)
            .u32(a::CHECKSUMS, self.checksums);
        for node in self.nodes.iter().filter(|node| !node.is_unresolved()) {
            attrs.nest(a::NODE, &node_attrs(node));
        }
        for (kind, value) in [
            (a::CONNECTIONS, self.connections),
            (a::POLL_QUEUES, self.poll_queues),
            (a::QUEUE_DEPTH, self.queue_depth),
            (a::INDEX, self.index),
        ] {
            if let Some(value) = value {
                attrs.u32(kind, value);
            }
        }
        let timeouts = timeout_attrs(&self.timeouts);
        if !timeouts.is_empty() {
            attrs.nest(a::TIMEOUTS, &timeouts);
        }
        if self.force {
            attrs.flag(a::FORCE);
        }
        if boot && self.host.boot != 0 {
            attrs.bytes(a::HOST_BOOT, &self.host.boot.to_le_bytes());
        }
        attrs
    }
}

/// The nodes as numbers: of the target, then of --node, else of the config file. A name that has no address
/// yet is among them if another node has one.
pub fn resolve(target: &Target, options: &[String], config: &Config) -> Result<Vec<ResolvedNode>> {
    let mut addresses = target.nodes.clone();
    for node in options {
        addresses.push(node.parse()?);
    }
    if addresses.is_empty() {
        for node in &config.nodes {
            addresses.push(node.parse::<NodeAddress>()?);
        }
    }
    if addresses.is_empty() {
        let message = format!("no node is named that serves {}", target.volume);
        return Err(Error::new(Kind::Usage, message).with_hint(format!(
            "write {FORM}, or add --node HOST, or set nodes in the config file"
        )));
    }
    resolve_all(&addresses)
}

/// The nodes as numbers. One name that cannot be resolved is no reason not to use the others; it keeps its
/// place, for the time when it can.
pub fn resolve_all(addresses: &[NodeAddress]) -> Result<Vec<ResolvedNode>> {
    let mut nodes: Vec<ResolvedNode> = Vec::new();
    let mut unresolved = Vec::new();
    for (address, found) in addresses.iter().zip(resolve_each(addresses)) {
        match found {
            Ok(found) => nodes.extend(found),
            Err(error) => {
                let name = address.name();
                nodes.extend(name.map(|name| ResolvedNode::unresolved(name, address.port())));
                unresolved.push(error);
            }
        }
    }
    match unresolved.pop() {
        Some(error) if nodes.iter().all(ResolvedNode::is_unresolved) => Err(error),
        error => {
            unresolved.extend(error);
            unresolved.iter().for_each(|error| warn(&error.to_string()));
            Ok(nodes)
        }
    }
}

/// Refuses what could not work, before the kernel does.
pub fn check_timeouts(timeouts: &Timeouts) -> Result<()> {
    for (bound, value) in Bounds::BOUNDS.iter().zip(timeouts.values()) {
        if let Some(Err(bad)) = value.map(|value| bound.check(value)) {
            return Err(Error::new(Kind::Usage, bad.to_string()));
        }
    }
    let pairs = [
        (
            "heartbeat-interval",
            timeouts.heartbeat_interval,
            "heartbeat-timeout",
            timeouts.heartbeat_timeout,
        ),
        (
            "reconnect-delay-min",
            timeouts.reconnect_delay_min,
            "reconnect-delay-max",
            timeouts.reconnect_delay_max,
        ),
    ];
    for (low_name, low, high_name, high) in pairs {
        if let (Some(low), Some(high)) = (low, high) {
            if low > high {
                let message = format!("{low_name} is longer than {high_name}");
                return Err(Error::new(Kind::Usage, message)
                    .with_hint(format!("make {low_name} at most {high_name}")));
            }
        }
    }
    Ok(())
}

/// The timeouts as attributes; absent ones are left out.
pub fn timeout_attrs(timeouts: &Timeouts) -> AttrsMut {
    use attr::timeouts as a;
    let mut attrs = AttrsMut::default();
    for (kind, value) in [
        (a::REQUEST, timeouts.request),
        (a::CONNECT, timeouts.connect),
        (a::HEARTBEAT_INTERVAL, timeouts.heartbeat_interval),
        (a::HEARTBEAT_TIMEOUT, timeouts.heartbeat_timeout),
        (a::RECONNECT_DELAY_MIN, timeouts.reconnect_delay_min),
        (a::RECONNECT_DELAY_MAX, timeouts.reconnect_delay_max),
        (a::LOSS, timeouts.loss),
    ] {
        if let Some(value) = value {
            attrs.u32(kind, value);
        }
    }
    attrs
}

/// A node as attributes.
pub fn node_attrs(node: &ResolvedNode) -> AttrsMut {
    use attr::node as a;
    let mut attrs = AttrsMut::default();
    match node.address {
        IpAddr::V4(address) => attrs.bytes(a::IPV4, &address.octets()),
        IpAddr::V6(address) => attrs.bytes(a::IPV6, &address.octets()),
    };
    attrs.u16(a::PORT, node.port);
    if let Some(scope) = node.scope_id {
        attrs.u32(a::SCOPE_ID, scope);
    }
    if let Some(name) = &node.name {
        attrs.text(a::NAME, name);
    }
    attrs
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cli::NeonsanAttach;
    use crate::netlink::Attrs;
    use clap::Parser as _;

    const ID: &str = "00112233-4455-6677-8899-aabbccddeeff";

    fn request(config: &Config, line: &[&str]) -> Result<Request> {
        let line = ["neonsan-attach", "--host-id", ID].iter().chain(line);
        let args = NeonsanAttach::try_parse_from(line).unwrap();
        Request::new(config, &args.attach)
    }

    #[test]
    fn options_become_attributes() {
        let config = Config::default();
        let line = [
            "neonsan://192.0.2.1,[fe80::1%7]:9/p/v",
            "--node=192.0.2.3",
            "--mode=shared",
            "--connections=4",
            "--poll-queues=2",
            "--queue-depth=64",
            "--index=3",
            "--payload-crc",
            "--force",
            "--loss-timeout=0",
            "--request-timeout=30s",
        ];
        let request = request(&config, &line).unwrap();
        use attr::device as a;
        let older = request.to_attrs(false);
        assert!(Attrs(older.as_bytes()).bytes(a::HOST_BOOT).is_none());
        let attrs = request.to_attrs(true);
        let attrs = Attrs(attrs.as_bytes());
        let boot = attrs.bytes(a::HOST_BOOT).unwrap();
        assert_eq!(boot, request.host.boot.to_le_bytes());
        assert_eq!(boot.len(), uapi::HOST_BOOT_LEN);
        assert_eq!(attrs.text(a::VOLUME).unwrap(), "p/v");
        assert_eq!(attrs.u32(a::MODE), Some(uapi::Mode::Shared as u32));
        assert_eq!(attrs.u32(a::POLL_QUEUES), Some(2));
        assert_eq!(attrs.bytes(a::HOST_ID).unwrap()[..2], [0x00, 0x11]);
        assert_eq!(attrs.u32(a::CHECKSUMS), Some(3));
        assert_eq!(attrs.u32(a::INDEX), Some(3));
        assert!(attrs.bytes(a::FORCE).is_some());
        let nodes: Vec<_> = attrs.all_nested(a::NODE).collect();
        assert_eq!(nodes.len(), 3);
        assert_eq!(nodes[0].bytes(attr::node::IPV4), Some(&[192, 0, 2, 1][..]));
        assert_eq!(nodes[1].number(attr::node::PORT), Some(9));
        assert_eq!(nodes[1].number(attr::node::SCOPE_ID), Some(7));
        let timeouts = attrs.nested(a::TIMEOUTS).unwrap();
        assert_eq!(timeouts.u32(attr::timeouts::REQUEST), Some(30_000));
        assert_eq!(timeouts.u32(attr::timeouts::LOSS), Some(0));
        assert_eq!(timeouts.u32(attr::timeouts::CONNECT), None);
    }

    #[test]
    fn the_config_file_fills_in() {
        let config = Config {
            nodes: vec!["192.0.2.9".into()],
            ..Config::default()
        };
        let found = request(&config, &["p/v"]).unwrap();
        assert_eq!(found.nodes[0].address.to_string(), "192.0.2.9");
        let found = request(&config, &["neonsan://192.0.2.1/p/v"]).unwrap();
        assert_eq!(found.nodes.len(), 1);
        assert_eq!(found.nodes[0].address.to_string(), "192.0.2.1");
    }

    #[test]
    fn a_name_without_an_address_is_kept_and_not_tried() {
        let config = Config::default();
        let line = ["neonsan://no.such.name.invalid,192.0.2.1/p/v"];
        let found = request(&config, &line).unwrap();
        let nodes: Vec<_> = found.nodes.iter().map(ToString::to_string).collect();
        assert_eq!(
            nodes,
            [
                "no.such.name.invalid:9666 (not resolved yet)",
                "192.0.2.1:9666"
            ]
        );
        let attrs = found.to_attrs(true);
        let given = Attrs(attrs.as_bytes());
        assert_eq!(given.all_nested(attr::device::NODE).count(), 1);
        // Without any address there is nobody to ask.
        let line = ["neonsan://no.such.name.invalid,nor.this.invalid/p/v"];
        let error = request(&config, &line).err().unwrap();
        assert_eq!(error.kind(), Kind::Unreachable);
    }

    #[test]
    fn a_snapshot_is_read_only() {
        let config = Config::default();
        let found = request(&config, &["neonsan://192.0.2.1/p/v@s"]).unwrap();
        assert_eq!(found.mode, uapi::Mode::ReadOnly);
        let error = request(&config, &["neonsan://192.0.2.1/p/v@s", "--mode=shared"]);
        assert_eq!(error.err().unwrap().kind(), Kind::Usage);
    }

    #[test]
    fn what_cannot_work_is_refused_early() {
        let config = Config::default();
        for line in [
            &["p/v"][..],
            &["neonsan://192.0.2.1/p/v", "--request-timeout=0"],
            &["neonsan://192.0.2.1/p/v", "--loss-timeout=600h"],
            &[
                "neonsan://192.0.2.1/p/v",
                "--heartbeat-interval=9s",
                "--heartbeat-timeout=1s",
            ],
            &[
                "neonsan://192.0.2.1/p/v",
                "--reconnect-delay-min=9s",
                "--reconnect-delay-max=1s",
            ],
        ] {
            assert_eq!(
                request(&config, line).err().unwrap().kind(),
                Kind::Usage,
                "{line:?}"
            );
        }
    }
}
