// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The data port: worker threads, each with its connections and nothing
//! shared with the others on the I/O path but counters.
//!
//! * [`worker`]: the event loop of a thread, accepting, time.
//! * [`connection`]: one connection from accepting to its end.
//! * [`active`]: requests of an admitted connection: socket to engine and back.
//! * [`output`]: what waits to be sent.
//! * [`pace`]: how fast a client must be.

mod active;
mod connection;
mod output;
mod pace;
mod status;
mod worker;

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use neonsan_engine::Volume;
use neonsan_proto::{Geometry, OpenReply, Refusal, Status};
use neonsan_session::server::ConnectionId;
use neonsan_session::CloseCause;
use rustix::event::{eventfd, EventfdFlags};

use crate::access::Arrival;
use crate::hub::OpenName;
use crate::shared::Budget;

pub use worker::Worker;

/// What a worker is told.
pub enum ToWorker {
    /// A new connection is yours.
    Accept {
        /// Its name from now on.
        id: ConnectionId,
        /// Its socket.
        socket: OwnedFd,
        /// Where it comes from.
        peer: SocketAddr,
        /// For whom it counts, and whether it may reach a volume.
        arrival: Arrival,
    },
    /// The connection has to make room for a new one, unless it has introduced itself.
    MakeRoom {
        /// The connection.
        id: ConnectionId,
    },
    /// An address that was waited for has come: accept connections there too. For the first worker.
    Listen(TcpListener),
    /// The connection is to be let in if its queue can be made: make it, and tell
    /// [`ToHub::Prepared`](crate::hub::ToHub::Prepared); or refuse it. However it ends, tell
    /// [`ToHub::Drained`](crate::hub::ToHub::Drained).
    Prepare {
        /// The connection.
        id: ConnectionId,
        /// Its volume.
        volume: Arc<dyn Volume>,
        /// The index of its engine.
        engine_index: usize,
        /// How many requests may be in flight.
        depth: u16,
    },
    /// The connection is let in: answer, and take its requests.
    Admit {
        /// The connection.
        id: ConnectionId,
        /// Its volume.
        volume: Arc<dyn Volume>,
        /// The volume's name.
        name: OpenName,
        /// The index of its engine.
        engine_index: usize,
        /// The answer.
        reply: Box<OpenReply>,
        /// What requests are checked against.
        geometry: Geometry,
        /// Nothing may be changed.
        read_only: bool,
        /// Bytes in flight of the session.
        budget: Arc<Budget>,
    },
    /// Answer so, and close it.
    Refuse {
        /// The connection.
        id: ConnectionId,
        /// The status.
        status: Status,
        /// Particulars.
        refusal: Refusal,
        /// For people.
        text: String,
    },
    /// Take no new request, close it, tell when it is drained.
    Revoke {
        /// The connection.
        id: ConnectionId,
        /// Why.
        cause: CloseCause,
    },
    /// Its volume has another size.
    Resized {
        /// The connection.
        id: ConnectionId,
        /// What requests are checked against.
        geometry: Geometry,
        /// The size.
        size_bytes: u64,
    },
    /// Tell all clients that the node stops in so many milliseconds, and
    /// accept no more.
    GoingAway(u32),
    /// End the thread.
    Stop,
}

/// Where a worker gets its messages.
#[derive(Default)]
struct Letters(Vec<ToWorker>);

/// The mailbox of a worker. Its lock is held to push or to take all.
pub struct Mailbox {
    letters: Mutex<Letters>,
    signal: OwnedFd,
}

impl Mailbox {
    /// An empty mailbox.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            letters: Mutex::default(),
            signal: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Leaves a message.
    pub fn post(&self, letter: ToWorker) {
        self.letters
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .0
            .push(letter);
        // Fails only when the counter is at its end, where it is readable.
        let _ = rustix::io::write(&self.signal, &1u64.to_ne_bytes());
    }

    /// Takes all messages, and resets the signal.
    fn take(&self) -> Vec<ToWorker> {
        // First, so that what is posted from here on signals again.
        let _ = rustix::io::read(&self.signal, &mut [0; 8]);
        let mut letters = self.letters.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut letters.0)
    }

    fn signal(&self) -> BorrowedFd<'_> {
        self.signal.as_fd()
    }
}
