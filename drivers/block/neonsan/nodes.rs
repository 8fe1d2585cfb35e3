// SPDX-License-Identifier: GPL-2.0

//! The nodes that may serve a device: those named at attach, then those that a node told of.
//!
//! The session machine knows a node by its place in the list, so places never move. Room for all
//! is made at attach: learning happens while dirty pages may wait for it.

use crate::params::{Node, Text};
use kernel::prelude::*;
use neonsan_kernel::net::{IpAddr, SocketAddr};
use neonsan_proto::{NodeAddress, MAX_NODES};

/// Nodes in the order in which they are tried. Owned by the device, under a lock of its own.
pub(crate) struct Nodes {
    list: KVec<Node>,
    /// How many of them were named at attach; they come first and stay.
    named: usize,
}

impl Nodes {
    /// The nodes that were named. May sleep.
    pub(crate) fn new(named: &[Node]) -> Result<Self> {
        let mut list = KVec::with_capacity(named.len() + MAX_NODES, GFP_KERNEL)?;
        list.extend_from_slice(named, GFP_KERNEL)?;
        Ok(Nodes {
            named: list.len(),
            list,
        })
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    /// The node at this place.
    pub(crate) fn get(&self, index: u16) -> Option<Node> {
        self.list.get(usize::from(index)).copied()
    }

    /// The node at this place, and whether another node told of it.
    pub(crate) fn listed(&self, index: u16) -> Option<(Node, bool)> {
        let node = self.get(index)?;
        Some((node, usize::from(index) >= self.named))
    }

    /// The node at place `current` says that these serve the volume. The preferred ones are added
    /// first; what no node tells of any more makes room when there is none.
    #[inline(never)]
    pub(crate) fn learn(&mut self, told: impl Iterator<Item = NodeAddress>, current: u16) {
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
                    *place >= self.named && *place != usize::from(current) && !is_told
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
