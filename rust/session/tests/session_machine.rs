// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Every transition of the diagram in `client/session.rs`, driven by hand. Those of silence and of the
//! loss timeout are in `session_loss.rs`.

mod common;

use common::device::{connect_of, device_with, join, live, open, refused, DOWN, GONE, TIMEOUTS};
use neonsan_proto::Status;
use neonsan_session::client::{Action, ConnectKind, ConnectionState, SessionState};
use neonsan_session::{CloseCause, Generation};

#[test]
fn attaching_opens_the_first_connection_and_joins_the_others() {
    let mut device = device_with(3, 1, TIMEOUTS);
    let actions = device.actions();
    assert_eq!(connect_of(&actions), (0, 0, open(1, 1, false)));
    assert_eq!(device.session.state(), SessionState::Opening);
    device.opened(0);
    assert_eq!(device.session.state(), SessionState::Live);
    let actions = device.actions();
    assert_eq!(actions[0], Action::Resume { connection: 0 });
    assert_eq!(connect_of(&actions[1..2]), (1, 0, join(1, 1, 1)));
    assert_eq!(connect_of(&actions[2..]), (2, 0, join(1, 2, 1)));
    assert!(!device.session.is_usable());
    device.opened(1);
    device.opened(2);
    assert!(device.session.is_usable());
    let resumed = [
        Action::Resume { connection: 1 },
        Action::Resume { connection: 2 },
    ];
    assert_eq!(device.actions(), resumed);
}

#[test]
fn the_node_may_allow_fewer_connections() {
    let mut device = device_with(8, 1, TIMEOUTS);
    device.actions();
    assert!(device.session.on_opened(0, 2, device.now));
    assert_eq!(device.session.connection_count(), 2);
    let mut device = device_with(8, 1, TIMEOUTS);
    device.actions();
    assert!(device.session.on_opened(0, 0, device.now));
    assert_eq!(device.session.connection_count(), 1);
    assert!(device.session.is_usable());
}

#[test]
fn one_lost_connection_is_stopped_drained_and_joined_again() {
    let mut device = live(3, 1);
    device.wait(10_000 - 9_000);
    let stop = Action::Stop {
        connection: 1,
        cause: GONE,
    };
    assert_eq!(device.lost(1, GONE), [stop]);
    assert_eq!(device.state_of(1), "stopping");
    assert_eq!(device.session.state(), SessionState::Live);
    // Nothing more until the caller has let go of its requests.
    assert_eq!(device.wait(1_000), []);
    let actions = device.drained(1);
    assert_eq!(connect_of(&actions), (1, 0, join(1, 1, 2)));
    device.opened(1);
    assert_eq!(device.actions(), [Action::Resume { connection: 1 }]);
    assert!(device.session.is_usable());
}

#[test]
fn requests_are_not_resumed_before_the_connection_is_drained_and_joined() {
    let mut device = live(1, 1);
    device.session.on_lost(0, GONE, device.now);
    // A caller that reports before it was told to stop is not believed.
    device.session.on_drained(0, device.now);
    assert_eq!(device.state_of(0), "stopping");
    assert!(device.actions().contains(&Action::Stop {
        connection: 0,
        cause: GONE
    }));
    assert!(!device.session.on_opened(0, 64, device.now));
}

#[test]
fn a_node_that_restarted_is_opened_with_the_next_generation() {
    let mut device = live(2, 1);
    device.lost(0, GONE);
    device.lost(1, GONE);
    device.drained(0);
    device.drained(1);
    device.wait(2_000);
    assert_eq!(device.failed(0, refused(Status::UnknownSession)), []);
    // The other is still being made; it is turned away when it reports.
    assert_eq!(device.session.state(), SessionState::Reopening);
    let actions = device.failed(1, refused(Status::UnknownSession));
    assert_eq!(device.session.state(), SessionState::Opening);
    assert_eq!(connect_of(&actions), (0, 0, open(2, 3, true)));
    device.opened(0);
    device.bring_up();
    assert_eq!(device.session.generation(), Generation(2));
}

