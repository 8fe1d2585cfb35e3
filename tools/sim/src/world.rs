// SPDX-License-Identifier: GPL-2.0 OR MIT

//! One run: lets events happen until everything is done, and checks all along.

use crate::claims::Claims;
use crate::clock::{Core, Event, Tracing};
use crate::engine::Engine;
use crate::env::{Counts, Env};
use crate::host::Host;
use crate::model::Model;
use crate::net::{Closing, Net, Side};
use crate::node::{Life, Node};
use crate::setup::{Fault, Setup};
use neonsan_proto::Mode;

/// Events after which a run is given up as a loop.
const MAX_EVENTS: u64 = 5_000_000;

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) result: Result<Counts, String>,
    pub(crate) events: Vec<String>,
}

/// Hosts, nodes and all that is between them.
#[derive(Debug)]
struct World {
    env: Env,
    hosts: Vec<Host>,
    nodes: Vec<Node>,
}

/// Runs a world to its end.
pub(crate) fn run(setup: Setup, tracing: Tracing) -> Outcome {
    let mut env = Env {
        core: Core::new(setup.seed, tracing),
        net: Net::new(setup.net),
        engine: Engine::new(setup.engine, setup.blocks, setup.nodes),
        model: Model::new(setup.blocks, setup.engine.volatile_cache),
        counts: Counts::default(),
        claims: Claims::default(),
        listening: vec![true; setup.nodes],
        setup,
    };
    let nodes = (0..env.setup.nodes)
        .map(|index| Node::new(&mut env, index))
        .collect();
    let mut world = World {
        env,
        hosts: Vec::new(),
        nodes,
    };
    let result = world.run();
    Outcome {
        result: result.map(|()| world.env.counts),
        events: world.env.core.into_kept(),
    }
}

impl World {
    fn run(&mut self) -> Result<(), String> {
        let core = &mut self.env.core;
        for (index, attach) in self.env.setup.attaches.iter().enumerate() {
            core.at(attach.at_us, Event::Attach { index });
        }
        for (index, fault) in self.env.setup.faults.iter().enumerate() {
            core.at(fault.at_us, Event::Fault { index });
        }
        core.at(self.env.setup.calm_at_us, Event::Calm);

        let deadline_us = self.env.setup.deadline_us();
        self.run_until(deadline_us, "finish its requests", Self::is_done)?;
        self.check_disk()?;

        for host in &mut self.hosts {
            host.finish(&mut self.env);
        }
        // Detached devices come to rest by themselves, and the node forgets them in time.
        let patience_us = 1000
            * (self.env.setup.gate.linger_ms
                + self.env.setup.gate.drain_timeout_ms
                + u64::from(self.env.setup.node_heartbeat_ms.1)
                + u64::from(self.env.setup.timeouts.connect_ms)
                + 1_000);
        let deadline_us = self.env.core.now_us.max(deadline_us) + 3 * patience_us;
        self.run_until(deadline_us, "come to rest", Self::is_at_rest)?;
        self.check_disk()?;

        // What was promised to be durable is there after one more loss of power.
        self.env.engine.lose_cache(&mut self.env.core);
        self.env.model.lose_cache(self.nodes[0].memory);
        self.check_disk()
    }

    fn is_done(&self) -> bool {
        self.env.core.calm
            && self.hosts.len() == self.env.setup.attaches.len()
            && self.hosts.iter().all(Host::is_done)
    }

    fn is_at_rest(&self) -> bool {
        self.hosts.iter().all(Host::is_gone) && self.nodes.iter().all(|n| n.gate().is_unused())
    }

    /// Lets events happen until `done`.
    fn run_until(
        &mut self,
        deadline_us: u64,
        what: &str,
        done: impl Fn(&Self) -> bool,
    ) -> Result<(), String> {
        let mut events = 0;
        while !done(self) {
            events += 1;
            let event = self.env.core.next();
            let late = self.env.core.now_us > deadline_us || events > MAX_EVENTS;
            let Some(event) = event.filter(|_| !late) else {
                let hosts: Vec<String> = self.hosts.iter().map(Host::describe).collect();
                let nodes: Vec<String> = self
                    .nodes
                    .iter()
                    .map(|node| format!("node {:?} {:?}", node.life, node.gate()))
                    .collect();
                return Err(format!(
                    "liveness: at {} ms, after {events} events, the world did not {what}: {}; {}",
                    self.env.core.now().0,
                    hosts.join("; "),
                    nodes.join("; ")
                ));
            };
            self.dispatch(event);
            self.check_gates();
            if let Some(failure) = self.env.core.failure() {
                return Err(failure.to_owned());
            }
        }
        Ok(())
    }

