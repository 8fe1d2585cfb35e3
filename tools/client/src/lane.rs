// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A lane: the requests of one connection, whether it is in force or not.
//!
//! Lock order: `requests`, then `queue`. Neither is held over an `await`.

use crate::Error;
use bytes::Bytes;
use neonsan_proto::{Header, Kind, RequestFlags, Status};
use neonsan_session::client::{Durability, FlushMark, Request, Slot, SlotState, SlotTable};
use neonsan_session::{CloseCause, Cookie, Instant, Tag};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{oneshot, Notify, Semaphore};

/// How a request ended, with the bytes that a READ brought.
pub(crate) type Outcome = Result<Vec<u8>, Error>;

/// What a slot cannot hold: the payload, and whom to tell.
pub(crate) struct Pending {
    pub(crate) request: Request,
    pub(crate) cookie: Cookie,
    pub(crate) payload: Bytes,
    /// For a FLUSH of a volume with a write cache.
    mark: Option<FlushMark>,
    done: oneshot::Sender<Outcome>,
}

/// PONGs that may wait to be sent: a node that asks for more signs of life without taking any is not
/// heard until it does.
const MAX_PONGS: usize = 16;

/// What the writer is to send next.
pub(crate) enum Outgoing {
    /// A message without payload: PING, PONG, CLOSE.
    Control(Header),
    /// The request in this slot, if it still waits there.
    Request(Tag),
}

struct Requests {
    /// By tag; `Some` exactly while the slot is not free.
    by_tag: Vec<Option<Pending>>,
    /// New requests end at once, for this reason.
    failing: Option<Error>,
}

pub(crate) struct Lane {
    pub(crate) slots: SlotTable<Vec<Slot>>,
    requests: Mutex<Requests>,
    queue: Mutex<VecDeque<Outgoing>>,
    /// Wakes the writer.
    pub(crate) wake: Notify,
    /// Wakes the reader, which waits for place for a PONG.
    sent_control: Notify,
    free: Mutex<Vec<u16>>,
    /// One permit per free tag.
    tags: Semaphore,
    /// One permit per byte of WRITE payload that may be unanswered.
    write_bytes: Semaphore,
    /// What the node's power could take; `None` without a write cache.
    durability: Option<Arc<Durability>>,
    /// When something was received last.
    heard_ms: AtomicU64,
}

