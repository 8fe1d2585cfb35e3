// SPDX-License-Identifier: GPL-2.0 OR MIT

//! One run's world, drawn from its seed: sizes, speeds, timeouts, who attaches when, what fails.

use crate::engine::EngineSetup;
use crate::net::NetSetup;
use crate::rng::Rng;
use neonsan_session::server::GateConfig;
use neonsan_session::Timeouts;

/// A fault put in on purpose, outside the machines, to prove that the checks notice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Planted {
    /// None: every broken promise is a fault of ours.
    #[default]
    Nothing,
    /// The gate lets connections in without waiting for the ones that they displace.
    NoFencing,
    /// The same, and nobody watches who touches the engine: only the bytes can tell.
    StaleWrites,
    /// A host resends requests while the receiving side of the old connection still runs.
    EarlyResend,
    /// The same, and requests keep their cookies for ever.
    ReusedCookies,
    /// A node answers some requests twice.
    DoubleAnswer,
    /// The engine acknowledges FLUSH and does nothing.
    LyingFlush,
    /// A host does not care that the node's volatile state is another.
    IgnoredBootId,
    /// A node whose storage loses its cache while it goes on keeps its boot id and its sessions.
    SilentLoss,
    /// A restarted node does not know who was displaced before.
    ForgetfulNode,
    /// The storage goes on with the operations of a node that has lost the volume to another; only
    /// the bytes can tell.
    NoBlocklist,
}

impl Planted {
    /// Every planted fault, by the name of its switch.
    pub const ALL: [(&'static str, Planted); 10] = [
        ("no-fencing", Planted::NoFencing),
        ("stale-writes", Planted::StaleWrites),
        ("early-resend", Planted::EarlyResend),
        ("reused-cookies", Planted::ReusedCookies),
        ("double-answer", Planted::DoubleAnswer),
        ("lying-flush", Planted::LyingFlush),
        ("ignored-boot-id", Planted::IgnoredBootId),
        ("silent-loss", Planted::SilentLoss),
        ("forgetful-node", Planted::ForgetfulNode),
        ("no-blocklist", Planted::NoBlocklist),
    ];
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Both ends of a connection are reset.
    Cut,
    /// One end of a connection is reset; the other is told nothing, or late.
    CutOneEnd,
    /// A connection stands still, one way or both ways, and goes on.
    Stall,
    /// A connection falls silent for ever, one way or both ways.
    BlackHole,
    /// Nothing gets through on any connection for a while.
    Part,
    /// The same for one host only.
    Isolate {
        /// In order of attaching.
        host: usize,
    },
    /// The node's process ends and comes back; its machine may lose power with it.
    Restart {
        /// The write cache is lost, and nobody is told.
        power: bool,
    },
    /// The storage loses its write cache while the node goes on, and tells it so.
    LoseCache,
    /// The node's process stands still while its engine goes on.
    Pause,
    /// The node announces that it stops, stops, and comes back.
    GoAway,
    /// The node's machine refuses connections.
    Refuse,
    /// The engine stands still.
    Hang,
    /// A node cannot reach its storage: what it began there stands still.
    CutOff,
    /// The volume grows.
    Grow,
}

/// A fault with its time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timed {
    pub(crate) at_us: u64,
    pub(crate) for_us: u64,
    pub(crate) fault: Fault,
}

/// A host that attaches the volume.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attach {
    pub(crate) at_us: u64,
    pub(crate) host_id: u8,
    /// Which boot of the host it is; zero: it does not say.
    pub(crate) host_boot: u64,
    pub(crate) force: bool,
    /// It only reads, beside whoever has the volume.
    pub(crate) read_only: bool,
    /// Requests of its workload.
    pub(crate) requests: u32,
    /// It detaches in order once its workload is done.
    pub(crate) detaches: bool,
    /// It detaches by force after so long, whatever is under way.
    pub(crate) yanked_after_us: Option<u64>,
}

/// Everything that a seed decides before time begins.
#[derive(Clone, Debug)]
pub struct Setup {
    pub(crate) seed: u64,
    pub(crate) planted: Planted,
    /// Connections that a host would like, and that the node allows.
    pub(crate) connections: (u16, u16),
    pub(crate) depth: u16,
    pub(crate) blocks: u64,
    pub(crate) checksums: bool,
    pub(crate) net: NetSetup,
    pub(crate) engine: EngineSetup,
    pub(crate) timeouts: Timeouts,
    pub(crate) gate: GateConfig,
    /// After how much silence the node sends PING, and gives a connection up.
    pub(crate) node_heartbeat_ms: (u32, u32),
    /// Nodes over the one storage.
    pub(crate) nodes: usize,
    /// How long a node that takes the volume waits for the storage, shortest and longest, and how
    /// much later the node that loses it hears of that at most; in microseconds.
    pub(crate) take_us: (u64, u64),
    pub(crate) disowned_us: u64,
    /// Which node each address leads to, if any.
    pub(crate) addresses: Vec<Option<usize>>,
    pub(crate) attaches: Vec<Attach>,
    /// Requests of the longest workload, and how many of each at once.
    pub(crate) requests: u32,
    pub(crate) outstanding: u32,
    pub(crate) think_us: u64,
    /// In how many of a thousand cases the node answers Busy.
    pub(crate) busy_permille: u64,
    pub(crate) faults: Vec<Timed>,
    pub(crate) calm_at_us: u64,
}

