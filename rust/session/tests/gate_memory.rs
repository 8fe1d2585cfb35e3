// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What a gate forgets when there is no room for more: never what keeps old writes out, as long as
//! there is anything else.

use neonsan_proto::{Mode, OpenFlags, OpenRequest, Status, VolumeName};
use neonsan_session::server::{
    prune, ConnectionId, Gate, GateAction, GateConfig, IntroducedAs, Opening, Remembered, Standing,
};
use neonsan_session::Instant;

/// Room for this many sessions.
const ROOM: usize = 8;

const CONFIG: GateConfig = GateConfig {
    max_sessions: 100,
    max_connections: 1,
    drain_timeout_ms: 1000,
    linger_ms: 10_000,
    max_remembered: ROOM,
    without_fencing: false,
};

/// A gate whose connections are drained as soon as they are revoked.
struct Door {
    gate: Gate,
    now: Instant,
    next: u64,
}

fn open(session: u16, mode: Mode) -> OpenRequest {
    let name = VolumeName::parse("pool/vol").expect("valid");
    let mut request = OpenRequest::new(name, "host");
    request.session_id[..2].copy_from_slice(&session.to_be_bytes());
    request.session_id[15] = 1;
    request.host_id = request.session_id;
    request.generation = 1.into();
    request.epoch = 1.into();
    request.mode = mode.to_wire();
    request
}

fn forced(mut request: OpenRequest) -> OpenRequest {
    request.flags = OpenFlags::FORCE.0;
    request
}

/// The same session, the next time that it opens.
fn again(mut request: OpenRequest) -> OpenRequest {
    request.generation = (request.generation.get() + 1).into();
    request.epoch = request.generation;
    request.flags = 0;
    request
}

impl Door {
    fn new() -> Self {
        Door {
            gate: Gate::new(CONFIG),
            now: Instant(1000),
            next: 1,
        }
    }

    fn opens(&mut self, request: &OpenRequest) -> Result<ConnectionId, Status> {
        let id = ConnectionId(self.next);
        self.next += 1;
        let opening = self
            .gate
            .introduce(id, IntroducedAs::Open, request, self.now);
        if let Opening::Refused(reason) = opening {
            return Err(reason.status);
        }
        let version = self.gate.memory_version();
        self.gate.on_saved(version, self.now);
        let mut admitted = false;
        while let Some(action) = self.gate.poll_action(self.now) {
            match action {
                GateAction::Admit(which) => admitted |= which == id,
                GateAction::Revoke(which, _) => self.gate.on_drained(which, self.now),
                GateAction::Refuse(_, reason) => return Err(reason.status),
            }
        }
        assert!(admitted);
        Ok(id)
    }

    fn leaves(&mut self, id: ConnectionId) {
        self.gate.on_drained(id, self.now);
        self.now = self.now.after_ms(CONFIG.linger_ms);
        self.gate.handle_timeout(self.now);
    }

    fn releases(&mut self, id: ConnectionId) {
        self.gate.on_release(id);
        self.gate.on_drained(id, self.now);
    }

    /// Sessions that read come and go without being released.
    fn readers_come_and_go(&mut self, first: u16) {
        for session in first..first + 3 * ROOM as u16 {
            let id = self
                .opens(&open(session, Mode::ReadOnly))
                .expect("a reader");
            self.leaves(id);
        }
    }

    fn saved(&self) -> Vec<Remembered> {
        self.gate.memory().collect()
    }

    fn restarts(self) -> Self {
        let saved = self.saved();
        assert!(saved.len() <= ROOM, "{}", saved.len());
        Door {
            gate: Gate::restore(CONFIG, saved, self.now),
            ..self
        }
    }
}

#[test]
fn readers_do_not_push_out_who_was_fenced_before_them() {
    let mut door = Door::new();
    let old = open(1, Mode::Exclusive);
    door.opens(&old).expect("the first");
    let taker = door
        .opens(&forced(open(2, Mode::Exclusive)))
        .expect("by force");
    door.releases(taker);
    door.readers_come_and_go(100);
    let mut door = door.restarts();
    assert_eq!(door.opens(&again(old)), Err(Status::Fenced));
    door.readers_come_and_go(200);
    let mut door = door.restarts();
    assert_eq!(door.opens(&again(old)), Err(Status::Fenced));
}

