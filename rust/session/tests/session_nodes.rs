// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What a session does when the operator names other nodes.

mod common;

use common::device::{connect_of, device_with, live, open, refused, Device, DOWN, GONE, TIMEOUTS};
use neonsan_proto::Status;
use neonsan_session::client::{Action, ConnectKind, SessionState, UNLISTED};

impl Device {
    fn replace(&mut self, nodes: u16, place: Option<u16>) -> bool {
        self.session.replace_nodes(nodes, place, self.now)
    }

    /// Its only connection is lost and drained; the join of it is being made.
    fn lose_and_join(&mut self) {
        self.lost(0, GONE);
        let (_, _, kind) = connect_of(&self.drained(0));
        assert!(matches!(kind, ConnectKind::Join { .. }));
    }
}

#[test]
fn what_is_live_stays_where_it_is() {
    let mut device = live(2, 1);
    assert!(!device.replace(2, None), "nothing is in vain");
    assert_eq!(device.actions(), []);
    assert!(device.session.is_usable());
    // A lost connection is joined at the node that has the session.
    device.lost(1, GONE);
    let (connection, node, kind) = connect_of(&device.drained(1));
    assert_eq!((connection, node), (1, UNLISTED));
    assert!(matches!(kind, ConnectKind::Join { .. }));
    device.opened(1);
    assert!(device.session.is_usable());
    // Appending learned addresses changes nothing of that.
    device.session.set_nodes(3);
    assert_eq!(device.session.node(), UNLISTED);
}

#[test]
fn a_node_that_is_listed_elsewhere_is_still_the_one_in_use() {
    let mut device = live(1, 2);
    assert!(!device.replace(3, Some(2)));
    device.lost(0, GONE);
    let (_, node, _) = connect_of(&device.drained(0));
    assert_eq!(node, 2);
    // From there the list is gone round.
    let mut nodes = vec![];
    for _ in 0..3 {
        device.failed(0, DOWN);
        let (_, node, kind) = connect_of(&device.wait_for_action());
        assert!(matches!(kind, ConnectKind::Open { .. }));
        nodes.push(node);
    }
    assert_eq!(nodes, [0, 1, 2]);
}

#[test]
fn a_session_that_leaves_an_unlisted_node_goes_to_the_first_of_the_list() {
    // It says that it goes away, though the list has but one.
    let mut device = live(1, 1);
    device.replace(1, None);
    device.session.on_going_away(device.now);
    device.actions();
    let (_, node, kind) = connect_of(&device.drained(0));
    assert_eq!((node, kind), (0, open(2, 2, true)));
    // It has been started again and knows nothing of the session.
    let mut device = live(1, 3);
    device.replace(3, None);
    device.lost(0, refused(Status::UnknownSession));
    assert_eq!(connect_of(&device.drained(0)).1, 0);
    // It is silent.
    let mut device = live(1, 3);
    device.replace(3, None);
    let stopped = device.wait(9_000);
    assert!(matches!(
        stopped[..],
        [Action::Stop { .. }, Action::Notify(_)]
    ));
    assert_eq!(connect_of(&device.drained(0)).1, 0);
}

#[test]
fn a_lost_device_tries_the_new_list_at_once() {
    // While it joins at a node that is not in the list any more: that may be cut short.
    let mut device = live(1, 2);
    device.lose_and_join();
    assert!(device.replace(2, None), "the join is in vain");
    assert_eq!(device.session.state(), SessionState::Reopening);
    assert_eq!(device.actions(), []);
    let (_, node, kind) = connect_of(&device.failed(0, DOWN));
    assert_eq!(node, 0);
    assert!(matches!(kind, ConnectKind::Open { .. }));
    // While it opens at one: what follows is the first of the list, and not the second.
    assert!(device.replace(3, None));
    assert_eq!(connect_of(&device.failed(0, DOWN)).1, 0);
    // While it waits for the next try, however long that would be.
    device.failed(0, DOWN);
    device.failed(0, DOWN);
    assert_eq!(device.state_of(0), "idle");
    assert!(!device.replace(1, None));
    assert_eq!(connect_of(&device.actions()).1, 0);
    device.opened(0);
    device.actions();
    assert!(device.session.is_usable());
}

#[test]
fn a_device_that_was_never_usable_is_given_other_nodes_too() {
    let mut device = device_with(1, 1, TIMEOUTS);
    assert_eq!(connect_of(&device.actions()).1, 0);
    assert!(device.replace(2, None));
    assert_eq!(connect_of(&device.failed(0, DOWN)).1, 0);
    // Before the action was polled, it is for the new list.
    let mut device = device_with(1, 3, TIMEOUTS);
    assert!(!device.replace(2, None));
    assert_eq!(connect_of(&device.actions()).1, 0);
}

#[test]
fn a_join_at_a_node_that_is_still_listed_goes_on() {
    let mut device = live(1, 1);
    device.lose_and_join();
    assert!(!device.replace(2, Some(1)));
    assert_eq!(device.session.state(), SessionState::Live);
    device.opened(0);
    device.actions();
    assert!(device.session.is_usable());
    assert_eq!(device.session.node(), 1);
}

#[test]
fn one_that_is_over_stays_over() {
    let mut device = live(1, 1);
    device.session.close(device.now);
    device.actions();
    device.drained(0);
    assert!(!device.replace(4, None));
    assert_eq!(device.actions(), []);
    assert_eq!(device.session.state(), SessionState::Closed);
}
