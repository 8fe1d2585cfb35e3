// SPDX-License-Identifier: GPL-2.0 OR MIT
//! A queue of the file engine: one io_uring and the requests in it.
//!
//! What the steps of a request are is said in [`super::work`].

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::Ordering;
use std::sync::Arc;

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{opcode, squeue, IoUring};

use super::durability::tells_of_loss;
use super::freeze::Writers;
use super::locks::{Mailbox, Range};
use super::volume::{FileVolume, ZERO_PIECE_BYTES};
use super::work::{Step, Work};
use crate::{BufferPool, Completion, Error, ErrorKind, Limits, Op, Queue, Request, Result};

/// Entries of the largest ring; what is beyond waits in the queue.
const MAX_DEPTH: u32 = 1024;

/// Memory kept for blocks that are read, changed and written back.
const BLOCK_POOL_BYTES: usize = 64 * 1024;

/// The mark of the poll of the mailbox's eventfd.
const MAILBOX_MARK: u64 = u64::MAX;

/// `RWF_ATOMIC` of `linux/fs.h` (Linux 6.11), which the libc crate lacks.
const RWF_ATOMIC: i32 = 0x40;

/// How often a step that the system puts off is sent again before its request fails.
const MAX_RETRIES: u32 = 64;

/// What to do after a step.
enum Next {
    Go(Step),
    Done(Result<()>),
}

/// One io_uring and the requests in it.
///
/// # Invariants
///
/// Memory of an entry that the ring has (buffers of `slots`, the zeroes of
/// `volume`) is neither moved, freed nor touched until its completion was
/// seen: buffers stay in their slot, and dropping the queue waits for all
/// entries first.
pub(super) struct FileQueue {
    ring: IoUring,
    volume: Arc<FileVolume>,
    /// The count of losses that it belongs to; see [`super::durability`].
    joined: u64,
    limits: Limits,
    slots: Vec<Option<Work>>,
    free: Vec<u32>,
    /// Requests for which there is no free slot.
    backlog: VecDeque<Request>,
    done: Vec<Completion>,
    /// Entries which the ring has, without that of the mailbox.
    in_ring: usize,
    /// Entries built and not yet in the ring, because it was full.
    unsent: VecDeque<squeue::Entry>,
    blocks: BufferPool,
    mail: Mail,
    granted: Vec<u32>,
    /// Its changing requests, for who freezes the volume.
    writers: Arc<Writers>,
    /// Changing requests that wait until the volume is not frozen any more.
    held: VecDeque<Request>,
    /// Requests in the step [`Step::Settle`].
    settling: usize,
    /// It is being dropped: nobody gets an answer any more.
    closing: bool,
}

/// Where a queue is told that it may go on: with requests that waited for
/// locks, for the results of others, or for the end of a freeze.
struct Mail {
    mailbox: Arc<Mailbox>,
    /// The ring has the poll of its eventfd.
    armed: bool,
}

impl FileQueue {
    pub(super) fn new(volume: Arc<FileVolume>, depth: u32) -> Result<Self> {
        let depth = depth.clamp(1, MAX_DEPTH);
        // One more for the mailbox.
        let ring = IoUring::new((depth + 1).next_power_of_two())
            .map_err(|e| Error::os(e, "cannot make an io_uring"))?;
        let mail = Mail {
            mailbox: Mailbox::new()?,
            armed: false,
        };
        let writers = volume.freeze.join(&mail.mailbox);
        volume.queues.fetch_add(1, Ordering::AcqRel);
        Ok(Self {
            ring,
            limits: crate::Volume::limits(&*volume),
            joined: volume.join(),
            volume,
            slots: (0..depth).map(|_| None).collect(),
            free: (0..depth).rev().collect(),
            backlog: VecDeque::new(),
            done: Vec::new(),
            in_ring: 0,
            unsent: VecDeque::new(),
            blocks: BufferPool::new(BLOCK_POOL_BYTES),
            mail,
            granted: Vec::new(),
            writers,
            held: VecDeque::new(),
            settling: 0,
            closing: false,
        })
    }

