// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The nodes that have the same volumes.
//!
//! Where nodes share an engine's storage, each tells the others of itself there:
//! one thread writes this node's note every second, with a number that grows, and
//! reads the notes of all. A node whose note has not changed for a while is
//! silent: hosts are not told of it any more, and later its note is removed. Time
//! is counted by the reader alone, so clocks need not agree.
//!
//! An address of loopback means something on one machine only. Other machines are
//! not told of it, since each would take it for itself: nodes of the same machine
//! are, and hosts whose own connection came over loopback.
//!
//! Nothing that matters for data depends on this: who has a volume is decided by
//! the engine's locks. It says where to look.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use neonsan_api::{HealthStatus, NodeEntry, NodeList, NodeState};
use neonsan_engine::NodeNote;
use neonsan_proto::{NodeAddress, MAX_NODES};
use serde::{Deserialize, Serialize};

use crate::health::health;
use crate::hub::node_address;
use crate::shared::{hex, Shared};

/// How often a node tells of itself.
const BEAT: Duration = Duration::from_secs(1);

/// After this long without a sign a node is silent.
const SILENT: Duration = Duration::from_secs(10);

/// After this long its note is removed.
const FORGET: Duration = Duration::from_secs(600);

/// How long a node that stops waits until its note is removed.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// What a node tells of itself, as JSON. Fields may be added.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Told {
    /// Where hosts of any machine reach it.
    addresses: Vec<SocketAddr>,
    /// Where hosts of its own machine reach it. Apart from the others, so that a
    /// node that does not know the difference does not tell them to anybody.
    #[serde(default)]
    local_addresses: Vec<SocketAddr>,
    /// Which machine that is; see [`this_machine`].
    #[serde(default)]
    machine: String,
    version: String,
    boot_id: String,
    /// Grows with each telling.
    beat: u64,
    status: HealthStatus,
    sessions: u64,
    connections: u64,
    in_flight_bytes: u64,
}

/// The note of another node, as it was seen last.
#[derive(Debug)]
struct Seen {
    text: String,
    /// `None` if it makes no sense to this version.
    told: Option<Told>,
    /// When it was seen to have changed, or first.
    changed: Instant,
    /// It has changed since it was seen first: what a dead node has left does
    /// not.
    heard: bool,
}

impl Seen {
    fn is_silent(&self) -> bool {
        !self.heard || self.changed.elapsed() >= SILENT
    }
}

/// The notes of one engine's nodes, by their keys.
type Notes = BTreeMap<String, Seen>;

/// What is known of other nodes.
#[derive(Debug)]
pub struct Peers {
    /// Where hosts of any machine reach this node.
    addresses: Vec<SocketAddr>,
    /// Where hosts of this machine do.
    local_addresses: Vec<SocketAddr>,
    /// See [`this_machine`].
    machine: String,
    /// Those of the configuration, told in any case.
    configured: Vec<SocketAddr>,
    /// By the index of the engine. Written by the thread; locked for look-ups.
    notes: Mutex<BTreeMap<usize, Notes>>,
}

impl Peers {
    /// Nobody is known yet. `addresses` are those of this node, without those
    /// that mean "all of this machine's".
    pub fn new(addresses: &[SocketAddr], configured: &[SocketAddr]) -> Self {
        let (local_addresses, addresses) = addresses
            .iter()
            .copied()
            .filter(|address| !address.ip().to_canonical().is_unspecified())
            .partition(|address| is_local(address.ip()));
        Self {
            addresses,
            local_addresses,
            machine: this_machine(),
            configured: configured.to_owned(),
            notes: Mutex::default(),
        }
    }

    fn notes(&self) -> MutexGuard<'_, BTreeMap<usize, Notes>> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a node that told this is on this machine.
    fn is_here(&self, told: &Told) -> bool {
        !told.machine.is_empty() && told.machine == self.machine
    }

    /// What other nodes know this one by; `None`: it has no address to be told.
    /// Two processes never have the same, and a node that is started again takes
    /// the place of the one that it was.
    fn key(&self) -> Option<String> {
        if let Some(address) = self.addresses.first() {
            return Some(address.to_string());
        }
        // Each machine has these addresses.
        let local = self.local_addresses.first()?;
        Some(format!("{local}@{}", self.machine))
    }

