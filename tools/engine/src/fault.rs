// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Faults on demand, for the lab: any engine, made slow, stuck or failing.
//!
//! Only built with the feature `test-faults`, which no release has.

use std::collections::VecDeque;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use neonsan_api::SnapshotName;
use rustix::event::epoll;
use rustix::time::{
    timerfd_create, timerfd_settime, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags,
    Timespec,
};

use crate::layer::Layer;
use crate::{
    Completion, Engine, Error, ErrorKind, Limits, Op, Queue, Request, Result, SnapshotStat, Volume,
    VolumeStat,
};

/// How often a queue looks whether requests that hang may go on.
const HANG_CHECK: Duration = Duration::from_millis(20);

/// What goes wrong from now on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Completions are held back for this long.
    pub delay: Duration,
    /// Completions are held back until this is taken away.
    pub hang: bool,
    /// Volumes are not closed until this is taken away.
    pub hang_close: bool,
    /// Requests fail with this instead of being done.
    pub fail: Option<ErrorKind>,
    /// Only changing requests are concerned, not reads.
    pub writes_only: bool,
    /// So many of the next changing requests stall before storage has them, until the faults are
    /// changed: then they are done, however late that is.
    pub stall_next: u32,
}

/// The faults in force; shared by the test's controls and all queues.
#[derive(Debug, Default)]
pub struct FaultPlan(Mutex<Plan>);

#[derive(Debug, Default)]
struct Plan {
    faults: Faults,
    /// How often they were changed.
    changes: u64,
}

impl FaultPlan {
    fn lock(&self) -> std::sync::MutexGuard<'_, Plan> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what goes wrong, for requests in flight too.
    pub fn set(&self, faults: Faults) {
        let mut plan = self.lock();
        plan.faults = faults;
        plan.changes += 1;
    }

    /// What goes wrong now.
    pub fn get(&self) -> Faults {
        self.lock().faults
    }

    /// How often the faults were changed.
    fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// Whether the next changing request is to stall; the value of [`FaultPlan::changes`] then.
    fn take_stall(&self) -> Option<u64> {
        let mut plan = self.lock();
        plan.faults.stall_next = plan.faults.stall_next.checked_sub(1)?;
        Some(plan.changes)
    }
}

/// An engine with faults.
pub struct FaultEngine {
    inner: Arc<dyn Engine>,
    plan: Arc<FaultPlan>,
}

impl FaultEngine {
    /// Puts faults in front of `inner`.
    pub fn new(inner: Arc<dyn Engine>, plan: Arc<FaultPlan>) -> Self {
        Self { inner, plan }
    }
}

impl Layer for FaultEngine {
    fn inner(&self) -> &dyn Engine {
        &*self.inner
    }

    fn note(&self) -> &'static str {
        "faults can be injected"
    }

    /// As its requests are: slow, stuck or failing.
    fn own_health(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let faults = self.plan.get();
            if let Some(kind) = faults.fail {
                return Err(Error::new(kind, "a fault was asked for"));
            }
            if !faults.hang && begun.elapsed() >= faults.delay {
                return Ok(());
            }
            std::thread::sleep(HANG_CHECK);
        }
    }

    fn wrap(&self, volume: Arc<dyn Volume>) -> Result<Arc<dyn Volume>> {
        Ok(Arc::new(FaultVolume {
            inner: volume,
            plan: Arc::clone(&self.plan),
        }))
    }
}

struct FaultVolume {
    inner: Arc<dyn Volume>,
    plan: Arc<FaultPlan>,
}

impl Drop for FaultVolume {
    /// A disk that hangs keeps close(2) waiting, too.
    fn drop(&mut self) {
        while self.plan.get().hang_close {
            std::thread::sleep(HANG_CHECK);
        }
    }
}

impl Volume for FaultVolume {
    fn stat(&self) -> VolumeStat {
        self.inner.stat()
    }

    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn is_lost(&self) -> bool {
        self.inner.is_lost()
    }

    fn limits(&self) -> Limits {
        self.inner.limits()
    }

    fn resize(&self, size_bytes: u64) -> Result<()> {
        self.inner.resize(size_bytes)
    }

