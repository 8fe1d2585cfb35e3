// SPDX-License-Identifier: GPL-2.0 OR MIT
//! A volatile write cache in front of another engine, for the lab: what was not flushed is in this
//! process alone, and lost with it, as a disk's cache is with its power.
//!
//! Only built with the feature `test-faults`, which no release has.
//!
//! Written blocks stay in the cache for ever, so a read is what storage has, with the cached blocks
//! laid over it. A flush, or a write with FUA, is done by one thread for each volume, which puts
//! dirty blocks on storage; so an older copy of a block never follows a newer one.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use neonsan_api::SnapshotName;
use rustix::event::{epoll, eventfd, poll, EventfdFlags, PollFd, PollFlags, Timespec};

use crate::identity::random_id;
use crate::layer::Layer;
use crate::{
    Buffer, Completion, Engine, Error, ErrorKind, Limits, Op, Queue, Request, Result, SnapshotStat,
    Volume, VolumeStat,
};

/// Requests of the flusher at a time.
const FLUSHER_DEPTH: u32 = 64;

/// Most blocks that one write to storage has.
const RUN_BLOCKS: usize = 128;

/// An engine with a volatile cache.
pub struct VolatileEngine {
    inner: Arc<dyn Engine>,
    /// The cache's own: another one for each process.
    boot_id: [u8; 16],
}

impl VolatileEngine {
    /// Puts a cache in front of `inner`.
    pub fn new(inner: Arc<dyn Engine>) -> Result<Self> {
        Ok(Self {
            inner,
            boot_id: random_id()?,
        })
    }
}

impl Layer for VolatileEngine {
    fn inner(&self) -> &dyn Engine {
        &*self.inner
    }

    fn note(&self) -> &'static str {
        "what is not flushed is lost with the process"
    }

    /// Another one when this cache is lost, or what is behind it.
    fn own_boot_id(&self) -> [u8; 16] {
        let (own, inner) = (self.boot_id, self.inner.boot_id());
        std::array::from_fn(|i| own[i] ^ inner[i])
    }

    fn own_limits(&self, inner: Limits) -> Limits {
        limits(inner)
    }

    fn wrap(&self, volume: Arc<dyn Volume>) -> Result<Arc<dyn Volume>> {
        Ok(Arc::new(VolatileVolume::new(volume, &self.inner)?))
    }
}

fn limits(inner: Limits) -> Limits {
    Limits {
        volatile_cache: true,
        fua: true,
        ..inner
    }
}

struct Block {
    data: Box<[u8]>,
    dirty: bool,
}

type Blocks = HashMap<u64, Block>;

fn lock(blocks: &Mutex<Blocks>) -> MutexGuard<'_, Blocks> {
    blocks.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Work of the flushing thread: make a range durable, or everything.
struct Job {
    range: Option<(u64, u64)>,
    token: u64,
    buffer: Option<Buffer>,
    answers: Sender<Completion>,
    wake: Arc<OwnedFd>,
}

struct VolatileVolume {
    inner: Arc<dyn Volume>,
    engine: Arc<dyn Engine>,
    blocks: Arc<Mutex<Blocks>>,
    /// `None` only while it is being dropped.
    jobs: Option<Sender<Job>>,
    flusher: Option<JoinHandle<()>>,
}

impl VolatileVolume {
    fn new(inner: Arc<dyn Volume>, engine: &Arc<dyn Engine>) -> Result<Self> {
        let blocks = Arc::new(Mutex::new(Blocks::new()));
        let (jobs, received) = mpsc::channel();
        let flusher = Flusher {
            queue: Arc::clone(&inner).queue(FLUSHER_DEPTH)?,
            volume: Arc::clone(&inner),
            blocks: Arc::clone(&blocks),
            block_bytes: u64::from(inner.stat().logical_block_size),
        };
        let flusher = std::thread::Builder::new()
            .name("flusher".to_owned())
            .spawn(move || flusher.run(&received))
            .map_err(|e| Error::os(e, "cannot start a thread"))?;
        Ok(Self {
            inner,
            engine: Arc::clone(engine),
            blocks,
            jobs: Some(jobs),
            flusher: Some(flusher),
        })
    }

    /// Puts all that is in the cache on storage, and waits for it.
    fn flush(&self) -> Result<()> {
        let gone = || Error::new(ErrorKind::Io, "the flusher is gone");
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wake = eventfd(0, flags).map_err(|e| Error::os(e, "cannot make an eventfd"))?;
        let (answers, answered) = mpsc::channel();
        let job = Job {
            range: None,
            token: 0,
            buffer: None,
            answers,
            wake: Arc::new(wake),
        };
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        jobs.send(job).map_err(|_| gone())?;
        answered.recv().map_err(|_| gone())?.result
    }
}

