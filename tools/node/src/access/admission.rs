// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Limits per peer, so that one peer never shuts others out.
//!
//! Three bounds, looked at when a connection is accepted:
//!
//! * *All connections.* The last of them are a reserve for peers that have few: several peers that
//!   take all they can get leave it.
//! * *Connections of one peer*, a share of all.
//! * *Connections that have not introduced themselves*, per peer and in all. Nobody knows yet whether
//!   they will ever say anything, so one that is too many does not keep a new one out: the oldest of
//!   them makes room. A client that means it introduces itself in a moment and is not among the
//!   oldest.
//!
//! The table is locked when a connection is accepted, introduces itself and ends, not for I/O.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use neonsan_session::server::ConnectionId;
use neonsan_session::Instant;

use super::canonical;
use crate::config::LimitsConfig;

/// A connection that has not introduced itself after this long may have to make room for a new one,
/// where it would not be closed yet.
const SILENT_MS: u64 = 1000;

/// Peers with fewer connections may use the reserve.
const FEW_CONNECTIONS: u32 = 16;

/// Peers with fewer sessions may use the reserve.
const FEW_SESSIONS: u32 = 4;

/// For whom a connection counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PeerKey {
    /// An IPv4 address.
    V4([u8; 4]),
    /// The first half of an IPv6 address: a machine may have as many of those as it likes with one.
    V6([u8; 8]),
    /// A user of this machine: one user does not take the connections of another.
    Local(u32),
    /// Somebody on this machine whose connection is not served.
    Unknown,
}

impl PeerKey {
    /// That of a peer on another machine.
    pub fn remote(peer: SocketAddr) -> Self {
        match canonical(peer).ip() {
            IpAddr::V4(v4) => Self::V4(v4.octets()),
            IpAddr::V6(v6) => {
                let [a, b, c, d, e, f, g, h, ..] = v6.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

/// How a number of things is shared among peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// As many as there may be.
    total: u32,
    /// As many as one peer may have.
    per_peer: u32,
    /// So many of them are for peers that have few.
    reserve: u32,
    /// What few is.
    few: u32,
}

impl Shares {
    /// `per_peer` 0 means three quarters.
    fn new(total: u32, per_peer: u32, few: u32) -> Self {
        let per_peer = match per_peer {
            0 => total - total / 4,
            n => n.min(total),
        };
        Self {
            total,
            per_peer,
            reserve: total / 8,
            few,
        }
    }

    /// Those of connections.
    pub fn of_connections(limits: &LimitsConfig) -> Self {
        let few = FEW_CONNECTIONS;
        Self::new(limits.max_connections, limits.max_peer_connections, few)
    }

    /// Those of sessions.
    pub fn of_sessions(limits: &LimitsConfig) -> Self {
        Self::new(limits.max_sessions, limits.max_peer_sessions, FEW_SESSIONS)
    }

    /// Which bound keeps a peer that has `own` of `all` from one more.
    pub fn full(&self, own: u32, all: u32) -> Option<Full> {
        if all >= self.total {
            Some(Full::All)
        } else if own >= self.per_peer {
            Some(Full::Peer)
        } else if self.total - all <= self.reserve && own >= self.few {
            Some(Full::Reserve)
        } else {
            None
        }
    }
}

/// Which bound is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// There may be no more in all.
    All,
    /// This peer may have no more.
    Peer,
    /// What is left is for peers that have few.
    Reserve,
}

/// What becomes of a connection that was accepted, and of others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admitted {
    /// These have to make room.
    pub leaving: Vec<ConnectionId>,
    /// The bound that keeps the new one out; `None`: it is in.
    pub full: Option<Full>,
}

#[derive(Debug, Default)]
struct Peer {
    open: u32,
    /// Those that have not introduced themselves, the oldest first, with the time of their arrival.
    silent: BTreeMap<ConnectionId, Instant>,
}

#[derive(Debug, Default)]
struct Table {
    peers: HashMap<PeerKey, Peer>,
    /// All that are open, but for those that were told to make room.
    open: HashMap<ConnectionId, PeerKey>,
    /// Those that have not introduced themselves, the oldest first.
    silent: BTreeMap<ConnectionId, PeerKey>,
}

impl Table {
    fn close(&mut self, id: ConnectionId) {
        self.introduced(id);
        let Some(key) = self.open.remove(&id) else {
            return;
        };
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.open = peer.open.saturating_sub(1);
            if peer.open == 0 {
                self.peers.remove(&key);
            }
        }
    }

