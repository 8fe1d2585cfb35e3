// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What all threads of a node share, and nothing that the I/O path locks.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Instant as StdInstant, SystemTime, UNIX_EPOCH};

use neonsan_api::VolumeName;
use neonsan_engine::{Engine, EngineStatus};
use neonsan_proto::NodeAddress;
use neonsan_session::Instant;

use crate::access::{Admission, LocalUsers};
use crate::config::Config;
use crate::data::Mailbox;
use crate::engines::Supervised;
use crate::hub::{Observations, ToHub};
use crate::listen::Waiting;
use crate::log_limit::LogLimits;
use crate::metrics::Metrics;
use crate::peers::Peers;

/// One clock for all machines: milliseconds since the node started.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: StdInstant,
}

impl Clock {
    /// A clock that begins now.
    pub fn start() -> Self {
        Self {
            started: StdInstant::now(),
        }
    }

    /// Now.
    pub fn now(&self) -> Instant {
        self.at(StdInstant::now())
    }

    /// The same for a time that was read before.
    pub fn at(&self, time: StdInstant) -> Instant {
        let since = time.saturating_duration_since(self.started);
        Instant(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    /// The Unix time of `at`, in seconds, as of the wall clock now.
    pub fn unix_s(&self, at: Instant) -> u64 {
        let unix = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs());
        unix.saturating_sub(self.now().since_ms(at) / 1000)
    }
}

/// A bound on bytes of requests in flight, which several threads draw on.
#[derive(Debug)]
pub struct Budget {
    used: AtomicU64,
    max: AtomicU64,
}

impl Budget {
    /// A budget of which nothing is used.
    pub fn new(max: u64) -> Self {
        Self {
            used: AtomicU64::new(0),
            max: AtomicU64::new(max),
        }
    }

    /// Sets another bound. What is taken beyond it stays taken until it is given back.
    pub fn set_max(&self, max: u64) {
        self.max.store(max, Ordering::Relaxed);
    }

    /// Takes `bytes` if they are there; gives what was taken before.
    pub fn take(&self, bytes: u64) -> Option<u64> {
        let max = self.max.load(Ordering::Relaxed);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|&total| total <= max)
            })
            .ok()
    }

    /// Takes `bytes` though they may not be there.
    pub fn take_anyway(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Gives back what was taken.
    pub fn give(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// What is taken now.
    pub fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }
}

/// An engine with its name in the configuration.
pub struct NamedEngine {
    /// The name.
    pub name: String,
    /// The engine, or who refuses in its place as long as it cannot be opened.
    pub engine: Arc<dyn Engine>,
    /// How it is.
    pub supervised: Arc<Supervised>,
}

impl NamedEngine {
    /// The state, or why there is none. Asks the engine, so it blocks.
    pub fn status(&self) -> neonsan_engine::Result<EngineStatus> {
        self.engine.status()
    }

    /// Whether it has a volume of the name, damaged or not. Blocks for a moment at most.
    ///
    /// # Errors
    ///
    /// What the engine says; [`ErrorKind::Unavailable`](neonsan_engine::ErrorKind::Unavailable) if it
    /// does not answer.
    pub fn has(&self, name: &VolumeName) -> neonsan_engine::Result<bool> {
        self.supervised.has(&self.name, &self.engine, name)
    }
}

/// What a reload changes.
#[derive(Clone, Debug)]
pub struct Live {
    /// The configuration of the start with the limits, users and hosts of the last reload.
    pub config: Config,
    /// Users of this machine that may connect to the data port.
    pub local_users: LocalUsers,
}

impl Live {
    /// That of a configuration.
    pub fn new(config: Config) -> Self {
        Self {
            local_users: LocalUsers::look_up(&config.data.local_users, "data.local_users"),
            config,
        }
    }
}

/// What all threads share. Constant after the start, but for counters and what is live.
pub struct Shared {
    /// The configuration of the start. What a reload changes is in `live`.
    pub config: Config,
    /// Written by a reload; read where a connection, a session or a control request begins.
    pub live: RwLock<Arc<Live>>,
    /// The data connections of each peer.
    pub admission: Admission,
    /// Addresses that are waited for.
    pub waiting: Waiting,
    /// Identity of this run of the node. Clients are told that of their
    /// volume's engine.
    pub boot_id: [u8; 16],
    /// Time.
    pub clock: Clock,
    /// The engines; the default one first.
    pub engines: Vec<NamedEngine>,
    /// Bytes of requests in flight in all. One request of each session may go beyond.
    pub in_flight: Budget,
    /// One for each worker.
    pub mailboxes: Vec<Arc<Mailbox>>,
    /// The hub's.
    pub hub: Sender<ToHub>,
    /// The node is stopping. Set once, by the hub.
    pub going_away: AtomicBool,
    /// Bounds on lines of the log that anybody can cause.
    pub log_limits: LogLimits,
    /// Counters.
    pub metrics: Metrics,
    /// The other nodes.
    pub peers: Peers,
    /// Hosts that may come back to volumes which nobody has.
    pub observations: Observations,
    /// Volumes that the control API gives another size.
    pub resizing: Mutex<HashSet<VolumeName>>,
    /// Where the data port really is.
    pub data_addresses: Vec<SocketAddr>,
    /// Faults to be injected.
    #[cfg(feature = "test-faults")]
    pub faults: Arc<neonsan_engine::fault::FaultPlan>,
}

impl Shared {
    /// The nodes that a client at `client` is told of as those of an engine's volumes.
    pub fn nodes_for(&self, engine: usize, client: IpAddr) -> Vec<NodeAddress> {
        let is_shared = self.engines[engine].engine.is_shared();
        self.peers.addresses(engine, is_shared, client)
    }

    /// What holds now.
    pub fn live(&self) -> Arc<Live> {
        Arc::clone(&self.live.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the node is stopping.
    pub fn is_going_away(&self) -> bool {
        self.going_away.load(Ordering::Relaxed)
    }

    /// Tells the hub something. It lives longer than all who call this, so a
    /// failure means that the process ends anyway.
    pub fn tell_hub(&self, message: ToHub) {
        if self.hub.send(message).is_err() {
            tracing::debug!("the hub has ended");
        }
    }
}

/// 32 hexadecimal digits.
pub fn hex(id: &[u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(*id))
}