    fn create_snapshot(&self, name: &SnapshotName) -> Result<SnapshotStat> {
        self.inner.create_snapshot(name)
    }

    fn flatten(&self) -> Result<()> {
        self.inner.flatten()
    }

    fn queue(self: Arc<Self>, depth: u32) -> Result<Box<dyn Queue>> {
        Ok(Box::new(FaultQueue::new(
            Arc::clone(&self.inner).queue(depth)?,
            Arc::clone(&self.plan),
        )?))
    }
}

/// A completion that is held back.
struct Held {
    since: Instant,
    changes: bool,
    completion: Completion,
}

struct FaultQueue {
    inner: Box<dyn Queue>,
    plan: Arc<FaultPlan>,
    held: VecDeque<Held>,
    /// Requests that storage does not have yet, and until when: the next change of the plan.
    stalled: Vec<(u64, Request)>,
    /// Tokens of changing requests in `inner`.
    changing: Vec<u64>,
    /// Readable when `inner` or `timer` is.
    events: OwnedFd,
    timer: OwnedFd,
}

impl FaultQueue {
    fn new(inner: Box<dyn Queue>, plan: Arc<FaultPlan>) -> Result<Self> {
        let context = |e| Error::os(e, "cannot make a queue with faults");
        let events = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(context)?;
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )
        .map_err(context)?;
        let none = epoll::EventData::new_u64(0);
        epoll::add(&events, &timer, none, epoll::EventFlags::IN).map_err(context)?;
        if let Some(fd) = inner.event_fd() {
            epoll::add(&events, fd, none, epoll::EventFlags::IN).map_err(context)?;
        }
        Ok(Self {
            inner,
            plan,
            held: VecDeque::new(),
            stalled: Vec::new(),
            changing: Vec::new(),
            events,
            timer,
        })
    }

    fn set_timer(&self, after: Duration) {
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let value = Itimerspec {
            it_interval: zero,
            it_value: Timespec::try_from(after.max(Duration::from_micros(1))).unwrap_or(zero),
        };
        if let Err(error) = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &value) {
            tracing::error!(%error, "cannot set a timer");
        }
    }
}

impl Queue for FaultQueue {
    fn submit(&mut self, request: Request) {
        let faults = self.plan.get();
        let changes = !matches!(request.op, Op::Read { .. });
        if let (Some(kind), true) = (faults.fail, changes || !faults.writes_only) {
            self.held.push_back(Held {
                since: Instant::now(),
                changes,
                completion: Completion {
                    token: request.token,
                    result: Err(Error::new(kind, "a fault was asked for")),
                    buffer: request.op.into_buffer(),
                },
            });
            return;
        }
        if changes {
            self.changing.push(request.token);
            if let Some(since) = self.plan.take_stall() {
                tracing::warn!("a request stalls");
                self.stalled.push((since, request));
                return;
            }
        }
        self.inner.submit(request);
    }

    fn kick(&mut self) {
        self.inner.kick();
        if !self.stalled.is_empty() {
            self.set_timer(HANG_CHECK);
        }
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        let now = Instant::now();
        let changes = self.plan.changes();
        for (since, request) in std::mem::take(&mut self.stalled) {
            if since == changes {
                self.stalled.push((since, request));
            } else {
                tracing::warn!("a request that stalled goes on");
                self.inner.submit(request);
                self.inner.kick();
            }
        }
        let mut ended = Vec::new();
        self.inner.reap(&mut ended);
        for completion in ended {
            let place = self.changing.iter().position(|t| *t == completion.token);
            if let Some(place) = place {
                self.changing.swap_remove(place);
            }
            self.held.push_back(Held {
                since: now,
                changes: place.is_some(),
                completion,
            });
        }
        // Resets the timer; it fails when it has not run out.
        let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        let faults = self.plan.get();
        let mut wake: Option<Duration> = (!self.stalled.is_empty()).then_some(HANG_CHECK);
        for held in std::mem::take(&mut self.held) {
            let concerned = held.changes || !faults.writes_only;
            let age = now.saturating_duration_since(held.since);
            let wait = if concerned && faults.hang {
                HANG_CHECK
            } else if concerned && age < faults.delay {
                faults.delay - age
            } else {
                completions.push(held.completion);
                continue;
            };
            // The plan may change meanwhile.
            let wait = wait.min(HANG_CHECK);
            wake = Some(wake.map_or(wait, |w| w.min(wait)));
            self.held.push_back(held);
        }
        if let Some(wake) = wake {
            self.set_timer(wake);
        }
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.events.as_fd())
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight() + self.held.len() + self.stalled.len()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::mem::{MemEngine, MemOptions};
    use crate::{Buffer, VolumeSpec};
    use rustix::event::{poll, PollFd, PollFlags};