/// A poisoned lock only means that another task panicked; the data behind these locks is never
/// left half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lane {
    pub(crate) fn new(
        connection: u16,
        depth: u16,
        write_bytes: u32,
        durability: Option<Arc<Durability>>,
    ) -> Self {
        let slots: Vec<Slot> = (0..depth).map(|_| Slot::new()).collect();
        Lane {
            slots: SlotTable::new(connection, slots),
            requests: Mutex::new(Requests {
                by_tag: (0..depth).map(|_| None).collect(),
                failing: None,
            }),
            queue: Mutex::new(VecDeque::new()),
            wake: Notify::new(),
            sent_control: Notify::new(),
            free: Mutex::new((0..depth).rev().collect()),
            tags: Semaphore::new(usize::from(depth)),
            write_bytes: Semaphore::new(write_bytes as usize),
            durability,
            heard_ms: AtomicU64::new(0),
        }
    }

    pub(crate) fn connection(&self) -> u16 {
        self.slots.connection()
    }

    pub(crate) fn heard(&self, now: Instant) {
        self.heard_ms.fetch_max(now.0, Ordering::Relaxed);
    }

    pub(crate) fn heard_at(&self) -> Instant {
        Instant(self.heard_ms.load(Ordering::Relaxed))
    }

    /// Carries one request out: waits for a slot, for the answer, and gives the slot back. If the
    /// caller goes away, the request still runs to its end and is then forgotten.
    pub(crate) async fn run(&self, request: Request, payload: Bytes, now: Instant) -> Outcome {
        let write_len = payload.len() as u32;
        let bytes = self
            .write_bytes
            .acquire_many(write_len)
            .await
            .map_err(|_| Error::Detached)?;
        let tag = self.tags.acquire().await.map_err(|_| Error::Detached)?;
        let answer = {
            let mut requests = lock(&self.requests);
            if let Some(error) = &requests.failing {
                return Err(error.clone());
            }
            // From here on `complete` gives both back.
            bytes.forget();
            tag.forget();
            let Some(tag) = lock(&self.free).pop() else {
                return Err(Error::Misuse("a permit without a tag".into()));
            };
            let Some(cookie) = self.slots.claim(Tag(tag), request, now) else {
                return Err(Error::Misuse("a free tag with a taken slot".into()));
            };
            let (done, answer) = oneshot::channel();
            let mark = match &self.durability {
                Some(durability) if request.kind == Kind::Flush => Some(durability.begin_flush()),
                _ => None,
            };
            if let Some(place) = requests.by_tag.get_mut(usize::from(tag)) {
                *place = Some(Pending {
                    request,
                    cookie,
                    payload,
                    mark,
                    done,
                });
            }
            lock(&self.queue).push_back(Outgoing::Request(Tag(tag)));
            answer
        };
        self.wake.notify_one();
        answer.await.unwrap_or(Err(Error::Detached))
    }

    /// Ends a request whose slot has just become free.
    pub(crate) fn complete(&self, tag: Tag, outcome: Result<Vec<u8>, EndedWith>) {
        let taken = lock(&self.requests)
            .by_tag
            .get_mut(usize::from(tag.0))
            .and_then(Option::take);
        let Some(pending) = taken else { return };
        let request = pending.request;
        let outcome = outcome.and_then(|bytes| self.check_durable(&pending).map(|()| bytes));
        let outcome = outcome.map_err(|ended| match ended {
            EndedWith::Status(status) => Error::Io {
                kind: request.kind,
                offset: request.offset,
                length: request.length,
                status,
            },
            EndedWith::Error(error) => error,
        });
        let write_len = pending.payload.len();
        lock(&self.free).push(tag.0);
        self.tags.add_permits(1);
        self.write_bytes.add_permits(write_len);
        // The asker may have gone away.
        let _ = pending.done.send(outcome);
    }

    /// Keeps count of what a lost node may take with it. Before a request is completed.
    fn check_durable(&self, pending: &Pending) -> Result<(), EndedWith> {
        let Some(durability) = &self.durability else {
            return Ok(());
        };
        if let Some(mark) = pending.mark {
            return durability
                .end_flush(mark)
                .map_err(|_| EndedWith::Error(Error::WritesLost));
        }
        let writes = matches!(
            pending.request.kind,
            Kind::Write | Kind::Discard | Kind::WriteZeroes
        );
        if writes && !pending.request.flags.contains(RequestFlags::FUA) {
            durability.on_answered();
        }
        Ok(())
    }

    /// Queues a message without payload.
    pub(crate) fn send_control(&self, kind: Kind, flags: RequestFlags, cookie: u64) {
        let header = Header::request(kind, flags, cookie, 0, 0);
        lock(&self.queue).push_back(Outgoing::Control(header));
        self.wake.notify_one();
    }

    /// Answers a PING; waits while too many answers wait to be sent.
    pub(crate) async fn send_pong(&self, cookie: u64) {
        // Only the reader of the link adds any.
        while self.waiting_controls() >= MAX_PONGS {
            self.sent_control.notified().await;
        }
        self.send_control(Kind::Pong, RequestFlags::NONE, cookie);
    }

    fn waiting_controls(&self) -> usize {
        let queue = lock(&self.queue);
        let controls = queue.iter().filter(|o| matches!(o, Outgoing::Control(_)));
        controls.count()
    }

    pub(crate) fn next_outgoing(&self) -> Option<Outgoing> {
        let next = lock(&self.queue).pop_front();
        if matches!(next, Some(Outgoing::Control(_))) {
            self.sent_control.notify_one();
        }
        next
    }

    /// What goes over the wire for a request that is about to be sent; `None` if the entry of the
    /// queue is stale.
    pub(crate) fn start_sending(&self, tag: Tag, now: Instant) -> Option<(Request, Cookie, Bytes)> {
        let requests = lock(&self.requests);
        let pending = requests.by_tag.get(usize::from(tag.0))?.as_ref()?;
        self.slots
            .sent(tag, now)
            .then(|| (pending.request, pending.cookie, pending.payload.clone()))
    }

    /// Both tasks of the link have ended: every request waits for the next one.
    pub(crate) fn park_all(&self) {
        let _requests = lock(&self.requests);
        lock(&self.queue).clear();
        for tag in 0..self.slots.depth() {
            self.slots.park(Tag(tag as u16));
        }
    }

    /// A new link is in force: parked requests go first.
    pub(crate) fn resend_parked(&self, now: Instant) {
        let mut requests = lock(&self.requests);
        requests.failing = None;
        let mut queue = lock(&self.queue);
        let parked: Vec<Tag> = self
            .slots
            .iter()
            .filter(|info| info.state == SlotState::Parked)
            .map(|info| info.tag)
            .collect();
        for tag in parked.into_iter().rev() {
            let Some((cookie, _)) = self.slots.reclaim(tag, now) else {
                continue;
            };
            if let Some(Some(pending)) = requests.by_tag.get_mut(usize::from(tag.0)) {
                pending.cookie = cookie;
            }
            queue.push_front(Outgoing::Request(tag));
        }
        drop(queue);
        drop(requests);
        self.wake.notify_one();
    }

    /// Ends every request that is parked or was never sent, and new ones at once until
    /// [`Lane::resend_parked`].
    pub(crate) fn fail_all(&self, cause: CloseCause) {
        let error = match cause {
            CloseCause::Detached => Error::Detached,
            cause => Error::Lost(cause),
        };
        let aborted: Vec<Tag> = {
            let mut requests = lock(&self.requests);
            requests.failing = Some(error.clone());
            lock(&self.queue).clear();
            (0..self.slots.depth())
                .map(|tag| Tag(tag as u16))
                .filter(|tag| self.slots.abort(*tag))
                .collect()
        };
        for tag in aborted {
            self.complete(tag, Err(EndedWith::Error(error.clone())));
        }
    }

    /// No request is accepted any more; those that wait for a slot end.
    pub(crate) fn shut(&self) {
        self.tags.close();
        self.write_bytes.close();
    }
}

/// How a request failed.
pub(crate) enum EndedWith {
    Status(Status),
    Error(Error),
}