    fn introduced(&mut self, id: ConnectionId) {
        if let Some(key) = self.silent.remove(&id) {
            if let Some(peer) = self.peers.get_mut(&key) {
                peer.silent.remove(&id);
            }
        }
    }

    fn oldest_of(&self, key: PeerKey) -> Option<(ConnectionId, Instant)> {
        let (id, since) = self.peers.get(&key)?.silent.first_key_value()?;
        Some((*id, *since))
    }

    fn oldest(&self) -> Option<(ConnectionId, Instant)> {
        let (id, key) = self.silent.first_key_value()?;
        let since = self.peers.get(key)?.silent.get(id)?;
        Some((*id, *since))
    }

    /// Of one peer, or of all, the oldest that said nothing for long, while they are `max` or more.
    fn too_silent(
        &self,
        key: PeerKey,
        per_peer: u32,
        all: u32,
        now: Instant,
    ) -> Option<ConnectionId> {
        let own = self.peers.get(&key).map_or(0, |peer| peer.silent.len());
        let candidate = if own >= per_peer as usize {
            self.oldest_of(key)
        } else if self.silent.len() >= all as usize {
            self.oldest()
        } else {
            None
        };
        candidate
            .filter(|(_, since)| now.since_ms(*since) >= SILENT_MS)
            .map(|(id, _)| id)
    }
}

/// Counts the connections of each peer. Shared by the worker that accepts, which asks, and all
/// workers, which tell of introductions and ends.
#[derive(Debug, Default)]
pub struct Admission {
    table: Mutex<Table>,
}

impl Admission {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a new connection of `key` in, unless a bound is reached. Connections that have to make
    /// room are not counted any more, and must be closed.
    pub fn admit(
        &self,
        id: ConnectionId,
        key: PeerKey,
        limits: &LimitsConfig,
        now: Instant,
    ) -> Admitted {
        let mut table = self.table();
        let shares = Shares::of_connections(limits);
        let silent = limits.max_peer_handshakes;
        let all_silent = (limits.max_connections / 4).max(silent);
        let mut leaving = Vec::new();
        while let Some(old) = table.too_silent(key, silent, all_silent, now) {
            table.close(old);
            leaving.push(old);
        }
        loop {
            let own = table.peers.get(&key).map_or(0, |peer| peer.open);
            let all = u32::try_from(table.open.len()).unwrap_or(u32::MAX);
            let Some(full) = shares.full(own, all) else {
                break;
            };
            let room = match full {
                Full::All => table.oldest_of(key).or_else(|| table.oldest()),
                Full::Peer | Full::Reserve => table.oldest_of(key),
            };
            let Some((old, _)) = room else {
                return Admitted {
                    leaving,
                    full: Some(full),
                };
            };
            table.close(old);
            leaving.push(old);
        }
        let peer = table.peers.entry(key).or_default();
        peer.open += 1;
        peer.silent.insert(id, now);
        table.open.insert(id, key);
        table.silent.insert(id, key);
        Admitted {
            leaving,
            full: None,
        }
    }

    /// The connection has said what it wants.
    pub fn introduced(&self, id: ConnectionId) {
        self.table().introduced(id);
    }

