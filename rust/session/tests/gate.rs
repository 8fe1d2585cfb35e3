// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Who may have a volume, and when: fencing, generations, epochs, lingering.

mod common;

use neonsan_proto::{Mode, OpenFlags, OpenRequest, Status, VolumeName};
use neonsan_session::server::{
    ConnectionId, Gate, GateAction, GateConfig, IntroducedAs, Opening, RefuseReason,
};
use neonsan_session::{CloseCause, Instant};

const CONFIG: GateConfig = GateConfig {
    max_sessions: 3,
    max_connections: 4,
    drain_timeout_ms: 1000,
    linger_ms: 10_000,
    max_remembered: 16,
    without_fencing: false,
};

/// A gate with the answers it gave.
struct Door {
    gate: Gate,
    now: Instant,
    next: u64,
}

/// What one introduction came to so far.
#[derive(Debug, PartialEq, Eq)]
enum Came {
    In,
    Waits,
    Refused(Status),
}

fn door() -> Door {
    Door {
        gate: Gate::new(CONFIG),
        now: Instant(1000),
        next: 1,
    }
}

/// Host `host` has session `host` in these tests, unless said otherwise.
fn open(host: u8, generation: u64) -> OpenRequest {
    let name = VolumeName::parse("pool/vol").expect("valid");
    let mut request = OpenRequest::new(name, "host");
    request.session_id = [host; 16];
    request.host_id = [host; 16];
    request.host_boot = u64::from(host).into();
    request.generation = generation.into();
    request.epoch = generation.into();
    request
}

fn join(host: u8, generation: u64, connection: u16, epoch: u64) -> OpenRequest {
    let mut request = open(host, generation);
    request.connection = connection.into();
    request.epoch = epoch.into();
    request
}

/// Another session of the same host.
fn other_session(mut request: OpenRequest, session: u8) -> OpenRequest {
    request.session_id = [session; 16];
    request
}

fn with_boot(mut request: OpenRequest, boot: u64) -> OpenRequest {
    request.host_boot = boot.into();
    request
}

fn with_mode(mut request: OpenRequest, mode: Mode) -> OpenRequest {
    request.mode = mode.to_wire();
    request
}

fn forced(mut request: OpenRequest) -> OpenRequest {
    request.flags = OpenFlags::FORCE.0;
    request
}

impl Door {
    fn actions(&mut self) -> Vec<GateAction> {
        self.gate.handle_timeout(self.now);
        self.saved();
        std::iter::from_fn(|| self.gate.poll_action(self.now)).collect()
    }

    /// What the gate remembers is saved.
    fn saved(&mut self) {
        self.gate.on_saved(self.gate.memory_version(), self.now);
    }

    fn introduce(&mut self, kind: IntroducedAs, request: &OpenRequest) -> (ConnectionId, Opening) {
        let id = ConnectionId(self.next);
        self.next += 1;
        (id, self.gate.introduce(id, kind, request, self.now))
    }

    /// Introduces a connection; other actions than about itself are given back.
    fn enter(
        &mut self,
        kind: IntroducedAs,
        request: &OpenRequest,
    ) -> (ConnectionId, Came, Vec<GateAction>) {
        let (id, opening) = self.introduce(kind, request);
        if let Opening::Refused(reason) = opening {
            return (id, Came::Refused(reason.status), Vec::new());
        }
        let mut came = Came::Waits;
        let mut others = Vec::new();
        for action in self.actions() {
            match action {
                GateAction::Admit(which) if which == id => came = Came::In,
                GateAction::Refuse(which, reason) if which == id => {
                    came = Came::Refused(reason.status)
                }
                other => others.push(other),
            }
        }
        (id, came, others)
    }

    /// An OPEN that must be let in at once without touching anybody.
    fn opens(&mut self, request: &OpenRequest) -> ConnectionId {
        let (id, came, others) = self.enter(IntroducedAs::Open, request);
        assert_eq!((came, others), (Came::In, Vec::new()));
        id
    }

