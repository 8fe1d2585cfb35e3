// SPDX-License-Identifier: GPL-2.0 OR MIT
//! How a connection is let in, or refused.

use std::sync::Arc;

use neonsan_engine::{Queue, Volume};
use neonsan_proto::{Refusal, Status};
use neonsan_session::server::{Limits, Receiver};
use neonsan_session::CloseCause;

use super::{Connection, Finishing, Phase, REFUSAL_MS};
use crate::data::active::Active;
use crate::data::worker::Context;
use crate::data::ToWorker;
use crate::hub::ToHub;

/// The queue of a connection that waits to be let in.
pub(super) struct Prepared {
    /// `None`: it could not be made, or is in use.
    queue: Option<Box<dyn Queue>>,
    /// The boot id of its engine, before it was made.
    boot_id: [u8; 16],
}

impl Connection {
    /// Makes the queue, before anybody has to make place for this connection.
    pub(super) fn prepare(
        &mut self,
        volume: Arc<dyn Volume>,
        engine_index: usize,
        depth: u16,
        context: &mut Context<'_>,
    ) {
        let Phase::Waiting(_) = &self.phase else {
            return;
        };
        // Before the queue: if it is the same when the connection is let in, the queue goes with it.
        let boot_id = context.shared.engines[engine_index].engine.boot_id();
        let made = volume.queue(u32::from(depth));
        let failed = made.as_ref().err().map(ToString::to_string);
        self.prepared = Some(Prepared {
            queue: made.ok(),
            boot_id,
        });
        match failed {
            None => context.shared.tell_hub(ToHub::Prepared(self.id)),
            Some(error) => self.refuse_without_queue(&error, context),
        }
    }

    fn refuse_without_queue(&mut self, error: &str, context: &mut Context<'_>) {
        tracing::error!(connection = self.id.0, peer = %self.peer, error, "cannot serve a connection");
        let text = format!("the node cannot serve another connection: {error}");
        self.refuse_again_later(&text, context);
    }

    /// Refuses a connection for something that may be over in a moment, and tells the hub, to which
    /// it is as good as let in.
    fn refuse_again_later(&mut self, text: &str, context: &mut Context<'_>) {
        if self.prepared.is_none() {
            context.shared.tell_hub(ToHub::Drained(self.id));
        }
        self.refuse(Status::Busy, Refusal::default(), text, context);
    }

    pub(super) fn admit(&mut self, message: ToWorker, context: &mut Context<'_>) {
        let ToWorker::Admit {
            volume,
            name,
            engine_index,
            reply,
            geometry,
            read_only,
            budget,
            ..
        } = message
        else {
            return;
        };
        let Phase::Waiting(machine) = &self.phase else {
            return;
        };
        let features = machine.features();
        let depth = reply.max_depth.get();
        let prepared = self.prepared.as_mut();
        let fits = prepared.filter(|prepared| prepared.boot_id == reply.boot_id);
        let queue = match fits.and_then(|prepared| prepared.queue.take()) {
            Some(queue) => queue,
            None => match volume.queue(u32::from(depth)) {
                Ok(queue) => queue,
                Err(error) => return self.refuse_without_queue(&error.to_string(), context),
            },
        };
        // The queue goes with the boot id that the engine has now: see `hub::boot`.
        if context.shared.engines[engine_index].engine.boot_id() != reply.boot_id {
            let text = "the node's storage had an error at this moment: try again";
            return self.refuse_again_later(text, context);
        }
        let limits = Limits {
            max_depth: depth,
            max_inflight_bytes: reply.max_inflight_bytes.get(),
            read_only,
        };
        let Phase::Waiting(machine) = &self.phase else {
            return;
        };
        let mut answer = Vec::new();
        let nodes = context.shared.nodes_for(engine_index, self.peer.ip());
        machine.encode_accept(*reply, &nodes, &mut answer);
        self.output.push_bytes(answer);
        self.output.set_depth(depth);
        tracing::info!(
            volume = %name, connection = self.id.0, peer = %self.peer,
            generation = reply.generation.get(), read_only, "connection admitted"
        );
        let receiver = Receiver::new(geometry, limits, features, crc32c::crc32c);
        self.prepared = None;
        self.phase = Phase::Active(Box::new(Active::new(
            name,
            Arc::clone(&context.shared.engines[engine_index].supervised),
            queue,
            receiver,
            features,
            budget,
        )));
        self.heard_at = context.now;
        self.sent_at = context.now;
    }

    pub(super) fn refuse(
        &mut self,
        status: Status,
        refusal: Refusal,
        text: &str,
        context: &mut Context<'_>,
    ) {
        let Phase::Waiting(machine) = &self.phase else {
            return;
        };
        let mut answer = Vec::new();
        machine.encode_refusal(status, refusal, text, &mut answer);
        self.output.push_bytes(answer);
        self.phase = Phase::Refusing {
            deadline: context.now.after_ms(REFUSAL_MS),
        };
        // The queue goes first: it keeps the volume open.
        if self.prepared.take().is_some() {
            context.shared.tell_hub(ToHub::Drained(self.id));
        }
        self.finishing = Some(Finishing::new(CloseCause::Refused(status), context));
    }
}