impl Setup {
    /// The world of a seed.
    pub fn new(seed: u64, planted: Planted) -> Self {
        // Another sequence than that of the run itself.
        let mut rng = Rng::new(seed ^ 0x7365_7475_7021);
        let rng = &mut rng;
        let calm_at_us = rng.range(5, 25) * 1_000_000;
        let requests = rng.range(60, 240) as u32;
        let volatile_cache = match planted {
            Planted::LyingFlush | Planted::IgnoredBootId | Planted::SilentLoss => true,
            _ => rng.permille(500),
        };
        let timeouts = timeouts(rng);
        let depth = rng.range(1, 8) as u16;
        Setup {
            seed,
            planted,
            connections: (rng.range(1, 4) as u16, rng.range(1, 4) as u16),
            depth,
            blocks: rng.pick(&[4, 8, 16, 40]),
            checksums: rng.permille(500),
            net: net(rng),
            engine: EngineSetup {
                step_us: rng.pick(&[(5, 100), (50, 2_000), (500, 60_000)]),
                volatile_cache,
                lying_flush: planted == Planted::LyingFlush,
                watched: !matches!(planted, Planted::StaleWrites | Planted::NoBlocklist),
                without_blocklist: planted == Planted::NoBlocklist,
                watch_us: rng.range(300_000, 3_000_000),
            },
            timeouts,
            gate: GateConfig {
                max_sessions: 8,
                max_connections: 4,
                drain_timeout_ms: rng.range(200, 4_000),
                linger_ms: rng.range(500, 15_000),
                max_remembered: 64,
                without_fencing: matches!(planted, Planted::NoFencing | Planted::StaleWrites),
            },
            node_heartbeat_ms: (rng.range(200, 1_500) as u32, rng.range(2_000, 5_000) as u32),
            nodes: 1,
            take_us: (1_000, rng.range(5_000, 500_000)),
            disowned_us: rng.pick(&[2_000, 100_000, 3_000_000]),
            addresses: rng
                .pick(&[
                    &[Some(0)][..],
                    &[Some(0)],
                    &[Some(0), Some(0)],
                    &[None, Some(0)],
                ])
                .to_vec(),
            attaches: attaches(rng, calm_at_us, requests),
            requests,
            outstanding: rng.range(1, 24) as u32,
            think_us: calm_at_us / u64::from(requests),
            busy_permille: rng.pick(&[0, 0, 20]),
            faults: faults(rng, calm_at_us),
            calm_at_us,
        }
        .with_flips(rng)
        .with_impatience(rng)
        .with_handover(rng)
        .with_nodes(rng)
        .with_lost_caches()
        .with_reader(rng)
    }

    /// Some worlds have a host that reads all along what others write. One node only: who may read
    /// from a node that does not have the volume is not decided yet.
    fn with_reader(mut self, rng: &mut Rng) -> Self {
        if self.nodes == 1 && rng.permille(200) {
            self.attaches.push(Attach {
                at_us: rng.below(self.calm_at_us / 2),
                host_id: 9,
                host_boot: 1,
                force: rng.permille(100),
                read_only: true,
                requests: self.requests,
                detaches: rng.permille(500),
                yanked_after_us: yanked(rng, self.calm_at_us),
            });
            // Hosts are counted in order of attaching.
            self.attaches.sort_by_key(|attach| attach.at_us);
        }
        self
    }

    /// In worlds with a write cache it goes now and then while the node lives. From a sequence of its
    /// own, so that the other worlds stay what they were.
    fn with_lost_caches(mut self) -> Self {
        if self.engine.volatile_cache {
            let mut rng = Rng::new(self.seed ^ 0x6c6f_7374_2163);
            for _ in 0..rng.pick(&[0, 1, 1, 4]) {
                self.faults.push(Timed {
                    at_us: rng.below(self.calm_at_us),
                    for_us: 0,
                    fault: Fault::LoseCache,
                });
            }
        }
        self
    }