#[test]
fn a_connection_that_opens_while_the_session_is_reopened_is_stopped_again() {
    let mut device = live(3, 1);
    device.lost(1, GONE);
    device.lost(2, GONE);
    device.drained(1);
    device.drained(2);
    device.wait(2_000);
    device.failed(1, refused(Status::StaleGeneration));
    assert_eq!(device.session.state(), SessionState::Reopening);
    assert!(device.session.on_opened(2, 64, device.now));
    let cause = CloseCause::Replaced;
    assert_eq!(
        device.actions(),
        [Action::Stop {
            connection: 2,
            cause
        }]
    );
    device.drained(2);
    assert_eq!(device.session.state(), SessionState::Reopening);
    device.drained(0);
    assert_eq!(device.session.state(), SessionState::Opening);
    device.bring_up();
}

#[test]
fn joining_goes_on_while_another_connection_lives() {
    let mut device = live(2, 1);
    device.lost(1, GONE);
    device.drained(1);
    for _ in 0..5 {
        assert_eq!(device.failed(1, DOWN), []);
        assert_eq!(device.session.state(), SessionState::Live);
        let actions = device.wait_for_action();
        assert!(matches!(
            connect_of(&actions),
            (1, 0, ConnectKind::Join { .. })
        ));
        device.session.on_heard(0, device.now);
    }
}

#[test]
fn no_connection_left_and_joining_fails_opens_anew() {
    let mut device = live(1, 1);
    device.lost(0, GONE);
    device.drained(0);
    device.failed(0, DOWN);
    assert_eq!(device.session.state(), SessionState::Opening);
    let actions = device.wait_for_action();
    assert_eq!(connect_of(&actions), (0, 0, open(2, 3, true)));
}

#[test]
fn a_node_that_nobody_can_join_is_left_for_the_next_one() {
    for cause in [DOWN, CloseCause::ConnectTimeout] {
        let mut device = live(1, 2);
        device.lost(0, GONE);
        device.drained(0);
        device.failed(0, cause);
        let actions = device.wait_for_action();
        assert_eq!(connect_of(&actions), (0, 1, open(2, 3, true)));
    }
    // One that answers, and does not know the session any more, is opened itself.
    let mut device = live(1, 2);
    device.lost(0, GONE);
    device.drained(0);
    device.failed(0, refused(Status::UnknownSession));
    let actions = device.wait_for_action();
    assert_eq!(connect_of(&actions), (0, 0, open(2, 3, true)));
}

#[test]
fn failed_opens_go_round_the_nodes_with_growing_delays() {
    let mut device = device_with(1, 3, TIMEOUTS);
    let mut delays = Vec::new();
    for i in 0..30u16 {
        let before = device.now;
        let actions = device.wait_for_action();
        delays.push(device.now.since_ms(before));
        let kind = open(u64::from(i) + 1, u64::from(i) + 1, false);
        assert_eq!(connect_of(&actions), (0, i % 3, kind));
        device.failed(0, DOWN);
    }
    assert_eq!(delays[0], 0);
    assert!(
        delays[1..].iter().all(|d| (50..=500).contains(d)),
        "{delays:?}"
    );
    assert!(delays[10..].iter().all(|d| *d >= 250), "{delays:?}");
}

#[test]
fn a_try_that_ran_into_its_timeout_has_waited_long_enough() {
    let mut device = device_with(1, 2, TIMEOUTS);
    device.wait_for_action();
    for i in 1..10u16 {
        // Nothing answers: the SYN of the next try must not come later than that of this one would.
        device.now = device.now.after_ms(TIMEOUTS.connect_ms.into());
        let actions = device.failed(0, CloseCause::ConnectTimeout);
        assert_eq!(connect_of(&actions).1, i % 2);
    }
}