    fn joins(&mut self, request: &OpenRequest) -> ConnectionId {
        let (id, came, others) = self.enter(IntroducedAs::Join, request);
        assert_eq!((came, others), (Came::In, Vec::new()));
        id
    }

    fn open_refused(&mut self, request: &OpenRequest) -> RefuseReason {
        match self.introduce(IntroducedAs::Open, request).1 {
            Opening::Refused(reason) => reason,
            Opening::Waiting => panic!("it was not refused"),
        }
    }

    fn join_refused(&mut self, request: &OpenRequest) -> Status {
        match self.introduce(IntroducedAs::Join, request).1 {
            Opening::Refused(reason) => reason.status,
            Opening::Waiting => panic!("it was not refused"),
        }
    }

    fn drained(&mut self, id: ConnectionId) -> Vec<GateAction> {
        self.gate.on_drained(id, self.now);
        self.actions()
    }
}

#[test]
fn an_exclusive_volume_refuses_a_second_host_and_names_the_holder() {
    let mut door = door();
    door.opens(&open(1, 1));
    let reason = door.open_refused(&open(2, 1));
    assert_eq!(reason.status, Status::HeldByOther);
    let holder = reason.holder.expect("named");
    assert_eq!((holder.host_id, holder.connections), ([1; 16], 1));
    assert_eq!(
        (holder.since, holder.mode),
        (Instant(1000), Mode::Exclusive)
    );
    // It keeps out everybody who could write, and nobody who only reads.
    let shared = with_mode(open(3, 1), Mode::Shared);
    assert_eq!(door.open_refused(&shared).status, Status::HeldByOther);
    door.opens(&with_mode(open(4, 1), Mode::ReadOnly));
    assert_eq!(door.gate.holders().count(), 2);
}

#[test]
fn force_fences_the_holder_first() {
    let mut door = door();
    let first = door.opens(&open(1, 1));
    let second = door.joins(&join(1, 1, 1, 1));
    let (taker, came, others) = door.enter(IntroducedAs::Open, &forced(open(2, 1)));
    assert_eq!(came, Came::Waits);
    let revoked = |id| GateAction::Revoke(id, CloseCause::Fenced);
    assert_eq!(others, vec![revoked(first), revoked(second)]);
    assert_eq!(
        door.drained(first),
        vec![],
        "one connection is not drained yet"
    );
    assert_eq!(door.drained(second), vec![GateAction::Admit(taker)]);
    assert_eq!(
        door.gate.holders().map(|h| h.host_id).collect::<Vec<_>>(),
        vec![[2; 16]]
    );
}

#[test]
fn a_fenced_session_never_comes_back() {
    let mut door = door();
    let old = door.opens(&open(1, 1));
    let (new, _, _) = door.enter(IntroducedAs::Open, &forced(open(2, 1)));
    door.drained(old);
    assert_eq!(door.join_refused(&join(1, 1, 0, 9)), Status::UnknownSession);
    assert_eq!(door.open_refused(&open(1, 2)).status, Status::Fenced);
    assert_eq!(
        door.open_refused(&forced(open(1, 3))).status,
        Status::Fenced
    );
    // Not even when the volume is free again: what it would resend is older than what is stored.
    door.gate.on_release(new);
    door.drained(new);
    assert!(door.gate.is_unused());
    assert_eq!(door.open_refused(&open(1, 4)).status, Status::Fenced);
    // The host may begin a new session, of course.
    let mut fresh = open(1, 1);
    fresh.session_id = [9; 16];
    door.opens(&fresh);
}

#[test]
fn a_session_that_lingered_out_comes_back_only_if_nobody_had_the_volume() {
    for somebody in [false, true] {
        let mut door = door();
        let old = door.opens(&open(1, 1));
        door.drained(old);
        door.now = door.now.after_ms(CONFIG.linger_ms);
        door.actions();
        assert!(door.gate.is_unused());
        if somebody {
            let other = door.opens(&open(2, 1));
            door.gate.on_release(other);
            door.drained(other);
            assert_eq!(door.open_refused(&open(1, 2)).status, Status::Fenced);
        } else {
            door.opens(&open(1, 2));
        }
    }
}