impl Drop for VolatileVolume {
    fn drop(&mut self) {
        // The thread has a queue: the volume is closed when that is gone too.
        self.jobs = None;
        if let Some(flusher) = self.flusher.take() {
            if flusher.join().is_err() {
                tracing::error!("the flusher had panicked");
            }
        }
    }
}

impl Volume for VolatileVolume {
    fn stat(&self) -> VolumeStat {
        self.inner.stat()
    }

    fn limits(&self) -> Limits {
        limits(self.inner.limits())
    }

    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn is_lost(&self) -> bool {
        self.inner.is_lost()
    }

    fn resize(&self, size_bytes: u64) -> Result<()> {
        self.inner.resize(size_bytes)
    }

    /// The cache's blocks belong to it, so they are put on storage first.
    fn create_snapshot(&self, name: &SnapshotName) -> Result<SnapshotStat> {
        self.flush()?;
        self.inner.create_snapshot(name)
    }

    fn flatten(&self) -> Result<()> {
        self.inner.flatten()
    }

    fn queue(self: Arc<Self>, depth: u32) -> Result<Box<dyn Queue>> {
        let context = |e| Error::os(e, "cannot make a queue with a cache");
        let inner = Arc::clone(&self.inner).queue(depth)?;
        let events = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(context)?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let wake = Arc::new(eventfd(0, flags).map_err(context)?);
        let mark = epoll::EventData::new_u64(0);
        epoll::add(&events, &*wake, mark, epoll::EventFlags::IN).map_err(context)?;
        if let Some(fd) = inner.event_fd() {
            epoll::add(&events, fd, mark, epoll::EventFlags::IN).map_err(context)?;
        }
        let (answers, answered) = mpsc::channel();
        Ok(Box::new(VolatileQueue {
            boot_id: self.engine.boot_id(),
            volume: self,
            inner,
            reads: HashMap::new(),
            done: VecDeque::new(),
            flushing: 0,
            answers,
            answered,
            wake,
            events,
        }))
    }
}

struct VolatileQueue {
    volume: Arc<VolatileVolume>,
    /// That of the engine behind, when the queue was made.
    boot_id: [u8; 16],
    inner: Box<dyn Queue>,
    /// Where the reads in `inner` began.
    reads: HashMap<u64, u64>,
    done: VecDeque<Completion>,
    /// Jobs of the flusher.
    flushing: usize,
    answers: Sender<Completion>,
    answered: Receiver<Completion>,
    wake: Arc<OwnedFd>,
    /// Readable when `inner` or `wake` is.
    events: OwnedFd,
}

fn wake_up(wake: &OwnedFd) {
    if let Err(error) = rustix::io::write(wake, &1u64.to_ne_bytes()) {
        tracing::error!(%error, "cannot wake a queue");
    }
}

impl VolatileQueue {
    fn end(&mut self, token: u64, result: Result<()>, buffer: Option<Buffer>) {
        self.done.push_back(Completion {
            token,
            result,
            buffer,
        });
        wake_up(&self.wake);
    }

    fn make_durable(&mut self, token: u64, range: Option<(u64, u64)>, buffer: Option<Buffer>) {
        let job = Job {
            range,
            token,
            buffer,
            answers: self.answers.clone(),
            wake: Arc::clone(&self.wake),
        };
        match self.volume.jobs.as_ref().map(|jobs| jobs.send(job)) {
            Some(Ok(())) => self.flushing += 1,
            _ => self.end(
                token,
                Err(Error::new(ErrorKind::Io, "the flusher is gone")),
                None,
            ),
        }
    }

    /// Puts blocks into the cache: data, or zeroes.
    fn store(&self, offset: u64, len: u64, data: Option<&[u8]>) {
        let block_bytes = u64::from(self.volume.inner.stat().logical_block_size);
        let mut blocks = lock(&self.volume.blocks);
        for at in (0..len).step_by(block_bytes as usize) {
            let data = data
                .and_then(|data| data.get(at as usize..(at + block_bytes) as usize))
                .map_or_else(|| vec![0; block_bytes as usize], <[u8]>::to_vec);
            let block = Block {
                data: data.into_boxed_slice(),
                dirty: true,
            };
            blocks.insert((offset + at) / block_bytes, block);
        }
    }