    /// Some worlds have several nodes over one storage. What is written there is durable at once,
    /// as with a cluster whose clients keep no cache of their own.
    fn with_nodes(mut self, rng: &mut Rng) -> Self {
        let planted = matches!(
            self.planted,
            Planted::LyingFlush
                | Planted::IgnoredBootId
                | Planted::SilentLoss
                | Planted::ForgetfulNode
        );
        if planted || !rng.permille(300) {
            return self;
        }
        let (nodes, addresses): (usize, &[Option<usize>]) = rng.pick(&[
            (2, &[Some(0), Some(1)][..]),
            (2, &[Some(1), Some(0), Some(1)]),
            (2, &[None, Some(0), Some(1)]),
            (3, &[Some(0), Some(1), Some(2)]),
        ]);
        self.nodes = nodes;
        self.addresses = addresses.to_vec();
        self.engine.volatile_cache = false;
        // Nodes that fall out of the world and come back, under hosts that go elsewhere.
        for _ in 0..rng.range(0, 4) {
            self.faults.push(Timed {
                at_us: rng.below(self.calm_at_us),
                for_us: rng.range(500_000, 6_000_000),
                fault: rng.pick(&[Fault::Pause, Fault::Pause, Fault::CutOff, Fault::GoAway]),
            });
        }
        self.faults.sort_by_key(|f| f.at_us);
        self
    }

    /// Bits turn over only where checksums protect against it.
    fn with_flips(mut self, rng: &mut Rng) -> Self {
        if self.checksums && rng.permille(400) {
            self.net.flips_ppm = rng.range(100, 3_000);
        }
        self
    }

    /// Some worlds give up soon, on a node that stands still often and goes on with old requests:
    /// what failed at its host may still be in the engine when the host tries it again.
    fn with_impatience(mut self, rng: &mut Rng) -> Self {
        if !rng.permille(80) {
            return self;
        }
        let t = &mut self.timeouts;
        t.heartbeat_interval_ms = 200;
        t.heartbeat_timeout_ms = rng.range(500, 1_000) as u32;
        t.connect_ms = rng.range(2_500, 5_000) as u32;
        t.loss_ms = rng.range(50, 1_500) as u32;
        self.connections = (rng.range(2, 4) as u16, 4);
        self.blocks = 4;
        self.engine.step_us = (500, 200_000);
        self.think_us /= 3;
        self.faults = (0..8)
            .map(|_| Timed {
                at_us: rng.below(self.calm_at_us),
                for_us: rng.range(1_000_000, 4_000_000),
                fault: rng.pick(&[Fault::Pause, Fault::Pause, Fault::Hang, Fault::Part]),
            })
            .collect();
        self
    }

    /// Some hosts are cut off while another has the volume, and come back with old requests.
    fn with_handover(mut self, rng: &mut Rng) -> Self {
        if !rng.permille(100) {
            return self;
        }
        let isolated_at_us = rng.range(500_000, self.calm_at_us / 2);
        let isolated_us = rng.range(2_000_000, 9_000_000);
        self.gate.linger_ms = rng.range(200, 1_500);
        self.node_heartbeat_ms = (200, rng.range(500, 1_000) as u32);
        self.attaches.truncate(1);
        self.attaches[0].detaches = false;
        self.attaches[0].yanked_after_us = None;
        self.attaches.push(Attach {
            at_us: isolated_at_us + rng.range(0, isolated_us),
            host_id: 2,
            host_boot: 1,
            force: rng.permille(400),
            read_only: false,
            requests: rng.range(1, 20) as u32,
            detaches: true,
            yanked_after_us: None,
        });
        self.faults.truncate(3);
        self.faults.push(Timed {
            at_us: isolated_at_us,
            for_us: isolated_us,
            fault: Fault::Isolate { host: 0 },
        });
        self
    }

    /// Whether anything of a run may look like a peer that breaks the protocol.
    pub(crate) fn may_see_violations(&self) -> bool {
        self.net.flips_ppm > 0
    }

    /// When everything must be done at the latest.
    pub(crate) fn deadline_us(&self) -> u64 {
        let t = &self.timeouts;
        let round = u64::from(t.request_ms)
            + u64::from(t.heartbeat_timeout_ms)
            + u64::from(t.connect_ms)
            + u64::from(t.reconnect_delay_max_ms)
            + u64::from(self.node_heartbeat_ms.1)
            + self.gate.drain_timeout_ms
            + (self.take_us.1 + self.disowned_us) / 1000;
        // What was begun in the last moment of faults may need one round to be noticed, one to be
        // joined or opened again, and the workload its own time.
        let work = u64::from(self.requests) * (self.think_us + 30 * self.engine.step_us.1 * 3);
        let begin_us = self
            .attaches
            .iter()
            .map(|attach| attach.at_us)
            .fold(self.calm_at_us, u64::max);
        // Hosts that find the volume at another node each time may need a round for each.
        begin_us + (4 + 2 * (self.nodes as u64 - 1)) * round * 1000 + 2 * work
    }
}