#[test]
fn readers_fence_nobody() {
    let mut door = door();
    let old = door.opens(&open(1, 1));
    door.drained(old);
    door.now = door.now.after_ms(CONFIG.linger_ms);
    door.actions();
    door.opens(&with_mode(open(2, 1), Mode::ReadOnly));
    door.opens(&open(1, 2));
}

#[test]
fn an_older_generation_is_refused() {
    let mut door = door();
    door.opens(&open(1, 5));
    for generation in [1, 4, 5] {
        let reason = door.open_refused(&open(1, generation));
        assert_eq!(
            (reason.status, reason.generation),
            (Status::StaleGeneration, 5)
        );
    }
    assert_eq!(
        door.join_refused(&join(1, 4, 1, 1)),
        Status::StaleGeneration
    );
    // A higher one in a JOIN is from before this node lost its memory.
    assert_eq!(door.join_refused(&join(1, 6, 1, 1)), Status::UnknownSession);
    assert_eq!(door.join_refused(&join(2, 1, 1, 1)), Status::UnknownSession);
}

#[test]
fn an_older_epoch_is_refused() {
    let mut door = door();
    door.opens(&open(1, 1));
    let (_, came, _) = door.enter(IntroducedAs::Join, &join(1, 1, 2, 7));
    assert_eq!(came, Came::In);
    for epoch in [1, 6, 7] {
        assert_eq!(
            door.join_refused(&join(1, 1, 2, epoch)),
            Status::StaleGeneration
        );
    }
    assert_eq!(
        door.join_refused(&join(1, 1, 0, 1)),
        Status::StaleGeneration
    );
}

#[test]
fn a_newer_generation_waits_for_every_older_connection() {
    let mut door = door();
    let old: Vec<ConnectionId> = std::iter::once(door.opens(&open(1, 1)))
        .chain(
            (1..4)
                .map(|i| (i, 1))
                .collect::<Vec<_>>()
                .into_iter()
                .map(|(i, e)| door.joins(&join(1, 1, i, e))),
        )
        .collect();
    let (new, came, others) = door.enter(IntroducedAs::Open, &open(1, 2));
    assert_eq!((came, others.len()), (Came::Waits, 4));
    for id in &old[..3] {
        assert_eq!(door.drained(*id), vec![]);
    }
    assert_eq!(door.drained(old[3]), vec![GateAction::Admit(new)]);
}

#[test]
fn a_join_waits_for_the_older_connection_of_its_index_only() {
    let mut door = door();
    door.opens(&open(1, 1));
    let old = door.joins(&join(1, 1, 1, 1));
    let (new, came, others) = door.enter(IntroducedAs::Join, &join(1, 1, 1, 2));
    assert_eq!(came, Came::Waits);
    assert_eq!(others, vec![GateAction::Revoke(old, CloseCause::Replaced)]);
    door.joins(&join(1, 1, 2, 1));
    assert_eq!(door.drained(old), vec![GateAction::Admit(new)]);
}

#[test]
fn a_join_waits_for_older_generations() {
    let mut door = door();
    let old = door.opens(&open(1, 1));
    let (promoted, came, _) = door.enter(IntroducedAs::Open, &open(1, 2));
    assert_eq!(came, Came::Waits);
    // A client that does not wait for its OPEN_REPLY gains nothing.
    let (early, came, _) = door.enter(IntroducedAs::Join, &join(1, 2, 1, 1));
    assert_eq!(came, Came::Waits);
    let admitted = door.drained(old);
    assert_eq!(admitted.len(), 2);
    assert!([promoted, early]
        .iter()
        .all(|id| admitted.contains(&GateAction::Admit(*id))));
}