    fn dispatch(&mut self, event: Event) {
        let env = &mut self.env;
        match event {
            Event::Arrive { conn, to } => env.net.on_arrive(&mut env.core, conn, to),
            Event::Wake { conn, side } => {
                let (host, link, node) = env.net.owner(conn);
                if env.net.on_wake(conn, side) {
                    match side {
                        Side::Host => self.hosts[host].on_wake(env, link, conn),
                        Side::Node => self.nodes[node].on_wake(env, conn),
                    }
                }
            }
            Event::Accept { conn } => {
                let (_, _, node) = env.net.owner(conn);
                self.nodes[node].on_accept(env, conn);
            }
            Event::Dialled {
                host,
                link,
                attempt,
                conn,
            } => self.hosts[host].on_dialled(env, link, attempt, conn),
            Event::HostTimer { host } => self.hosts[host].on_timer(env),
            Event::HostDrained {
                host,
                link,
                attempt,
            } => self.hosts[host].on_drained(env, link, attempt),
            Event::HostSubmit { host } => self.hosts[host].on_submit(env),
            Event::HostRequeue { host, link } => self.hosts[host].on_requeue(env, link),
            Event::NodeTimer { node, boot } => self.nodes[node].on_timer(env, boot),
            Event::Engine { op } => {
                if let Some(done) = env.engine.on_step(&mut env.core, op) {
                    self.nodes[done.ticket.node].on_done(env, done);
                }
            }
            Event::Attach { index } => {
                let attach = env.setup.attaches[index];
                for older in self.hosts.iter_mut().filter(|h| h.is_over_by(&attach)) {
                    older.finish(env);
                }
                let host = Host::new(env, index, attach);
                self.hosts.push(host);
                if let Some(after_us) = attach.yanked_after_us {
                    env.core.after(after_us, Event::Yank { host: index });
                }
            }
            Event::Yank { host } => self.hosts[host].finish(env),
            Event::Start { node } => {
                env.listening[node] = true;
                self.nodes[node].start(env);
            }
            Event::Fault { index } => self.begin_fault(index),
            Event::Repair { index, node, boot } => self.repair(index, node, boot),
            Event::Owned { node, boot } => self.nodes[node].on_owned(env, boot),
            Event::Saved { node, boot, number } => self.nodes[node].on_saved(env, boot, number),
            Event::Disowned { node, term } => self.nodes[node].on_disowned(env, term),
            Event::Calm => self.calm(),
        }
    }

    // ---- faults ----

