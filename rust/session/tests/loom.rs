// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What is shared between threads without a lock, in every interleaving that the memory model allows:
//! the slots of a connection, and the gate before its transmitting side ([`gate`]).
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p neonsan-session --test loom --release`.
#![cfg(loom)]

#[path = "loom/gate.rs"]
mod gate;

use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;
use neonsan_proto::{Header, Kind, RequestFlags, Status};
use neonsan_session::client::{Matched, Request, Slot, SlotState, SlotTable};
use neonsan_session::{CloseCause, Cookie, Instant, Tag};

const TAG: Tag = Tag(0);

type Table = SlotTable<Vec<Slot>>;

/// One slot in a table, shared.
struct Shared {
    table: Table,
    /// Written in [`Shared::step`] only.
    steps: AtomicUsize,
}

impl Shared {
    fn new() -> Self {
        Shared {
            table: SlotTable::new(0, vec![Slot::new()]),
            steps: AtomicUsize::new(0),
        }
    }

    /// Stands between the calls of each thread. Loom forgets the load of one thread when another
    /// thread loads the same word before it stores to it, and then tries one order only; it does
    /// try every order of these writes. Relaxed: they order nothing else.
    fn step(&self) -> &Table {
        self.steps.fetch_add(1, Ordering::Relaxed);
        &self.table
    }
}

fn table() -> Arc<Shared> {
    Arc::new(Shared::new())
}

/// Runs `model` in every interleaving, of which there must be several.
fn explore(model: impl Fn() + Sync + Send + 'static) {
    let runs = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = runs.clone();
    loom::model(move || {
        counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        model();
    });
    let runs = runs.load(std::sync::atomic::Ordering::Relaxed);
    assert!(runs > 5, "only {runs} interleavings");
    println!("{runs} interleavings");
}

fn read(length: u32) -> Request {
    Request {
        kind: Kind::Read,
        flags: RequestFlags::NONE,
        offset: u64::from(length),
        length,
    }
}

fn flush() -> Request {
    Request {
        kind: Kind::Flush,
        flags: RequestFlags::NONE,
        offset: 0,
        length: 0,
    }
}

fn reply(cookie: u64, length: u32) -> Header {
    Header::reply(Status::Ok, cookie, length)
}

/// A reply may be matched as soon as the request was handed to the socket, and then sees all of
/// the request.
#[test]
fn a_reply_that_overtakes_the_sender_sees_the_whole_request() {
    explore(|| {
        let table = table();
        let wire = Arc::new(AtomicU64::new(0));
        let submitter = {
            let (table, wire) = (table.clone(), wire.clone());
            thread::spawn(move || {
                let cookie = table
                    .step()
                    .claim(TAG, read(1536), Instant(1))
                    .expect("free");
                assert!(table.step().sent(TAG, Instant(1)));
                wire.store(cookie.to_wire(), Ordering::Release);
            })
        };
        let cookie = wire.load(Ordering::Acquire);
        if cookie != 0 {
            let matched = table.step().on_reply(&reply(cookie, 1536));
            assert_eq!(matched, Ok((TAG, Matched::Payload(1536))));
            assert!(table.step().finish(TAG));
        }
        submitter.join().expect("no panic");
    });
}

/// The reply to a request never completes the next request of the same tag, wherever the submitter
/// is with it.
#[test]
fn a_stale_reply_never_completes_a_reused_slot() {
    explore(|| {
        let table = table();
        let first = table.step().claim(TAG, flush(), Instant(1)).expect("free");
        assert!(table.step().sent(TAG, Instant(1)));
        // Completed: blk-mq may hand the tag out again while the node repeats itself.
        assert_eq!(
            table.step().on_reply(&reply(first.to_wire(), 0)),
            Ok((TAG, Matched::Done))
        );
        let wire = Arc::new(AtomicU64::new(0));
        let submitter = {
            let (table, wire) = (table.clone(), wire.clone());
            thread::spawn(move || {
                let cookie = table
                    .step()
                    .claim(TAG, read(512), Instant(2))
                    .expect("free");
                assert!(table.step().sent(TAG, Instant(1)));
                wire.store(cookie.to_wire(), Ordering::Release);
            })
        };
        let stale = table.step().on_reply(&reply(first.to_wire(), 0));
        assert_eq!(stale, Err(CloseCause::DuplicateReply));
        let cookie = wire.load(Ordering::Acquire);
        if cookie != 0 {
            let matched = table.step().on_reply(&reply(cookie, 512));
            assert_eq!(matched, Ok((TAG, Matched::Payload(512))));
        }
        submitter.join().expect("no panic");
    });
}

/// A node that guesses the cookie of the next request cannot have it completed before it was sent.
#[test]
fn a_guessed_cookie_completes_nothing_that_was_not_sent() {
    explore(|| {
        let table = table();
        let sent = Arc::new(AtomicUsize::new(0));
        let submitter = {
            let (table, sent) = (table.clone(), sent.clone());
            thread::spawn(move || {
                table.step().claim(TAG, flush(), Instant(1)).expect("free");
                sent.store(1, Ordering::SeqCst);
                table.step().sent(TAG, Instant(1))
            })
        };
        let guess = Cookie {
            slot_generation: 1,
            connection: 0,
            tag: TAG,
        };
        let matched = table.step().on_reply(&reply(guess.to_wire(), 0));
        if matched.is_ok() {
            assert_eq!(sent.load(Ordering::SeqCst), 1, "before it was sent");
        }
        let was_sent = submitter.join().expect("no panic");
        assert!(
            was_sent,
            "the request was completed before the sender was done with it"
        );
    });
}

/// Of the two that may end a request that waits to be sent, one wins.
#[test]
fn a_request_is_either_sent_or_aborted() {
    explore(|| {
        let table = table();
        let cookie = table.step().claim(TAG, flush(), Instant(1)).expect("free");
        let sender = {
            let table = table.clone();
            thread::spawn(move || {
                table.step().sent(TAG, Instant(1))
                    && table.step().on_reply(&reply(cookie.to_wire(), 0)).is_ok()
            })
        };
        let aborted = table.step().abort(TAG);
        let answered = sender.join().expect("no panic");
        assert!(
            answered != aborted,
            "answered {answered}, aborted {aborted}"
        );
        assert!(table.step().info(TAG).is_none());
    });
}

/// Even if a caller parks while the receiver still runs, a request is completed or parked, never
/// both, never neither.
#[test]
fn a_request_is_either_completed_or_parked() {
    for with_payload in [false, true] {
        explore(move || {
            let table = table();
            let length = if with_payload { 512 } else { 0 };
            let request = if with_payload { read(512) } else { flush() };
            let cookie = table.step().claim(TAG, request, Instant(1)).expect("free");
            assert!(table.step().sent(TAG, Instant(1)));
            let receiver = {
                let table = table.clone();
                thread::spawn(move || {
                    match table.step().on_reply(&reply(cookie.to_wire(), length)) {
                        Ok((_, Matched::Done)) => true,
                        Ok((tag, Matched::Payload(_))) => table.step().finish(tag),
                        Err(_) => false,
                    }
                })
            };
            let parked = table.step().park(TAG);
            let completed = receiver.join().expect("no panic");
            // A park that lost its race with the matching may be tried again.
            let parked = parked || (!completed && table.step().park(TAG));
            assert!(
                completed != parked,
                "completed {completed}, parked {parked}"
            );
        });
    }
}

/// The state of one connection as its users share it.
struct Connection {
    table: Shared,
    /// Whether the transmitting side may send; held while it sends.
    transmit: Mutex<bool>,
    /// Whether the receiving side may receive; held while it receives.
    receive: Mutex<bool>,
    wire: AtomicU64,
    completed: AtomicUsize,
}

impl Connection {
    fn complete(&self) {
        self.completed.fetch_add(1, Ordering::SeqCst);
    }

    /// Sends a parked request again and answers it, as the next connection does.
    fn resend(&self) {
        if let Some((cookie, request)) = self.table.step().reclaim(TAG, Instant(9)) {
            assert_eq!(request, read(512));
            assert!(self.table.step().sent(TAG, Instant(1)));
            let matched = self.table.step().on_reply(&reply(cookie.to_wire(), 512));
            assert_eq!(matched, Ok((TAG, Matched::Payload(512))));
            assert!(self.table.step().finish(TAG));
            self.complete();
        }
    }
}

/// Submitting, receiving, losing the connection and sending again: the request is completed
/// exactly once, and the reply of the lost connection completes nothing afterwards.
#[test]
fn no_request_is_lost_or_completed_twice_when_its_connection_is_lost() {
    explore(|| {
        let connection = Arc::new(Connection {
            table: Shared::new(),
            transmit: Mutex::new(true),
            receive: Mutex::new(true),
            wire: AtomicU64::new(0),
            completed: AtomicUsize::new(0),
        });
        let submitter = {
            let c = connection.clone();
            thread::spawn(move || {
                let live = c.transmit.lock().expect("no panic");
                // Without a connection the request waits without a slot.
                if *live {
                    let cookie = c
                        .table
                        .step()
                        .claim(TAG, read(512), Instant(1))
                        .expect("free");
                    assert!(c.table.step().sent(TAG, Instant(1)));
                    c.wire.store(cookie.to_wire(), Ordering::Release);
                }
                *live
            })
        };
        let receiver = {
            let c = connection.clone();
            thread::spawn(move || {
                let live = c.receive.lock().expect("no panic");
                let cookie = c.wire.load(Ordering::Acquire);
                if *live && cookie != 0 {
                    let matched = c.table.step().on_reply(&reply(cookie, 512));
                    assert_eq!(matched, Ok((TAG, Matched::Payload(512))));
                    assert!(c.table.step().finish(TAG));
                    c.complete();
                }
            })
        };
        // Recovery: stop both sides, park, send again.
        *connection.transmit.lock().expect("no panic") = false;
        *connection.receive.lock().expect("no panic") = false;
        connection.table.step().park(TAG);
        connection.resend();
        let submitted = submitter.join().expect("no panic");
        receiver.join().expect("no panic");
        assert_eq!(
            connection.completed.load(Ordering::SeqCst),
            usize::from(submitted)
        );
        if !submitted {
            let claimed = connection.table.step().claim(TAG, read(512), Instant(1));
            let cookie = claimed.expect("free").to_wire();
            assert!(connection.table.step().sent(TAG, Instant(1)));
            assert!(connection
                .table
                .step()
                .on_reply(&reply(cookie, 512))
                .is_ok());
            assert!(connection.table.step().finish(TAG));
            connection.complete();
        }
        assert_eq!(connection.completed.load(Ordering::SeqCst), 1);
        let old = connection.wire.load(Ordering::SeqCst);
        if old != 0 {
            assert!(connection.table.step().on_reply(&reply(old, 512)).is_err());
        }
    });
}

/// State dumps see a whole request or none.
#[test]
fn a_dump_beside_a_submission_shows_a_known_state() {
    explore(|| {
        let table = table();
        let submitter = {
            let table = table.clone();
            thread::spawn(move || {
                table
                    .step()
                    .claim(TAG, read(512), Instant(1))
                    .expect("free");
                assert!(table.step().sent(TAG, Instant(2)));
            })
        };
        if let Some(info) = table.step().info(TAG) {
            assert!(matches!(
                info.state,
                SlotState::Queued | SlotState::InFlight
            ));
            assert_eq!(info.request, read(512));
            // One that was sent has its time; one that is about to be may have it already.
            let sent = info.state == SlotState::InFlight;
            assert!(info.since == Instant(2) || (info.since == Instant(1) && !sent));
        }
        submitter.join().expect("no panic");
    });
}
