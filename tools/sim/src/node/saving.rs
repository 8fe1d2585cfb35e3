// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A node saves who holds the volume before a session begins, and before anybody is fenced for it.
//! That takes a while, and may fail. Connections of sessions that have begun do not wait for it.

use super::{conn_of, Life, Node};
use crate::clock::Event;
use crate::engine::SessionId;
use crate::env::Env;
use crate::setup::Planted;
use neonsan_proto::{OpenRequest, Status};
use neonsan_session::server::{ConnectionId, RefuseReason, Remembered, Standing};

/// What is being saved.
#[derive(Debug)]
pub(super) struct Saving {
    number: u64,
    term: u64,
    version: u64,
    memory: Vec<Remembered>,
    fails: bool,
}

impl Node {
    /// Begins to save what the gate remembers, if that has changed.
    pub(super) fn begin_saving(&mut self, env: &mut Env) {
        let Some(term) = self.term else { return };
        if self.saving.is_some() || self.saved_memory == Some(self.gate.memory_version()) {
            return;
        }
        self.savings += 1;
        self.saving = Some(Saving {
            number: self.savings,
            term,
            version: self.gate.memory_version(),
            memory: self.gate.memory().collect(),
            fails: !env.core.calm && env.core.rng.permille(100),
        });
        let most_us = env.core.rng.pick(&[1, 1000, 300_000]);
        let wait_us = env.core.rng.below(most_us);
        env.core.after(
            wait_us,
            Event::Saved {
                node: self.index,
                boot: self.boot,
                number: self.savings,
            },
        );
    }

    /// It is saved, or could not be.
    pub(crate) fn on_saved(&mut self, env: &mut Env, boot: u64, number: u64) {
        let node = self.index;
        if self.life == Life::Gone || self.boot != boot {
            return;
        }
        if self.life == Life::Paused {
            return env.core.after(10_000, Event::Saved { node, boot, number });
        }
        let Some(saving) = self.saving.take_if(|saving| saving.number == number) else {
            return;
        };
        if self.term != Some(saving.term) {
            // It is another gate now.
        } else if saving.fails {
            self.fail_saving(env);
        } else if env.engine.save(saving.term, saving.memory) {
            self.pass_entrances(env, saving.version);
        } else {
            self.on_disowned(env, saving.term);
        }
        self.run_gate(env);
        self.set_timer(env);
    }

    fn pass_entrances(&mut self, env: &mut Env, version: u64) {
        let requests: Vec<(ConnectionId, OpenRequest)> = self
            .gate
            .entering()
            .filter_map(|(id, _)| Some((id, self.peers.get(&conn_of(id))?.introduced?.request)))
            .collect();
        self.saved_memory = Some(version);
        self.gate.on_saved(version, env.core.now());
        for (id, request) in &requests {
            if !self.gate.is_entering(*id) {
                env.claims.asked(request);
            }
        }
    }

    fn fail_saving(&mut self, env: &mut Env) {
        env.core
            .trace(|| format!("node {} cannot save who holds the volume", self.index));
        for id in self.gate.on_save_failed() {
            let reason = RefuseReason {
                status: Status::Internal,
                holder: None,
                generation: 0,
                retry_after_ms: 0,
            };
            self.refuse(env, conn_of(id), reason);
        }
    }

    /// The process ends: what was being saved may be, or not.
    pub(super) fn end_while_saving(&mut self, env: &mut Env) {
        if let Some(saving) = self.saving.take() {
            if !saving.fails && env.core.rng.permille(500) {
                env.engine.save(saving.term, saving.memory);
            }
        }
    }

    /// A client that is told that it is fenced gives up: that must be saved, or nobody may have
    /// the volume in the end.
    pub(super) fn check_fenced(&self, env: &mut Env, session: &SessionId, status: Status) {
        let is_known = env
            .engine
            .remembered
            .iter()
            .any(|s| s.session_id == *session && s.standing == Standing::Fenced);
        let is_sure = env.setup.planted != Planted::ForgetfulNode && self.term.is_some();
        if status == Status::Fenced && is_sure && !is_known {
            env.core.fail(format!(
                "session {} is told that it is fenced, and that is not saved",
                super::name(session)
            ));
        }
    }
}