    /// The nodes that a client at `client` is told of as those of an engine's
    /// volumes, the preferred ones first: those of the configuration, this one,
    /// then the others that serve, those with fewer sessions first.
    pub fn addresses(&self, engine: usize, is_shared: bool, client: IpAddr) -> Vec<NodeAddress> {
        let mut all = self.configured.clone();
        let is_local = is_local(client);
        if is_shared {
            all.extend(&self.addresses);
            if is_local {
                all.extend(&self.local_addresses);
            }
            let notes = self.notes();
            let mut others: Vec<&Told> = notes
                .get(&engine)
                .into_iter()
                .flat_map(BTreeMap::values)
                .filter(|seen| !seen.is_silent())
                .filter_map(|seen| seen.told.as_ref())
                .filter(|told| told.status != HealthStatus::ShuttingDown)
                .collect();
            others.sort_by_key(|told| told.sessions);
            for told in others {
                all.extend(&told.addresses);
                if is_local && self.is_here(told) {
                    all.extend(&told.local_addresses);
                }
            }
        }
        let mut known = BTreeSet::new();
        all.retain(|address| known.insert(*address));
        all.iter()
            .take(MAX_NODES)
            .zip(0..)
            .map(|(address, priority)| node_address(*address, priority))
            .collect()
    }

    /// Takes what all nodes have told; gives the notes that are to be removed.
    fn hear(&self, engine: usize, own_key: Option<&str>, notes: Vec<NodeNote>) -> Vec<NodeNote> {
        let now = Instant::now();
        let mut all = self.notes();
        let known = all.entry(engine).or_default();
        known.retain(|key, _| notes.iter().any(|note| note.key == *key));
        let mut old = Vec::new();
        for note in notes {
            if own_key == Some(note.key.as_str()) {
                continue;
            }
            match known.get(&note.key) {
                Some(seen) if seen.text == note.text => {
                    if now.duration_since(seen.changed) >= FORGET {
                        old.push(note);
                    }
                }
                _ => {
                    let told = serde_json::from_str(&note.text).ok();
                    if told.is_none() {
                        tracing::warn!(node = %note.key, "what a node tells of itself makes no sense");
                    }
                    let seen = Seen {
                        text: note.text,
                        told,
                        changed: now,
                        heard: known.contains_key(&note.key),
                    };
                    let before = known.insert(note.key.clone(), seen);
                    if before.is_some_and(|before| before.is_silent()) {
                        tracing::info!(node = %note.key, "heard of a node");
                    }
                }
            }
        }
        old
    }
}

/// Whether only this machine itself reaches the address.
fn is_local(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// Which machine this is, for as long as it runs, and which of its network
/// namespaces: processes for which this is the same have one loopback. Empty if
/// the system does not say.
fn this_machine() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    let network = std::fs::read_link("/proc/self/ns/net");
    match (boot, network) {
        (Ok(boot), Ok(network)) => format!("{} {}", boot.trim(), network.display()),
        _ => String::new(),
    }
}

fn tell(shared: &Shared, beat: u64) -> Told {
    Told {
        addresses: shared.peers.addresses.clone(),
        local_addresses: shared.peers.local_addresses.clone(),
        machine: shared.peers.machine.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        boot_id: hex(&shared.boot_id),
        beat,
        status: health(shared).status,
        sessions: shared.metrics.sessions(),
        connections: shared.metrics.connections.load(Ordering::Relaxed),
        in_flight_bytes: shared.in_flight.used(),
    }
}

fn entry(peers: &Peers, told: &Told, state: NodeState, engines: Vec<String>) -> NodeEntry {
    let local = told.local_addresses.iter().filter(|_| peers.is_here(told));
    NodeEntry {
        addresses: told
            .addresses
            .iter()
            .chain(local)
            .map(ToString::to_string)
            .collect(),
        is_this: false,
        state,
        engines,
        version: told.version.clone(),
        boot_id: told.boot_id.clone(),
        sessions: told.sessions,
        connections: told.connections,
        in_flight_bytes: told.in_flight_bytes,
        heard_ms: 0,
    }
}

fn state_of(status: HealthStatus) -> NodeState {
    match status {
        HealthStatus::Ok => NodeState::Ok,
        HealthStatus::Degraded | HealthStatus::Failed => NodeState::Degraded,
        HealthStatus::ShuttingDown => NodeState::ShuttingDown,
        _ => NodeState::Other,
    }
}

/// All nodes: this one first, then the others by address.
pub fn list(shared: &Shared) -> NodeList {
    let name_of = |index: usize| shared.engines[index].name.clone();
    let this = tell(shared, 0);
    let engines = (0..shared.engines.len()).map(name_of).collect();
    let mut nodes = vec![NodeEntry {
        is_this: true,
        ..entry(&shared.peers, &this, state_of(this.status), engines)
    }];
    // A node with several engines in common has a note in each.
    let mut others: BTreeMap<String, NodeEntry> = BTreeMap::new();
    for (engine, notes) in &*shared.peers.notes() {
        for (key, seen) in notes {
            let Some(told) = &seen.told else { continue };
            let state = match seen.is_silent() {
                true => NodeState::Silent,
                false => state_of(told.status),
            };
            let heard = seen.changed.elapsed().as_millis();
            let other = others.entry(key.clone()).or_insert_with(|| NodeEntry {
                heard_ms: u64::try_from(heard).unwrap_or(u64::MAX),
                ..entry(&shared.peers, told, state, Vec::new())
            });
            other.engines.push(name_of(*engine));
        }
    }
    nodes.extend(others.into_values());
    NodeList { nodes }
}