fn net(rng: &mut Rng) -> NetSetup {
    // A slow network with a small window would be too slow for any request timeout.
    let (delay_us, windows): ((u64, u64), &[usize]) = rng.pick(&[
        ((20, 200), &[64, 700, 65_536][..]),
        ((100, 2_000), &[700, 4_096]),
        ((1_000, 30_000), &[16_384, 65_536]),
    ]);
    NetSetup {
        delay_us,
        window_bytes: rng.pick(windows),
        flips_ppm: 0,
    }
}

fn timeouts(rng: &mut Rng) -> Timeouts {
    let heartbeat_interval_ms = rng.range(200, 1_500) as u32;
    let reconnect_delay_min_ms = rng.range(10, 200) as u32;
    Timeouts {
        request_ms: rng.range(3_000, 12_000) as u32,
        connect_ms: rng.range(400, 3_000) as u32,
        heartbeat_interval_ms,
        heartbeat_timeout_ms: heartbeat_interval_ms * 2 + rng.range(100, 2_000) as u32,
        reconnect_delay_min_ms,
        reconnect_delay_max_ms: reconnect_delay_min_ms + rng.range(0, 1_000) as u32,
        loss_ms: match rng.below(4) {
            0 => rng.range(100, 4_000) as u32,
            _ => 0,
        },
    }
}

fn attaches(rng: &mut Rng, calm_at_us: u64, requests: u32) -> Vec<Attach> {
    let mut attaches = vec![Attach {
        at_us: 0,
        host_id: 1,
        host_boot: 1,
        force: rng.permille(300),
        read_only: false,
        requests,
        detaches: rng.permille(300),
        yanked_after_us: yanked(rng, calm_at_us),
    }];
    let mut at_us = 0;
    // Most runs have one host; the others have up to three that take turns.
    while attaches.len() < 4 && rng.permille(350) {
        at_us += rng.range(500_000, calm_at_us / 2);
        let host_id = rng.range(1, 3) as u8;
        attaches.push(Attach {
            at_us,
            host_id,
            host_boot: boot(rng, &attaches, host_id),
            force: rng.permille(700),
            read_only: false,
            requests: rng.pick(&[requests, requests / 2, 20, 8]),
            detaches: rng.permille(500),
            yanked_after_us: yanked(rng, calm_at_us),
        });
    }
    attaches
}

/// The boot of a host that attaches: the same as before, so that this is another session of it, or
/// the next one, or the host does not say.
fn boot(rng: &mut Rng, before: &[Attach], host_id: u8) -> u64 {
    let of_host = before.iter().filter(|attach| attach.host_id == host_id);
    let last = of_host
        .map(|attach| attach.host_boot)
        .max()
        .unwrap_or(0)
        .max(1);
    match rng.below(10) {
        0 => 0,
        1..=5 => last + 1,
        _ => last,
    }
}

fn yanked(rng: &mut Rng, calm_at_us: u64) -> Option<u64> {
    rng.permille(80).then(|| rng.below(calm_at_us))
}

fn faults(rng: &mut Rng, calm_at_us: u64) -> Vec<Timed> {
    const ALL: [Fault; 15] = [
        Fault::Cut,
        Fault::CutOneEnd,
        Fault::Stall,
        Fault::BlackHole,
        Fault::Part,
        Fault::Isolate { host: 0 },
        Fault::Isolate { host: 1 },
        Fault::Restart { power: false },
        Fault::Restart { power: true },
        Fault::Pause,
        Fault::GoAway,
        Fault::Refuse,
        Fault::Hang,
        Fault::CutOff,
        Fault::Grow,
    ];
    // Each run has a liking for some of them.
    let favourites = [rng.pick(&ALL), rng.pick(&ALL), rng.pick(&ALL)];
    let count = rng.pick(&[0, 2, 6, 12, 25]);
    let mut faults: Vec<Timed> = (0..count)
        .map(|_| Timed {
            at_us: rng.below(calm_at_us),
            for_us: rng.pick(&[20_000, 300_000, 2_000_000, 9_000_000]) * rng.range(2, 12) / 10,
            fault: if rng.permille(600) {
                rng.pick(&favourites)
            } else {
                rng.pick(&ALL)
            },
        })
        .collect();
    faults.sort_by_key(|f| f.at_us);
    faults
}
