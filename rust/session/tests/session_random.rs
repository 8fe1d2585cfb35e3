// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The control machine under random events: it keeps its promises to the caller, never stalls,
//! never spins, and comes back when the network does.

mod common;

use common::Random;
use neonsan_proto::Status;
use neonsan_session::client::{Action, Config, ConnectKind, Session, SessionState, UNLISTED};
use neonsan_session::{CloseCause, Generation, Instant, Timeouts};

/// What the caller knows of a connection: the slow and obvious model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Idle,
    /// It was told to connect.
    Connecting,
    /// It reported success.
    Live,
    /// It was told to stop, or will be: it reported a loss.
    Stopping,
}

struct World {
    session: Session,
    random: Random,
    now: Instant,
    /// How many addresses the caller has.
    nodes: u16,
    known: Vec<Known>,
    epochs: Vec<u64>,
    generation: u64,
    /// The generation that a node let in.
    opened: u64,
    may_fence: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let connections = 1 + random.below(5) as u16;
        let config = Config {
            connections,
            nodes: 1 + random.below(3) as u16,
            timeouts: Timeouts {
                loss_ms: [0, 5_000, 50_000][random.below(3)],
                ..Timeouts::DEFAULT
            },
            seed,
            used: Default::default(),
        };
        let now = Instant(random.number() >> 20);
        let nodes = config.nodes;
        World {
            nodes,
            session: Session::new(config, now),
            may_fence: random.one_in(3),
            random,
            now,
            known: vec![Known::Idle; usize::from(connections)],
            epochs: vec![0; usize::from(connections)],
            generation: 0,
            opened: 0,
        }
    }

    fn closed(&self) -> bool {
        self.session.state() == SessionState::Closed
    }

    /// Does everything that the machine asks for, and checks that it may.
    fn obey(&mut self) {
        let mut count = 0;
        while let Some(action) = self.session.poll_action() {
            count += 1;
            assert!(count < 1000, "endless actions");
            match action {
                Action::Connect {
                    connection,
                    node,
                    kind,
                    deadline,
                } => {
                    let at = usize::from(connection);
                    assert_eq!(self.known[at], Known::Idle, "connect of {connection}");
                    assert!(!self.closed() && deadline > self.now);
                    match kind {
                        ConnectKind::Open {
                            generation: Generation(generation),
                            epoch,
                            ..
                        } => {
                            assert_eq!(connection, 0);
                            assert!(generation > self.generation, "generations grow");
                            assert!(node < self.nodes, "an OPEN at a node that is not listed");
                            assert!(epoch > self.epochs[0], "epochs grow");
                            let rest = self.known.iter().all(|k| *k == Known::Idle);
                            assert!(rest, "an OPEN beside {:?}", self.known);
                            self.generation = generation;
                            self.epochs[0] = epoch;
                        }
                        ConnectKind::Join {
                            generation,
                            connection: index,
                            epoch,
                        } => {
                            assert_eq!(index, connection);
                            assert_eq!(generation.0, self.opened, "only what was let in");
                            assert!(node < self.nodes || node == UNLISTED);
                            assert!(epoch > self.epochs[at], "epochs grow");
                            self.epochs[at] = epoch;
                        }
                    }
                    self.known[at] = Known::Connecting;
                }
                Action::Resume { connection } => {
                    assert_eq!(self.known[usize::from(connection)], Known::Live);
                }
                Action::Stop { connection, .. } => {
                    let known = &mut self.known[usize::from(connection)];
                    assert!(matches!(known, Known::Live | Known::Stopping), "{known:?}");
                    *known = Known::Stopping;
                }
                Action::Ping { connection } => {
                    assert_eq!(self.known[usize::from(connection)], Known::Live);
                }
                Action::FailRequests { .. } => {
                    let touched = |k: &Known| matches!(k, Known::Live | Known::Stopping);
                    assert!(!self.known.iter().any(touched), "requests may be touched");
                }
                Action::Notify(_) => {}
            }
        }
    }

    /// The machine must always be able to go on: by itself, or by something the caller owes it.
    fn check_alive(&mut self) {
        self.session.handle_timeout(self.now);
        self.obey();
        let timeout = self.session.poll_timeout();
        if let Some(at) = timeout {
            assert!(at > self.now, "it asks to be woken in the past: a spin");
        }
        let owed = |k: &Known| matches!(k, Known::Connecting | Known::Stopping);
        let final_state = match self.session.state() {
            SessionState::Failed(_) | SessionState::Closed => true,
            SessionState::Opening | SessionState::Live | SessionState::Reopening => false,
        };
        let alive = timeout.is_some() || self.known.iter().any(owed);
        assert!(
            alive || final_state,
            "stalled in {:?}, {:?}",
            self.session.state(),
            self.known
        );
    }

    fn some_cause(&mut self) -> CloseCause {
        let statuses = [
            Status::Draining,
            Status::UnknownSession,
            Status::StaleGeneration,
            Status::GoingAway,
            Status::NotOwner,
            Status::TooManyConnections,
            Status::NoSuchVolume,
            Status::Busy,
        ];
        match self.random.below(7) {
            0 => CloseCause::PeerClosed,
            1 => CloseCause::ConnectTimeout,
            2 => CloseCause::UnknownCookie,
            3 => CloseCause::RequestTimeout,
            4 | 5 => CloseCause::Refused(statuses[self.random.below(statuses.len())]),
            _ if self.may_fence && self.random.one_in(40) => CloseCause::Fenced,
            _ => CloseCause::ConnectFailed(111),
        }
    }

    fn report_opened(&mut self, connection: usize, allowed: u16) {
        let wanted = self.session.on_opened(connection as u16, allowed, self.now);
        self.known[connection] = if wanted { Known::Live } else { Known::Idle };
        if wanted && connection == 0 {
            self.opened = self.generation;
        }
    }

    fn event(&mut self) {
        let at = self.random.below(self.known.len());
        let connection = at as u16;
        match self.random.below(12) {
            0..=2 if self.known[at] == Known::Connecting => {
                let allowed = if self.random.one_in(10) { 1 } else { 64 };
                self.report_opened(at, allowed);
            }
            3 | 4 if self.known[at] == Known::Connecting => {
                self.known[at] = Known::Idle;
                let cause = self.some_cause();
                self.session.on_connect_failed(connection, cause, self.now);
            }
            5 if self.known[at] == Known::Live => {
                self.known[at] = Known::Stopping;
                let cause = self.some_cause();
                self.session.on_lost(connection, cause, self.now);
                self.obey();
            }
            6..=8 if self.known[at] == Known::Stopping => {
                self.known[at] = Known::Idle;
                self.session.on_drained(connection, self.now);
            }
            9 => self.session.on_heard(connection, self.now),
            10 if self.random.one_in(10) => {
                self.session.on_going_away(self.now);
            }
            10 if self.random.one_in(10) => self.replace_nodes(),
            11 if self.random.one_in(200) => self.session.close(self.now),
            _ => {
                let ms = self.random.below(1_500) as u64;
                self.now = self.now.after_ms(ms);
            }
        }
        if !self.random.one_in(5) {
            self.obey();
        }
    }

    /// The operator names other nodes; the one in use is among them, or is not.
    fn replace_nodes(&mut self) {
        let nodes = 1 + self.random.below(3) as u16;
        let place = self
            .random
            .one_in(2)
            .then(|| self.random.below(nodes.into()) as u16);
        self.nodes = nodes;
        if self.session.replace_nodes(nodes, place, self.now) {
            let connecting = |k: &Known| *k == Known::Connecting;
            assert!(self.known.iter().any(connecting), "nothing is cut short");
        }
    }

    /// From now on all goes well.
    fn make_peace(&mut self) {
        let begin = self.now;
        for _ in 0..10_000 {
            self.check_alive();
            match self.session.state() {
                SessionState::Failed(_) | SessionState::Closed if self.session.is_at_rest() => {
                    return;
                }
                _ if self.session.is_usable() => return,
                _ => {}
            }
            let mut moved = false;
            for at in 0..self.known.len() {
                match self.known[at] {
                    Known::Connecting => self.report_opened(at, 64),
                    Known::Stopping => {
                        self.known[at] = Known::Idle;
                        self.session.on_drained(at as u16, self.now);
                    }
                    Known::Live => {
                        self.session.on_heard(at as u16, self.now);
                        continue;
                    }
                    Known::Idle => continue,
                }
                moved = true;
                self.obey();
            }
            if !moved {
                let at = self.session.poll_timeout().expect("a stall");
                self.now = self.now.max(at);
            }
            assert!(
                self.now.since_ms(begin) < 60_000,
                "no way back within a minute"
            );
        }
        panic!("no way back: {:?} {:?}", self.session.state(), self.known);
    }
}

#[test]
fn the_machine_keeps_its_promises_and_never_stalls() {
    for seed in 0..3_000 {
        let mut world = World::new(seed);
        // Shown only if the test fails.
        println!("seed {seed}");
        for _ in 0..300 {
            world.event();
            if world.random.one_in(4) {
                world.check_alive();
            }
        }
        world.make_peace();
    }
}
