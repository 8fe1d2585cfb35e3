// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What the passing of time does: heartbeats, the loss timeout, tries that are due.

use super::{Connection, Session};
use crate::{
    client::terms::{ConnectionState, Notice, SessionState, STILL_LOST_EVERY_MS},
    CloseCause, Instant,
};
use core::borrow::BorrowMut;

impl<S: BorrowMut<[Connection]>> Session<S> {
    /// Does what is due at `now`.
    pub fn handle_timeout(&mut self, now: Instant) {
        let timeouts = self.config.timeouts;
        let interval = u64::from(timeouts.heartbeat_interval_ms);
        let patience = u64::from(timeouts.heartbeat_timeout_ms);
        for i in 0..self.count {
            let Some(c) = self.active_mut().get_mut(i) else {
                break;
            };
            match c.state {
                ConnectionState::Live => {
                    if now.since_ms(c.heard_at) >= patience {
                        self.on_lost(i as u16, CloseCause::HeartbeatTimeout, now);
                    } else if now.since_ms(c.pinged_at.unwrap_or(c.heard_at)) >= interval {
                        c.pinged_at = Some(now);
                        c.due_ping = true;
                    }
                }
                ConnectionState::Connecting { deadline } => {
                    // The caller gives up by itself at the deadline and reports it. An action that
                    // was never polled is ours to give up.
                    if deadline <= now && c.due_connect.is_some() {
                        self.on_connect_failed(i as u16, CloseCause::ConnectTimeout, now);
                    }
                }
                ConnectionState::Idle { .. } | ConnectionState::Stopping => {}
            }
        }
        if let Some(at) = self.loss_deadline() {
            if at <= now {
                let cause = self.last_cause();
                self.failing = true;
                self.due_fail = Some(cause);
                if self.state == SessionState::Live {
                    // What fails now may still be in the engine, and the host may try it again on
                    // another connection. A JOIN drains only its own predecessor: from here on
                    // only an OPEN, which drains them all, brings the service back.
                    self.reopen(cause, now);
                }
            }
        }
        if let (Some(at), Some(since)) = (self.told_lost_at(), self.lost_since) {
            if at <= now {
                self.told_lost_at = now.after_ms(STILL_LOST_EVERY_MS);
                self.due_still_lost = Some(Notice::StillLost {
                    lost_for_ms: now.since_ms(since),
                    cause: self.last_cause(),
                });
            }
        }
        self.start_due(now);
    }

    /// Whether no live connection was heard for so long that the node itself is to be doubted.
    ///
    /// A node that answers is heard at least once in a heartbeat interval, on every connection. So
    /// when a node falls silent, its connections were last heard within one interval of each
    /// other, and when the first of them reaches the heartbeat timeout all the others have been
    /// silent for the timeout less that interval.
    pub(super) fn is_node_silent(&self, now: Instant) -> bool {
        let interval = u64::from(self.config.timeouts.heartbeat_interval_ms);
        let patience = u64::from(self.config.timeouts.heartbeat_timeout_ms);
        let doubt = patience.saturating_sub(interval).max(interval);
        self.active()
            .iter()
            .filter(|c| c.state == ConnectionState::Live)
            .all(|c| now.since_ms(c.heard_at) >= doubt)
    }

    /// Whether a connection that could not be joined has been lost for too long, while others are
    /// live. A node that lets one connection wait has a reason that this one alone meets: an engine
    /// that does not answer its requests, say. They would wait as long as the reason lasts.
    ///
    /// Where there is another node, too long is the heartbeat timeout: what does not answer for so
    /// long is given up, here as elsewhere. Where there is none, opening anew would only make the
    /// others wait too, so it is the loss timeout: the volume is to be served whole or to be lost,
    /// and has that time once more before its requests fail.
    ///
    /// Asked when a try has failed: none is cut short, or with a timeout below what joining takes no
    /// session would ever be whole.
    pub(super) fn is_join_overdue(&self, connection: usize, now: Instant) -> bool {
        let timeouts = self.config.timeouts;
        let silence_ms = self
            .has_other_node()
            .then_some(timeouts.heartbeat_timeout_ms);
        let loss_ms = (timeouts.loss_ms != 0).then_some(timeouts.loss_ms);
        let Some(patience_ms) = silence_ms.into_iter().chain(loss_ms).min() else {
            return false;
        };
        let lost_at = self.active().get(connection).and_then(|c| c.lost_at);
        self.was_usable && lost_at.is_some_and(|at| now.since_ms(at) >= patience_ms.into())
    }

    /// When requests begin to fail since nothing came back; `None` while nothing is lost, while
    /// requests may still be touched, and once they fail.
    pub fn loss_deadline(&self) -> Option<Instant> {
        let untouched = self
            .active()
            .iter()
            .all(|c| !matches!(c.state, ConnectionState::Live | ConnectionState::Stopping));
        let trying = self.is_trying();
        let loss_ms = u64::from(self.config.timeouts.loss_ms);
        let since = self.lost_since?;
        (loss_ms != 0 && trying && untouched && !self.failing).then(|| since.after_ms(loss_ms))
    }

    /// When people are to be told next that there still is no service; `None` while there is, and when
    /// there will be none.
    fn told_lost_at(&self) -> Option<Instant> {
        (self.lost_since.is_some() && self.is_trying()).then_some(self.told_lost_at)
    }

    fn is_trying(&self) -> bool {
        match self.state {
            SessionState::Opening | SessionState::Live | SessionState::Reopening => true,
            SessionState::Failed(_) | SessionState::Closed => false,
        }
    }

    /// When [`Session::handle_timeout`] is to be called next at the latest; `None`: not before
    /// something happens.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let timeouts = &self.config.timeouts;
        let interval = u64::from(timeouts.heartbeat_interval_ms);
        let patience = u64::from(timeouts.heartbeat_timeout_ms);
        let connections = self.active().iter().filter_map(|c| match c.state {
            ConnectionState::Live => {
                let ping = c.pinged_at.unwrap_or(c.heard_at).after_ms(interval);
                Some(ping.min(c.heard_at.after_ms(patience)))
            }
            ConnectionState::Idle { retry_at } => retry_at,
            // Once the action was polled the deadline is the caller's: to wake up for it here
            // would be to wake up again and again until the caller has reported.
            ConnectionState::Connecting { deadline } => c.due_connect.map(|_| deadline),
            ConnectionState::Stopping => None,
        });
        connections
            .chain(self.loss_deadline())
            .chain(self.told_lost_at())
            .min()
    }
}