    /// Lays the cached blocks over what storage has.
    fn lay_over(&self, offset: u64, buffer: &mut Buffer) {
        let block_bytes = self.volume.inner.stat().logical_block_size as usize;
        let blocks = lock(&self.volume.blocks);
        let first = offset / block_bytes as u64;
        for (number, place) in (first..).zip(buffer.chunks_exact_mut(block_bytes)) {
            if let Some(block) = blocks.get(&number) {
                place.copy_from_slice(&block.data);
            }
        }
    }
}

impl Queue for VolatileQueue {
    fn submit(&mut self, request: Request) {
        let token = request.token;
        let stat = self.volume.inner.stat();
        let checked = request.op.check(
            stat.size_bytes,
            stat.logical_block_size,
            &self.volume.limits(),
        );
        if let Err(error) = checked {
            return self.end(token, Err(error), request.op.into_buffer());
        }
        let range = request.op.range();
        match request.op {
            Op::Read { offset, .. } => {
                self.reads.insert(token, offset);
                self.inner.submit(request);
            }
            Op::Write {
                offset,
                buffer,
                fua,
                ..
            } => {
                self.store(offset, buffer.len() as u64, Some(&buffer));
                if fua {
                    self.make_durable(token, range, Some(buffer));
                } else {
                    self.end(token, Ok(()), Some(buffer));
                }
            }
            Op::Discard { offset, len } => {
                self.store(offset, u64::from(len), None);
                self.end(token, Ok(()), None);
            }
            Op::WriteZeroes {
                offset, len, fua, ..
            } => {
                self.store(offset, u64::from(len), None);
                if fua {
                    self.make_durable(token, range, None);
                } else {
                    self.end(token, Ok(()), None);
                }
            }
            Op::Flush => self.make_durable(token, None, None),
        }
    }

    fn kick(&mut self) {
        self.inner.kick();
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        // Resets the event; it fails when there was none.
        let _ = rustix::io::read(&*self.wake, &mut [0; 8]);
        while let Ok(mut answer) = self.answered.try_recv() {
            self.flushing -= 1;
            // The flusher's own queue may have been made since.
            if answer.result.is_ok() && self.volume.engine.boot_id() != self.boot_id {
                let text = "what was written before may be lost";
                answer.result = Err(Error::new(ErrorKind::Io, text));
            }
            completions.push(answer);
        }
        completions.extend(self.done.drain(..));
        let mut ended = Vec::new();
        self.inner.reap(&mut ended);
        for mut completion in ended {
            let offset = self.reads.remove(&completion.token);
            if let (Some(offset), Some(buffer)) = (offset, completion.buffer.as_mut()) {
                self.lay_over(offset, buffer);
            }
            completions.push(completion);
        }
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.events.as_fd())
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight() + self.done.len() + self.flushing
    }
}

/// The only one that writes to storage.
struct Flusher {
    queue: Box<dyn Queue>,
    volume: Arc<dyn Volume>,
    blocks: Arc<Mutex<Blocks>>,
    block_bytes: u64,
}

impl Flusher {
    fn run(mut self, jobs: &Receiver<Job>) {
        while let Ok(job) = jobs.recv() {
            let result = self.flush(job.range);
            if result.is_err() {
                // After a loss the old one never succeeds again.
                match Arc::clone(&self.volume).queue(FLUSHER_DEPTH) {
                    Ok(queue) => self.queue = queue,
                    Err(error) => tracing::error!(%error, "the flusher cannot have another queue"),
                }
            }
            let completion = Completion {
                token: job.token,
                result,
                buffer: job.buffer,
            };
            // The queue may be gone with its connection; then nobody waits.
            if job.answers.send(completion).is_ok() {
                wake_up(&job.wake);
            }
        }
    }

    /// Puts the dirty blocks of a range on storage.
    fn flush(&mut self, range: Option<(u64, u64)>) -> Result<()> {
        let mut dirty = Vec::new();
        {
            let mut blocks = lock(&self.blocks);
            for (number, block) in blocks.iter_mut().filter(|(_, block)| block.dirty) {
                let at = number * self.block_bytes;
                if range.is_none_or(|(first, len)| at >= first && at < first + len) {
                    block.dirty = false;
                    dirty.push((*number, block.data.clone()));
                }
            }
        }
        dirty.sort_unstable_by_key(|(number, _)| *number);
        let mut runs = 0;
        for run in dirty.chunk_by(|(a, _), (b, _)| a + 1 == *b) {
            for run in run.chunks(RUN_BLOCKS) {
                let data: Vec<u8> = run
                    .iter()
                    .flat_map(|(_, data)| data.iter().copied())
                    .collect();
                let mut buffer = Buffer::zeroed(data.len())?;
                buffer.copy_from_slice(&data);
                let offset = run
                    .first()
                    .map_or(0, |(number, _)| number * self.block_bytes);
                let op = Op::Write {
                    offset,
                    buffer,
                    fua: false,
                    atomic: false,
                };
                self.queue.submit(Request { token: 0, op });
                runs += 1;
            }
        }
        self.wait(runs)?;
        self.queue.submit(Request {
            token: 0,
            op: Op::Flush,
        });
        self.wait(1)
    }

