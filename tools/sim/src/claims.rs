// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Who may displace whom, as one would say it without a gate: this knows when each session had its
//! last connection, which boot of which host it is, and whether it was released.

use crate::engine::SessionId;
use neonsan_proto::{Mode, OpenFlags, OpenRequest};
use neonsan_session::Instant;
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug)]
struct Claim {
    host_id: [u8; 16],
    host_boot: u64,
    /// When a connection of it was let in, or ended.
    seen: Instant,
    /// It was released, or another session has asked for the volume by force.
    is_over: bool,
}

/// The sessions that were let in.
#[derive(Debug, Default)]
pub(crate) struct Claims(BTreeMap<SessionId, Claim>);

impl Claims {
    /// A gate has taken this request, and lets it in when what it displaces is drained. Should its
    /// client go before, what it has displaced by force stays displaced.
    pub(crate) fn asked(&mut self, request: &OpenRequest) {
        let takes = request.flags().contains(OpenFlags::FORCE) && request.mode() != Mode::ReadOnly;
        for (session, claim) in &mut self.0 {
            claim.is_over |= takes && *session != request.session_id;
        }
    }

    /// A session was let in by this request.
    pub(crate) fn let_in(&mut self, request: &OpenRequest, now: Instant) {
        let claim = Claim {
            host_id: request.host_id,
            host_boot: request.host_boot.get(),
            seen: now,
            is_over: false,
        };
        self.0.insert(request.session_id, claim);
    }

    /// A connection of a session has ended.
    pub(crate) fn ended(&mut self, session: &SessionId, now: Instant) {
        if let Some(claim) = self.0.get_mut(session) {
            claim.seen = now;
        }
    }

    /// A session was released.
    pub(crate) fn released(&mut self, session: &SessionId) {
        if let Some(claim) = self.0.get_mut(session) {
            claim.is_over = true;
        }
    }

    /// Why the session that was let in by `request` may not have displaced `lost`, which is drained.
    pub(crate) fn objection(
        &self,
        lost: &SessionId,
        request: &OpenRequest,
        linger_ms: u64,
        now: Instant,
    ) -> Option<String> {
        let claim = self.0.get(lost)?;
        let boots = [claim.host_boot, request.host_boot.get()];
        let restarted =
            claim.host_id == request.host_id && !boots.contains(&0) && boots[0] != boots[1];
        let absent_ms = now.since_ms(claim.seen);
        let is_right = claim.is_over
            || request.flags().contains(OpenFlags::FORCE)
            || restarted
            || absent_ms >= linger_ms;
        (!is_right).then(|| {
            format!(
                "a session lost the volume without force {absent_ms} ms after its last connection, \
                 of {linger_ms} ms: hosts {:?} and {:?}, boots {boots:?}",
                claim.host_id[0], request.host_id[0]
            )
        })
    }
}
