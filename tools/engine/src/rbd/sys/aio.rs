// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Requests to an image, and their ends.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use super::{Functions, Handle, Image, WRITE_ZEROES_THICK};
use crate::Op;

/// Where ended jobs go. Called on librbd's threads: it must not block.
pub(crate) trait Sink: Send + Sync {
    /// A job has ended: with the number of bytes or zero, or a negative error
    /// number.
    fn done(&self, token: u64, op: Op, result: i64);
}

/// An operation on its way.
pub(crate) struct Job {
    /// The caller's mark.
    pub(crate) token: u64,
    /// What to do; it owns its buffer.
    pub(crate) op: Op,
    /// Where it goes when it has ended.
    pub(crate) sink: Arc<dyn Sink>,
}

/// What librbd holds for us while it works: the argument of `completed`.
struct InFlight {
    job: Job,
    functions: &'static Functions,
    count: Arc<AtomicUsize>,
}

impl InFlight {
    fn end(self, result: i64) {
        let Self { job, count, .. } = self;
        job.sink.done(job.token, job.op, result);
        drop(job.sink);
        // The last thing, since the image may be closed from then on.
        count.fetch_sub(1, Ordering::Release);
    }
}

/// librbd's callback, once for each completion.
unsafe extern "C" fn completed(completion: Handle, arg: *mut c_void) {
    // SAFETY: `begin` passed the pointer of a box and gave it up.
    let in_flight = unsafe { Box::from_raw(arg.cast::<InFlight>()) };
    let functions = in_flight.functions;
    // SAFETY: librbd calls this with a completion which `begin` made, and
    // which nobody uses after this.
    let result = unsafe {
        let result = (functions.rbd_aio_get_return_value)(completion);
        (functions.rbd_aio_release)(completion);
        result
    };
    in_flight.end(result as i64);
}

/// A length for librbd.
fn as_usize(len: u32) -> usize {
    len as usize
}

impl Image {
    /// Begins a job, which is within the image. Does not block; its end goes
    /// to its sink, also when it cannot begin.
    pub(crate) fn begin(&self, job: Job) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let functions = self.functions();
        let in_flight = Box::new(InFlight {
            job,
            functions,
            count: Arc::clone(&self.in_flight),
        });
        // The box keeps its place, and a buffer's memory does so anyway. From
        // `into_raw` on librbd alone has the right to both.
        let arg = Box::into_raw(in_flight);
        let mut completion = ptr::null_mut();
        // SAFETY: `completed` takes what `arg` is, and `completion` is ours to
        // fill.
        let code = unsafe {
            (functions.rbd_aio_create_completion)(arg.cast(), completed, &mut completion)
        };
        if code < 0 {
            // SAFETY: No completion was made, so nobody else has the pointer.
            let in_flight = unsafe { Box::from_raw(arg) };
            return in_flight.end(i64::from(code));
        }
        // SAFETY: `arg` is valid until librbd is told to begin. Until the callback
        // the image stays open (`in_flight`), and the box owns the buffer.
        let code = unsafe { start(functions, self.handle, arg, completion) };
        if code < 0 {
            // SAFETY: librbd has refused the request: it does not call back.
            let in_flight = unsafe {
                (functions.rbd_aio_release)(completion);
                Box::from_raw(arg)
            };
            in_flight.end(i64::from(code));
        }
    }
}

/// Tells librbd to begin.
///
/// # Safety
///
/// `job` is valid now; `image` is open, and both it and the job's buffer stay
/// as they are until the completion's callback.
unsafe fn start(
    functions: &Functions,
    image: Handle,
    job: *mut InFlight,
    completion: Handle,
) -> c_int {
    // SAFETY: By the function's contract. The reference ends before librbd
    // begins, as nothing of it is used in the calls.
    match unsafe { &(*job).job.op } {
        Op::Read { offset, buffer } => {
            let (at, len, to) = (*offset, buffer.len(), buffer.address());
            // SAFETY: By the function's contract; `to` has `len` bytes.
            unsafe { (functions.rbd_aio_read)(image, at, len, to.cast(), completion) }
        }
        Op::Write { offset, buffer, .. } => {
            let (at, len, from) = (*offset, buffer.len(), buffer.address());
            // SAFETY: By the function's contract; `from` has `len` bytes.
            unsafe {
                (functions.rbd_aio_write)(image, at, len, from.cast_const().cast(), completion)
            }
        }
        // A discard alone would leave the ends of its range as they are.
        Op::Discard { offset, len } => {
            let (at, len) = (*offset, as_usize(*len));
            // SAFETY: By the function's contract.
            unsafe { (functions.rbd_aio_write_zeroes)(image, at, len, completion, 0, 0) }
        }
        Op::WriteZeroes {
            offset,
            len,
            no_unmap,
            ..
        } => {
            let (at, len) = (*offset, as_usize(*len));
            let flags = if *no_unmap { WRITE_ZEROES_THICK } else { 0 };
            // SAFETY: By the function's contract.
            unsafe { (functions.rbd_aio_write_zeroes)(image, at, len, completion, flags, 0) }
        }
        // SAFETY: By the function's contract.
        Op::Flush => unsafe { (functions.rbd_aio_flush)(image, completion) },
    }
}
