// SPDX-License-Identifier: GPL-2.0 OR MIT

//! `neonsan resolve`: the names of nodes are resolved again where a device is lost.
//!
//! The module knows the names that the operator gave, and cannot resolve them. When a device has been
//! without service for some seconds it says so, again and again; whoever runs this then asks the
//! resolver anew, and gives the device what has changed. No state is kept: what is known of a device is
//! asked of the module each time.

use super::set::set_nodes;
use super::{get_device, get_devices};
use crate::cli::{Common, Resolve};
use crate::device::{Device, Node};
use crate::error::{Error, Kind, Result};
use crate::netlink::{Client, Event};
use crate::output::{plain, print, print_json_line};
use crate::target::{resolve_name, ResolvedNode};
use crate::uapi::{attr, cmd};
use serde::Serialize;
use std::collections::HashMap;
use std::time::Duration;

/// How long events are waited for. Then all devices are looked at: the module may have been loaded anew
/// meanwhile, and its events come by another way.
const PATIENCE: Duration = Duration::from_secs(60);

/// What was done for a device, as in Documentation/cli-json.rst.
#[derive(Serialize)]
struct Changed<'a> {
    device: &'a str,
    index: u32,
    volume: &'a str,
    nodes: Vec<String>,
}

/// Looks at the devices that are lost, once or until the program is stopped.
pub fn run(common: &Common, args: &Resolve) -> Result<()> {
    let mut resolver = Resolver {
        json: common.json,
        said: HashMap::new(),
    };
    if args.once {
        return resolver.look_at_all(&mut Client::connect()?);
    }
    loop {
        match resolver.follow_events() {
            Ok(()) => {}
            // It will be loaded, or loaded again.
            Err(error) if error.kind() == Kind::Module => std::thread::sleep(PATIENCE),
            Err(error) => return Err(error),
        }
    }
}

struct Resolver {
    json: bool,
    /// What was said last of a device that cannot be helped: each thing is said once.
    said: HashMap<u32, String>,
}

impl Resolver {
    /// Follows events until there are none for a while.
    fn follow_events(&mut self) -> Result<()> {
        let (mut client, mut events) = (Client::connect()?, Client::connect()?);
        // Before it looks: what is lost meanwhile is told.
        events.subscribe()?;
        self.look_at_all(&mut client)?;
        loop {
            match events.next_events_within(PATIENCE)? {
                Some(happened) if happened.is_empty() => return Ok(()),
                Some(happened) => {
                    for index in happened.iter().filter_map(lost_index) {
                        match get_device(&mut client, index) {
                            Ok(device) => self.look_at(&mut client, &device)?,
                            // It was detached meanwhile.
                            Err(error) if error.kind() == Kind::NotFound => {}
                            Err(error) => return Err(error),
                        }
                    }
                }
                // Some were lost.
                None => self.look_at_all(&mut client)?,
            }
        }
    }

    fn look_at_all(&mut self, client: &mut Client) -> Result<()> {
        for device in get_devices(client)? {
            self.look_at(client, &device)?;
        }
        Ok(())
    }

    /// Resolves the names of a device that is lost. What keeps this one from being helped is said, and
    /// ends nothing.
    fn look_at(&mut self, client: &mut Client, device: &Device) -> Result<()> {
        if device.hidden {
            return Err(Error::new(
                Kind::Permission,
                "the nodes of devices are not shown to you",
            )
            .with_hint("run the command as root: it needs CAP_SYS_ADMIN"));
        }
        if device.lost_ms == 0 {
            self.said.remove(&device.index);
            return Ok(());
        }
        let again = Again::of(&device.nodes, resolve_name);
        let result = match (again.nodes, again.error) {
            (Some(nodes), _) => {
                set_nodes(client, device.index, nodes.clone()).map(|()| Some(nodes))
            }
            (None, Some(error)) => Err(error),
            (None, None) => Ok(None),
        };
        match result {
            Ok(Some(nodes)) => {
                self.said.remove(&device.index);
                self.show(device, &nodes)
            }
            Ok(None) => Ok(()),
            Err(error) if matches!(error.kind(), Kind::Module | Kind::Permission) => Err(error),
            Err(error) => {
                let said = error.to_string();
                if self.said.insert(device.index, said.clone()).as_ref() != Some(&said) {
                    eprintln!("neonsan: {}: {error}", device.name);
                }
                Ok(())
            }
        }
    }

    fn show(&self, device: &Device, nodes: &[ResolvedNode]) -> Result<()> {
        let nodes: Vec<_> = nodes.iter().map(show_node).collect();
        if self.json {
            return print_json_line(&Changed {
                device: &device.device,
                index: device.index,
                volume: &device.volume,
                nodes,
            });
        }
        print(&plain(&format!(
            "{}: {} is served by {} now",
            device.name,
            device.volume,
            nodes.join(", ")
        )))?;
        print("\n")
    }
}

