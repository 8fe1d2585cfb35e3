// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A client's session machine, driven by hand.
#![allow(dead_code)]

use neonsan_proto::Status;
use neonsan_session::client::{Action, Config, ConnectKind, Notice, Session};
use neonsan_session::{CloseCause, Generation, Instant, Timeouts};

pub const TIMEOUTS: Timeouts = Timeouts {
    loss_ms: 60_000,
    ..Timeouts::DEFAULT
};

/// A machine, its clock, and what the caller was told.
pub struct Device {
    pub session: Session,
    pub now: Instant,
}

pub fn device_with(connections: u16, nodes: u16, timeouts: Timeouts) -> Device {
    let config = Config {
        connections,
        nodes,
        timeouts,
        seed: 1,
        used: Default::default(),
    };
    let now = Instant(1_000_000);
    Device {
        session: Session::new(config, now),
        now,
    }
}

/// A device with `connections` connections, all of them live for a while.
pub fn live(connections: u16, nodes: u16) -> Device {
    let mut device = device_with(connections, nodes, TIMEOUTS);
    device.bring_up();
    // Connections that held for a while are tried again at once when they are lost.
    device.now = device.now.after_ms(2_000);
    for connection in 0..connections {
        device.session.on_heard(connection, device.now);
    }
    device
}

impl Device {
    /// What is to be done, but for telling people that the device is still lost.
    pub fn actions(&mut self) -> Vec<Action> {
        let actions = std::iter::from_fn(|| self.session.poll_action());
        let is_told = |action: &Action| matches!(action, Action::Notify(Notice::StillLost { .. }));
        actions.filter(|action| !is_told(action)).collect()
    }

    /// Lets time pass, at once.
    pub fn wait(&mut self, ms: u64) -> Vec<Action> {
        self.now = self.now.after_ms(ms);
        self.session.handle_timeout(self.now);
        self.actions()
    }

    /// Lets time pass until the machine asks for something.
    pub fn wait_for_action(&mut self) -> Vec<Action> {
        for _ in 0..100 {
            let actions = self.actions();
            if !actions.is_empty() {
                return actions;
            }
            let at = self.session.poll_timeout().expect("a stall");
            self.now = self.now.max(at);
            self.session.handle_timeout(self.now);
        }
        panic!("it wakes up again and again for nothing");
    }

    /// Lets all go well until every connection is live.
    pub fn bring_up(&mut self) {
        for _ in 0..1000 {
            self.actions();
            if self.session.is_usable() {
                return;
            }
            let mut moved = false;
            for connection in 0..self.session.connection_count() {
                match self.state_of(connection) {
                    "connecting" => self.opened(connection),
                    "stopping" => self.session.on_drained(connection, self.now),
                    _ => continue,
                }
                moved = true;
                self.actions();
            }
            if !moved {
                self.now = self.session.poll_timeout().expect("a stall");
                self.session.handle_timeout(self.now);
            }
        }
        panic!("it never comes up: {:?}", self.session.state());
    }

    pub fn opened(&mut self, connection: u16) {
        assert!(self.session.on_opened(connection, 64, self.now));
    }

    pub fn lost(&mut self, connection: u16, cause: CloseCause) -> Vec<Action> {
        self.session.on_lost(connection, cause, self.now);
        self.actions()
    }

    pub fn drained(&mut self, connection: u16) -> Vec<Action> {
        self.session.on_drained(connection, self.now);
        self.actions()
    }

    pub fn failed(&mut self, connection: u16, cause: CloseCause) -> Vec<Action> {
        self.session.on_connect_failed(connection, cause, self.now);
        self.actions()
    }

    pub fn state_of(&self, connection: u16) -> &'static str {
        self.session
            .connection(connection)
            .expect("it exists")
            .0
            .name()
    }
}

pub fn connect_of(actions: &[Action]) -> (u16, u16, ConnectKind) {
    match actions {
        [Action::Connect {
            connection,
            node,
            kind,
            ..
        }] => (*connection, *node, *kind),
        other => panic!("not one connect: {other:?}"),
    }
}

pub fn open(generation: u64, epoch: u64, promote: bool) -> ConnectKind {
    ConnectKind::Open {
        generation: Generation(generation),
        epoch,
        promote,
    }
}

pub fn join(generation: u64, connection: u16, epoch: u64) -> ConnectKind {
    ConnectKind::Join {
        generation: Generation(generation),
        connection,
        epoch,
    }
}

pub const DOWN: CloseCause = CloseCause::ConnectFailed(111);
pub const GONE: CloseCause = CloseCause::PeerClosed;

pub fn refused(status: Status) -> CloseCause {
    CloseCause::Refused(status)
}