#[test]
fn of_two_joins_that_wait_the_newer_one_wins() {
    let mut door = door();
    door.opens(&open(1, 1));
    let old = door.joins(&join(1, 1, 1, 1));
    let (second, _, _) = door.enter(IntroducedAs::Join, &join(1, 1, 1, 2));
    let (third, came, others) = door.enter(IntroducedAs::Join, &join(1, 1, 1, 3));
    assert_eq!(came, Came::Waits);
    assert!(matches!(others[..], [GateAction::Refuse(id, r)]
        if id == second && r.status == Status::StaleGeneration));
    assert_eq!(door.drained(old), vec![GateAction::Admit(third)]);
}

#[test]
fn the_same_host_is_let_in_after_a_crash_without_force() {
    let mut door = door();
    let old = door.opens(&open(1, 1));
    let after_crash = with_boot(other_session(open(1, 1), 8), 77);
    // Not while the old session is alive: that is two users of one disk.
    let reason = door.open_refused(&after_crash);
    assert_eq!(
        (reason.status, reason.retry_after_ms),
        (Status::HeldByOther, 0)
    );
    door.drained(old);
    door.opens(&after_crash);
    assert_eq!(door.open_refused(&open(1, 2)).status, Status::Fenced);
}

#[test]
fn a_second_session_of_the_same_boot_waits_like_any_other_host() {
    // Of the two boots, the one that had the volume and the one that asks.
    for (had, asks) in [(5, 5), (0, 5), (5, 0), (0, 0)] {
        let mut door = door();
        let old = door.opens(&with_boot(open(1, 1), had));
        door.drained(old);
        door.now = door.now.after_ms(200);
        let second = with_boot(other_session(open(1, 1), 8), asks);
        let reason = door.open_refused(&second);
        assert_eq!(reason.status, Status::HeldByOther, "{had} {asks}");
        assert_eq!(reason.holder.map(|h| h.host_id), Some([1; 16]));
        assert_eq!(u64::from(reason.retry_after_ms), CONFIG.linger_ms - 200);
        // The first comes back as if nothing had been asked.
        door.opens(&with_boot(open(1, 2), had));
    }
}

#[test]
fn a_host_of_another_identity_waits_whatever_its_boot() {
    let mut door = door();
    let old = door.opens(&open(1, 1));
    door.drained(old);
    let clone = with_boot(open(2, 1), 99);
    assert_eq!(door.open_refused(&clone).status, Status::HeldByOther);
}

#[test]
fn when_the_refusal_says_so_the_volume_is_free() {
    let mut door = door();
    let old = door.opens(&open(1, 1));
    door.drained(old);
    let reason = door.open_refused(&open(2, 1));
    // Even if nobody has looked at the clock of the gate since.
    door.now = door.now.after_ms(u64::from(reason.retry_after_ms) - 1);
    assert_eq!(door.open_refused(&open(2, 1)).retry_after_ms, 1);
    door.now = door.now.after_ms(1);
    door.opens(&open(2, 1));
    assert_eq!(door.open_refused(&open(1, 2)).status, Status::Fenced);
}

#[test]
fn a_session_that_was_left_is_resumed_at_once() {
    let mut door = door();
    let old = door.opens(&open(1, 3));
    let joined = door.joins(&join(1, 3, 1, 5));
    // Its client was detached by force: the node hears nothing but the end of the connections, and
    // of one of them not even that.
    door.drained(old);
    let mut resumed = open(1, 4);
    resumed.epoch = 6.into();
    let (id, came, others) = door.enter(IntroducedAs::Open, &resumed);
    assert_eq!(came, Came::Waits);
    assert_eq!(
        others,
        vec![GateAction::Revoke(joined, CloseCause::Replaced)]
    );
    assert_eq!(door.drained(joined), vec![GateAction::Admit(id)]);
    door.joins(&join(1, 4, 1, 7));
    // Also to a node that restarted, and after it lingered out.
    let mut door = restarted(door);
    let again = door.opens(&open(1, 8));
    door.drained(again);
    door.now = door.now.after_ms(2 * CONFIG.linger_ms);
    door.opens(&open(1, 9));
}

