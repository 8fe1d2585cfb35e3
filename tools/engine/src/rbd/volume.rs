// SPDX-License-Identifier: GPL-2.0 OR MIT
//! An open volume of the engine rbd, and its queues.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use neonsan_api::VolumeName;
use rustix::event::{poll, PollFd, PollFlags};

use super::attributes::Attributes;
use super::outbox::Outbox;
use super::registry::Registry;
use super::sys::{Job, Sink};
use super::term::{keep, Term};
use crate::interface::check_size;
use crate::{Completion, Error, ErrorKind, Limits, Queue, Request, Result, Volume, VolumeStat};

/// Longest read or write.
const MAX_IO_BYTES: u32 = 1 << 20;

/// Longest discard: a few objects, so that one request takes a bounded time.
const MAX_DISCARD_BYTES: u32 = 64 << 20;

/// Longest write-zeroes, which may have to be written out.
const MAX_WRITE_ZEROES_BYTES: u32 = 16 << 20;

/// What is smaller than this is overwritten with zeroes and frees nothing.
const DISCARD_GRANULARITY: u32 = 64 * 1024;

/// What can be done with a volume whose objects have this size.
pub(super) fn limits(object_bytes: u64, logical_block_size: u32) -> Limits {
    let object_bytes = u32::try_from(object_bytes).unwrap_or(1 << 31);
    Limits {
        volatile_cache: false,
        fua: true,
        max_io_bytes: MAX_IO_BYTES,
        io_min_bytes: logical_block_size,
        io_opt_bytes: object_bytes,
        discard_granularity: DISCARD_GRANULARITY,
        max_discard_bytes: MAX_DISCARD_BYTES,
        max_write_zeroes_bytes: MAX_WRITE_ZEROES_BYTES,
        // A write within an object is one transaction of its OSDs.
        atomic_min_bytes: logical_block_size,
        atomic_max_bytes: MAX_IO_BYTES.min(object_bytes),
        rotational: false,
    }
}

/// An open volume. Its end is carried out by the thread that keeps the term.
pub(super) struct RbdVolume {
    name: VolumeName,
    registry: Arc<Registry>,
    /// Present until the volume is dropped.
    term: Option<Arc<Term>>,
    closing: Sender<Arc<Term>>,
    attributes: Attributes,
    object_bytes: u64,
    /// Written by `resize` only, under `resizing`.
    size_bytes: AtomicU64,
    resizing: Mutex<()>,
    /// Queues there are.
    queues: AtomicUsize,
}

impl RbdVolume {
    /// A volume whose term has begun.
    pub(super) fn new(
        name: &VolumeName,
        registry: &Arc<Registry>,
        term: Term,
        attributes: Attributes,
    ) -> Result<Self> {
        let (size_bytes, object_bytes) = term.image.sizes()?;
        let term = Arc::new(term);
        let weak = Arc::downgrade(&term);
        let (closing, to_close) = mpsc::channel();
        thread::Builder::new()
            .name("rbd-keeper".to_owned())
            .spawn(move || keep(&weak, &to_close))
            .map_err(|e| Error::os(e, "cannot start a thread"))?;
        registry.begun(name, &term);
        Ok(Self {
            name: name.clone(),
            registry: Arc::clone(registry),
            term: Some(term),
            closing,
            attributes,
            object_bytes,
            size_bytes: AtomicU64::new(size_bytes),
            resizing: Mutex::default(),
            queues: AtomicUsize::new(0),
        })
    }

    /// The term, which is there as long as anybody can call this.
    fn term(&self) -> Result<&Arc<Term>> {
        self.term
            .as_ref()
            .ok_or_else(|| Error::new(ErrorKind::NotOwner, "the volume is closed"))
    }
}

impl Drop for RbdVolume {
    fn drop(&mut self) {
        self.registry.closing(&self.name);
        if let Some(term) = self.term.take() {
            if let Err(mpsc::SendError(term)) = self.closing.send(term) {
                // The thread has ended, so it is for this one to block.
                drop(term);
            }
        }
    }
}

impl Volume for RbdVolume {
    fn stat(&self) -> VolumeStat {
        let allocated = self.term().and_then(|term| term.image.allocated_bytes());
        let allocated_bytes = allocated.unwrap_or_else(|error| {
            tracing::warn!(volume = %self.name, %error, "cannot get the space a volume takes");
            0
        });
        VolumeStat {
            id: self.attributes.id,
            size_bytes: self.size_bytes(),
            logical_block_size: self.attributes.logical_block_size,
            physical_block_size: self.attributes.physical_block_size,
            created_unix_s: self.attributes.created_unix_s,
            allocated_bytes,
        }
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    fn is_lost(&self) -> bool {
        self.term.as_ref().is_none_or(|t| t.ownership.is_lost())
    }

    fn limits(&self) -> Limits {
        limits(self.object_bytes, self.attributes.logical_block_size)
    }

    fn resize(&self, size_bytes: u64) -> Result<()> {
        check_size(size_bytes, self.attributes.logical_block_size)?;
        let _resizing = self.resizing.lock().unwrap_or_else(PoisonError::into_inner);
        if size_bytes < self.size_bytes() && self.queues.load(Ordering::Acquire) > 0 {
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "the volume {} is in use and cannot be made smaller",
                    self.name
                ),
            ));
        }
        let term = self.term()?;
        if term.ownership.is_lost() {
            return Err(term.ownership.error());
        }
        term.image.resize(size_bytes)?;
        self.size_bytes.store(size_bytes, Ordering::Release);
        Ok(())
    }

    fn queue(self: Arc<Self>, depth: u32) -> Result<Box<dyn Queue>> {
        let term = Arc::clone(self.term()?);
        let outbox = Arc::new(Outbox::new(Arc::clone(&term.ownership))?);
        self.queues.fetch_add(1, Ordering::AcqRel);
        Ok(Box::new(RbdQueue {
            limits: self.limits(),
            depth: depth.max(1) as usize,
            outbox,
            waiting: VecDeque::new(),
            begun: 0,
            taken: 0,
            term: Some(term),
            volume: self,
        }))
    }
}

/// Does I/O for one thread. librbd's threads do the work.
struct RbdQueue {
    /// Given up before the volume, which sees to its end.
    term: Option<Arc<Term>>,
    volume: Arc<RbdVolume>,
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
    fn begin(&mut self, request: Request) {
        let Request { token, op } = request;
        self.begun += 1;
        let Some(term) = &self.term else { return };
        let checked = if term.ownership.is_lost() {
            Err(term.ownership.error())
        } else {
            op.check(
                self.volume.size_bytes(),
                self.volume.attributes.logical_block_size,
                &self.limits,
            )
        };
        if let Err(error) = checked {
            return self.outbox.push(token, op, Err(error));
        }
        // Without a cache what is completed is durable: a flush has nothing to
        // do, and every write is as one with `fua`.
        if matches!(op, crate::Op::Flush) {
            return self.outbox.push(token, op, Ok(()));
        }
        let sink: Arc<dyn Sink> = Arc::clone(&self.outbox) as _;
        term.image.begin(Job { token, op, sink });
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
        self.term = None;
        self.volume.queues.fetch_sub(1, Ordering::AcqRel);
    }
}