    /// The connection has ended.
    pub fn closed(&self, id: ConnectionId) {
        self.table().close(id);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const A: PeerKey = PeerKey::V4([192, 0, 2, 1]);
    const B: PeerKey = PeerKey::V4([192, 0, 2, 2]);
    const C: PeerKey = PeerKey::V4([192, 0, 2, 3]);

    fn limits(connections: u32, handshakes: u32) -> LimitsConfig {
        LimitsConfig {
            max_connections: connections,
            max_peer_handshakes: handshakes,
            ..LimitsConfig::default()
        }
    }

    struct Node {
        admission: Admission,
        limits: LimitsConfig,
        next: u64,
    }

    impl Node {
        fn new(connections: u32, handshakes: u32) -> Self {
            Self {
                admission: Admission::default(),
                limits: limits(connections, handshakes),
                next: 0,
            }
        }

        /// A connection that says nothing.
        fn silent(&mut self, key: PeerKey, at_ms: u64) -> Admitted {
            self.next += 1;
            let id = ConnectionId(self.next);
            self.admission.admit(id, key, &self.limits, Instant(at_ms))
        }

        /// One that introduces itself at once; whether it was let in.
        fn real(&mut self, key: PeerKey, at_ms: u64) -> bool {
            let admitted = self.silent(key, at_ms);
            self.admission.introduced(ConnectionId(self.next));
            admitted.full.is_none()
        }
    }

    #[test]
    fn one_peer_leaves_room_for_others() {
        let mut node = Node::new(4096, 64);
        let taken = (0..10_000).filter(|_| node.real(A, 0)).count();
        assert_eq!(taken, 3072);
        assert!(node.real(B, 0));
        // And several peers together leave the reserve.
        let taken = (0..10_000).filter(|_| node.real(B, 0)).count();
        assert_eq!(3072 + 1 + taken, 4096 - 512);
        for _ in 0..FEW_CONNECTIONS {
            assert!(node.real(C, 0));
        }
        assert!(!node.real(C, 0));
    }

    #[test]
    fn who_says_nothing_makes_room_for_a_new_one() {
        let mut node = Node::new(4096, 64);
        for at in 0..64 {
            assert_eq!(node.silent(A, at), Admitted::default());
        }
        // A burst is no attack.
        assert_eq!(node.silent(A, 100), Admitted::default());
        let admitted = node.silent(A, 2000);
        assert_eq!(admitted.full, None);
        assert_eq!(admitted.leaving, [ConnectionId(1), ConnectionId(2)]);
        // Even where the peer's share is used up by silence.
        for _ in 0..5000 {
            assert_eq!(node.silent(A, 2000).full, None);
        }
        assert!(node.real(A, 2000));
        assert!(node.real(B, 2000));
    }

    #[test]
    fn silence_of_many_peers_is_bounded_too() {
        let mut node = Node::new(4096, 64);
        let mut leaving = 0;
        for peer in 0..5000_u32 {
            let key = PeerKey::V4(peer.to_be_bytes());
            let admitted = node.silent(key, u64::from(peer));
            assert_eq!(admitted.full, None);
            leaving += admitted.leaving.len();
        }
        assert_eq!(leaving, 5000 - 1024);
    }

    #[test]
    fn what_has_ended_is_not_counted() {
        let mut node = Node::new(8, 64);
        for _ in 0..6 {
            assert!(node.real(A, 0));
        }
        assert!(!node.real(A, 0), "three quarters");
        node.admission.closed(ConnectionId(1));
        node.admission.closed(ConnectionId(1));
        assert!(node.real(A, 0));
        for id in 1..=node.next {
            node.admission.closed(ConnectionId(id));
        }
        let table = node.admission.table();
        assert!(table.peers.is_empty() && table.open.is_empty() && table.silent.is_empty());
    }

    #[test]
    fn small_limits_of_an_operator_mean_what_they_say() {
        let mut node = Node::new(2, 64);
        node.limits.max_peer_connections = 2;
        assert!(node.real(A, 0) && node.real(A, 0));
        assert!(!node.real(B, 0));
    }

    #[test]
    fn an_ipv6_peer_is_its_network() {
        let key = |text: &str| PeerKey::remote(text.parse().unwrap());
        assert_eq!(key("[2001:db8::1]:1"), key("[2001:db8::ffff:2]:9"));
        assert_ne!(key("[2001:db8::1]:1"), key("[2001:db8:0:1::1]:1"));
        assert_eq!(key("[::ffff:192.0.2.1]:1"), A);
    }
}