#[test]
fn a_session_has_one_boot() {
    let mut door = door();
    door.opens(&with_boot(open(1, 1), 0));
    // A client that did not say it may say it later.
    let version = door.gate.memory_version();
    let (new, came, others) = door.enter(IntroducedAs::Open, &with_boot(open(1, 2), 5));
    assert_eq!((came, others.len()), (Came::Waits, 1));
    assert_ne!(door.gate.memory_version(), version, "it must be saved");
    assert!(door.gate.memory().all(|s| s.host_boot == 5));
    let _ = new;
    let other_boot = with_boot(open(1, 3), 6);
    assert_eq!(door.open_refused(&other_boot).status, Status::BadOpen);
    let (_, came, _) = door.enter(IntroducedAs::Open, &with_boot(open(1, 3), 0));
    assert_eq!(came, Came::Waits);
    assert!(door.gate.memory().all(|s| s.host_boot == 5));
}

#[test]
fn nobody_joins_a_session_of_another_boot() {
    let mut door = door();
    door.opens(&with_boot(open(1, 1), 5));
    let (_, came, others) = door.enter(IntroducedAs::Join, &with_boot(join(1, 1, 1, 2), 6));
    assert_eq!((came, others.len()), (Came::Refused(Status::BadOpen), 0));
    // The epoch of one that was refused counts for nothing; a boot that is not said goes with any.
    for (boot, connection) in [(5, 1), (0, 2)] {
        let request = with_boot(join(1, 1, connection, 2), boot);
        assert_eq!(door.enter(IntroducedAs::Join, &request).1, Came::In);
    }
}

#[test]
fn the_boot_of_a_holder_outlives_the_node() {
    for (asks, came) in [
        (1, Err(Status::HeldByOther)),
        (0, Err(Status::HeldByOther)),
        (9, Ok(())),
    ] {
        let mut first = door();
        first.opens(&open(1, 4));
        let mut door = restarted(first);
        let second = with_boot(other_session(open(1, 1), 8), asks);
        match came {
            Ok(()) => {
                door.opens(&second);
            }
            Err(status) => {
                let reason = door.open_refused(&second);
                assert_eq!(reason.status, status);
                assert_eq!(u64::from(reason.retry_after_ms), CONFIG.linger_ms);
                // Restarting the node is seamless for the one that had it.
                door.opens(&open(1, 5));
            }
        }
    }
}

#[test]
fn a_session_without_connections_keeps_its_volume_for_a_while() {
    let mut door = door();
    let only = door.opens(&open(1, 1));
    door.drained(only);
    door.now = door.now.after_ms(CONFIG.linger_ms - 1);
    assert_eq!(door.open_refused(&open(2, 1)).status, Status::HeldByOther);
    assert_eq!(door.gate.poll_timeout(), Some(door.now.after_ms(1)));
    // Back in time, it goes on as if nothing had been.
    let again = door.joins(&join(1, 1, 0, 2));
    door.drained(again);
    door.now = door.now.after_ms(CONFIG.linger_ms);
    door.actions();
    assert!(door.gate.is_unused());
    door.opens(&open(2, 1));
}

#[test]
fn a_drain_that_takes_too_long_is_told_and_nothing_is_let_in() {
    let mut door = door();
    let old = door.opens(&open(1, 1));
    let (new, _, _) = door.enter(IntroducedAs::Open, &open(1, 2));
    assert_eq!(
        door.gate.poll_timeout(),
        Some(door.now.after_ms(CONFIG.drain_timeout_ms))
    );
    door.now = door.now.after_ms(CONFIG.drain_timeout_ms);
    let actions = door.actions();
    assert!(matches!(actions[..], [GateAction::Refuse(id, r)]
        if id == new && r.status == Status::Draining && r.retry_after_ms > 0));
    // The next try waits for the same connection.
    let (third, came, _) = door.enter(IntroducedAs::Open, &open(1, 3));
    assert_eq!(came, Came::Waits);
    assert_eq!(door.drained(old), vec![GateAction::Admit(third)]);
}

