// SPDX-License-Identifier: GPL-2.0

//! Work queues of one's own.
//!
//! C header: `include/linux/workqueue.h`.

use core::ptr::NonNull;
use kernel::{
    prelude::*,
    sync::Arc,
    time::Jiffies,
    workqueue::{HasDelayedWork, Queue, RawWorkItem, WorkItem},
};
use neonsan_bindings as bindings;

/// A work queue that goes with its owner. What was queued is done before it goes, so the last owner must
/// not be work of the queue itself: that would wait for its own end.
///
/// It does not dereference to upstream's [`Queue`], whose queues never go: that has delayed work of any
/// owner, for which the end of a queue does not wait ([`OwnedQueue::mod_delayed`] sees to it).
///
/// # Invariants
///
/// The pointer is to a work queue that belongs to this value.
pub struct OwnedQueue(NonNull<bindings::workqueue_struct>);

// SAFETY: Work queues may be used from any thread.
unsafe impl Send for OwnedQueue {}
// SAFETY: As above.
unsafe impl Sync for OwnedQueue {}

impl OwnedQueue {
    /// Makes a queue for work that writing dirty pages depends on (`WQ_MEM_RECLAIM`): it goes on
    /// when no memory is left for new workers. Its work runs on any CPU. May sleep.
    pub fn new_mem_reclaim(name: &CStr) -> Result<Self> {
        let flags = bindings::wq_flags_WQ_MEM_RECLAIM | bindings::wq_flags_WQ_UNBOUND;
        // SAFETY: The name is copied.
        let queue = unsafe { bindings::alloc_workqueue(name.as_char_ptr(), flags, 0) };
        // INVARIANT: It was just made.
        Ok(OwnedQueue(NonNull::new(queue).ok_or(ENOMEM)?))
    }

    /// Makes a queue for work of any length that no writing of dirty pages depends on. May sleep.
    pub fn new_unbound(name: &CStr) -> Result<Self> {
        // SAFETY: The name is copied.
        let queue = unsafe {
            bindings::alloc_workqueue(name.as_char_ptr(), bindings::wq_flags_WQ_UNBOUND, 0)
        };
        // INVARIANT: It was just made.
        Ok(OwnedQueue(NonNull::new(queue).ok_or(ENOMEM)?))
    }

    /// Queues work, as upstream's [`Queue::enqueue`] does. Any context.
    pub fn enqueue<W, const ID: u64>(&self, item: W) -> W::EnqueueOutput
    where
        W: RawWorkItem<ID> + Send + 'static,
    {
        // SAFETY: By the type's invariants; both crates' types are the same C struct. Work that is
        // queued is done before the queue goes.
        let queue = unsafe { Queue::from_raw(self.0.as_ptr().cast()) };
        queue.enqueue(item)
    }

    /// Queues delayed work on its queue, or changes when it is due if it is queued already. Any
    /// context.
    pub fn mod_delayed<T, const ID: u64>(item: Arc<T>, delay: Jiffies)
    where
        T: WorkItem<ID, Pointer = Arc<T>> + DelayedOn<ID> + Send + Sync + 'static,
    {
        let queue = item.queue().0.as_ptr();
        let ptr = Arc::into_raw(item);
        // SAFETY: The value lives while work of it is queued, since that owns a reference; it is
        // the one just turned raw, unless the work was queued already and has one. And so does the
        // queue, which lives as long as the value (`DelayedOn`): also while only a timer knows of the
        // work, for which destroying a queue does not wait.
        unsafe {
            let work = delayed_work_of(ptr);
            let was_queued = bindings::mod_delayed_work_on(
                bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int,
                queue,
                work,
                delay,
            );
            if was_queued {
                drop(Arc::from_raw(ptr));
            }
        }
    }

    /// Takes delayed work back and waits until it does not run any more. Nobody should queue it at
    /// the same time: it might not be queued then, and its reference be lost. May sleep; not from the
    /// work itself.
    pub fn cancel_delayed_sync<T, const ID: u64>(item: &Arc<T>)
    where
        T: WorkItem<ID, Pointer = Arc<T>> + DelayedOn<ID> + Send + Sync + 'static,
    {
        let ptr = Arc::as_ptr(item);
        // SAFETY: `item` keeps the value alive. If the work was queued, its reference is now ours.
        unsafe {
            if bindings::cancel_delayed_work_sync(delayed_work_of(ptr)) {
                drop(Arc::from_raw(ptr));
            }
        }
    }

    /// Waits until everything that is queued now has been done. May sleep; not from work of the
    /// same queue.
    pub fn flush(&self) {
        // SAFETY: By the type's invariants.
        unsafe { bindings::flush_workqueue(self.0.as_ptr()) };
    }
}

/// A value with delayed work, and the queue that this is always queued on.
///
/// The queue is borrowed from the value, so it lives at least as long: the value owns it, or an owner
/// of it. Work that is queued owns a reference to the value. So a queue never goes away while its
/// delayed work still waits for its time.
pub trait DelayedOn<const ID: u64>: HasDelayedWork<Self, ID> + Sized {
    /// The queue.
    fn queue(&self) -> &OwnedQueue;
}

/// The C struct inside the delayed work of a value.
///
/// # Safety
///
/// `ptr` must be valid.
unsafe fn delayed_work_of<T, const ID: u64>(ptr: *const T) -> *mut bindings::delayed_work
where
    T: WorkItem<ID> + HasDelayedWork<T, ID>,
{
    // SAFETY: By the caller's promise. `DelayedWork` is transparent over the C struct, of which
    // the `Work` is the first field.
    unsafe {
        let work = T::raw_get_work(ptr.cast_mut());
        let raw: *mut kernel::bindings::work_struct = kernel::workqueue::Work::raw_get(work);
        const_assert!(core::mem::offset_of!(kernel::bindings::delayed_work, work) == 0);
        raw.cast()
    }
}

impl Drop for OwnedQueue {
    fn drop(&mut self) {
        // SAFETY: By the type's invariants; nobody can queue any more.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) };
    }
}
