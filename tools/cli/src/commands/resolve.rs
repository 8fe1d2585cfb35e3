// SPDX-License-Identifier: GPL-2.0 OR MIT

//! `neonsan resolve`: the names of nodes are resolved again where a device is lost, and those that have had no
//! address yet, of any device.
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
use crate::output::{plain, print, print_json_line, say};
use crate::target::{resolve_name, ResolvedNode};
use crate::uapi::{attr, cmd};
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long events are waited for. Then all devices are looked at: the module may have been loaded anew
/// meanwhile, and its events come by another way.
const PATIENCE: Duration = Duration::from_secs(60);

/// The same where a name is to be looked up that has no address yet, or a device has just been attached,
/// which may have one.
const SOON: Duration = Duration::from_secs(10);

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
        return resolver.look_at_all(&mut Client::connect()?).map(drop);
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
    /// Follows events for a while.
    fn follow_events(&mut self) -> Result<()> {
        let (mut client, mut events) = (Client::connect()?, Client::connect()?);
        // Before it looks: what is lost meanwhile is told.
        events.subscribe()?;
        let end = Instant::now() + PATIENCE;
        let mut due = self.look_again(&mut client)?;
        loop {
            let now = Instant::now();
            if now >= end {
                return Ok(());
            }
            if now >= due {
                due = self.look_again(&mut client)?;
                continue;
            }
            match events.next_events_within(due.min(end).saturating_duration_since(now))? {
                Some(happened) => {
                    if happened.iter().any(|event| event.cmd == cmd::ATTACHED) {
                        due = due.min(Instant::now() + SOON);
                    }
                    for index in happened.iter().filter_map(lost_index) {
                        match get_device(&mut client, index) {
                            Ok(device) => drop(self.look_at(&mut client, &device)?),
                            // It was detached meanwhile.
                            Err(error) if error.kind() == Kind::NotFound => {}
                            Err(error) => return Err(error),
                        }
                    }
                }
                // Some were lost.
                None => due = self.look_again(&mut client)?,
            }
        }
    }

    /// Looks at all devices. Returns when that is to be done again.
    fn look_again(&mut self, client: &mut Client) -> Result<Instant> {
        let pause = match self.look_at_all(client)? {
            true => SOON,
            false => PATIENCE,
        };
        Ok(Instant::now() + pause)
    }

    /// Those that are lost come first: a resolver that does not answer takes its time for each name. Returns
    /// whether a name has no address yet.
    fn look_at_all(&mut self, client: &mut Client) -> Result<bool> {
        let mut devices = get_devices(client)?;
        devices.sort_by_key(|device| Reverse(device.lost_ms));
        let mut is_one_left = false;
        for device in devices {
            is_one_left |= self.look_at(client, &device)?;
        }
        Ok(is_one_left)
    }

    /// Resolves the names of a device that is lost; of another one those that have had no address yet. What
    /// keeps this one from being helped is said, and ends nothing. Returns whether a name has no address yet.
    fn look_at(&mut self, client: &mut Client, device: &Device) -> Result<bool> {
        if device.hidden {
            return Err(Error::new(
                Kind::Permission,
                "the nodes of devices are not shown to you",
            )
            .with_hint("run the command as root: it needs CAP_SYS_ADMIN"));
        }
        let which = match device.lost_ms {
            0 => Which::Unresolved,
            _ => Which::All,
        };
        let again = Again::of(&device.nodes, which, resolve_name);
        let is_one_left = again.is_one_left;
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
                self.show(device, &nodes)?;
            }
            Ok(None) => drop(self.said.remove(&device.index)),
            Err(error) if matches!(error.kind(), Kind::Module | Kind::Permission) => {
                return Err(error)
            }
            Err(error) => {
                let said = error.to_string();
                if self.said.insert(device.index, said.clone()).as_ref() != Some(&said) {
                    say(&format!("neonsan: {}: {error}\n", device.name));
                }
            }
        }
        Ok(is_one_left)
    }

    fn show(&self, device: &Device, nodes: &[ResolvedNode]) -> Result<()> {
        let nodes: Vec<_> = nodes.iter().map(ToString::to_string).collect();
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

/// Of which nodes of a device the names are resolved again.
#[derive(Clone, Copy)]
enum Which {
    All,
    /// Those that have had no address yet: what works is not asked about.
    Unresolved,
}

/// What comes of resolving the names of a device again.
#[derive(Debug, Default)]
struct Again {
    /// The nodes that the operator named, with the addresses that their names have now; `None`: they are
    /// what they were.
    nodes: Option<Vec<ResolvedNode>>,
    /// Why a name could not be resolved: it keeps the addresses that it had.
    error: Option<Error>,
    /// A name still has no address.
    is_one_left: bool,
}

impl Again {
    fn of(
        known: &[Node],
        which: Which,
        resolve: impl Fn(&str, u16) -> Result<Vec<ResolvedNode>>,
    ) -> Again {
        let named = || known.iter().filter(|node| !node.learned);
        let mut again = Again::default();
        let mut nodes: Vec<ResolvedNode> = Vec::new();
        let mut done: Vec<(&str, u16)> = Vec::new();
        for node in named() {
            let is_asked = match which {
                Which::All => true,
                Which::Unresolved => node.resolved().is_unresolved(),
            };
            let Some(name) = node.name.as_deref().filter(|_| is_asked) else {
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
        again.is_one_left = nodes.iter().any(ResolvedNode::is_unresolved);
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
        again_of(known, Which::All, answers)
    }

    fn again_of(known: &[Node], which: Which, answers: &[(&str, &[&str])]) -> Again {
        Again::of(known, which, |name, port| {
            let found = answers.iter().find(|(known, _)| *known == name);
            let (_, addresses) = found.ok_or(Error::new(Kind::Unreachable, "no such name"))?;
            let node = |address: &&str| node(address, port, Some(name)).resolved();
            Ok(addresses.iter().map(node).collect())
        })
    }

    fn shown(again: &Again) -> Option<Vec<String>> {
        let nodes = again.nodes.as_ref()?;
        Some(nodes.iter().map(ToString::to_string).collect())
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
    fn a_name_that_had_no_address_gets_one_also_while_all_is_well() {
        let late = ResolvedNode::unresolved("late", 7);
        let known = [
            node(&late.address.to_string(), 7, Some("late")),
            node("192.0.2.1", 7, Some("a")),
        ];
        let none = again_of(&known, Which::Unresolved, &[("a", &["192.0.2.9"])]);
        assert!(none.nodes.is_none() && none.is_one_left && none.error.is_some());
        let answers: [(_, &[_]); 2] =
            [("late", &["192.0.2.7", "192.0.2.8"]), ("a", &["192.0.2.9"])];
        // What works is left alone, wherever its name leads now.
        let well = again_of(&known, Which::Unresolved, &answers);
        let nodes = [
            "192.0.2.7:7 (late)",
            "192.0.2.8:7 (late)",
            "192.0.2.1:7 (a)",
        ];
        assert_eq!(shown(&well).unwrap(), nodes);
        assert!(!well.is_one_left);
        let lost = again_of(&known, Which::All, &answers);
        assert_eq!(shown(&lost).unwrap()[2], "192.0.2.9:7 (a)");
        let well = again_of(&known[1..], Which::Unresolved, &answers);
        assert!(well.nodes.is_none() && !well.is_one_left);
    }

    #[test]
    fn without_names_there_is_nothing_to_resolve() {
        let known = [node("192.0.2.1", 7, None)];
        let nothing = Again::of(&known, Which::All, |_, _| panic!("it has no name"));
        assert!(nothing.nodes.is_none() && nothing.error.is_none());
    }
}
