// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A session that begins displaces nobody before that is saved; one that cannot be saved was never
//! there.

use neonsan_proto::{Mode, OpenFlags, OpenRequest, Status, VolumeName};
use neonsan_session::server::{
    ConnectionId, Gate, GateAction, GateConfig, IntroducedAs, Opening, Remembered, Standing,
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

const NOW: Instant = Instant(1000);

/// Host `host` has session `host`, and says that its boot is `boot`.
fn open(host: u8, generation: u64, boot: u64) -> OpenRequest {
    let name = VolumeName::parse("pool/vol").expect("valid");
    let mut request = OpenRequest::new(name, "host");
    request.session_id = [host; 16];
    request.host_id = [host; 16];
    request.host_boot = boot.into();
    request.generation = generation.into();
    request.epoch = generation.into();
    request
}

fn forced(mut request: OpenRequest) -> OpenRequest {
    request.flags = OpenFlags::FORCE.0;
    request
}

fn with_mode(mut request: OpenRequest, mode: Mode) -> OpenRequest {
    request.mode = mode.to_wire();
    request
}

fn joins(mut request: OpenRequest, connection: u16, epoch: u64) -> OpenRequest {
    request.connection = connection.into();
    request.epoch = epoch.into();
    request.flags = 0;
    request
}

/// A gate whose node stores its memory when it is told to.
struct Door {
    gate: Gate,
    next: u64,
    stored: Vec<Remembered>,
}

impl Door {
    fn new() -> Self {
        Self::with(Gate::new(CONFIG))
    }

    fn with(gate: Gate) -> Self {
        Self {
            gate,
            next: 1,
            stored: Vec::new(),
        }
    }

    fn ask(&mut self, kind: IntroducedAs, request: &OpenRequest) -> Result<ConnectionId, Status> {
        let id = ConnectionId(self.next);
        self.next += 1;
        match self.gate.introduce(id, kind, request, NOW) {
            Opening::Waiting => Ok(id),
            Opening::Refused(reason) => Err(reason.status),
        }
    }

    fn asks(&mut self, request: &OpenRequest) -> ConnectionId {
        self.ask(IntroducedAs::Open, request).expect("it waits")
    }

    fn refused(&mut self, request: &OpenRequest) -> Status {
        self.ask(IntroducedAs::Open, request)
            .expect_err("it is refused")
    }

    fn store(&mut self) {
        let version = self.gate.memory_version();
        self.stored = self.gate.memory().collect();
        self.gate.on_saved(version, NOW);
        assert_eq!(self.gate.memory_version(), version, "all of it is stored");
        assert_eq!(self.gate.memory().collect::<Vec<_>>(), self.stored);
    }

    fn actions(&mut self, now: Instant) -> Vec<GateAction> {
        std::iter::from_fn(|| self.gate.poll_action(now)).collect()
    }

    fn opens(&mut self, request: &OpenRequest) -> ConnectionId {
        let id = self.asks(request);
        self.store();
        assert_eq!(self.actions(NOW), [GateAction::Admit(id)]);
        id
    }

    fn holders(&self) -> Vec<u8> {
        self.gate.holders().map(|h| h.session_id[0]).collect()
    }

    fn standing(&self, session: u8) -> Option<Standing> {
        let mut memory = self.gate.memory();
        let known = memory.find(|s| s.session_id == [session; 16]);
        known.map(|s| s.standing)
    }
}

#[test]
fn nobody_is_fenced_before_it_is_saved_who_takes_the_volume() {
    let mut door = Door::new();
    let holder = door.opens(&open(1, 1, 7));
    let version = door.gate.memory_version();
    let taker = door.asks(&forced(open(2, 1, 7)));
    assert_ne!(door.gate.memory_version(), version, "it is to be saved");
    assert_eq!(door.standing(1), Some(Standing::Fenced), "as it will be");
    assert_eq!(door.standing(2), Some(Standing::Holds));
    // What was stored before says nothing of it.
    door.gate.on_saved(version, NOW);
    assert_eq!(door.actions(NOW), []);
    assert_eq!(door.holders(), [1]);
    door.store();
    let fenced = GateAction::Revoke(holder, CloseCause::Fenced);
    assert_eq!(door.actions(NOW), [fenced]);
    assert_eq!(door.holders(), [2]);
    door.gate.on_drained(holder, NOW);
    assert_eq!(door.actions(NOW), [GateAction::Admit(taker)]);
    assert_eq!(door.refused(&open(1, 2, 7)), Status::Fenced);
}

#[test]
fn who_takes_a_volume_and_cannot_be_saved_has_fenced_nobody() {
    let mut door = Door::new();
    let holder = door.opens(&open(1, 1, 7));
    let version = door.gate.memory_version();
    let taker = door.asks(&forced(open(2, 1, 7)));
    assert_eq!(door.gate.on_save_failed(), [taker]);
    // It may have been stored all the same.
    assert_ne!(door.gate.memory_version(), version);
    assert_eq!(door.actions(NOW), []);
    assert_eq!(door.holders(), [1]);
    assert_eq!(door.standing(1), Some(Standing::Holds));
    assert_eq!(door.standing(2), None);
    // Its end is none of the gate's business any more, and the holder goes on in every way.
    door.gate.on_drained(taker, NOW);
    let second = door
        .ask(IntroducedAs::Join, &joins(open(1, 1, 7), 1, 1))
        .expect("let in");
    assert_eq!(door.actions(NOW), [GateAction::Admit(second)]);
    door.gate.on_drained(second, NOW);
    door.gate.on_drained(holder, NOW);
    let again = door.asks(&open(1, 2, 7));
    assert_eq!(door.actions(NOW), [GateAction::Admit(again)]);
}

#[test]
fn who_left_is_not_fenced_by_one_that_cannot_be_saved() {
    let mut door = Door::new();
    let left = door.opens(&open(1, 1, 7));
    door.gate.on_drained(left, NOW);
    door.gate.handle_timeout(NOW.after_ms(CONFIG.linger_ms));
    assert_eq!(door.standing(1), Some(Standing::Departed));
    let other = door.asks(&open(2, 1, 7));
    assert_eq!(door.standing(1), Some(Standing::Fenced), "as it will be");
    assert_eq!(door.gate.on_save_failed(), [other]);
    assert!(door.gate.is_unused(), "the other one was never there");
    door.opens(&open(1, 2, 7));
}

#[test]
fn another_boot_that_cannot_be_saved_leaves_the_volume_to_the_first() {
    let mut door = Door::new();
    let first = door.opens(&open(1, 1, 7));
    door.gate.on_drained(first, NOW);
    let mut other_boot = open(1, 1, 8);
    other_boot.session_id = [9; 16];
    let entering = door.asks(&other_boot);
    // Were the first let in meanwhile, the second could not be.
    assert_eq!(door.refused(&open(1, 2, 7)), Status::Draining);
    let joining = joins(open(1, 1, 7), 0, 2);
    assert_eq!(
        door.ask(IntroducedAs::Join, &joining),
        Err(Status::Draining)
    );
    assert_eq!(door.gate.on_save_failed(), [entering]);
    let again = door.asks(&open(1, 2, 7));
    assert_eq!(door.actions(NOW), [GateAction::Admit(again)]);
}

#[test]
fn a_holder_replaces_its_connections_while_it_is_saved_who_takes_the_volume() {
    let mut door = Door::new();
    let old = door.opens(&open(1, 1, 7));
    let taker = door.asks(&forced(open(2, 1, 7)));
    let new = door
        .ask(IntroducedAs::Join, &joins(open(1, 1, 7), 0, 2))
        .expect("let in");
    door.gate.on_drained(old, NOW);
    let replaced = GateAction::Revoke(old, CloseCause::Replaced);
    assert!(!door.actions(NOW).contains(&replaced), "it is gone");
    door.store();
    let fenced = GateAction::Revoke(new, CloseCause::Fenced);
    assert_eq!(door.actions(NOW), [fenced]);
    door.gate.on_drained(new, NOW);
    assert_eq!(door.actions(NOW), [GateAction::Admit(taker)]);
}

#[test]
fn of_two_that_begin_the_second_waits_for_what_becomes_of_the_first() {
    let mut door = Door::new();
    let first = door.asks(&open(1, 1, 7));
    assert_eq!(door.refused(&open(2, 1, 7)), Status::Draining);
    assert_eq!(door.refused(&forced(open(2, 1, 7))), Status::Draining);
    assert_eq!(door.refused(&open(1, 2, 7)), Status::Draining);
    // Who does not conflict comes in beside it, as far as there is room.
    let reader = door.asks(&with_mode(open(3, 1, 7), Mode::ReadOnly));
    let another = door.asks(&with_mode(open(4, 1, 7), Mode::ReadOnly));
    let one_more = with_mode(open(5, 1, 7), Mode::ReadOnly);
    assert_eq!(door.refused(&one_more), Status::TooManySessions);
    door.store();
    let admitted = [first, reader, another].map(GateAction::Admit);
    assert_eq!(door.actions(NOW), admitted);
    assert_eq!(door.refused(&open(2, 1, 7)), Status::HeldByOther);
}

#[test]
fn who_goes_or_waits_too_long_before_it_is_saved_was_never_there() {
    for too_late in [false, true] {
        let mut door = Door::new();
        door.opens(&open(1, 1, 7));
        let taker = door.asks(&forced(open(2, 1, 7)));
        let version = door.gate.memory_version();
        if too_late {
            let due = door.gate.poll_timeout().expect("a deadline");
            assert_eq!(due, NOW.after_ms(CONFIG.drain_timeout_ms));
            let actions = door.actions(due);
            assert!(matches!(actions[..], [GateAction::Refuse(id, r)]
                if id == taker && r.status == Status::Draining && r.retry_after_ms > 0));
        } else {
            door.gate.on_drained(taker, NOW);
        }
        // It was being saved, and is saved only now: it must be taken back.
        door.gate.on_saved(version, NOW);
        assert_ne!(door.gate.memory_version(), version);
        assert_eq!(door.actions(NOW), []);
        assert_eq!(door.holders(), [1]);
        assert_eq!(door.standing(1), Some(Standing::Holds));
    }
}

/// Storing takes longer than it takes until the next one comes or goes, every time.
#[test]
fn who_was_saved_begins_though_others_came_and_went_meanwhile() {
    let shared = |host| with_mode(open(host, 1, 7), Mode::Shared);
    let mut door = Door::new();
    let holder = door.opens(&open(1, 1, 7));
    let taker = door.asks(&forced(shared(2)));
    let version = door.gate.memory_version();
    let second = door.asks(&forced(shared(3)));
    let version_of_both = door.gate.memory_version();
    door.gate.on_saved(version, NOW);
    let fenced = GateAction::Revoke(holder, CloseCause::Fenced);
    assert_eq!(door.actions(NOW), [fenced]);
    assert_eq!(door.holders(), [2]);
    door.gate.on_drained(holder, NOW);
    assert_eq!(door.actions(NOW), [GateAction::Admit(taker)]);
    // One goes that is being saved, and one comes that is not yet.
    let third = door.asks(&shared(4));
    door.gate.on_drained(second, NOW);
    door.gate.on_saved(version_of_both, NOW);
    assert_ne!(door.gate.memory_version(), version_of_both, "to be saved");
    assert_eq!(door.actions(NOW), []);
    assert_eq!(door.standing(3), None);
    door.store();
    assert_eq!(door.actions(NOW), [GateAction::Admit(third)]);
    assert_eq!(door.holders(), [2, 4]);
    assert_eq!(door.standing(1), Some(Standing::Fenced));
}

#[test]
fn a_node_that_stops_lets_nobody_begin() {
    let mut door = Door::new();
    let entering = door.asks(&open(1, 1, 7));
    let version = door.gate.memory_version();
    door.gate.revoke_all(CloseCause::GoingAway);
    door.gate.on_saved(version, NOW);
    assert!(matches!(door.actions(NOW)[..], [GateAction::Refuse(id, r)]
        if id == entering && r.status == Status::GoingAway));
    assert!(door.gate.is_unused());
}

#[test]
fn a_node_that_ends_when_it_is_saved_has_let_the_taker_in() {
    let mut door = Door::new();
    door.opens(&open(1, 1, 7));
    door.asks(&forced(open(2, 1, 7)));
    let stored: Vec<Remembered> = door.gate.memory().collect();
    let mut door = Door::with(Gate::restore(CONFIG, stored, NOW));
    assert_eq!(door.refused(&open(1, 2, 7)), Status::Fenced);
    let taker = door.asks(&open(2, 2, 7));
    assert_eq!(door.actions(NOW), [GateAction::Admit(taker)]);
}