    /// Puts a request into a slot and begins it.
    fn begin(&mut self, slot: u32, request: Request) {
        let changes = !matches!(request.op, Op::Read { .. } | Op::Flush);
        let checked = request
            .op
            .check(
                self.volume.size_bytes(),
                self.volume.logical_block_size,
                &self.limits,
            )
            .and_then(|()| match changes {
                true => self.volume.check_changeable(),
                false => Ok(()),
            });
        if checked.is_ok() && changes && !self.volume.freeze.enter(&self.writers) {
            self.free.push(slot);
            self.held.push_back(request);
            return;
        }
        let Request { token, op } = request;
        if let Err(error) = checked {
            self.free.push(slot);
            self.done.push(Completion {
                token,
                result: Err(error),
                buffer: op.into_buffer(),
            });
            return;
        }
        let (at, len) = op.range().unwrap_or((0, 0));
        let mut work = Work {
            token,
            op,
            step: Step::WaitLock,
            at,
            end: at + len,
            lock: None,
            entered: changes,
            block: None,
            asking: None,
            retries: 0,
        };
        if let Some(locks) = &self.volume.locks {
            if changes {
                let block = u64::from(self.volume.storage.block_bytes);
                let range = Range {
                    start: work.at - work.at % block,
                    end: work.end.next_multiple_of(block),
                };
                work.lock = Some(range);
                if !locks.acquire(range, slot, &self.mail.mailbox) {
                    self.slots[slot as usize] = Some(work);
                    return;
                }
            }
        }
        self.proceed(slot, work);
    }

    /// Takes the first step of a request that has its lock.
    fn proceed(&mut self, slot: u32, mut work: Work) {
        let next = match work.op {
            Op::Read { .. } | Op::Write { .. } => self.next_piece(&mut work),
            Op::Flush => {
                // What is answered from here on is not covered by it.
                self.volume.unsynced.store(false, Ordering::Release);
                Next::Go(Step::Sync)
            }
            Op::Discard { .. } => Next::Go(Step::Punch),
            Op::WriteZeroes { no_unmap, .. } => {
                if !no_unmap && self.volume.storage.punch_hole {
                    Next::Go(Step::Punch)
                } else if self.volume.storage.zero_range {
                    Next::Go(Step::ZeroRange)
                } else {
                    self.next_piece(&mut work)
                }
            }
        };
        self.take(slot, work, next);
    }

    /// Chooses how the next bytes of a read or write are moved.
    fn next_piece(&mut self, work: &mut Work) -> Next {
        if work.at >= work.end {
            // The pieces were written with `RWF_DSYNC` if FUA was asked. Through
            // the page cache another request may have been told of their error.
            if work.is_fua() && !self.volume.storage.direct {
                return Next::Go(Step::Settle);
            }
            return Next::Done(Ok(()));
        }
        let storage = &self.volume.storage;
        let block = u64::from(storage.block_bytes);
        let left = work.end - work.at;
        let done = match &work.op {
            Op::Read { offset, .. } | Op::Write { offset, .. } => work.at - offset,
            // Zeroes always come from the start of their buffer.
            Op::WriteZeroes { .. } | Op::Discard { .. } | Op::Flush => 0,
        };
        if work.at % block == 0 && left >= block && done % u64::from(storage.memory_align) == 0 {
            let mut len = left - left % block;
            if matches!(work.op, Op::WriteZeroes { .. }) {
                len = len.min(ZERO_PIECE_BYTES as u64);
            }
            // The limits of all operations that get here fit.
            return Next::Go(Step::Direct(len as u32));
        }
        if work.block.is_none() {
            match self.blocks.take(storage.block_bytes as usize) {
                Ok(buffer) => work.block = Some(buffer),
                Err(error) => return Next::Done(Err(error)),
            }
        }
        Next::Go(Step::BlockRead)
    }