#[test]
fn release_frees_the_volume_once_its_connections_are_drained() {
    let mut door = door();
    let first = door.opens(&open(1, 1));
    let second = door.joins(&join(1, 1, 1, 1));
    door.gate.on_release(first);
    let actions = door.actions();
    assert!(actions.contains(&GateAction::Revoke(second, CloseCause::Released)));
    let (next, came, _) = door.enter(IntroducedAs::Open, &open(2, 1));
    assert_eq!(
        came,
        Came::Waits,
        "requests of the released session may still be under way"
    );
    door.drained(first);
    assert_eq!(door.drained(second), vec![GateAction::Admit(next)]);
}

#[test]
fn an_open_from_before_the_release_fences_nobody() {
    let mut first = door();
    let opened = first.opens(&open(1, 3));
    first.gate.on_release(opened);
    first.drained(opened);
    first.opens(&open(2, 1));
    let mut door = restarted(first);
    // It was on its way to a node that stood still, say; its client has long gone.
    let late = door.open_refused(&forced(open(1, 2)));
    assert_eq!((late.status, late.generation), (Status::StaleGeneration, 3));
    assert_eq!(door.gate.holders().map(|h| h.host_id).next(), Some([2; 16]));
    // A later one means it.
    let (_, came, _) = door.enter(IntroducedAs::Open, &forced(open(1, 4)));
    assert_eq!(came, Came::In, "the holder has no connection to this node");
}

#[test]
fn only_the_last_released_sessions_are_remembered() {
    let mut door = door();
    for host in 1..=40 {
        let opened = door.opens(&open(host, 2));
        door.gate.on_release(opened);
        door.drained(opened);
    }
    let remembered: Vec<u8> = door.gate.memory().map(|s| s.session_id[0]).collect();
    assert_eq!(remembered, (25..=40).collect::<Vec<u8>>());
}

#[test]
fn shared_sessions_share_and_exclusive_ones_stay_out() {
    let mut door = door();
    let one = with_mode(open(1, 1), Mode::Shared);
    let two = with_mode(open(2, 1), Mode::Shared);
    door.opens(&one);
    door.opens(&two);
    assert_eq!(door.open_refused(&open(3, 1)).status, Status::HeldByOther);
    assert_eq!(door.gate.holders().count(), 2);
}

#[test]
fn there_are_no_more_sessions_and_connections_than_allowed() {
    let mut door = door();
    for host in 1..=3 {
        door.opens(&with_mode(open(host, 1), Mode::ReadOnly));
    }
    let fourth = with_mode(open(4, 1), Mode::ReadOnly);
    assert_eq!(door.open_refused(&fourth).status, Status::TooManySessions);
    let beyond = with_mode(join(1, 1, 4, 1), Mode::ReadOnly);
    assert_eq!(door.join_refused(&beyond), Status::TooManyConnections);
}

#[test]
fn requests_that_make_no_sense_are_refused() {
    type Break = fn(&mut OpenRequest);
    let cases: &[Break] = &[
        |r| r.session_id = [0; 16],
        |r| r.host_id = [0; 16],
        |r| r.generation = 0.into(),
        |r| r.epoch = 0.into(),
        |r| r.connection = 1.into(),
        |r| r.mode = 7,
        |r| r.flags = 0x80,
    ];
    for break_it in cases {
        let mut request = open(1, 1);
        break_it(&mut request);
        assert_eq!(door().open_refused(&request).status, Status::BadOpen);
    }
    let mut door = door();
    door.opens(&open(1, 1));
    assert_eq!(
        door.join_refused(&forced(join(1, 1, 1, 1))),
        Status::BadOpen
    );
    let other_mode = with_mode(join(1, 1, 1, 1), Mode::Shared);
    assert_eq!(door.join_refused(&other_mode), Status::BadOpen);
    let mut stolen = join(1, 1, 1, 1);
    stolen.host_id = [7; 16];
    assert_eq!(door.join_refused(&stolen), Status::BadOpen);
}

