// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Which node is next: the caller has a list of addresses, the machine a place in it.

use super::{Connection, Session};
use crate::{
    client::terms::{ConnectionState, SessionState, UNLISTED},
    CloseCause, Instant,
};
use core::borrow::BorrowMut;

impl<S: BorrowMut<[Connection]>> Session<S> {
    /// The caller knows this many addresses now (it appended to its list).
    pub fn set_nodes(&mut self, nodes: u16) {
        self.config.nodes = nodes.max(1);
    }

    /// The caller has another list, of `nodes` addresses; `place` is that of [`Session::node`] in it,
    /// if it is there.
    ///
    /// A session that has a live connection stays where it is, so connections that are lost are
    /// joined there; when it leaves that node, and the list does not have it, the first one of the list
    /// is next. Where nothing is live, the first one is tried at once; what is being connected runs to
    /// its end. Returns whether that is in vain, since it is with a node that the list does not have:
    /// the caller may cut it short.
    pub fn replace_nodes(&mut self, nodes: u16, place: Option<u16>, now: Instant) -> bool {
        self.config.nodes = nodes.max(1);
        self.node = place.unwrap_or(UNLISTED);
        let any = |state: fn(&Connection) -> bool| self.active().iter().any(state);
        let is_served = any(|c| c.state == ConnectionState::Live);
        // What was not polled yet goes to the node that is next then.
        let is_connecting = any(|c| {
            matches!(c.state, ConnectionState::Connecting { .. }) && c.due_connect.is_none()
        });
        match self.state {
            SessionState::Live if is_served => return false,
            SessionState::Failed(_) | SessionState::Closed => return false,
            SessionState::Live if place.is_none() => {
                self.leave_node();
                self.reopen(self.last_cause(), now);
            }
            // It may still be joined there.
            SessionState::Live => {}
            SessionState::Opening if is_connecting => {}
            SessionState::Opening | SessionState::Reopening => self.node = 0,
        }
        self.retry_now(now);
        is_connecting && place.is_none()
    }

    /// Something has changed that may let the next try succeed: it is made at once.
    pub fn retry_now(&mut self, now: Instant) {
        for c in self.active_mut() {
            c.backoff.reset();
            if let ConnectionState::Idle { retry_at: Some(at) } = c.state {
                let retry_at = Some(at.min(now));
                c.enter(ConnectionState::Idle { retry_at }, now);
            }
        }
        self.start_due(now);
    }

    /// The node says that it will stop: move to the next one if there is another.
    pub fn on_going_away(&mut self, now: Instant) {
        if self.state == SessionState::Live && self.has_other_node() {
            self.leave_node();
            self.reopen(CloseCause::GoingAway, now);
        }
    }

    /// The next try is made at the next node; if there is but one, at that one.
    pub(super) fn leave_node(&mut self) {
        let next = self.node.saturating_add(1);
        self.node = if next < self.config.nodes { next } else { 0 };
    }

    /// Whether leaving the node leads to another one.
    pub(super) fn has_other_node(&self) -> bool {
        self.config.nodes > 1 || self.node == UNLISTED
    }
}
