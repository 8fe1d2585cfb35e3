// SPDX-License-Identifier: GPL-2.0

//! The nodes that may serve a device: those that the operator named, then those that a node told of.
//!
//! The session machine knows a node by its place in the list. Places move only when the operator names
//! other nodes, and then the machine is told so under the same lock; everybody else keeps addresses.
//! Room for all is made when nodes are named: learning happens while dirty pages may wait for it.

use crate::params::{Node, Text};
use kernel::prelude::*;
use neonsan_kernel::net::{IpAddr, SocketAddr};
use neonsan_proto::{NodeAddress, MAX_NODES};
use neonsan_session::client::UNLISTED;

/// Nodes in the order in which they are tried. Owned by the device, under a lock of its own.
pub(crate) struct Nodes {
    list: KVec<Node>,
    /// How many of them the operator named; they come first and stay.
    named: usize,
    /// The node that was in use when a list without it was named, if there is one.
    unlisted: KVec<Node>,
}

impl Nodes {
    /// The nodes that were named. In a box, since devices are put together on the stack. May sleep.
    #[inline(never)]
    pub(crate) fn new(named: &[Node]) -> Result<KBox<Self>> {
        let mut list = KVec::with_capacity(named.len() + MAX_NODES, GFP_KERNEL)?;
        list.extend_from_slice(named, GFP_KERNEL)?;
        let nodes = Nodes {
            named: list.len(),
            list,
            unlisted: KVec::with_capacity(1, GFP_KERNEL)?,
        };
        Ok(KBox::new(nodes, GFP_KERNEL)?)
    }

    /// The operator has named others. Those that nodes told of stay, behind them. `place` is that of the
    /// node in use. Returns its place in the new list, if it is there, and the old list: freeing it is
    /// the caller's.
    #[inline(never)]
    pub(crate) fn replace(
        &mut self,
        mut named: KBox<Nodes>,
        place: u16,
    ) -> (Option<u16>, KBox<Nodes>) {
        let in_use = self.get(place);
        for node in self.list.get(self.named..).unwrap_or_default() {
            if named.place_of(&node.addr).is_none() {
                // There is room for as many as nodes may tell of.
                let _ = named.list.push_within_capacity(*node);
            }
        }
        let place = in_use.and_then(|node| named.place_of(&node.addr));
        if let (Some(node), None) = (in_use, place) {
            let _ = named.unlisted.push_within_capacity(node);
        }
        core::mem::swap(self, &mut named);
        (place, named)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// Those that the operator named.
    pub(crate) fn named(&self) -> &[Node] {
        self.list.get(..self.named).unwrap_or_default()
    }

    /// The node at this place.
    pub(crate) fn get(&self, index: u16) -> Option<Node> {
        match index {
            UNLISTED => self.unlisted.first().copied(),
            index => self.list.get(usize::from(index)).copied(),
        }
    }

    /// The node at this address, with the name under which it was named, if it is known.
    #[inline(never)]
    pub(crate) fn at(&self, addr: &SocketAddr) -> Node {
        let is_there = |node: &&Node| node.addr == *addr;
        let listed = self.list.iter().find(is_there);
        let known = listed.or_else(|| self.unlisted.iter().find(is_there));
        known.copied().unwrap_or(Node {
            addr: *addr,
            name: Text::new(),
        })
    }

    /// Whether the node at this address is in the list.
    pub(crate) fn lists(&self, addr: &SocketAddr) -> bool {
        self.place_of(addr).is_some()
    }

    fn place_of(&self, addr: &SocketAddr) -> Option<u16> {
        let place = self.list.iter().position(|node| node.addr == *addr);
        place.and_then(|place| u16::try_from(place).ok())
    }

    /// The node at this place, and whether another node told of it.
    pub(crate) fn listed(&self, index: u16) -> Option<(Node, bool)> {
        let node = self.list.get(usize::from(index)).copied()?;
        Some((node, usize::from(index) >= self.named))
    }

    /// The node at the address `current` says that these serve the volume. The preferred ones are added
    /// first; what no node tells of any more makes room when there is none.
    #[inline(never)]
    pub(crate) fn learn(&mut self, told: impl Iterator<Item = NodeAddress>, current: &SocketAddr) {
        let mut all = [NodeAddress::default(); MAX_NODES];
        let mut count = 0;
        for (to, from) in all.iter_mut().zip(told) {
            *to = from;
            count += 1;
        }
        let told = all.get(..count).unwrap_or_default();
        // So few that each pass looks for the next in order.
        let mut last = None;
        for _ in 0..count {
            let places = told.iter().enumerate();
            let ranked = places.map(|(place, node)| ((node.priority.get(), place), node));
            let next = ranked.filter(|(rank, _)| last.is_none_or(|last| *rank > last));
            let Some((rank, address)) = next.min_by_key(|(rank, _)| *rank) else {
                return;
            };
            last = Some(rank);
            let Some(addr) = usable(address) else {
                continue;
            };
            if self.list.iter().any(|node| node.addr == addr) {
                continue;
            }
            let node = Node {
                addr,
                name: Text::new(),
            };
            if self.list.push_within_capacity(node).is_err() {
                let stale = self.list.iter_mut().enumerate().find(|(place, node)| {
                    let is_told = told.iter().any(|t| usable(t) == Some(node.addr));
                    *place >= self.named && node.addr != *current && !is_told
                });
                if let Some((_, place)) = stale {
                    *place = node;
                }
            }
        }
    }
}

/// The address in the kernel's terms; `None` for one that cannot be connected to from here.
fn usable(address: &NodeAddress) -> Option<SocketAddr> {
    const MAPPED: [u8; 12] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    let ip = match address.ip.split_first_chunk::<12>() {
        Some((&MAPPED, &[a, b, c, d])) => IpAddr::V4([a, b, c, d]),
        _ => IpAddr::V6(address.ip),
    };
    let reachable = match ip {
        IpAddr::V4(ip) => ip != [0; 4],
        // Of a link-local address only the node knows the interface.
        IpAddr::V6([first, second, ..]) => {
            address.ip != [0; 16] && !(first == 0xfe && second & 0xc0 == 0x80)
        }
    };
    let port = address.port.get();
    (reachable && port != 0).then_some(SocketAddr {
        ip,
        port,
        scope_id: 0,
    })
}