#[test]
fn a_waiting_connection_is_told_why_it_is_turned_away() {
    for (cause, status) in [
        (CloseCause::Fenced, Status::Fenced),
        (CloseCause::GoingAway, Status::GoingAway),
    ] {
        let mut door = door();
        door.opens(&open(1, 1));
        let (waiting, _, _) = door.enter(IntroducedAs::Open, &open(1, 2));
        door.gate.revoke_all(cause);
        let told = door.actions().into_iter().find_map(|a| match a {
            GateAction::Refuse(id, reason) if id == waiting => Some(reason.status),
            _ => None,
        });
        assert_eq!(told, Some(status));
    }
}

#[test]
fn a_connection_that_goes_while_it_waits_is_forgotten() {
    let mut door = door();
    let old = door.opens(&open(1, 1));
    let (waiting, _, _) = door.enter(IntroducedAs::Open, &open(1, 2));
    assert_eq!(door.drained(waiting), vec![]);
    assert_eq!(door.drained(old), vec![]);
    door.opens(&open(1, 3));
}

/// The same gate after the node's process was restarted.
fn restarted(door: Door) -> Door {
    restarted_with(door, CONFIG)
}

/// The same with another configuration.
fn restarted_with(door: Door, config: GateConfig) -> Door {
    let now = door.now.after_ms(77);
    let remembered: Vec<_> = door.gate.memory().collect();
    Door {
        gate: Gate::restore(config, remembered, now),
        now,
        next: door.next,
    }
}

#[test]
fn a_fenced_session_never_comes_back_to_a_node_that_restarted() {
    let mut door = door();
    let old = door.opens(&open(1, 1));
    let before = door.gate.memory_version();
    let (new, _, _) = door.enter(IntroducedAs::Open, &forced(open(2, 1)));
    assert_ne!(
        door.gate.memory_version(),
        before,
        "it must be saved before the answer"
    );
    door.drained(old);
    door.gate.on_release(new);
    door.drained(new);
    let mut door = restarted(door);
    assert_eq!(door.open_refused(&open(1, 2)).status, Status::Fenced);
    door.opens(&open(3, 1));
}

#[test]
fn the_holder_has_time_to_come_back_to_a_node_that_restarted() {
    let mut first = door();
    first.opens(&open(1, 4));
    let mut door = restarted(first);
    assert_eq!(door.open_refused(&open(2, 1)).status, Status::HeldByOther);
    assert_eq!(door.join_refused(&join(1, 4, 0, 9)), Status::UnknownSession);
    door.opens(&open(1, 5));

    let mut first = self::door();
    first.opens(&open(1, 4));
    let mut door = restarted(first);
    door.now = door.now.after_ms(CONFIG.linger_ms);
    door.actions();
    let other = door.opens(&open(2, 1));
    door.gate.on_release(other);
    door.drained(other);
    assert_eq!(door.open_refused(&open(1, 5)).status, Status::Fenced);
}