    /// Sends the step to the ring, or completes the request.
    fn take(&mut self, slot: u32, mut work: Work, next: Next) {
        match next {
            Next::Go(Step::Settle) => {
                work.step = Step::Settle;
                // Whoever drops the queue may have others, for which it would
                // wait here.
                let volume = &self.volume;
                let settling = &volume.durability.settling;
                if self.closing || settling.settle(&volume.superblock, slot, &self.mail.mailbox) {
                    return self.settled(slot, work);
                }
                self.settling += 1;
                self.slots[slot as usize] = Some(work);
            }
            Next::Go(step) => {
                work.step = step;
                if step == Step::Sync || work.is_dsync() {
                    let settling = &self.volume.durability.settling;
                    work.asking = Some(settling.ask(&self.volume.superblock));
                }
                let entry = self.entry(&mut work).user_data(u64::from(slot));
                self.slots[slot as usize] = Some(work);
                self.in_ring += 1;
                self.unsent.push_back(entry);
            }
            Next::Done(result) => {
                if let (Some(range), Some(locks)) = (work.lock, &self.volume.locks) {
                    locks.release(range);
                }
                if work.entered {
                    self.volume.freeze.exit(&self.writers);
                }
                // Before it is answered: a node that stops has to sync it.
                let is_unsynced = match work.op {
                    Op::Read { .. } => false,
                    Op::Flush => result.is_err(),
                    _ => result.is_ok() && !work.is_fua(),
                };
                if is_unsynced && !self.volume.unsynced.load(Ordering::Relaxed) {
                    self.volume.unsynced.store(true, Ordering::Release);
                }
                if let Some(block) = work.block {
                    self.blocks.give(block);
                }
                self.free.push(slot);
                self.done.push(Completion {
                    token: work.token,
                    result,
                    buffer: work.op.into_buffer(),
                });
            }
        }
    }

    /// Completes a request of which nobody can have heard that it failed.
    fn settled(&mut self, slot: u32, work: Work) {
        let mut result = Ok(());
        self.refuse_durability(&work.op, &mut result);
        self.take(slot, work, Next::Done(result));
    }

    /// The ring's entry for the step of `work`, whose buffers it points to.
    fn entry(&self, work: &mut Work) -> squeue::Entry {
        let fd = Fd(self.volume.fd());
        let block_bytes = u64::from(self.volume.storage.block_bytes);
        let block_start = work.at - work.at % block_bytes;
        let flags = match work.op {
            Op::Write { fua, atomic, .. } => {
                (if fua { libc::RWF_DSYNC } else { 0 }) | (if atomic { RWF_ATOMIC } else { 0 })
            }
            Op::WriteZeroes { fua: true, .. } => libc::RWF_DSYNC,
            _ => 0,
        };
        let len = work.end - work.at;
        match work.step {
            Step::Direct(len) => match &work.op {
                Op::Read { offset, buffer } => {
                    let memory = buffer.address().wrapping_add((work.at - offset) as usize);
                    opcode::Read::new(fd, memory, len).offset(work.at).build()
                }
                Op::Write { offset, buffer, .. } => {
                    let memory = buffer.address().wrapping_add((work.at - offset) as usize);
                    opcode::Write::new(fd, memory, len)
                        .offset(work.at)
                        .rw_flags(flags)
                        .build()
                }
                Op::WriteZeroes { .. } | Op::Discard { .. } | Op::Flush => {
                    opcode::Write::new(fd, self.volume.zeroes.address(), len)
                        .offset(work.at)
                        .rw_flags(flags)
                        .build()
                }
            },
            Step::BlockRead => opcode::Read::new(fd, work.block_address(), block_bytes as u32)
                .offset(block_start)
                .build(),
            Step::BlockWrite(_) => opcode::Write::new(fd, work.block_address(), block_bytes as u32)
                .offset(block_start)
                .rw_flags(flags)
                .build(),
            Step::Punch => opcode::Fallocate::new(fd, len)
                .offset(work.at)
                .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
                .build(),
            Step::ZeroRange => opcode::Fallocate::new(fd, len)
                .offset(work.at)
                .mode(libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE)
                .build(),
            Step::Sync | Step::Settle | Step::WaitLock => {
                opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build()
            }
        }
    }

