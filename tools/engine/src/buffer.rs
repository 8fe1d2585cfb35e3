// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Memory for payloads: aligned for direct I/O, owned by one place at a time.
//!
//! A [`Buffer`] moves: from the connection which filled it into the request,
//! from the request into the engine, back with the completion. While the
//! kernel works on it the engine owns it, so it can be neither freed nor
//! touched. Pools belong to one thread each and need no lock.

use std::alloc::{self, Layout};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::slice;

use crate::{Error, ErrorKind, Result};

/// Alignment of every buffer in bytes: that of the coarsest direct I/O.
pub const BUFFER_ALIGN: usize = 4096;

/// A piece of memory, aligned to [`BUFFER_ALIGN`].
///
/// # Invariants
///
/// * `memory` is an allocation of the global allocator with the layout
///   `capacity`, [`BUFFER_ALIGN`], initialised throughout and owned by this
///   value alone; where `capacity` is 0 it dangles (aligned).
/// * `len <= capacity`.
pub struct Buffer {
    memory: NonNull<u8>,
    capacity: usize,
    len: usize,
}

// SAFETY: By the invariants the memory is owned by the value alone, like that
// of a `Box<[u8]>`, which is `Send`.
unsafe impl Send for Buffer {}

// SAFETY: A shared reference gives shared access to plain bytes only.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Allocates a buffer of `len` zeroes.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoResources`] when there is no memory.
    pub fn zeroed(len: usize) -> Result<Self> {
        Self::with_capacity(len, len)
    }

    fn with_capacity(capacity: usize, len: usize) -> Result<Self> {
        debug_assert!(len <= capacity);
        let out_of_memory = || {
            Error::new(
                ErrorKind::NoResources,
                format!("no memory for a buffer of {capacity} bytes"),
            )
        };
        let layout =
            Layout::from_size_align(capacity, BUFFER_ALIGN).map_err(|_| out_of_memory())?;
        let memory = if capacity == 0 {
            // No allocation: a well-aligned dangling pointer.
            NonNull::new(std::ptr::without_provenance_mut(BUFFER_ALIGN))
        } else {
            // SAFETY: The layout's size is not zero.
            NonNull::new(unsafe { alloc::alloc_zeroed(layout) })
        };
        // INVARIANT: Allocated and zeroed just now, or dangling for capacity 0.
        Ok(Self {
            memory: memory.ok_or_else(out_of_memory)?,
            capacity,
            len,
        })
    }

    /// The address of the first byte, for the kernel. It stays the same
    /// however the value is moved.
    pub(crate) fn address(&self) -> *mut u8 {
        self.memory.as_ptr()
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: By the invariants the first `len` bytes are initialised and
        // owned by `self`, which is borrowed as long as the slice lives.
        unsafe { slice::from_raw_parts(self.memory.as_ptr(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: As in `deref`; `self` is borrowed mutably.
        unsafe { slice::from_raw_parts_mut(self.memory.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.capacity == 0 {
            return;
        }
        // SAFETY: By the invariants this is the layout of the allocation; it
        // was valid when the memory was allocated.
        unsafe {
            let layout = Layout::from_size_align_unchecked(self.capacity, BUFFER_ALIGN);
            alloc::dealloc(self.memory.as_ptr(), layout);
        }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

/// Keeps returned buffers for reuse, up to a bound.
///
/// Capacities are powers of two, so that a buffer serves many lengths. A
/// reused buffer still has the bytes of its last use: whoever takes one fills
/// it whole before showing it to anyone.
#[derive(Debug)]
pub struct BufferPool {
    /// One list for each power of two from [`BUFFER_ALIGN`] upwards.
    classes: Vec<Vec<Buffer>>,
    kept_bytes: usize,
    max_kept_bytes: usize,
}

/// Buffers above this are not kept.
const MAX_POOLED_BYTES: usize = 4 << 20;

impl BufferPool {
    /// A pool that keeps at most `max_kept_bytes` of unused memory.
    pub fn new(max_kept_bytes: usize) -> Self {
        let classes = (MAX_POOLED_BYTES / BUFFER_ALIGN).ilog2() as usize + 1;
        Self {
            classes: (0..classes).map(|_| Vec::new()).collect(),
            kept_bytes: 0,
            max_kept_bytes,
        }
    }

    /// The class whose buffers have exactly `capacity` bytes.
    fn class_of(capacity: usize) -> usize {
        (capacity / BUFFER_ALIGN).ilog2() as usize
    }

    /// Takes a buffer of `len` bytes with any content.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoResources`] when there is no memory.
    pub fn take(&mut self, len: usize) -> Result<Buffer> {
        if len > MAX_POOLED_BYTES {
            return Buffer::zeroed(len);
        }
        let capacity = len.max(BUFFER_ALIGN).next_power_of_two();
        match self.classes[Self::class_of(capacity)].pop() {
            Some(mut buffer) => {
                self.kept_bytes -= capacity;
                // INVARIANT: `len <= capacity`, which is the class's.
                buffer.len = len;
                Ok(buffer)
            }
            None => Buffer::with_capacity(capacity, len),
        }
    }

    /// Gives a buffer back for reuse.
    pub fn give(&mut self, buffer: Buffer) {
        let capacity = buffer.capacity;
        if capacity.is_power_of_two()
            && (BUFFER_ALIGN..=MAX_POOLED_BYTES).contains(&capacity)
            && self.kept_bytes + capacity <= self.max_kept_bytes
        {
            self.kept_bytes += capacity;
            self.classes[Self::class_of(capacity)].push(buffer);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_zeroed() {
        for len in [0, 1, 512, 4096, 4097, 1 << 20] {
            let buffer = Buffer::zeroed(len).unwrap();
            assert_eq!(buffer.address() as usize % BUFFER_ALIGN, 0);
            assert_eq!(buffer.len(), len);
            assert!(buffer.iter().all(|&b| b == 0));
        }
    }

    #[test]
    fn a_pool_reuses_and_keeps_to_its_bound() {
        let mut pool = BufferPool::new(8192);
        let mut a = pool.take(512).unwrap();
        a.fill(7);
        let address = a.address();
        let b = pool.take(8192).unwrap();
        pool.give(a);
        pool.give(b);
        assert_eq!(pool.kept_bytes, 4096, "the second one is above the bound");
        let again = pool.take(4096).unwrap();
        assert_eq!(again.address(), address);
        assert_eq!(again.len(), 4096);
        assert_eq!(pool.kept_bytes, 0);
    }
}
