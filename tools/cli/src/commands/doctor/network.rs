// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The way to the nodes: names, ports, whether a node answers there and lets this host in, large packets.

use super::{output_of, Report};
use crate::commands::volume::runtime;
use crate::config::Config;
use crate::host::Host;
use crate::root::Root;
use crate::target::{resolve_each, NodeAddress, Target};
use neonsan_client::{Client, Error as ClientError};
use neonsan_proto::{Mode, Status};
use neonsan_session::CloseCause;
use std::net::{IpAddr, SocketAddr};

/// A volume that no node has: what it answers shows that it is one, and whether this host is let in.
const NO_VOLUME: &str = "neonsan-doctor/no-such-volume";

/// Time for a node to answer.
const ANSWER_MS: u32 = 2000;

/// Packets of Ethernet as it is everywhere. Larger ones need every switch on the way.
const USUAL_MTU: u32 = 1500;

/// Which nodes this host is to reach.
pub(super) struct Nodes<'a> {
    /// On the command line.
    pub given: &'a [String],
    /// Of the config file.
    pub config: &'a Config,
    /// Of the files of units.
    pub targets: &'a [Target],
    /// Of attached devices.
    pub of_devices: &'a [String],
    /// A node runs on this machine.
    pub is_one_here: bool,
}

impl Nodes<'_> {
    /// Each once, in order.
    fn all(&self, report: &mut Report) -> Vec<NodeAddress> {
        let mut found: Vec<NodeAddress> = Vec::new();
        let mut add = |node: NodeAddress| {
            if !found.contains(&node) {
                found.push(node);
            }
        };
        for target in self.targets {
            target.nodes.iter().cloned().for_each(&mut add);
        }
        let written = self
            .given
            .iter()
            .chain(&self.config.nodes)
            .chain(self.of_devices);
        for text in written {
            match text.parse() {
                Ok(node) => add(node),
                Err(error) => report.error("network", &error),
            }
        }
        if self.is_one_here && found.is_empty() {
            found.extend("127.0.0.1".parse::<NodeAddress>());
        }
        found
    }
}

/// Looks at the way to each.
pub(super) fn look(report: &mut Report, root: &Root, nodes: &Nodes<'_>) {
    let nodes = nodes.all(report);
    if nodes.is_empty() {
        report.warning(
            "network",
            "no node is named, so the way to none was looked at",
            "neonsan doctor --node HOST looks at one; nodes of /etc/neonsan/neonsan.toml are looked at always",
        );
    }
    let found = resolve_each(&nodes);
    for (node, addresses) in nodes.iter().zip(found) {
        let addresses = match addresses {
            Ok(addresses) => addresses,
            Err(error) => {
                report.error("network", &error);
                continue;
            }
        };
        // All of a name may be of one node, of which one is enough: attach tries each.
        let mut failures = Vec::new();
        let mut reached = None;
        for address in addresses {
            let socket = address.socket();
            match ask(socket, report_host()) {
                Ok(()) => {
                    reached = Some(socket);
                    break;
                }
                Err(why) => failures.push((socket, why)),
            }
        }
        match (reached, failures.first()) {
            (Some(socket), _) => {
                report.ok(
                    "network",
                    format!("the node {node} answers and lets this host in"),
                );
                look_at_packets(report, root, socket.ip());
            }
            (None, Some((socket, (why, advice)))) => {
                report.problem("network", format!("the node {socket}: {why}"), advice);
            }
            (None, None) => {}
        }
    }
}

fn report_host() -> Option<Host> {
    Host::this(None).ok()
}

