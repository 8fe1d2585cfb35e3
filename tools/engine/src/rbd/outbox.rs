// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Completions on their way from librbd's threads to the thread of a queue.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{eventfd, EventfdFlags};

use super::sys::{failure, Sink};
use super::term::Ownership;
use crate::{Completion, Error, ErrorKind, Op, Result};

/// What ended and was not reaped yet.
pub(super) struct Outbox {
    ownership: Arc<Ownership>,
    event: OwnedFd,
    /// Shared by librbd's threads, which append, and the queue's thread, which
    /// takes all. Held for that long only.
    ended: Mutex<Vec<Completion>>,
}

impl Outbox {
    pub(super) fn new(ownership: Arc<Ownership>) -> Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| Error::os(e, "cannot make an eventfd"))?;
        Ok(Self {
            ownership,
            event,
            ended: Mutex::default(),
        })
    }

    /// Readable when there may be something to take.
    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// A request has ended.
    pub(super) fn push(&self, token: u64, op: Op, result: Result<()>) {
        let completion = Completion {
            token,
            result,
            buffer: op.into_buffer(),
        };
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = ended.is_empty();
        ended.push(completion);
        drop(ended);
        // The taker resets the event before it takes, so only the first has to
        // set it.
        if is_first {
            if let Err(error) = rustix::io::write(&self.event, &1u64.to_ne_bytes()) {
                tracing::error!(%error, "cannot tell of a completion");
            }
        }
    }

    /// Appends what has ended; how many that were.
    pub(super) fn take(&self, completions: &mut Vec<Completion>) -> usize {
        // Fails when it was not set.
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let count = ended.len();
        completions.append(&mut ended);
        count
    }
}

impl Sink for Outbox {
    fn done(&self, token: u64, op: Op, result: i64) {
        let expected = match &op {
            Op::Read { buffer, .. } => Some(buffer.len() as i64),
            Op::Write { .. } | Op::Flush | Op::Discard { .. } | Op::WriteZeroes { .. } => None,
        };
        let result = if result < 0 {
            // An error number is an int.
            let code = i32::try_from(result).unwrap_or(-libc::EIO);
            let error = failure(code, "the Ceph cluster failed a request");
            self.ownership.settle(Err(error))
        } else if expected.is_some_and(|len| len != result) {
            Err(Error::new(
                ErrorKind::Io,
                format!("the Ceph cluster gave {result} bytes where {expected:?} were asked for"),
            ))
        } else {
            Ok(())
        };
        self.push(token, op, result);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn ended(op: Op, result: i64) -> (bool, ErrorKind) {
        let ownership = Ownership::of_snapshot("p/v".parse().unwrap());
        let outbox = Outbox::new(Arc::clone(&ownership)).unwrap();
        outbox.done(1, op, result);
        let mut completions = Vec::new();
        assert_eq!(outbox.take(&mut completions), 1);
        let error = completions.remove(0).result.unwrap_err();
        (ownership.is_lost(), error.kind())
    }

    #[test]
    fn a_write_that_was_given_up_ends_the_term() {
        let zeroes = || Op::WriteZeroes {
            offset: 0,
            len: 4096,
            fua: false,
            no_unmap: false,
        };
        let read = Op::Read {
            offset: 0,
            buffer: crate::Buffer::zeroed(512).unwrap(),
        };
        let timeout = -i64::from(libc::ETIMEDOUT);
        assert_eq!(ended(zeroes(), timeout), (true, ErrorKind::NotOwner));
        // A read does no harm later; but its host is to ask elsewhere rather than
        // see an error.
        assert_eq!(ended(read, timeout), (true, ErrorKind::NotOwner));
        let fenced = -i64::from(libc::ESHUTDOWN);
        assert_eq!(ended(zeroes(), fenced), (true, ErrorKind::NotOwner));
        let failed = -i64::from(libc::EIO);
        assert_eq!(ended(zeroes(), failed), (false, ErrorKind::Io));
    }
}