/// The thread that tells and hears.
pub struct Listening {
    stop: Option<Sender<()>>,
    ended: Receiver<()>,
}

/// Starts the thread, if any engine is shared.
pub fn start(shared: &Arc<Shared>) -> std::io::Result<Option<Listening>> {
    if !shared.engines.iter().any(|e| e.engine.is_shared()) {
        return Ok(None);
    }
    let key = shared.peers.key();
    if shared.peers.addresses.is_empty() {
        let why = match key {
            Some(_) => "it listens on loopback, where only this machine reaches it",
            None => "it listens on all of the machine's addresses",
        };
        tracing::warn!(
            "nodes and hosts on other machines are not told of this one, since {why}: say in \
             data.listen or data.advertise where hosts reach it"
        );
    }
    let (stop, stopped) = mpsc::channel();
    let (end, ended) = mpsc::channel();
    let shared = Arc::clone(shared);
    thread::Builder::new()
        .name("peers".to_owned())
        .spawn(move || {
            run(&shared, key.as_deref(), &stopped);
            drop(end);
        })?;
    Ok(Some(Listening {
        stop: Some(stop),
        ended,
    }))
}

impl Listening {
    /// Takes this node off the list. Waits for a moment only: the cluster may
    /// not answer.
    pub fn stop(mut self) {
        self.stop = None;
        if let Err(RecvTimeoutError::Timeout) = self.ended.recv_timeout(STOP_PATIENCE) {
            tracing::warn!("this node stays on the others' list for a while");
        }
    }
}