    fn queue(plan: &Arc<FaultPlan>) -> Box<dyn Queue> {
        let engine = FaultEngine::new(
            Arc::new(
                MemEngine::new(MemOptions {
                    capacity_bytes: 1 << 20,
                    volatile_cache: true,
                })
                .unwrap(),
            ),
            Arc::clone(plan),
        );
        let name = "p/v".parse().unwrap();
        let spec = VolumeSpec {
            size_bytes: 8192,
            logical_block_size: 512,
            physical_block_size: None,
        };
        engine.create(&name, &spec).unwrap();
        engine.open(&name).unwrap().queue(4).unwrap()
    }

    fn read(queue: &mut dyn Queue) {
        let buffer = Buffer::zeroed(512).unwrap();
        queue.submit(Request {
            token: 1,
            op: Op::Read { offset: 0, buffer },
        });
        queue.kick();
    }

    fn wait(queue: &mut dyn Queue, done: &mut Vec<Completion>) {
        // Requests to memory end during `kick`, without an event.
        queue.reap(done);
        while done.is_empty() {
            let mut fds = [PollFd::from_borrowed_fd(
                queue.event_fd().unwrap(),
                PollFlags::IN,
            )];
            poll(&mut fds, None).unwrap();
            queue.reap(done);
        }
    }

    #[test]
    fn a_hang_ends_when_it_is_taken_away() {
        let plan = Arc::new(FaultPlan::default());
        plan.set(Faults {
            hang: true,
            ..Faults::default()
        });
        let mut queue = queue(&plan);
        let mut done = Vec::new();
        read(&mut *queue);
        queue.reap(&mut done);
        std::thread::sleep(Duration::from_millis(50));
        queue.reap(&mut done);
        assert!(done.is_empty());
        assert_eq!(queue.in_flight(), 1);
        plan.set(Faults::default());
        wait(&mut *queue, &mut done);
        assert!(done[0].result.is_ok());
    }

    #[test]
    fn a_stalled_write_lands_over_newer_ones() {
        let plan = Arc::new(FaultPlan::default());
        let mut queue = queue(&plan);
        let mut done = Vec::new();
        let write = |queue: &mut dyn Queue, token, byte| {
            let mut buffer = Buffer::zeroed(512).unwrap();
            buffer.fill(byte);
            queue.submit(Request {
                token,
                op: Op::Write {
                    offset: 0,
                    buffer,
                    fua: false,
                    atomic: false,
                },
            });
            queue.kick();
        };
        plan.set(Faults {
            stall_next: 1,
            ..Faults::default()
        });
        write(&mut *queue, 2, 2);
        write(&mut *queue, 3, 3);
        wait(&mut *queue, &mut done);
        assert_eq!(done.pop().unwrap().token, 3);
        assert_eq!(queue.in_flight(), 1);
        plan.set(Faults::default());
        wait(&mut *queue, &mut done);
        assert_eq!(done.pop().unwrap().token, 2);
        read(&mut *queue);
        wait(&mut *queue, &mut done);
        assert_eq!(done[0].buffer.as_ref().unwrap()[0], 2);
    }

    #[test]
    fn a_failure_can_spare_reads() {
        let plan = Arc::new(FaultPlan::default());
        plan.set(Faults {
            fail: Some(ErrorKind::NoSpace),
            writes_only: true,
            ..Faults::default()
        });
        let mut queue = queue(&plan);
        let mut done = Vec::new();
        read(&mut *queue);
        queue.reap(&mut done);
        assert!(done.pop().unwrap().result.is_ok());
        queue.submit(Request {
            token: 2,
            op: Op::Flush,
        });
        queue.reap(&mut done);
        let error = done.pop().unwrap().result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
    }
}