/// The device that an event says is lost.
fn lost_index(event: &Event) -> Option<u32> {
    let is_lost = event.cmd == cmd::STILL_LOST;
    event.attrs().u32(attr::device::INDEX).filter(|_| is_lost)
}

fn show_node(node: &ResolvedNode) -> String {
    match &node.name {
        Some(name) => format!("{} ({name})", node.socket()),
        None => node.socket().to_string(),
    }
}

/// What comes of resolving the names of a device again.
#[derive(Debug, Default)]
struct Again {
    /// The nodes that the operator named, with the addresses that their names have now; `None`: they are
    /// what they were.
    nodes: Option<Vec<ResolvedNode>>,
    /// Why a name could not be resolved: it keeps the addresses that it had.
    error: Option<Error>,
}

impl Again {
    fn of(known: &[Node], resolve: impl Fn(&str, u16) -> Result<Vec<ResolvedNode>>) -> Again {
        let named = || known.iter().filter(|node| !node.learned);
        let mut again = Again::default();
        let mut nodes: Vec<ResolvedNode> = Vec::new();
        let mut done: Vec<(&str, u16)> = Vec::new();
        for node in named() {
            let Some(name) = node.name.as_deref() else {
                nodes.push(node.resolved());
                continue;
            };
            // A name may have several addresses, which stand together.
            if done.contains(&(name, node.port)) {
                continue;
            }
            done.push((name, node.port));
            match resolve(name, node.port) {
                Ok(found) => nodes.extend(found),
                Err(error) => {
                    let is_same = |other: &&Node| {
                        (other.name.as_deref(), other.port) == (Some(name), node.port)
                    };
                    nodes.extend(named().filter(is_same).map(Node::resolved));
                    again.error = Some(error);
                }
            }
        }
        // A resolver may give them in another order each time, which changes nothing.
        let before: Vec<_> = named().map(Node::resolved).collect();
        let is_same = nodes.iter().all(|node| before.contains(node))
            && before.iter().all(|node| nodes.contains(node));
        again.nodes = (!is_same).then_some(nodes);
        again
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn node(address: &str, port: u16, name: Option<&str>) -> Node {
        Node {
            address: address.parse().unwrap(),
            port,
            scope_id: None,
            name: name.map(str::to_owned),
            learned: false,
        }
    }

    /// Resolves from a list; what is not there cannot be resolved.
    fn again(known: &[Node], answers: &[(&str, &[&str])]) -> Again {
        Again::of(known, |name, port| {
            let found = answers.iter().find(|(known, _)| *known == name);
            let (_, addresses) = found.ok_or(Error::new(Kind::Unreachable, "no such name"))?;
            let node = |address: &&str| node(address, port, Some(name)).resolved();
            Ok(addresses.iter().map(node).collect())
        })
    }

    fn shown(again: &Again) -> Option<Vec<String>> {
        let nodes = again.nodes.as_ref()?;
        Some(nodes.iter().map(show_node).collect())
    }

    #[test]
    fn a_name_with_another_address_changes_the_nodes() {
        let learned = Node {
            learned: true,
            ..node("192.0.2.9", 9666, None)
        };
        let known = [
            node("192.0.2.1", 7, Some("a")),
            node("192.0.2.2", 7, Some("a")),
            node("192.0.2.5", 9666, None),
            node("192.0.2.1", 8, Some("a")),
            learned,
        ];
        // Of port 8 there was one address only.
        let more = again(&known, &[("a", &["192.0.2.2", "192.0.2.1"])]);
        assert_eq!(
            shown(&more).unwrap(),
            [
                "192.0.2.2:7 (a)",
                "192.0.2.1:7 (a)",
                "192.0.2.5:9666",
                "192.0.2.2:8 (a)",
                "192.0.2.1:8 (a)"
            ]
        );
        // In another order it is the same.
        let known = &known[..3];
        let same = again(known, &[("a", &["192.0.2.2", "192.0.2.1"])]);
        assert!(same.nodes.is_none() && same.error.is_none());
        let moved = again(known, &[("a", &["192.0.2.7"])]);
        assert_eq!(
            shown(&moved).unwrap(),
            ["192.0.2.7:7 (a)", "192.0.2.5:9666"]
        );
    }

    #[test]
    fn a_name_that_is_not_resolved_keeps_its_addresses() {
        let known = [
            node("192.0.2.1", 7, Some("a")),
            node("192.0.2.2", 7, Some("b")),
        ];
        let none = again(&known, &[]);
        assert!(none.nodes.is_none());
        assert_eq!(none.error.unwrap().kind(), Kind::Unreachable);
        let one = again(&known, &[("b", &["192.0.2.3"])]);
        assert_eq!(shown(&one).unwrap(), ["192.0.2.1:7 (a)", "192.0.2.3:7 (b)"]);
    }

    #[test]
    fn without_names_there_is_nothing_to_resolve() {
        let known = [node("192.0.2.1", 7, None)];
        let nothing = Again::of(&known, |_, _| panic!("it has no name"));
        assert!(nothing.nodes.is_none() && nothing.error.is_none());
    }
}
