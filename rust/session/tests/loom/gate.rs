// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The gate before the transmitting side of a connection, with everything that comes to it: the
//! submitting threads, the work of the connection, replies that free the window, recovery.
//!
//! What each model shows is that no request is stranded: where all threads have ended and the gate
//! is open, every request that was added has been sent.

use super::explore;
use loom::sync::atomic::{fence, AtomicBool, AtomicUsize, Ordering};
use loom::sync::Arc;
use loom::thread;
use neonsan_session::client::{GateState, SendGate, Sender};
use std::ops::{Deref, DerefMut};

/// The transmitting side, as its holder has it.
#[derive(Default)]
struct Tx {
    /// Requests that were handed to the socket.
    sent: usize,
    /// Requests taken from the list that did not fit in the window.
    next: usize,
}

/// One connection.
struct Connection {
    gate: SendGate,
    /// The lock of `tx`, no stronger than a mutex of the kernel: taking it acquires, letting go of it
    /// releases, and failing to take it orders nothing.
    locked: AtomicBool,
    tx: loom::cell::UnsafeCell<Tx>,
    /// Requests that wait to be sent.
    pending: AtomicUsize,
    /// Requests that the socket still has room for.
    room: AtomicUsize,
    /// Requests that the node may still have.
    window: AtomicUsize,
    /// The work of the connection is queued.
    work: AtomicBool,
}

// SAFETY: `tx` is used by the holder of `locked` only; loom checks that.
unsafe impl Send for Connection {}
// SAFETY: As above.
unsafe impl Sync for Connection {}

const NO_LIMIT: usize = 100;

impl Connection {
    fn new(state: GateState, room: usize, window: usize) -> Arc<Self> {
        let this = Arc::new(Connection {
            gate: SendGate::new(),
            locked: AtomicBool::new(false),
            tx: loom::cell::UnsafeCell::new(Tx::default()),
            pending: AtomicUsize::new(0),
            room: AtomicUsize::new(room),
            window: AtomicUsize::new(window),
            work: AtomicBool::new(false),
        });
        this.gate.enter(&*this, |_, _| Some(state));
        this
    }

    /// Adds a request, as `llist_add` does: a full barrier.
    fn push(&self) {
        fence(Ordering::SeqCst);
        self.pending.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    fn submit(&self) {
        self.push();
        self.gate.submit(self);
    }

    /// The work of the connection.
    fn again(&self) {
        self.gate.enter(self, |_, state| {
            (state != GateState::Parked).then_some(GateState::Open)
        });
    }

    /// Runs the work of the connection if it is queued.
    fn work(&self) -> bool {
        let queued = self.work.swap(false, Ordering::AcqRel);
        if queued {
            self.again();
        }
        queued
    }

    /// The node has taken what the socket had, so there is room for one more.
    fn make_room(&self) {
        self.room.fetch_add(1, Ordering::Relaxed);
        self.send_later();
    }

    /// The node has answered a write.
    fn reply(&self) {
        self.window.fetch_add(1, Ordering::Relaxed);
        if self.gate.waits_for_window(self) {
            self.send_later();
        }
    }

    /// What is true at the end: nothing is left behind an open gate. Returns how many were sent.
    fn settle(&self) -> usize {
        while self.work() {}
        let sent = self.lock().sent;
        assert!(
            !self.is_stranded(),
            "{} requests are stranded, {sent} were sent",
            self.pending.load(Ordering::SeqCst)
        );
        sent
    }

    fn is_stranded(&self) -> bool {
        let waiting = self.pending.load(Ordering::SeqCst) + self.lock().next;
        waiting > 0 && self.gate.state() == GateState::Open
    }
}

/// Lets go of the lock when it is dropped.
struct Guard<'a>(&'a Connection);

impl Deref for Guard<'_> {
    type Target = Tx;

    fn deref(&self) -> &Tx {
        // SAFETY: The lock is held.
        self.0.tx.with(|tx| unsafe { &*tx })
    }
}