#[test]
fn a_node_that_accepts_and_fails_is_not_tried_without_a_pause() {
    let mut device = live(1, 1);
    device.wait(2_000);
    let begin = device.now;
    for _ in 0..20 {
        device.lost(0, CloseCause::UnknownKind(9));
        device.session.on_drained(0, device.now);
        device.wait_for_action();
        device.opened(0);
        device.actions();
    }
    assert!(
        device.now.since_ms(begin) > 5_000,
        "{:?}",
        device.now.since_ms(begin)
    );
    // Once it has held for a while, the next try is made at once.
    device.wait(2_000);
    device.lost(0, GONE);
    assert_eq!(connect_of(&device.drained(0)).0, 0);
}

#[test]
fn a_fenced_session_fails_and_stays_failed() {
    let mut device = live(2, 2);
    let cause = CloseCause::Fenced;
    let actions = device.lost(1, cause);
    assert_eq!(device.session.state(), SessionState::Failed(cause));
    let stop = |connection| Action::Stop { connection, cause };
    assert!(actions.contains(&stop(0)) && actions.contains(&stop(1)));
    device.drained(0);
    assert!(
        !device.session.is_failing(),
        "requests of the other may still be touched"
    );
    assert!(device.drained(1).contains(&Action::FailRequests { cause }));
    assert_eq!(device.wait(1_000_000), []);
    assert_eq!(device.session.poll_timeout(), None);
}

#[test]
fn a_volume_that_has_another_owner_fails_at_once() {
    for status in [Status::HeldByOther, Status::Fenced] {
        let mut device = live(1, 1);
        device.lost(0, GONE);
        device.drained(0);
        device.failed(0, DOWN);
        device.wait(2_000);
        let actions = device.failed(0, refused(status));
        let cause = CloseCause::Fenced;
        assert_eq!(device.session.state(), SessionState::Failed(cause));
        assert!(actions.contains(&Action::FailRequests { cause }));
        // In a JOIN too.
        let mut device = live(1, 1);
        device.lost(0, GONE);
        device.drained(0);
        device.failed(0, refused(status));
        assert_eq!(device.session.state(), SessionState::Failed(cause));
    }
}

#[test]
fn another_volume_in_the_same_place_fails_the_device() {
    let mut device = live(1, 1);
    device.lost(0, GONE);
    device.drained(0);
    device.failed(0, DOWN);
    device.wait(2_000);
    let cause = CloseCause::VolumeChanged("identity");
    device.failed(0, cause);
    assert_eq!(device.session.state(), SessionState::Failed(cause));
}

#[test]
fn before_the_device_was_usable_a_refusal_is_tried_again() {
    let mut device = device_with(1, 1, TIMEOUTS);
    device.actions();
    device.failed(0, refused(Status::HeldByOther));
    assert_eq!(device.session.state(), SessionState::Opening);
    assert_eq!(connect_of(&device.wait_for_action()).2, open(2, 2, false));
}

#[test]
fn a_node_that_goes_away_is_left_for_the_next_one() {
    let mut device = live(2, 2);
    device.session.on_going_away(device.now);
    assert_eq!(device.session.state(), SessionState::Reopening);
    let cause = CloseCause::GoingAway;
    let stop = |connection| Action::Stop { connection, cause };
    let actions = device.actions();
    assert!(actions.starts_with(&[stop(0), stop(1)]), "{actions:?}");
    device.drained(0);
    let (_, node, kind) = connect_of(&device.drained(1));
    assert_eq!((node, kind), (1, open(2, 2, true)));
}

#[test]
fn the_only_node_is_kept_when_it_goes_away() {
    let mut device = live(2, 1);
    device.session.on_going_away(device.now);
    assert_eq!(device.session.state(), SessionState::Live);
    assert_eq!(device.actions(), []);
}