fn run(shared: &Shared, key: Option<&str>, stopped: &Receiver<()>) {
    let engines: Vec<usize> = (0..shared.engines.len())
        .filter(|index| shared.engines[*index].engine.is_shared())
        .collect();
    let mut last: Option<NodeNote> = None;
    let mut failing = false;
    for beat in 1.. {
        if let Some(key) = key {
            match serde_json::to_string(&tell(shared, beat)) {
                Ok(text) => {
                    last = Some(NodeNote {
                        key: key.to_owned(),
                        text,
                    });
                }
                Err(error) => tracing::error!(%error, "cannot write what this node tells"),
            }
        }
        let mut failed = false;
        for &index in &engines {
            if let Err(error) = exchange(shared, index, last.as_ref()) {
                failed = true;
                if !failing {
                    let engine = &shared.engines[index].name;
                    tracing::warn!(%engine, %error, "cannot tell the other nodes of this one");
                }
            }
        }
        failing = failed;
        match stopped.recv_timeout(BEAT) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    for index in engines {
        if let Some(note) = &last {
            if let Err(error) = shared.engines[index].engine.forget_node(note) {
                tracing::warn!(%error, "cannot take this node off the others' list");
            }
        }
    }
}

/// Tells one engine's nodes, hears them, and removes those that are long gone.
fn exchange(shared: &Shared, index: usize, own: Option<&NodeNote>) -> neonsan_engine::Result<()> {
    let engine = &shared.engines[index].engine;
    if let Some(note) = own {
        engine.tell_node(note)?;
    }
    let notes = engine.told_nodes()?;
    let own_key = own.map(|note| note.key.as_str());
    for old in shared.peers.hear(index, own_key, notes) {
        tracing::info!(node = %old.key, "forgetting a node that has been silent for long");
        engine.forget_node(&old)?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn told(port: u16, sessions: u64, status: HealthStatus, beat: u64) -> NodeNote {
        let address = SocketAddr::from(([192, 0, 2, 1], port));
        let told = Told {
            addresses: vec![address],
            local_addresses: Vec::new(),
            machine: String::new(),
            version: "1".to_owned(),
            boot_id: String::new(),
            beat,
            status,
            sessions,
            connections: 0,
            in_flight_bytes: 0,
        };
        NodeNote {
            key: address.to_string(),
            text: serde_json::to_string(&told).unwrap(),
        }
    }

    const ELSEWHERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 99));
    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn ports(peers: &Peers, is_shared: bool) -> Vec<u16> {
        ports_for(peers, is_shared, ELSEWHERE)
    }

    fn ports_for(peers: &Peers, is_shared: bool, client: IpAddr) -> Vec<u16> {
        let told = peers.addresses(0, is_shared, client);
        told.iter().map(|address| address.port.get()).collect()
    }

    #[test]
    fn clients_are_told_of_nodes_that_serve_the_idle_ones_first() {
        let own = [
            SocketAddr::from(([0, 0, 0, 0], 1)),
            SocketAddr::from(([192, 0, 2, 1], 2)),
        ];
        let configured = [SocketAddr::from(([192, 0, 2, 1], 9))];
        let peers = Peers::new(&own, &configured);
        let nonsense = NodeNote {
            key: "x".to_owned(),
            text: "{}".to_owned(),
        };
        let notes = |beat| {
            vec![
                told(2, 0, HealthStatus::Ok, beat),
                told(3, 5, HealthStatus::Ok, beat),
                told(4, 1, HealthStatus::Degraded, beat),
                told(5, 0, HealthStatus::ShuttingDown, beat),
                // Left behind by a node that is dead.
                told(6, 0, HealthStatus::Ok, 1),
                nonsense.clone(),
            ]
        };
        let own = Some("192.0.2.1:2");
        assert!(peers.hear(0, own, notes(1)).is_empty());
        assert_eq!(ports(&peers, true), [9, 2]);
        assert!(peers.hear(0, own, notes(2)).is_empty());
        assert_eq!(ports(&peers, true), [9, 2, 4, 3]);
        assert_eq!(ports(&peers, false), [9]);
        peers.hear(0, own, vec![told(3, 5, HealthStatus::Ok, 3)]);
        assert_eq!(ports(&peers, true), [9, 2, 3], "the others have gone");
    }

    /// 127.0.0.1 is another node on each machine: whoever hears of it takes it for
    /// one of his own.
    #[test]
    fn addresses_of_loopback_are_told_on_their_own_machine_only() {
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let own = [loopback(1), "[::1]:1".parse().unwrap()];
        let peers = Peers::new(&own, &[]);
        assert!(peers.addresses.is_empty() && peers.local_addresses.len() == 2);
        assert_eq!(ports(&peers, true), [0; 0]);
        assert_eq!(ports_for(&peers, true, HERE), [1, 1]);
        let mapped = "::ffff:127.0.0.1".parse().unwrap();
        assert_eq!(ports_for(&peers, true, mapped), [1, 1]);
        // The same address on two machines is two nodes.
        let key = peers.key().unwrap();
        assert!(key.starts_with("127.0.0.1:1@") && key.len() > 20, "{key}");

        let note = |port, machine: &str, beat| {
            let mut told = Told {
                addresses: Vec::new(),
                local_addresses: vec![loopback(port)],
                machine: machine.to_owned(),
                version: "1".to_owned(),
                boot_id: String::new(),
                beat,
                status: HealthStatus::Ok,
                sessions: 0,
                connections: 0,
                in_flight_bytes: 0,
            };
            if machine == "another" {
                told.addresses = vec![SocketAddr::from(([192, 0, 2, 7], 7))];
            }
            NodeNote {
                key: format!("{port}@{machine}"),
                text: serde_json::to_string(&told).unwrap(),
            }
        };
        for beat in 1..3 {
            let notes = vec![note(2, &peers.machine, beat), note(3, "another", beat)];
            peers.hear(0, Some(&key), notes);
        }
        assert_eq!(ports(&peers, true), [7]);
        assert_eq!(ports_for(&peers, true, HERE), [1, 1, 2, 7]);
        // One that listens on an address of the network is told everywhere, by that.
        let both = [loopback(4), SocketAddr::from(([192, 0, 2, 1], 4))];
        let peers = Peers::new(&both, &[]);
        assert_eq!(ports(&peers, true), [4]);
        assert_eq!(peers.key().unwrap(), "192.0.2.1:4");
    }

    #[test]
    fn a_node_that_says_nothing_new_is_silent() {
        let peers = Peers::new(&[], &[]);
        peers.hear(0, None, vec![told(3, 0, HealthStatus::Ok, 1)]);
        let note = told(3, 0, HealthStatus::Ok, 2);
        peers.hear(0, None, vec![note.clone()]);
        assert_eq!(ports(&peers, true), [3]);
        let Some(past) = Instant::now().checked_sub(FORGET) else {
            // The machine was started less than that ago.
            return;
        };
        let set = |changed| {
            if let Some(seen) = peers.notes().get_mut(&0).unwrap().get_mut(&note.key) {
                seen.changed = changed;
            }
        };
        set(past + Duration::from_secs(60));
        assert!(peers.hear(0, None, vec![note.clone()]).is_empty());
        assert!(ports(&peers, true).is_empty());
        set(past);
        assert_eq!(peers.hear(0, None, vec![note.clone()]), [note]);
        // Heard of again.
        peers.hear(0, None, vec![told(3, 0, HealthStatus::Ok, 3)]);
        assert_eq!(ports(&peers, true), [3]);
    }
}