    /// Decides what follows the end of a step; `result` is the ring's.
    fn after(&mut self, work: &mut Work, result: i32) -> Next {
        let postponed = matches!(-result, libc::EINTR | libc::EAGAIN);
        let again = postponed && work.retries < MAX_RETRIES;
        let durability = &self.volume.durability;
        if result < 0 && !postponed {
            let loses = match work.step {
                Step::Sync => true,
                Step::Direct(_) | Step::BlockWrite(_) | Step::Punch | Step::ZeroRange => {
                    work.entered && tells_of_loss(-result)
                }
                Step::BlockRead | Step::Settle | Step::WaitLock => false,
            };
            if loses {
                durability.lose(&self.error(work, result).to_string());
            }
        }
        if let Some(asking) = work.asking.take() {
            durability.settling.told(asking);
        }
        // An interrupted or postponed entry is simply sent again.
        if again {
            work.retries += 1;
            return Next::Go(work.step);
        }
        work.retries = 0;
        match work.step {
            Step::Direct(_) | Step::BlockRead | Step::BlockWrite(_) if result < 0 => {
                self.failed(work, result)
            }
            Step::Direct(len) => {
                // The ring moved `result` bytes: at most what was asked.
                let moved = u64::from(result.unsigned_abs().min(len));
                if moved == 0 {
                    return Next::Done(Err(self.cut_short(work)));
                }
                work.at += moved;
                self.next_piece(work)
            }
            Step::BlockRead => self.block_was_read(work, result),
            Step::BlockWrite(new) => {
                if i64::from(result) != i64::from(self.volume.storage.block_bytes) {
                    return Next::Done(Err(self.cut_short(work)));
                }
                work.at += u64::from(new);
                self.next_piece(work)
            }
            Step::Punch | Step::ZeroRange if -result == libc::EOPNOTSUPP => match work.op {
                Op::WriteZeroes { .. } => {
                    if work.step == Step::Punch && self.volume.storage.zero_range {
                        Next::Go(Step::ZeroRange)
                    } else {
                        self.next_piece(work)
                    }
                }
                // A discard is leave, not duty, but zeroes were promised.
                _ => self.failed(work, result),
            },
            Step::Punch | Step::ZeroRange if result < 0 => self.failed(work, result),
            Step::Punch | Step::ZeroRange => match work.op {
                Op::WriteZeroes { fua: true, .. } => Next::Go(Step::Sync),
                _ => Next::Done(Ok(())),
            },
            Step::Sync if result < 0 => self.failed(work, result),
            Step::Sync => Next::Go(Step::Settle),
            // Not in the ring; see `granted`.
            Step::WaitLock | Step::Settle => Next::Done(Err(Error::new(
                ErrorKind::Io,
                "a request that waits was completed",
            ))),
        }
    }

    /// Uses the block that was read: for the read, or changed for the write.
    fn block_was_read(&mut self, work: &mut Work, result: i32) -> Next {
        let block_bytes = u64::from(self.volume.storage.block_bytes);
        if i64::from(result) != i64::from(self.volume.storage.block_bytes) {
            return Next::Done(Err(self.cut_short(work)));
        }
        let within = (work.at % block_bytes) as usize;
        let len = (block_bytes - work.at % block_bytes).min(work.end - work.at) as usize;
        let Some(block) = &mut work.block else {
            return Next::Done(Err(Error::new(ErrorKind::Io, "a block was lost")));
        };
        let part = &mut block[within..within + len];
        match &mut work.op {
            Op::Read { offset, buffer } => {
                let from = (work.at - *offset) as usize;
                buffer[from..from + len].copy_from_slice(part);
                work.at += len as u64;
                return self.next_piece(work);
            }
            Op::Write { offset, buffer, .. } => {
                let from = (work.at - *offset) as usize;
                part.copy_from_slice(&buffer[from..from + len]);
            }
            Op::WriteZeroes { .. } | Op::Discard { .. } | Op::Flush => part.fill(0),
        }
        Next::Go(Step::BlockWrite(len as u32))
    }

