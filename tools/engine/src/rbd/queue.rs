// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Queues of the engine rbd, on volumes and on snapshots.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use neonsan_api::SnapshotName;
use rustix::event::{poll, PollFd, PollFlags};

use super::outbox::Outbox;
use super::sys::{Image, Job, Sink};
use super::term::Ownership;
use crate::interface::snapshot_is_read_only;
use crate::{Completion, Limits, Op, Queue, Request, Result, Volume};

/// An image that requests go to, and whether they may.
pub(super) trait Served: Send + Sync {
    /// The image.
    fn image(&self) -> &Image;

    /// Whether it is still this node's.
    fn ownership(&self) -> &Arc<Ownership>;
}

/// What requests are checked against; shared by a volume and its queues.
pub(super) struct Shape {
    size_bytes: AtomicU64,
    logical_block_size: u32,
    /// It is this snapshot, which nobody changes.
    snapshot: Option<SnapshotName>,
    /// Queues there are.
    queues: AtomicUsize,
    /// Held while the size is looked at or changed, so that what is seen first
    /// is not noted last.
    resizing: Mutex<()>,
}

impl Shape {
    pub(super) fn new(
        size_bytes: u64,
        logical_block_size: u32,
        snapshot: Option<SnapshotName>,
    ) -> Self {
        Self {
            size_bytes: AtomicU64::new(size_bytes),
            logical_block_size,
            snapshot,
            queues: AtomicUsize::new(0),
            resizing: Mutex::default(),
        }
    }

    /// Waits until nobody else looks at the size or changes it.
    pub(super) fn resizing(&self) -> MutexGuard<'_, ()> {
        self.resizing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same, if it is not being changed now.
    pub(super) fn try_resizing(&self) -> Option<MutexGuard<'_, ()>> {
        self.resizing.try_lock().ok()
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    pub(super) fn set_size(&self, size_bytes: u64) {
        self.size_bytes.store(size_bytes, Ordering::Release);
    }

    /// The size of the volume that an image of this size is: whole blocks.
    pub(super) fn whole_blocks(&self, image_bytes: u64) -> u64 {
        image_bytes - image_bytes % u64::from(self.logical_block_size)
    }

    pub(super) fn queues(&self) -> usize {
        self.queues.load(Ordering::Acquire)
    }

    fn check(&self, op: &Op, limits: &Limits) -> Result<()> {
        op.check(self.size_bytes(), self.logical_block_size, limits)?;
        match (&self.snapshot, op) {
            (None, _) | (_, Op::Read { .. } | Op::Flush) => Ok(()),
            (Some(name), _) => Err(snapshot_is_read_only(name)),
        }
    }
}

/// Does I/O for one thread. librbd's threads do the work.
pub(super) struct RbdQueue {
    /// Given up before the volume, which sees to its end.
    served: Option<Arc<dyn Served>>,
    /// Stays open as long as the queue is there.
    _volume: Arc<dyn Volume>,
    shape: Arc<Shape>,
    limits: Limits,
    depth: usize,
    outbox: Arc<Outbox>,
    /// Beyond the depth.
    waiting: VecDeque<Request>,
    /// In librbd, or in the outbox.
    begun: usize,
    /// Taken and not handed back.
    taken: usize,
}

impl RbdQueue {
    /// A queue for at most `depth` requests at a time.
    pub(super) fn new(
        served: Arc<dyn Served>,
        volume: Arc<dyn Volume>,
        shape: Arc<Shape>,
        limits: Limits,
        depth: u32,
    ) -> Result<Self> {
        let outbox = Arc::new(Outbox::new(Arc::clone(served.ownership()))?);
        shape.queues.fetch_add(1, Ordering::AcqRel);
        Ok(Self {
            served: Some(served),
            _volume: volume,
            shape,
            limits,
            depth: depth.max(1) as usize,
            outbox,
            waiting: VecDeque::new(),
            begun: 0,
            taken: 0,
        })
    }

    fn begin(&mut self, request: Request) {
        let Request { token, op } = request;
        self.begun += 1;
        let Some(served) = &self.served else { return };
        let ownership = served.ownership();
        let checked = if ownership.is_lost() {
            Err(ownership.error())
        } else {
            self.shape.check(&op, &self.limits)
        };
        if let Err(error) = checked {
            return self.outbox.push(token, op, Err(error));
        }
        // Without a cache what is completed is durable: a flush has nothing to
        // do, and every write is as one with `fua`.
        if matches!(op, Op::Flush) {
            return self.outbox.push(token, op, Ok(()));
        }
        let sink: Arc<dyn Sink> = Arc::clone(&self.outbox) as _;
        served.image().begin(Job { token, op, sink });
    }

    fn begin_waiting(&mut self) {
        while self.begun < self.depth {
            let Some(request) = self.waiting.pop_front() else {
                return;
            };
            self.begin(request);
        }
    }
}

impl Queue for RbdQueue {
    fn submit(&mut self, request: Request) {
        self.taken += 1;
        self.waiting.push_back(request);
    }

    fn kick(&mut self) {
        self.begin_waiting();
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        let count = self.outbox.take(completions);
        self.begun -= count;
        self.taken -= count;
        if count > 0 {
            self.begin_waiting();
        }
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.outbox.event())
    }

    fn in_flight(&self) -> usize {
        self.taken
    }
}

impl Drop for RbdQueue {
    fn drop(&mut self) {
        self.waiting.clear();
        let mut completions = Vec::new();
        while self.begun > 0 {
            let mut fds = [PollFd::from_borrowed_fd(self.outbox.event(), PollFlags::IN)];
            // Interrupted or not: look.
            let _ = poll(&mut fds, None);
            self.begun -= self.outbox.take(&mut completions);
            completions.clear();
        }
        self.served = None;
        self.shape.queues.fetch_sub(1, Ordering::AcqRel);
    }
}