impl DerefMut for Guard<'_> {
    fn deref_mut(&mut self) -> &mut Tx {
        // SAFETY: The lock is held.
        self.0.tx.with_mut(|tx| unsafe { &mut *tx })
    }
}

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.locked.store(false, Ordering::Release);
    }
}

impl Sender for Connection {
    type Tx = Tx;
    type Guard<'a> = Guard<'a>;

    fn try_lock(&self) -> Option<Guard<'_>> {
        self.locked
            .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed)
            .ok()
            .map(|_| Guard(self))
    }

    fn lock(&self) -> Guard<'_> {
        loop {
            if let Some(guard) = self.try_lock() {
                return guard;
            }
            thread::yield_now();
        }
    }

    fn has_pending(&self) -> bool {
        self.pending.load(Ordering::Relaxed) > 0
    }

    fn send(&self, tx: &mut Tx) -> GateState {
        loop {
            if tx.next == 0 {
                tx.next = self.pending.swap(0, Ordering::AcqRel);
            }
            if tx.next == 0 {
                return GateState::Open;
            }
            if !self.fits_window(tx) {
                return GateState::Window;
            }
            if self.room.load(Ordering::Relaxed) == 0 {
                return GateState::Blocked;
            }
            self.window.fetch_sub(1, Ordering::Relaxed);
            self.room.fetch_sub(1, Ordering::Relaxed);
            tx.next -= 1;
            tx.sent += 1;
        }
    }

    fn fits_window(&self, _tx: &Tx) -> bool {
        self.window.load(Ordering::Relaxed) > 0
    }

    fn send_later(&self) {
        self.work.store(true, Ordering::Release);
    }

    fn full_barrier(&self) {
        fence(Ordering::SeqCst);
    }
}

/// Runs `others` in threads beside a submitting thread and looks at what is left.
fn beside_a_submission(connection: &Arc<Connection>, other: impl FnOnce(&Connection)) {
    let submitter = {
        let connection = connection.clone();
        thread::spawn(move || connection.submit())
    };
    other(connection);
    submitter.join().expect("no panic");
}

#[test]
fn two_submitting_threads_send_both_requests() {
    explore(|| {
        let connection = Connection::new(GateState::Open, NO_LIMIT, NO_LIMIT);
        beside_a_submission(&connection, |c| c.submit());
        assert_eq!(connection.settle(), 2);
    });
}

#[test]
fn a_submission_beside_the_work_is_sent() {
    explore(|| {
        let connection = Connection::new(GateState::Open, NO_LIMIT, NO_LIMIT);
        beside_a_submission(&connection, |c| c.again());
        assert_eq!(connection.settle(), 1);
    });
}

/// A holder that has only a message of its own to send, as for the end of a session.
#[test]
fn a_submission_beside_a_holder_that_sends_nothing_is_sent() {
    explore(|| {
        let connection = Connection::new(GateState::Open, NO_LIMIT, NO_LIMIT);
        beside_a_submission(&connection, |c| c.gate.enter(c, |_, _| None));
        assert_eq!(connection.settle(), 1);
    });
}

/// Before the socket has room the gate is blocked, afterwards everything is sent.
#[test]
fn a_full_socket_strands_nothing() {
    explore(|| {
        let connection = Connection::new(GateState::Open, 1, NO_LIMIT);
        connection.submit();
        beside_a_submission(&connection, |c| {
            c.make_room();
            c.work();
        });
        assert_eq!(connection.settle(), 2);
    });
}

#[test]
fn a_full_window_strands_nothing() {
    explore(|| {
        let connection = Connection::new(GateState::Open, NO_LIMIT, 1);
        connection.submit();
        beside_a_submission(&connection, |c| {
            c.reply();
            c.work();
        });
        assert_eq!(connection.settle(), 2);
    });
}