#[test]
fn a_session_keeps_its_connections_when_the_node_comes_back_with_fewer() {
    let fewer = GateConfig {
        max_connections: 1,
        ..CONFIG
    };
    // Whether it comes back in time, or after it was given up.
    for pause_ms in [0, CONFIG.linger_ms] {
        let mut first = door();
        first.opens(&open(1, 1));
        let mut door = restarted_with(first, fewer);
        door.now = door.now.after_ms(pause_ms);
        door.actions();
        assert_eq!(door.gate.holders().count(), usize::from(pause_ms == 0));
        let opened = door.opens(&open(1, 2));
        assert_eq!(door.gate.max_connections(&[1; 16]), CONFIG.max_connections);
        let joined = door.joins(&join(1, 2, 3, 1));
        assert_eq!(
            door.join_refused(&join(1, 2, 4, 1)),
            Status::TooManyConnections
        );
        // Who begins now has what is configured now.
        door.gate.on_release(opened);
        door.drained(opened);
        door.drained(joined);
        door.opens(&open(2, 1));
        assert_eq!(door.gate.max_connections(&[2; 16]), 1);
        assert_eq!(
            door.join_refused(&join(2, 1, 1, 1)),
            Status::TooManyConnections
        );
    }
}

#[test]
fn limits_that_change_are_for_sessions_that_begin_afterwards() {
    let mut door = door();
    let reader = |host| with_mode(open(host, 1), Mode::ReadOnly);
    door.opens(&reader(1));
    door.gate.set_limits(2, 2);
    door.opens(&reader(2));
    assert_eq!(
        door.open_refused(&reader(3)).status,
        Status::TooManySessions
    );
    let reads = |host, index| with_mode(join(host, 1, index, 1), Mode::ReadOnly);
    // The first keeps what it had.
    for (host, most) in [(1, CONFIG.max_connections), (2, 2)] {
        assert_eq!(door.gate.max_connections(&[host; 16]), most);
        door.joins(&reads(host, most - 1));
        let beyond = door.join_refused(&reads(host, most));
        assert_eq!(beyond, Status::TooManyConnections);
    }
    // Fewer than there are ends none.
    door.gate.set_limits(1, 1);
    assert_eq!(door.gate.holders().count(), 2);
    door.gate.set_limits(3, 8);
    door.opens(&reader(3));
    assert_eq!(door.gate.max_connections(&[3; 16]), 8);
}

/// Random clients against an obvious rule: nobody is let in while a connection that it displaces
/// is still there.
#[test]
fn nobody_is_let_in_before_what_it_displaces_is_drained() {
    for seed in 0..400 {
        let mut random = common::Random(seed);
        let mut door = door();
        // Of every connection that was let in and is not drained: what it asked.
        let mut inside: Vec<(ConnectionId, OpenRequest)> = Vec::new();
        let mut asked: Vec<(ConnectionId, OpenRequest, bool)> = Vec::new();
        let mut generations = [1u64; 4];
        let mut epochs = [1u64; 4];
        for _ in 0..200 {
            match random.below(6) {
                0 | 1 => {
                    let host = random.below(4);
                    generations[host] += 1;
                    epochs[host] += 1;
                    let mut request = open(host as u8 + 1, generations[host]);
                    request.epoch = epochs[host].into();
                    if random.one_in(3) {
                        request = forced(request);
                    }
                    let (id, _) = door.introduce(IntroducedAs::Open, &request);
                    asked.push((id, request, true));
                }
                2 | 3 => {
                    let host = random.below(4);
                    epochs[host] += 1;
                    let index = random.below(4) as u16;
                    let request = join(host as u8 + 1, generations[host], index, epochs[host]);
                    let (id, _) = door.introduce(IntroducedAs::Join, &request);
                    asked.push((id, request, false));
                }
                4 if !inside.is_empty() => {
                    let at = random.below(inside.len());
                    let (id, _) = inside.swap_remove(at);
                    door.gate.on_drained(id, door.now);
                }
                _ => door.now = door.now.after_ms(random.below(700) as u64),
            }
            for action in door.actions() {
                let GateAction::Admit(id) = action else {
                    continue;
                };
                let (_, request, _) = *asked.iter().find(|a| a.0 == id).expect("asked");
                for (other, held) in &inside {
                    let same = held.session_id == request.session_id;
                    let fine = same
                        && held.generation == request.generation
                        && held.connection != request.connection;
                    assert!(fine, "seed {seed}: {id:?} came in beside {other:?}");
                }
                inside.push((id, request));
            }
        }
    }
}