    fn begin_fault(&mut self, index: usize) {
        let env = &mut self.env;
        let at = env.core.rng.index(self.nodes.len());
        let node = &mut self.nodes[at];
        let timed = env.setup.faults[index];
        let end_us = env.core.now_us + timed.for_us;
        let boot = node.boot;
        let repair = Event::Repair {
            index,
            node: at,
            boot,
        };
        env.core.trace(|| {
            format!(
                "fault {:?} for {} us (of a node: {at})",
                timed.fault, timed.for_us
            )
        });
        let open = env.net.open_conns();
        let conn = (!open.is_empty()).then(|| open[env.core.rng.index(open.len())]);
        let mut sides = match env.core.rng.below(4) {
            0 => vec![Side::Host],
            1 => vec![Side::Node],
            _ => vec![Side::Host, Side::Node],
        };
        match (timed.fault, conn) {
            (Fault::Cut, Some(conn)) => {
                env.net.reset_end(&mut env.core, conn, Side::Host);
                env.net.reset_end(&mut env.core, conn, Side::Node);
            }
            (Fault::CutOneEnd, Some(conn)) => {
                let side = sides.swap_remove(0);
                env.net.reset_end(&mut env.core, conn, side);
                if env.core.rng.permille(500) {
                    env.net.stall(conn, side.peer(), None);
                }
            }
            (Fault::Stall, Some(conn)) => {
                for side in sides {
                    env.net.stall(conn, side, Some(end_us));
                }
            }
            (Fault::BlackHole, Some(conn)) => {
                for side in sides {
                    env.net.stall(conn, side, None);
                }
            }
            (Fault::Cut | Fault::CutOneEnd | Fault::Stall | Fault::BlackHole, None) => {}
            (Fault::Isolate { host }, _) => env.net.isolate(&env.core, host, timed.for_us),
            (Fault::Part, _) => env.net.part(&env.core, timed.for_us),
            (Fault::Restart { power }, _) => {
                if node.life == Life::Gone {
                    return;
                }
                let closing = match (power, env.core.rng.permille(500)) {
                    (true, _) => Closing::Silent,
                    (false, true) => Closing::Fin,
                    (false, false) => Closing::Rst,
                };
                node.kill(env, closing);
                env.listening[at] = false;
                if power && env.setup.engine.volatile_cache {
                    env.engine.lose_cache(&mut env.core);
                    env.model.lose_cache(node.memory);
                }
                env.core.at(end_us, Event::Start { node: at });
            }
            (Fault::LoseCache, _) => {
                if node.life == Life::Running && env.setup.engine.volatile_cache {
                    env.engine.lose_cache(&mut env.core);
                    env.model.lose_cache(node.memory);
                    node.on_cache_lost(env);
                }
            }
            (Fault::Pause, _) => {
                node.pause(env);
                env.core.at(end_us, repair);
            }
            (Fault::GoAway, _) => {
                node.go_away(env, timed.for_us / 1000);
                env.core.at(end_us, repair);
            }
            (Fault::Refuse, _) => {
                env.listening[at] = false;
                env.core.at(end_us, repair);
            }
            (Fault::Hang, _) => env.engine.hang(&env.core, timed.for_us),
            (Fault::CutOff, _) => env.engine.cut_off(&env.core, at, timed.for_us),
            (Fault::Grow, _) => {
                let blocks = env.engine.blocks() + env.core.rng.range(1, 8);
                env.engine.grow(blocks);
                env.model.grow(blocks);
                for node in &mut self.nodes {
                    node.on_grown(env);
                }
            }
        }
    }

    fn repair(&mut self, index: usize, at: usize, boot: u64) {
        let env = &mut self.env;
        let node = &mut self.nodes[at];
        if env.core.calm || node.boot != boot {
            return;
        }
        match env.setup.faults[index].fault {
            Fault::Pause => node.resume(env),
            Fault::Refuse => env.listening[at] = node.life != Life::Gone,
            Fault::GoAway => {
                node.kill(env, Closing::Fin);
                env.listening[at] = false;
                let away_us = env.core.rng.range(1_000, 2_000_000);
                env.core.after(away_us, Event::Start { node: at });
            }
            Fault::Cut
            | Fault::CutOneEnd
            | Fault::Stall
            | Fault::BlackHole
            | Fault::Part
            | Fault::Isolate { .. }
            | Fault::Restart { .. }
            | Fault::LoseCache
            | Fault::Hang
            | Fault::CutOff
            | Fault::Grow => {}
        }
    }

    /// Everything works from now on; what is dead stays dead.
    fn calm(&mut self) {
        let env = &mut self.env;
        env.core.trace(|| "calm".into());
        env.core.calm = true;
        env.net.heal(&mut env.core);
        env.engine.hang(&env.core, 0);
        for at in 0..self.nodes.len() {
            env.engine.cut_off(&env.core, at, 0);
            env.listening[at] = true;
        }
        for node in &mut self.nodes {
            match node.life {
                Life::Running => {}
                Life::Paused => node.resume(env),
                Life::Gone => node.start(env),
            }
            node.stay();
        }
    }

    // ---- checks ----

    /// An exclusive volume has one holder.
    fn check_gates(&mut self) {
        for node in &self.nodes {
            let writers = |h: &neonsan_session::server::Holder| h.mode != Mode::ReadOnly;
            let holders = node.gate().holders().filter(writers).count();
            if holders > 1 {
                self.env
                    .core
                    .fail(format!("{holders} sessions hold an exclusive volume"));
            }
        }
    }

    /// The disk holds what it may hold.
    fn check_disk(&mut self) -> Result<(), String> {
        for block in 0..self.env.engine.blocks() {
            let bytes = self.env.engine.block(block);
            self.env
                .model
                .check_now(block, &bytes)
                .map_err(|fault| format!("in the end {fault}"))?;
        }
        Ok(())
    }
}
