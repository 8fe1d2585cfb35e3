// SPDX-License-Identifier: GPL-2.0 OR MIT

//! How a session takes it when connections fall silent or are lost, and for how long.

mod common;

use common::device::{connect_of, device_with, join, live, open, refused, Device, DOWN, GONE};
use neonsan_proto::Status;
use neonsan_session::client::{
    Action, ConnectKind, Notice, SessionState, SHRUNK_RETRY_MS, STILL_LOST_EVERY_MS,
};
use neonsan_session::{CloseCause, Timeouts};

#[test]
fn people_are_told_of_loss_and_return() {
    let mut device = live(2, 1);
    let stop = |connection| Action::Stop {
        connection,
        cause: GONE,
    };
    assert_eq!(
        device.lost(0, GONE),
        [stop(0)],
        "one connection is no loss of service"
    );
    let lost = Action::Notify(Notice::Lost { cause: GONE });
    assert_eq!(device.lost(1, GONE), [stop(1), lost]);
    let since = device.now;
    assert_eq!(device.session.lost_since(), Some(since));
    device.drained(0);
    device.wait(700);
    device.opened(0);
    let actions = device.actions();
    let lost_for_ms = 700;
    assert!(actions.contains(&Action::Notify(Notice::Recovered { lost_for_ms })));
    assert_eq!(device.session.lost_since(), None);
}

