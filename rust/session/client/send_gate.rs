// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Who sends, and when: the gate before the transmitting side of a connection.
//!
//! A submitting thread adds its request to a list and then tries to take the transmitting side. If
//! another thread has that, the submitting thread goes away without waiting: whoever has the
//! transmitting side looks at the list again after letting go of it. This holds only if *every*
//! holder does, so there is one function that lets go ([`SendGate::submit`] and
//! [`SendGate::enter`] both end in it), and no other way in. Readers (statistics, state dumps) do
//! not come in at all.
//!
//! ```text
//!               recovery opens                 socket is full
//!  1 Parked ───────────────────► 0 Open ───────────────────────► 2 Blocked
//!     ▲                           │  ▲◄──────────────────────────────┘ room again
//!     │   recovery closes, error  │  │ window of writes is full
//!     └───────────────────────────┘  └──────────────────────────► 3 Window
//! ```
//!
//! The state is changed only by the holder of the transmitting side. All others read it, after
//! adding their request, to see whether trying makes sense. Each of the three pairs below has a full
//! barrier on both sides, so that one of the two sees the other:
//!
//! - A submitting thread adds a request, then looks at the state and tries the lock. The holder
//!   stores the state or lets go of the lock, then looks at the list.
//! - A reply frees a part of the window, then looks at the state. The holder stores
//!   [`GateState::Window`], then looks at the window.
//! - A socket gets room, which queues the work that calls [`SendGate::enter`]. That waits for the
//!   lock, so it comes after the holder that saw no room.
//!
//! The tests run all of it in every interleaving (`tests/loom/gate.rs`).

use crate::sync::{AtomicU32, Ordering};
use core::ops::DerefMut;

/// Whether sending makes sense. The numbers are those of the diagram above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum GateState {
    /// Requests are sent, or ended, as they come.
    Open = 0,
    /// Requests wait for recovery. Left by recovery only.
    Parked = 1,
    /// The socket is full: its callback goes on.
    Blocked = 2,
    /// The node has as many bytes of writes as it may have: a reply goes on.
    Window = 3,
}

impl GateState {
    const fn from_bits(bits: u32) -> GateState {
        match bits {
            0 => GateState::Open,
            2 => GateState::Blocked,
            3 => GateState::Window,
            // Only a `GateState` is ever stored; 1 is the only other value.
            _ => GateState::Parked,
        }
    }
}

/// How often a submitting thread sends for others that came while it was sending, before it leaves
/// the rest to the work of the connection.
const MAX_ROUNDS: u32 = 8;

/// What a [`SendGate`] stands before.
pub trait Sender {
    /// The transmitting side. Who has it may send.
    type Tx;

    /// Keeps others out of the transmitting side until it is dropped.
    type Guard<'a>: DerefMut<Target = Self::Tx>
    where
        Self: 'a;

    /// Takes the transmitting side if nobody has it. Does not wait.
    fn try_lock(&self) -> Option<Self::Guard<'_>>;

    /// Takes the transmitting side, and waits for it.
    fn lock(&self) -> Self::Guard<'_>;

    /// Whether a request was added that no holder has taken yet. Adding one must be a full memory
    /// barrier.
    fn has_pending(&self) -> bool;

    /// Sends what there is. Returns [`GateState::Open`] if nothing is left or
    /// [`Sender::send_later`] was called for what is, else why sending ended.
    fn send(&self, tx: &mut Self::Tx) -> GateState;

    /// Whether the node may have the request that waited for the window.
    fn fits_window(&self, tx: &Self::Tx) -> bool;

    /// Lets the work of the connection call [`SendGate::enter`]. Any context.
    fn send_later(&self);

    /// A full memory barrier.
    fn full_barrier(&self);
}

/// The gate before the transmitting side of one connection.
#[derive(Debug)]
pub struct SendGate(AtomicU32);

impl SendGate {
    /// A gate that is parked.
    #[cfg(not(loom))]
    pub const fn new() -> Self {
        SendGate(AtomicU32::new(GateState::Parked as u32))
    }

    /// A gate that is parked.
    #[cfg(loom)]
    pub fn new() -> Self {
        SendGate(AtomicU32::new(GateState::Parked as u32))
    }

    /// Where the gate is. A snapshot.
    #[inline]
    pub fn state(&self) -> GateState {
        GateState::from_bits(self.0.load(Ordering::Acquire))
    }

    #[inline]
    fn set(&self, state: GateState) {
        self.0.store(state as u32, Ordering::Release);
    }

    /// A request was added: sends it, unless another thread will or it makes no sense now. Does not
    /// wait for the transmitting side.
    #[inline]
    pub fn submit<S: Sender>(&self, side: &S) {
        let mut rounds = 0;
        while self.state() == GateState::Open {
            if rounds >= MAX_ROUNDS {
                return side.send_later();
            }
            rounds += 1;
            let Some(mut tx) = side.try_lock() else {
                return;
            };
            self.run(side, &mut tx);
            if !Self::leave(side, tx) {
                return;
            }
        }
    }

    /// Waits for the transmitting side and calls `f` with it and with where the gate is. If `f`
    /// returns a state, the gate goes there; if that is [`GateState::Open`], what there is is sent.
    pub fn enter<S: Sender>(
        &self,
        side: &S,
        f: impl FnOnce(&mut S::Tx, GateState) -> Option<GateState>,
    ) {
        let mut tx = side.lock();
        if let Some(state) = f(&mut tx, self.state()) {
            self.set(state);
            if state == GateState::Open {
                side.full_barrier();
                self.run(side, &mut tx);
            }
        }
        if Self::leave(side, tx) {
            self.submit(side);
        }
    }

    /// A reply has freed a part of the window: whether the work of the connection must go on with
    /// what waited for it. Any context.
    #[inline]
    pub fn waits_for_window<S: Sender>(&self, side: &S) -> bool {
        side.full_barrier();
        self.0.load(Ordering::Relaxed) == GateState::Window as u32
    }

    #[inline]
    fn run<S: Sender>(&self, side: &S, tx: &mut S::Tx) {
        loop {
            let state = side.send(tx);
            self.set(state);
            if state != GateState::Window {
                return;
            }
            side.full_barrier();
            // A reply may have come between looking at the window and closing the gate.
            if !side.fits_window(tx) {
                return;
            }
        }
    }

    /// Lets go of the transmitting side. Whether a request was added meanwhile: the thread that
    /// added it has gone away if it found the side taken.
    #[inline]
    fn leave<'a, S: Sender + 'a>(side: &S, tx: S::Guard<'a>) -> bool {
        drop(tx);
        side.full_barrier();
        side.has_pending()
    }
}

impl Default for SendGate {
    fn default() -> Self {
        SendGate::new()
    }
}