    fn cut_short(&self, work: &Work) -> Error {
        Error::new(
            ErrorKind::Io,
            format!(
                "the data of {} ends at {}: was the file truncated?",
                self.volume.name, work.at
            ),
        )
    }

    fn failed(&self, work: &Work, result: i32) -> Next {
        Next::Done(Err(self.error(work, result)))
    }

    fn error(&self, work: &Work, result: i32) -> Error {
        let what = match work.op {
            Op::Read { .. } => "reading",
            Op::Write { .. } => "writing",
            Op::Flush => "flushing",
            Op::Discard { .. } => "discarding",
            Op::WriteZeroes { .. } => "zeroing",
        };
        Error::os(
            std::io::Error::from_raw_os_error(result.wrapping_neg()),
            format!("{what} {} at {}", self.volume.name, work.at),
        )
    }

    /// Whether a durable answer must be refused; see [`super::durability`].
    fn refuse_durability(&self, op: &Op, result: &mut Result<()>) {
        let durable = match op {
            Op::Flush => true,
            Op::Write { fua, .. } | Op::WriteZeroes { fua, .. } => *fua,
            Op::Read { .. } | Op::Discard { .. } => false,
        };
        if durable && result.is_ok() {
            let checked = self.volume.durability.check(self.joined, &self.volume.name);
            *result = checked;
        }
    }

    /// Moves entries into the ring as far as it has room.
    fn fill_ring(&mut self) {
        let may_wait = self.volume.locks.is_some() || !self.held.is_empty() || self.settling > 0;
        if may_wait && !self.mail.armed {
            self.mail.armed = true;
            let fd = Fd(self.mail.mailbox.signal().as_raw_fd());
            let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32)
                .build()
                .user_data(MAILBOX_MARK);
            self.unsent.push_front(entry);
        }
        let mut submission = self.ring.submission();
        while let Some(entry) = self.unsent.pop_front() {
            // SAFETY: The entry's memory lives in a slot or the volume, and by
            // the invariants stays there untouched until its completion; its
            // file is kept open by `self.volume` or `self.mail`.
            if unsafe { submission.push(&entry) }.is_err() {
                self.unsent.push_front(entry);
                break;
            }
        }
    }

    /// Handles the completions that the ring has.
    fn collect(&mut self) {
        loop {
            let Some(entry) = self.ring.completion().next() else {
                break;
            };
            if entry.user_data() == MAILBOX_MARK {
                self.mail.armed = false;
                self.mail.mailbox.take(&mut self.granted);
                while let Some(slot) = self.granted.pop() {
                    let Some(work) = self.slots[slot as usize].take() else {
                        continue;
                    };
                    if work.step == Step::Settle {
                        self.settling -= 1;
                        self.settled(slot, work);
                    } else {
                        self.proceed(slot, work);
                    }
                }
                continue;
            }
            // The mark is the slot's number, as given in `take`.
            let slot = entry.user_data() as u32;
            let Some(mut work) = self.slots.get_mut(slot as usize).and_then(Option::take) else {
                tracing::error!(volume = %self.volume.name, slot, "a completion without a request");
                continue;
            };
            self.in_ring -= 1;
            let mut next = self.after(&mut work, entry.result());
            if let Next::Done(result) = &mut next {
                self.refuse_durability(&work.op, result);
            }
            self.take(slot, work, next);
        }
        // What was held back came first.
        if !self.held.is_empty() && !self.volume.freeze.is_frozen() {
            self.held.append(&mut self.backlog);
            std::mem::swap(&mut self.held, &mut self.backlog);
        }
        while !self.backlog.is_empty() {
            let Some(slot) = self.free.pop() else { break };
            if let Some(request) = self.backlog.pop_front() {
                self.begin(slot, request);
            }
        }
    }
}