#[test]
fn a_volume_lost_for_too_long_fails_its_requests_and_recovers_later() {
    let mut device = live(1, 1);
    device.lost(0, GONE);
    device.session.on_drained(0, device.now);
    let mut failed_after = None;
    let lost_at = device.now;
    while failed_after.is_none() {
        for action in device.wait_for_action() {
            match action {
                Action::Connect { connection, .. } => device
                    .session
                    .on_connect_failed(connection, DOWN, device.now),
                Action::FailRequests { cause } => {
                    assert_eq!(cause, DOWN);
                    failed_after = Some(device.now.since_ms(lost_at));
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(failed_after, Some(60_000));
    assert!(device.session.is_failing());
    device.bring_up();
    assert!(!device.session.is_failing());
}

#[test]
fn a_fence_is_told_also_where_requests_fail_already() {
    let mut device = live(1, 1);
    let mut timeouts = *device.session.timeouts();
    timeouts.loss_ms = 1_000;
    device.session.set_timeouts(timeouts);
    device.session.on_lost(0, GONE, device.now);
    assert!(
        !device.wait(0).is_empty(),
        "the connection is to be stopped"
    );
    device.session.on_drained(0, device.now);
    let mut causes = Vec::new();
    while causes.len() < 2 {
        // Nobody answers; from when requests fail a node does, and has bad news.
        let answer = match causes.is_empty() {
            true => DOWN,
            false => refused(Status::Fenced),
        };
        for action in device.wait_for_action() {
            match action {
                Action::Connect { connection, .. } => device
                    .session
                    .on_connect_failed(connection, answer, device.now),
                Action::FailRequests { cause } => causes.push(cause),
                _ => {}
            }
        }
    }
    assert_eq!(causes, [DOWN, CloseCause::Fenced]);
}

/// Its requests wait like those of a volume that is lost: another node is asked as soon as one that
/// is silent would be left, and the loss timeout is theirs too.
#[test]
fn a_connection_that_cannot_be_joined_for_long_costs_the_session() {
    let draining = refused(Status::Draining);
    // Nodes, loss timeout, what ends it. The heartbeat timeout is 9 s.
    let cases = [
        (1, 0, None),
        (1, 30_000, Some(30_000)),
        (2, 0, Some(9_000)),
        (2, 30_000, Some(9_000)),
        (2, 5_000, Some(5_000)),
    ];
    for (nodes, loss_ms, patience_ms) in cases {
        let mut device = live(2, nodes);
        let timeouts = *device.session.timeouts();
        device.session.set_timeouts(Timeouts {
            loss_ms,
            ..timeouts
        });
        device.session.on_lost(1, GONE, device.now);
        assert!(
            !device.wait(0).is_empty(),
            "the connection is to be stopped"
        );
        device.session.on_drained(1, device.now);
        let lost_at = device.now;
        while device.now.since_ms(lost_at) < 100_000 && device.session.state() == SessionState::Live
        {
            device.session.on_heard(0, device.now);
            for action in device.wait_for_action() {
                match action {
                    Action::Connect { connection: 1, .. } => {
                        device.session.on_connect_failed(1, draining, device.now)
                    }
                    Action::Ping { connection: 0 } | Action::Stop { .. } | Action::Notify(_) => {}
                    other => panic!("{other:?}"),
                }
            }
        }
        let Some(patience_ms) = patience_ms else {
            assert_eq!(device.session.state(), SessionState::Live);
            continue;
        };
        // All of it is drained, opened anew at the next node, and lost meanwhile.
        assert_eq!(device.session.state(), SessionState::Reopening);
        let waited_ms = device.now.since_ms(lost_at);
        assert!((patience_ms..patience_ms + 1_000).contains(&waited_ms));
        assert_eq!(device.session.lost_since(), Some(device.now));
        assert!(!device.actions().is_empty(), "the other is to be stopped");
        let (connection, node, kind) = connect_of(&device.drained(0));
        assert_eq!((connection, node), (0, 1 % nodes));
        assert!(matches!(kind, ConnectKind::Open { promote: true, .. }));
        // There it has as long again to be joined.
        device.opened(0);
        device.wait(1);
        assert_eq!(device.session.state(), SessionState::Live);
    }
}

/// It was not to be joined for longer than the heartbeat timeout, and there is another node. Then it
/// says that the session has ended there: it answers, so it is asked to open one anew.
#[test]
fn a_node_where_the_session_has_ended_is_not_left_for_being_late() {
    let endings = [
        Status::UnknownSession,
        Status::StaleGeneration,
        Status::NotOwner,
        Status::GoingAway,
    ];
    for ending in endings {
        let mut device = live(2, 2);
        device.session.on_lost(1, GONE, device.now);
        device.wait(0);
        device.session.on_drained(1, device.now);
        let lost_at = device.now;
        while device.session.state() == SessionState::Live {
            assert!(device.now.since_ms(lost_at) < 100_000, "asked in vain");
            device.session.on_heard(0, device.now);
            for action in device.wait_for_action() {
                let Action::Connect { connection: 1, .. } = action else {
                    continue;
                };
                let answer = match device.now.since_ms(lost_at) {
                    0..9_000 => Status::Draining,
                    _ => ending,
                };
                device
                    .session
                    .on_connect_failed(1, refused(answer), device.now);
            }
        }
        assert_eq!(device.session.state(), SessionState::Reopening);
        assert!(!device.actions().is_empty(), "the other is to be stopped");
        let (connection, node, kind) = connect_of(&device.drained(0));
        assert_eq!((connection, node), (0, 0), "{ending:?}");
        assert!(matches!(kind, ConnectKind::Open { promote: true, .. }));
        // One that does not open a session either is left for the next.
        let mut actions = device.failed(0, refused(Status::GoingAway));
        if actions.is_empty() {
            actions = device.wait_for_action();
        }
        let (connection, node, _) = connect_of(&actions);
        assert_eq!((connection, node), (0, 1), "{ending:?}");
    }
}

#[test]
fn requests_are_not_failed_while_they_may_still_be_touched() {
    let mut device = live(1, 1);
    device.lost(0, GONE);
    assert_eq!(device.wait(100_000), []);
    // But for telling people again.
    let told_at = device.now.after_ms(STILL_LOST_EVERY_MS);
    assert_eq!(
        device.session.poll_timeout(),
        Some(told_at),
        "only the caller can go on"
    );
    device.drained(0);
    let actions = device.wait(0);
    assert!(
        actions
            .iter()
            .any(|a| matches!(a, Action::FailRequests { .. })),
        "{actions:?}"
    );
}

#[test]
fn once_requests_have_failed_only_an_open_brings_the_service_back() {
    let timeouts = Timeouts {
        loss_ms: 1_000,
        ..Timeouts::DEFAULT
    };
    let mut device = device_with(2, 1, timeouts);
    device.bring_up();
    device.now = device.now.after_ms(2_000);
    for connection in 0..2 {
        device.lost(connection, GONE);
        let actions = device.drained(connection);
        assert!(matches!(connect_of(&actions).2, ConnectKind::Join { .. }));
    }
    // Both joins are under way when the volume has been lost for too long.
    let actions = device.wait(1_000);
    assert!(
        actions
            .iter()
            .any(|a| matches!(a, Action::FailRequests { .. })),
        "{actions:?}"
    );
    // One of them succeeds: a request that failed may still be in the engine for the other.
    device.opened(1);
    let actions = device.actions();
    assert!(
        !actions.contains(&Action::Resume { connection: 1 }),
        "{actions:?}"
    );
    device.drained(1);
    let actions = device.failed(0, DOWN);
    let actions = if actions.is_empty() {
        device.wait_for_action()
    } else {
        actions
    };
    assert!(matches!(connect_of(&actions).2, ConnectKind::Open { .. }));
}

#[test]
fn without_a_loss_timeout_nothing_ever_fails() {
    let mut device = device_with(1, 1, Timeouts::DEFAULT);
    device.bring_up();
    device.lost(0, GONE);
    device.drained(0);
    device.failed(0, DOWN);
    for _ in 0..3_000 {
        for action in device.wait_for_action() {
            assert!(matches!(action, Action::Connect { .. }), "{action:?}");
            device.failed(0, DOWN);
        }
    }
    device.bring_up();
}

#[test]
fn silence_is_answered_with_pings_and_then_the_connection_is_given_up() {
    let mut device = live(1, 1);
    let begin = device.now;
    let ping = Action::Ping { connection: 0 };
    assert_eq!(device.wait_for_action(), [ping]);
    assert_eq!(device.now.since_ms(begin), 3_000);
    assert_eq!(device.wait_for_action(), [ping]);
    let cause = CloseCause::HeartbeatTimeout;
    let actions = device.wait_for_action();
    assert_eq!(
        actions[0],
        Action::Stop {
            connection: 0,
            cause
        }
    );
    assert_eq!(device.now.since_ms(begin), 9_000);
}

#[test]
fn a_silent_node_is_left_for_the_next_one_without_asking_it_again() {
    let mut device = live(4, 3);
    let begin = device.now;
    // Busier connections were heard until later: within one interval, or they would be pinged.
    for connection in 0..4 {
        let heard = begin.after_ms(950 * u64::from(connection));
        device.session.on_heard(connection, heard);
    }
    let (mut stops, mut connects) = (0, Vec::new());
    while connects.is_empty() {
        for action in device.wait_for_action() {
            match action {
                Action::Stop { connection, cause } => {
                    assert_eq!(cause, CloseCause::HeartbeatTimeout);
                    stops += 1;
                    device.session.on_drained(connection, device.now);
                }
                Action::Connect { node, kind, .. } => connects.push((node, kind)),
                Action::Ping { .. } | Action::Notify(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(device.now.since_ms(begin), 9_000, "the heartbeat timeout");
    assert_eq!(stops, 4);
    assert_eq!(connects, [(1, open(2, 2, true))]);
    device.bring_up();
    assert_eq!(device.session.node(), 1);
}

#[test]
fn one_silent_connection_of_a_node_that_answers_is_joined_again() {
    let mut device = live(2, 2);
    let begin = device.now;
    loop {
        device.session.on_heard(1, device.now);
        let actions = device.wait(500);
        if actions.iter().any(|a| matches!(a, Action::Stop { .. })) {
            break;
        }
    }
    assert_eq!(device.now.since_ms(begin), 9_000);
    assert_eq!(device.session.state(), SessionState::Live);
    assert_eq!(connect_of(&device.drained(0)), (0, 0, join(1, 0, 2)));
}

#[test]
fn a_connection_that_is_heard_is_neither_pinged_nor_lost() {
    let mut device = live(1, 1);
    for _ in 0..100 {
        device.session.on_heard(0, device.now);
        assert_eq!(device.wait(2_900), []);
    }
}

/// The moments at which people are told that the device is still lost, until `until_ms`.
fn told_still_lost(device: &mut Device, until_ms: u64) -> Vec<u64> {
    let begin = device.now;
    let mut told = Vec::new();
    while device.now.since_ms(begin) < until_ms {
        while let Some(action) = device.session.poll_action() {
            match action {
                Action::Connect { connection, .. } => device
                    .session
                    .on_connect_failed(connection, DOWN, device.now),
                Action::Stop { connection, .. } => {
                    device.session.on_drained(connection, device.now);
                }
                Action::Notify(Notice::StillLost { lost_for_ms, cause }) => {
                    assert_eq!(cause, DOWN, "that of the last try");
                    told.push(lost_for_ms);
                }
                _ => {}
            }
        }
        let at = device.session.poll_timeout().expect("a stall");
        device.now = device.now.max(at);
        device.session.handle_timeout(device.now);
    }
    told
}

#[test]
fn people_are_told_again_and_again_while_it_is_lost() {
    let mut device = live(2, 1);
    let timeouts = *device.session.timeouts();
    device.session.set_timeouts(Timeouts {
        loss_ms: 0,
        ..timeouts
    });
    device.session.on_lost(0, GONE, device.now);
    device.session.on_lost(1, GONE, device.now);
    assert_eq!(
        told_still_lost(&mut device, 70_000),
        [5_000, 35_000, 65_000]
    );
    device.bring_up();
    // The next time it begins anew.
    device.now = device.now.after_ms(2_000);
    device.session.on_lost(0, GONE, device.now);
    device.session.on_lost(1, GONE, device.now);
    assert_eq!(told_still_lost(&mut device, 6_000), [5_000]);
}

#[test]
fn a_volume_that_was_shrunk_is_waited_for_without_haste_and_without_an_error() {
    let mut device = live(1, 2);
    let timeouts = *device.session.timeouts();
    device.session.set_timeouts(Timeouts {
        loss_ms: 0,
        ..timeouts
    });
    device.lost(0, GONE);
    device.drained(0);
    // It is opened anew, at each node in turn, and each has the smaller volume.
    device.failed(0, DOWN);
    let shrunk = CloseCause::VolumeShrunk(1 << 20);
    let mut nodes = Vec::new();
    for _ in 0..4 {
        let (_, node, kind) = connect_of(&device.wait_for_action());
        assert!(matches!(kind, ConnectKind::Open { promote: true, .. }));
        nodes.push(node);
        assert_eq!(device.failed(0, shrunk), []);
        assert_eq!(device.wait(SHRUNK_RETRY_MS - 1), [], "no haste");
        assert_eq!(device.session.state(), SessionState::Opening);
        assert!(!device.session.is_failing());
    }
    assert!(nodes.contains(&0) && nodes.contains(&1), "{nodes:?}");
    // A person has decided: at once.
    device.failed(0, shrunk);
    let _ = device.wait_for_action();
    device.failed(0, shrunk);
    device.session.retry_now(device.now);
    connect_of(&device.actions());
    device.opened(0);
    device.actions();
    assert!(device.session.is_usable());
}
