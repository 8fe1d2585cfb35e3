// SPDX-License-Identifier: GPL-2.0 OR MIT
//! A node among others over one storage: when it takes a volume, and what it
//! does when another node has taken it.
//!
//! A node that does not have the volume asks a gate restored from what is
//! saved beside the volume what would become of the newcomer. Who would be
//! refused is refused, and the volume stays where it is. Who would be let in
//! makes the node take the volume: the engine first sees to it that nothing of
//! another node can touch a block any more, then the gate begins with what is
//! saved by then, and only then is anybody let in. `neonsan-sim` runs the same
//! rules against all kinds of failures (`tools/sim/src/node/ownership.rs`).
//!
//! A node that finds its volume taken ends everything that it does with it, at
//! once, and tells its clients to go elsewhere. It may find out late: the
//! storage refuses its requests from the moment of the taking.

use neonsan_api::VolumeName;
use neonsan_engine::Engine;
use neonsan_proto::{OpenFlags, Refusal, Status};
use neonsan_session::server::{
    ConnectionId, Introduced, IntroducedAs, Opening, RefuseReason, Remembered,
};
use neonsan_session::CloseCause;

use super::entry::{Entry, OpenVolume, State};
use super::{find_engine, record, Hub, Introduction, OpenName};
use crate::data::ToWorker;
use crate::shared::{hex, Shared};

/// What became of opening a volume.
pub enum Found {
    /// It is open here.
    Here(Box<OpenVolume>),
    /// It stays where it is: whoever asked would be refused there too.
    Elsewhere {
        /// Who asked.
        asked: ConnectionId,
        /// Why it is refused.
        reason: RefuseReason,
    },
}

/// What connections are told whose volume was taken.
pub(super) fn lost_text(name: &OpenName) -> String {
    format!("another node has taken the volume {name}: use that one")
}

/// Finds the engine which has the volume, and opens it if whoever asks may
/// come in. Blocks.
pub(super) fn find(
    shared: &Shared,
    name: &OpenName,
    asked: ConnectionId,
    asks: &Introduced,
) -> neonsan_engine::Result<Found> {
    let engine_index = find_engine(shared, name.volume())?;
    let named = &shared.engines[engine_index];
    let engine = &*named.engine;
    let name = match name {
        OpenName::Volume(name) => name,
        OpenName::Snapshot(name) => {
            let snapshot = engine.open_snapshot(name)?;
            return Ok(Found::Here(Box::new(OpenVolume {
                engine_index,
                // Any number of nodes read it; none can take it from another,
                // and there is nobody to be kept out.
                is_shared: false,
                remembered: Vec::new(),
                stat: snapshot.stat(),
                limits: snapshot.limits(),
                volume: snapshot,
                engine: named.name.clone(),
            })));
        }
    };
    if engine.is_shared() {
        if let Some(reason) = refusal_elsewhere(shared, engine, name, asked, asks)? {
            return Ok(Found::Elsewhere { asked, reason });
        }
    }
    let volume = engine.take(name)?;
    // Not before it is taken: until then another node may save another one.
    let remembered = remembered(engine, name)?;
    Ok(Found::Here(Box::new(OpenVolume {
        engine_index,
        is_shared: engine.is_shared(),
        remembered,
        stat: volume.stat(),
        limits: volume.limits(),
        volume,
        engine: named.name.clone(),
    })))
}

/// What is saved of a volume's gate. Blocks.
fn remembered(engine: &dyn Engine, name: &VolumeName) -> neonsan_engine::Result<Vec<Remembered>> {
    record::decode(engine.load_record(name)?.as_deref())
}