#[test]
fn readers_that_were_there_first_leave_room_for_who_is_fenced() {
    let mut door = Door::new();
    door.readers_come_and_go(100);
    // More of them are there all the time than there is room for.
    for session in 200..200 + 2 * ROOM as u16 {
        door.opens(&open(session, Mode::ReadOnly))
            .expect("a reader");
    }
    let old = open(1, Mode::Exclusive);
    let left = door.opens(&old).expect("nobody has it");
    door.leaves(left);
    door.readers_come_and_go(300);
    // It is away, and somebody else has the volume meanwhile, also after a restart.
    let mut door = door.restarts();
    let taker = door.opens(&open(2, Mode::Exclusive)).expect("it is free");
    let holds = |door: &Door, session: u16| {
        door.saved().iter().any(|s| {
            s.session_id == open(session, Mode::Exclusive).session_id
                && s.standing == Standing::Holds
        })
    };
    assert!(holds(&door, 2));
    door.readers_come_and_go(400);
    assert!(holds(&door, 2), "whoever holds it is saved, whatever comes");
    let mut door = door.restarts();
    assert_eq!(
        door.opens(&open(3, Mode::Exclusive)),
        Err(Status::HeldByOther)
    );
    assert_eq!(door.opens(&again(old)), Err(Status::Fenced));
    let _ = taker;
}

#[test]
fn departed_sessions_do_not_push_out_fenced_ones() {
    let mut door = Door::new();
    let old = open(1, Mode::Exclusive);
    door.opens(&old).expect("the first");
    let taker = door
        .opens(&forced(open(2, Mode::Shared)))
        .expect("by force");
    door.releases(taker);
    // Shared sessions fence each other not.
    for session in 100..100 + 3 * ROOM as u16 {
        let id = door.opens(&open(session, Mode::Shared)).expect("shared");
        door.leaves(id);
    }
    let mut door = door.restarts();
    assert_eq!(door.opens(&again(old)), Err(Status::Fenced));
}

#[test]
fn who_could_not_be_saved_is_not_let_in() {
    let mut door = Door::new();
    let mut last = None;
    for session in 1..=ROOM as u16 {
        last = Some(
            door.opens(&open(session, Mode::Shared))
                .expect("there is room"),
        );
    }
    let one_more = open(99, Mode::Shared);
    assert_eq!(door.opens(&one_more), Err(Status::TooManySessions));
    // Readers need not be saved, and whoever takes the volume ends the others.
    door.opens(&open(100, Mode::ReadOnly)).expect("a reader");
    assert_eq!(door.saved().len(), ROOM);
    door.releases(last.expect("there are some"));
    door.opens(&one_more).expect("one has left");
    door.opens(&forced(open(101, Mode::Exclusive)))
        .expect("by force");
}

#[test]
fn the_oldest_of_the_least_harmful_go_first() {
    let session = |n: u8, mode, standing| Remembered {
        session_id: [n; 16],
        host_id: [n; 16],
        host_boot: 0,
        mode,
        max_connections: 0,
        generation: 0,
        standing,
    };
    let all = [
        session(1, Mode::Exclusive, Standing::Holds),
        session(2, Mode::Exclusive, Standing::Fenced),
        session(3, Mode::Exclusive, Standing::Fenced),
        session(4, Mode::Shared, Standing::Departed),
        session(5, Mode::ReadOnly, Standing::Holds),
        session(6, Mode::ReadOnly, Standing::Departed),
        session(7, Mode::ReadOnly, Standing::Fenced),
    ];
    let order = [6, 7, 5, 4, 2, 3];
    for max in 0..=all.len() {
        let mut left = all.to_vec();
        prune(&mut left, max);
        let gone = &order[..(all.len() - max).min(order.len())];
        let expected: Vec<Remembered> = all
            .iter()
            .filter(|s| !gone.contains(&s.session_id[0]))
            .copied()
            .collect();
        assert_eq!(left, expected, "{max}");
    }
}