/// Asks a node for a volume that it cannot have.
fn ask(node: SocketAddr, host: Option<Host>) -> std::result::Result<(), (String, &'static str)> {
    let mut config = neonsan_client::Config::new(NO_VOLUME, vec![node]);
    config.mode = Mode::ReadOnly;
    config.timeouts.connect_ms = ANSWER_MS;
    if let Some(host) = host {
        config.host_id = host.id;
    }
    let runtime = runtime().map_err(|error| (error.to_string(), "try again"))?;
    let error = match runtime.block_on(Client::attach(config)) {
        Ok(client) => {
            runtime.block_on(client.detach());
            return Ok(());
        }
        Err(error) => error,
    };
    Err(match error {
        ClientError::Refused {
            status: Status::NoSuchVolume,
            ..
        } => return Ok(()),
        ClientError::Refused { status, text, .. } => match status {
            Status::NotPermitted => (
                format!("it does not let this host in: {text}"),
                "data.local_users and data.listen of the node's configuration say whom it serves",
            ),
            Status::VersionUnsupported | Status::FeatureUnsupported => (
                format!("it is of another version: {text}"),
                "bring node and host to versions that fit",
            ),
            _ => (format!("it refuses: {text}"), "see the node's log"),
        },
        ClientError::Connect { cause, .. } => match cause {
            CloseCause::ConnectTimeout => (
                "it does not answer in time".to_owned(),
                "a route, a firewall or the machine itself is in the way: ip route get, ping, and the \
                 rules for TCP port 9666 on both sides",
            ),
            CloseCause::ConnectFailed(_) => (
                format!("no connection: {cause}"),
                "check that neonsan-node runs there (systemctl status neonsan-node) and that data.listen \
                 has this address: by default it has 127.0.0.1 only",
            ),
            _ => (
                format!("no NeonSAN node answers: {cause}"),
                "check the port: data is at 9666 unless data.listen of the node says otherwise",
            ),
        },
        error => (error.to_string(), "see the node's log"),
    })
}

/// Large packets that some switch on the way does not pass make a connection that hangs at the first
/// large write. Asked for only where the route has them.
fn look_at_packets(report: &mut Report, root: &Root, node: IpAddr) {
    let address = node.to_string();
    let route = output_of("ip", &["-json", "route", "get", &address]);
    let route: Option<serde_json::Value> = route.and_then(|text| serde_json::from_str(&text).ok());
    let device = route.as_ref().and_then(|route| route[0]["dev"].as_str());
    let mtu = device.and_then(|device| root.text(&format!("/sys/class/net/{device}/mtu")));
    let mtu = mtu.and_then(|mtu| mtu.parse::<u32>().ok());
    let (Some(device), Some(mtu)) = (device, mtu) else {
        return;
    };
    if node.is_loopback() {
        return;
    }
    // Headers of IP and ICMP.
    let headers = if node.is_ipv4() { 28 } else { 48 };
    judge_packets(report, device, mtu, &address, |size| {
        let size = size.saturating_sub(headers).to_string();
        output_of(
            "ping",
            &["-c", "1", "-W", "1", "-M", "do", "-s", &size, &address],
        )
        .is_some()
    });
}

fn judge_packets(
    report: &mut Report,
    device: &str,
    mtu: u32,
    address: &str,
    passes: impl Fn(u32) -> bool,
) {
    if mtu <= USUAL_MTU {
        return;
    }
    if passes(mtu) {
        report.ok("network", format!("packets of {mtu} bytes reach {address}"));
    } else if passes(USUAL_MTU) {
        report.problem(
            "network",
            format!("{device} sends packets of {mtu} bytes, which do not reach {address}"),
            &format!(
                "set the MTU of every switch and of the node to {mtu}, or that of {device} to 1500"
            ),
        );
    } else {
        report.warning(
            "network",
            format!(
                "whether packets of {mtu} bytes reach {address} is not known: it answers no ping"
            ),
            "compare the MTU of both machines and of the switches between them",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(mtu: u32, largest: u32) -> String {
        let mut report = Report::default();
        judge_packets(&mut report, "eth0", mtu, "192.0.2.1", |size| {
            size <= largest
        });
        report.text()
    }

    #[test]
    fn large_packets_that_do_not_pass_are_a_problem() {
        assert!(judged(9000, 9000).starts_with("ok"));
        let text = judged(9000, 1500);
        assert!(text.starts_with("problem"), "{text}");
        assert!(text.contains("eth0 sends packets of 9000 bytes"), "{text}");
        // Who answers no ping at all may be well.
        assert!(judged(9000, 0).starts_with("warning"));
        // What every network passes is not asked for.
        assert_eq!(judged(1500, 0), "");
    }
}