/// Why a newcomer must stay out of a volume that is not open here; `None`: it
/// may come in, so the volume must come to this node. Blocks.
fn refusal_elsewhere(
    shared: &Shared,
    engine: &dyn Engine,
    name: &VolumeName,
    asked: ConnectionId,
    asks: &Introduced,
) -> neonsan_engine::Result<Option<RefuseReason>> {
    let now = shared.clock.now();
    let request = &asks.request;
    let mut gate = Entry::gate_from(&shared.live().config, remembered(engine, name)?, now);
    let others: Vec<_> = gate
        .holders()
        .filter(|holder| holder.session_id != request.session_id)
        .collect();
    match gate.introduce(asked, IntroducedAs::Open, request, now) {
        Opening::Refused(reason) if reason.status != Status::HeldByOther => Ok(Some(reason)),
        // Whoever holds the volume may be gone together with his node: then
        // only a node that has the volume can find out, by waiting for him.
        // How long that will be, this gate cannot know.
        Opening::Refused(reason) => Ok(engine.is_in_other_hands(name)?.then_some(RefuseReason {
            retry_after_ms: 0,
            ..reason
        })),
        Opening::Waiting => {
            // As it would be, were it let in.
            gate.on_saved(gate.memory_version(), now);
            // The gate cannot know whether a session has connections to
            // another node, and lets a host in that seems to have come back
            // without it. Not while that other node is there.
            let displaced = others
                .into_iter()
                .find(|other| gate.holders().all(|h| h.session_id != other.session_id));
            let forced = request.flags().contains(OpenFlags::FORCE);
            match displaced {
                Some(holder) if !forced && engine.is_in_other_hands(name)? => {
                    Ok(Some(RefuseReason {
                        status: Status::HeldByOther,
                        holder: Some(holder),
                        generation: 0,
                        retry_after_ms: 0,
                    }))
                }
                _ => Ok(None),
            }
        }
    }
}

impl Hub {
    /// Whoever asked is refused; who came after it asks anew.
    pub(super) fn answer_from_elsewhere(
        &mut self,
        name: &OpenName,
        asked: ConnectionId,
        reason: &RefuseReason,
        waiting: Vec<Introduction>,
    ) {
        let mut refusal = Refusal {
            generation: reason.generation.into(),
            retry_after_ms: reason.retry_after_ms.into(),
            ..Refusal::default()
        };
        let text = match reason.holder {
            Some(holder) if reason.status == Status::HeldByOther => {
                refusal.holder = holder.host_id;
                format!(
                    "the volume {name} is held by host {}, through another node: \
                     detach it there, or attach with --force to take it away from that host",
                    hex(&holder.host_id)
                )
            }
            _ if reason.status == Status::Fenced => format!(
                "the volume {name} was taken by another host meanwhile: \
                 detach it here, then attach it anew if it is free"
            ),
            _ => format!("refused: {}", reason.status),
        };
        tracing::info!(
            volume = %name, connection = asked.0, status = reason.status.name(), %text,
            "refused for a volume that another node has"
        );
        for introduction in waiting {
            if introduction.id != asked {
                self.introduce(introduction);
                continue;
            }
            self.tell_worker(
                asked,
                ToWorker::Refuse {
                    id: asked,
                    status: reason.status,
                    refusal,
                    text: text.clone(),
                },
            );
        }
    }

    /// Finds the volumes which other nodes have taken, and the snapshots that can
    /// be read through this node no more.
    pub(super) fn look_for_losses(&mut self) {
        let lost: Vec<OpenName> = self
            .entries
            .iter()
            .filter(|(_, entry)| match &entry.state {
                State::Open(open) => open.volume.is_lost(),
                State::Closed | State::Busy { .. } | State::Lost => false,
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in lost {
            self.lose(&name);
            self.pump(&name);
        }
    }

    /// Ends everything that this node does with a volume that it has not any
    /// more. The caller pumps.
    pub(super) fn lose(&mut self, name: &OpenName) {
        let config = &self.shared.config;
        let Some(entry) = self.entries.get_mut(name) else {
            return;
        };
        if !matches!(entry.state, State::Open(_)) {
            return;
        }
        tracing::warn!(volume = %name, "another node has the volume: its connections are closed");
        for id in entry.become_lost(config) {
            self.tell_worker(
                id,
                ToWorker::Revoke {
                    id,
                    cause: CloseCause::Refused(Status::NotOwner),
                },
            );
        }
    }
}