#[test]
fn replies_that_end_the_session_reopen_it() {
    for status in [Status::NotOwner, Status::UnknownSession, Status::GoingAway] {
        let mut device = live(2, 1);
        let actions = device.lost(1, refused(status));
        assert_eq!(device.session.state(), SessionState::Reopening);
        assert_eq!(actions.len(), 3, "two stops and the news: {actions:?}");
        device.drained(0);
        device.drained(1);
        device.bring_up();
        assert_eq!(device.session.generation(), Generation(2));
    }
}

#[test]
fn a_node_with_fewer_connections_than_the_device_has_is_not_used() {
    let mut device = live(4, 2);
    for connection in 0..4 {
        device.lost(connection, GONE);
        device.drained(connection);
    }
    for connection in 0..4 {
        device.failed(connection, DOWN);
    }
    assert_eq!(device.session.state(), SessionState::Opening);
    let first = connect_of(&device.wait_for_action()).1;
    assert!(
        !device.session.on_opened(0, 3, device.now),
        "queues would hang for ever"
    );
    let second = connect_of(&device.wait_for_action()).1;
    assert_ne!(first, second);
    assert!(device.session.on_opened(0, 4, device.now));
    device.bring_up();
}

#[test]
fn closing_stops_everything_and_comes_to_rest() {
    let mut device = live(3, 1);
    device.lost(1, GONE);
    device.drained(1);
    // 0 and 2 are live, 1 is being made.
    assert_eq!(device.state_of(1), "connecting");
    device.session.close(device.now);
    let cause = CloseCause::Detached;
    let stop = |connection| Action::Stop { connection, cause };
    assert_eq!(device.actions(), [stop(0), stop(2)]);
    assert!(!device.session.is_at_rest());
    device.drained(0);
    device.drained(2);
    assert!(
        device.session.on_opened(1, 64, device.now),
        "the caller stops it as told"
    );
    assert!(matches!(
        device.actions()[..],
        [Action::Stop { connection: 1, .. }]
    ));
    device.drained(1);
    assert!(device.session.is_at_rest());
    assert_eq!(device.wait(1_000_000), []);
    assert_eq!(device.session.poll_timeout(), None);
}

#[test]
fn closing_takes_back_what_has_not_begun() {
    let mut device = device_with(1, 1, TIMEOUTS);
    device.session.close(device.now);
    assert!(device.session.is_at_rest());
    assert_eq!(device.actions(), []);
}

#[test]
fn a_connect_carries_its_deadline_and_an_unpolled_one_is_given_up() {
    let mut device = device_with(1, 1, TIMEOUTS);
    let deadline = device.now.after_ms(5_000);
    assert_eq!(device.session.poll_timeout(), Some(deadline));
    device.now = deadline;
    device.session.handle_timeout(device.now);
    let (state, _, cause) = device.session.connection(0).expect("it exists");
    assert!(matches!(
        state,
        ConnectionState::Idle { .. } | ConnectionState::Connecting { .. }
    ));
    assert_eq!(cause, Some(CloseCause::ConnectTimeout));
    let actions = device.wait_for_action();
    assert!(matches!(actions[..], [Action::Connect { deadline, .. }]
        if deadline == device.now.after_ms(5_000)));
    // Polled: now the deadline is the caller's, and waking up for it would be for nothing.
    assert_eq!(device.session.poll_timeout(), None);
}

#[test]
fn reports_about_connections_that_do_not_exist_are_ignored() {
    let mut device = live(2, 1);
    for connection in [2, 63, 64, u16::MAX] {
        assert!(!device.session.on_opened(connection, 64, device.now));
        device.session.on_lost(connection, GONE, device.now);
        device.session.on_drained(connection, device.now);
        device
            .session
            .on_connect_failed(connection, GONE, device.now);
        device.session.on_heard(connection, device.now);
        assert_eq!(device.session.connection(connection), None);
    }
    assert_eq!(device.actions(), []);
    assert!(device.session.is_usable());
}
