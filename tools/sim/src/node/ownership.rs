// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A node among others over one storage: when it takes the volume, and what it does when another
//! node has taken it.
//!
//! A node that does not have the volume asks a gate restored from what the storage remembers what
//! would become of a newcomer. Who would be refused is refused, and the volume stays where it is.
//! Who would be let in makes the node take the volume: the storage first sees to it that nothing of
//! another node can touch a block any more, then the gate begins with what was remembered, and only
//! then anybody is let in.
//!
//! A node that finds the volume taken ends everything that it does with it, at once. It may find
//! out late: the storage does not rely on it.

use super::{id_of, Life, Node};
use crate::clock::Event;
use crate::env::Env;
use crate::net::ConnId;
use crate::setup::Planted;
use neonsan_proto::Status;
use neonsan_session::server::{Gate, Introduced, Opening};
use neonsan_session::CloseCause;

impl Node {
    /// The only node of a storage has its volume all the time.
    pub(super) fn own_alone(&mut self, env: &mut Env) {
        if env.setup.nodes == 1 {
            self.own(env);
        }
    }

    /// Takes the volume, and remembers what the last one to have it did.
    fn own(&mut self, env: &mut Env) {
        let (term, last) = env.engine.take(&mut env.core, self.index);
        if let Some((node, term)) = last {
            env.counts.moves += 1;
            let late_us = env.core.rng.below(env.setup.disowned_us + 1);
            env.core.after(late_us, Event::Disowned { node, term });
        }
        let remembered = match env.setup.planted {
            Planted::ForgetfulNode => Vec::new(),
            _ => env.engine.remembered.clone(),
        };
        self.term = Some(term);
        self.gate = Gate::restore(env.setup.gate, remembered, env.core.now());
        self.saved_memory = Some(self.gate.memory_version());
    }

    /// A newcomer wants the volume, which this node does not have.
    pub(super) fn call_for_volume(&mut self, env: &mut Env, conn: ConnId, introduced: Introduced) {
        let now = env.core.now();
        let remembered = env.engine.remembered.clone();
        let mut gate = Gate::restore(env.setup.gate, remembered, now);
        let answer = gate.introduce(id_of(conn), introduced.kind, &introduced.request, now);
        if let Opening::Refused(reason) = answer {
            // Whoever holds the volume may be gone together with his node: then only a node that
            // has the volume can find out, by waiting for him.
            let may_be_gone = reason.status == Status::HeldByOther
                && !env.engine.is_in_other_hands(&env.core, self.index);
            if !may_be_gone {
                return self.refuse(env, conn, reason);
            }
        }
        if self.callers.is_empty() {
            let wait_us = env.core.rng.range(env.setup.take_us.0, env.setup.take_us.1);
            env.core.after(
                wait_us,
                Event::Owned {
                    node: self.index,
                    boot: self.boot,
                },
            );
        }
        self.callers.push(conn);
        if let Some(peer) = self.peers.get_mut(&conn) {
            peer.phase = super::Phase::Waiting;
        }
    }

    /// The storage gives this node the volume.
    pub(crate) fn on_owned(&mut self, env: &mut Env, boot: u64) {
        if self.life == Life::Gone || self.boot != boot || self.term.is_some() {
            return;
        }
        let later_us = match (
            self.life,
            env.engine.cut_off_until_us(&env.core, self.index),
        ) {
            (Life::Paused, _) => Some(env.core.now_us + 10_000),
            (_, until_us) => until_us,
        };
        if let Some(at_us) = later_us {
            let node = self.index;
            return env.core.at(at_us, Event::Owned { node, boot });
        }
        self.own(env);
        for conn in std::mem::take(&mut self.callers) {
            let introduced = self.peers.get(&conn).and_then(|p| p.introduced);
            match introduced {
                Some(introduced) => self.ask_gate(env, conn, introduced),
                None => continue,
            }
        }
        self.run_gate(env);
        self.set_timer(env);
    }

    /// This node hears that another has had the volume since the end of `term`.
    pub(crate) fn on_disowned(&mut self, env: &mut Env, term: u64) {
        match self.life {
            Life::Gone => return,
            Life::Paused => {
                self.missed_disowned = Some(self.missed_disowned.map_or(term, |t| t.max(term)));
                return;
            }
            Life::Running => {}
        }
        if self.term != Some(term) {
            return;
        }
        env.core
            .trace(|| format!("node {} has lost the volume", self.index));
        self.term = None;
        self.gate = Gate::new(env.setup.gate);
        let conns: Vec<ConnId> = self
            .peers
            .iter()
            .filter(|(_, p)| p.introduced.is_some() && p.phase != super::Phase::Refused)
            .map(|(conn, _)| *conn)
            .collect();
        for conn in conns {
            self.close(env, conn, CloseCause::Refused(Status::NotOwner));
        }
    }
}