    /// Waits for that many completions.
    fn wait(&mut self, count: usize) -> Result<()> {
        let mut done = Vec::new();
        self.queue.kick();
        self.queue.reap(&mut done);
        while done.len() < count {
            if let Some(fd) = self.queue.event_fd() {
                let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
                let soon = Timespec {
                    tv_sec: 0,
                    tv_nsec: 20_000_000,
                };
                if let Err(error) = poll(&mut fds, Some(&soon)) {
                    tracing::debug!(%error, "poll");
                }
            }
            self.queue.kick();
            self.queue.reap(&mut done);
        }
        done.into_iter().try_for_each(|c| c.result)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use neonsan_api::VolumeName;

    use super::*;
    use crate::mem::{MemEngine, MemOptions};
    use crate::VolumeSpec;

    /// One request, to its end.
    fn one(queue: &mut dyn Queue, op: Op) -> Completion {
        queue.submit(Request { token: 7, op });
        queue.kick();
        let mut done = Vec::new();
        // Requests to memory end during `kick`, without an event.
        queue.reap(&mut done);
        while done.is_empty() {
            let mut fds = [PollFd::from_borrowed_fd(
                queue.event_fd().unwrap(),
                PollFlags::IN,
            )];
            poll(&mut fds, None).unwrap();
            queue.reap(&mut done);
        }
        assert_eq!(queue.in_flight(), 0);
        done.pop().unwrap()
    }

    fn write(queue: &mut dyn Queue, offset: u64, byte: u8, fua: bool) {
        let mut buffer = Buffer::zeroed(1024).unwrap();
        buffer.fill(byte);
        let op = Op::Write {
            offset,
            buffer,
            fua,
            atomic: false,
        };
        assert!(one(queue, op).result.is_ok());
    }

    fn read(queue: &mut dyn Queue) -> Vec<u8> {
        let buffer = Buffer::zeroed(8192).unwrap();
        let done = one(queue, Op::Read { offset: 0, buffer });
        let buffer = done.buffer.unwrap();
        buffer.iter().copied().step_by(1024).collect()
    }

    #[test]
    fn what_is_not_flushed_goes_with_the_cache() {
        let mem = MemOptions {
            capacity_bytes: 1 << 20,
            volatile_cache: false,
        };
        let mem: Arc<dyn Engine> = Arc::new(MemEngine::new(mem).unwrap());
        let name: VolumeName = "p/v".parse().unwrap();
        let spec = VolumeSpec {
            size_bytes: 8192,
            logical_block_size: 512,
            physical_block_size: None,
        };
        mem.create(&name, &spec).unwrap();
        let engine = VolatileEngine::new(Arc::clone(&mem)).unwrap();
        let volume = engine.open(&name).unwrap();
        assert!(volume.limits().volatile_cache);
        let mut queue = Arc::clone(&volume).queue(4).unwrap();
        write(&mut *queue, 0, 1, false);
        assert!(one(&mut *queue, Op::Flush).result.is_ok());
        write(&mut *queue, 0, 2, false);
        write(&mut *queue, 1024, 3, true);
        write(&mut *queue, 2048, 4, false);
        let discard = Op::Discard {
            offset: 1024,
            len: 512,
        };
        assert!(one(&mut *queue, discard).result.is_ok());
        assert_eq!(read(&mut *queue), [2, 0, 4, 0, 0, 0, 0, 0]);
        let other = Arc::clone(&volume).queue(4).unwrap();
        drop(other);
        drop(queue);
        drop(volume);
        let again = VolatileEngine::new(mem).unwrap();
        assert_ne!(again.boot_id(), engine.boot_id());
        let mut queue = again.open(&name).unwrap().queue(4).unwrap();
        assert_eq!(read(&mut *queue), [1, 3, 0, 0, 0, 0, 0, 0]);
    }
}