/// A loss, and service again: the request waits for recovery or is sent, and nothing is left at the
/// end.
#[test]
fn recovery_sends_what_was_added_meanwhile() {
    explore(|| {
        let connection = Connection::new(GateState::Open, NO_LIMIT, NO_LIMIT);
        beside_a_submission(&connection, |c| {
            c.gate.enter(c, |_, _| Some(GateState::Parked));
            c.gate.enter(c, |_, _| Some(GateState::Open));
        });
        assert_eq!(connection.settle(), 1);
    });
}

/// The work of a connection that recovery has closed leaves it closed.
#[test]
fn the_work_does_not_open_what_recovery_closed() {
    explore(|| {
        let connection = Connection::new(GateState::Open, NO_LIMIT, NO_LIMIT);
        let worker = {
            let connection = connection.clone();
            thread::spawn(move || connection.again())
        };
        connection
            .gate
            .enter(&*connection, |_, _| Some(GateState::Parked));
        worker.join().expect("no panic");
        assert_eq!(connection.gate.state(), GateState::Parked);
    });
}

/// A submitting thread that finds others adding again and again ends all the same, and the work of
/// the connection has the rest.
#[test]
fn no_submitting_thread_sends_for_all_for_ever() {
    /// Gives its one thread something new to do each time it has let go.
    struct Endless {
        left: std::cell::Cell<u32>,
        later: std::cell::Cell<bool>,
        tx: std::cell::RefCell<()>,
    }
    impl Sender for Endless {
        type Tx = ();
        type Guard<'a> = std::cell::RefMut<'a, ()>;
        fn try_lock(&self) -> Option<Self::Guard<'_>> {
            self.tx.try_borrow_mut().ok()
        }
        fn lock(&self) -> Self::Guard<'_> {
            self.tx.borrow_mut()
        }
        fn has_pending(&self) -> bool {
            self.left.set(self.left.get() - 1);
            true
        }
        fn send(&self, (): &mut ()) -> GateState {
            GateState::Open
        }
        fn fits_window(&self, (): &()) -> bool {
            true
        }
        fn send_later(&self) {
            self.later.set(true);
        }
        fn full_barrier(&self) {}
    }
    loom::model(|| {
        let gate = SendGate::new();
        let side = Endless {
            left: std::cell::Cell::new(1000),
            later: std::cell::Cell::new(false),
            tx: std::cell::RefCell::new(()),
        };
        gate.enter(&side, |(), _| Some(GateState::Open));
        assert!(side.later.get(), "nobody has the rest");
        assert!(side.left.get() > 900, "too many rounds");
    });
}

/// The control: a reader that takes the lock and lets go of it without looking at the list, as
/// statistics once did, strands a request, and these models find that.
#[test]
fn a_reader_that_takes_the_lock_strands_a_request() {
    use std::sync::atomic::{AtomicUsize as Count, Ordering as O};
    let stranded = std::sync::Arc::new(Count::new(0));
    let counted = stranded.clone();
    explore(move || {
        let connection = Connection::new(GateState::Open, NO_LIMIT, NO_LIMIT);
        beside_a_submission(&connection, |c| {
            let _sent = c.lock().sent;
        });
        if connection.is_stranded() {
            counted.fetch_add(1, O::Relaxed);
        }
    });
    assert!(
        stranded.load(O::Relaxed) > 0,
        "the model does not find the fault that it is there for"
    );
}

/// The control of the order: a holder that looks at the list before it lets go misses a request.
#[test]
fn a_holder_that_looks_before_it_lets_go_strands_a_request() {
    use std::sync::atomic::{AtomicUsize as Count, Ordering as O};
    let stranded = std::sync::Arc::new(Count::new(0));
    let counted = stranded.clone();
    explore(move || {
        let connection = Connection::new(GateState::Open, NO_LIMIT, NO_LIMIT);
        beside_a_submission(&connection, |c| {
            let mut tx = c.lock();
            while c.has_pending() {
                c.send(&mut tx);
            }
        });
        if connection.is_stranded() {
            counted.fetch_add(1, O::Relaxed);
        }
    });
    assert!(
        stranded.load(O::Relaxed) > 0,
        "the model does not find a request that comes too late"
    );
}