impl Queue for FileQueue {
    fn submit(&mut self, request: Request) {
        match self.free.pop() {
            Some(slot) => self.begin(slot, request),
            None => self.backlog.push_back(request),
        }
    }

    fn kick(&mut self) {
        loop {
            self.fill_ring();
            if self.ring.submission().is_empty() {
                return;
            }
            match self.ring.submit() {
                Ok(taken) if taken > 0 => {}
                // Too much is on its way, or there is too little memory: it
                // goes on with the next `kick`.
                Ok(_) => return,
                Err(error) => {
                    let later = [libc::EBUSY, libc::EAGAIN, libc::EINTR];
                    if !error.raw_os_error().is_some_and(|e| later.contains(&e)) {
                        tracing::error!(volume = %self.volume.name, %error, "io_uring does not take requests");
                    }
                    return;
                }
            }
        }
    }

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        self.collect();
        // What the completions made possible: next steps, and the backlog.
        self.kick();
        completions.append(&mut self.done);
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: The ring keeps its file open as long as it lives, and the
        // result borrows `self`, which owns it.
        Some(unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) })
    }

    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len() + self.backlog.len() + self.held.len() + self.done.len()
    }
}

impl Drop for FileQueue {
    fn drop(&mut self) {
        self.closing = true;
        self.backlog.clear();
        self.held.clear();
        self.volume.durability.settling.leave(&self.mail.mailbox);
        // What waits for a lock may wait for a queue that the same thread works, and would
        // wait for ever here. Those that have been handed theirs give it back.
        if let Some(locks) = &self.volume.locks {
            locks.leave(&self.mail.mailbox);
        }
        self.mail.mailbox.take(&mut self.granted);
        // As many as there are slots, which a `u32` counts.
        for slot in 0..self.slots.len() as u32 {
            let place = &mut self.slots[slot as usize];
            if let Some(work) = place.take_if(|w| w.step == Step::Settle) {
                self.settling -= 1;
                self.settled(slot, work);
            } else if let Some(mut work) = place.take_if(|w| w.step == Step::WaitLock) {
                if !self.granted.contains(&slot) {
                    work.lock = None;
                }
                let closed = Error::new(ErrorKind::Io, "the queue is closed");
                self.take(slot, work, Next::Done(Err(closed)));
            }
        }
        // The invariants: the kernel must have let go of the memory.
        while self.free.len() < self.slots.len() {
            self.kick();
            if let Err(error) = self.ring.submit_and_wait(1) {
                if error.raw_os_error() != Some(libc::EINTR) {
                    // Leaking is safe, freeing is not.
                    tracing::error!(volume = %self.volume.name, %error, "cannot wait for requests");
                    for mut work in self.slots.drain(..).flatten() {
                        if let Some(asking) = work.asking.take() {
                            self.volume.durability.lose("a request has no end");
                            self.volume.durability.settling.told(asking);
                        }
                        std::mem::forget(work);
                    }
                    std::mem::forget(Arc::clone(&self.volume));
                    break;
                }
            }
            self.collect();
        }
        self.volume.freeze.leave(&self.writers);
        self.volume.queues.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::super::meta::Meta;
    use super::super::{init, FileEngine, FileOptions, InitOptions};
    use super::*;
    use crate::{Buffer, Engine as _, VolumeSpec};

    /// Not on tmpfs, which has direct I/O only on some kernels: beside the program.
    fn directory() -> tempfile::TempDir {
        let program = std::env::current_exe().unwrap();
        tempfile::tempdir_in(program.parent().unwrap()).unwrap()
    }

    /// A volume of 512-byte blocks on storage of 4096-byte ones.
    fn volume(root: &std::path::Path) -> Arc<FileVolume> {
        init(root, &InitOptions::default()).unwrap();
        let options = FileOptions {
            root: root.to_owned(),
            buffered: false,
            min_block_bytes: 4096,
            lock_wait: Duration::ZERO,
            identity: None,
            identities: Arc::default(),
        };
        let engine = FileEngine::open(options).unwrap();
        let name = "p/v".parse().unwrap();
        let spec = VolumeSpec {
            size_bytes: 1 << 20,
            logical_block_size: 512,
            physical_block_size: None,
        };
        engine.create(&name, &spec).unwrap();
        let dir = engine.volume_dir(&name);
        let data = engine.open_data(&name, &dir, Duration::ZERO).unwrap();
        let meta = Meta::load(&dir).unwrap();
        Arc::new(FileVolume::open("p/v", dir, data, meta, engine.common()).unwrap())
    }

    fn write(token: u64, offset: u64, byte: u8) -> Request {
        let mut buffer = Buffer::zeroed(512).unwrap();
        buffer.fill(byte);
        let op = Op::Write {
            offset,
            buffer,
            fua: false,
            atomic: false,
        };
        Request { token, op }
    }

    fn wait(queue: &mut FileQueue) -> Vec<Completion> {
        let mut done = Vec::new();
        while queue.in_flight() > 0 {
            queue.kick();
            queue.reap(&mut done);
            std::thread::yield_now();
        }
        done
    }

    #[test]
    fn a_queue_that_waits_for_another_one_of_its_thread_can_be_dropped() {
        let dir = directory();
        let volume = volume(dir.path());
        let (send, dropped) = std::sync::mpsc::channel();
        let for_thread = Arc::clone(&volume);
        let worker = std::thread::spawn(move || {
            let queue = || FileQueue::new(Arc::clone(&for_thread), 4).unwrap();
            let (mut holds, mut waits, mut last) = (queue(), queue(), queue());
            // All in one block of the storage.
            for (number, queue) in [&mut holds, &mut waits, &mut last].into_iter().enumerate() {
                queue.submit(write(number as u64, number as u64 * 512, 1));
                queue.kick();
            }
            drop(waits);
            send.send(()).unwrap();
            assert!(wait(&mut holds).remove(0).result.is_ok());
            assert!(
                wait(&mut last).remove(0).result.is_ok(),
                "it waited for the dropped one"
            );
        });
        dropped
            .recv_timeout(Duration::from_secs(20))
            .expect("dropping the queue does not end");
        worker.join().unwrap();
        let mut queue = FileQueue::new(Arc::clone(&volume), 1).unwrap();
        let buffer = Buffer::zeroed(1536).unwrap();
        queue.submit(Request {
            token: 1,
            op: Op::Read { offset: 0, buffer },
        });
        let data = wait(&mut queue).remove(0).buffer.unwrap();
        let bytes: Vec<u8> = data.iter().copied().step_by(512).collect();
        assert_eq!(bytes, [1, 0, 1], "what was dropped was not begun");
    }

    #[test]
    fn what_the_system_puts_off_for_ever_fails() {
        let dir = directory();
        let volume = volume(dir.path());
        let mut queue = FileQueue::new(volume, 1).unwrap();
        let Request { token, op } = write(1, 0, 1);
        let mut work = Work {
            token,
            op,
            step: Step::BlockWrite(512),
            at: 0,
            end: 512,
            lock: None,
            entered: true,
            block: None,
            asking: None,
            retries: 0,
        };
        let mut tries = 0;
        let error = loop {
            match queue.after(&mut work, -libc::EAGAIN) {
                Next::Go(step) => assert_eq!(step, Step::BlockWrite(512)),
                Next::Done(result) => break result.unwrap_err(),
            }
            tries += 1;
            assert!(tries < 10_000, "it is sent again for ever");
        };
        assert_eq!(error.kind(), ErrorKind::NoResources, "{error}");
        assert_eq!(queue.volume.durability.losses(), 0, "nothing was lost");
    }
}
