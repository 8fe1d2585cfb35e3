// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Memory that is there from the start: no page fault falls into a window.

use std::io;
use std::ptr::NonNull;

/// Anonymous memory, mapped, aligned to a page and filled in.
///
/// Shared by threads like the memory of a disk: who writes a range while another reads it gets
/// some mixture of old and new bytes, and nobody forms references to it.
pub struct Region {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: Only raw copies touch the memory; see the type.
unsafe impl Send for Region {}
// SAFETY: As above.
unsafe impl Sync for Region {}

impl Region {
    /// `len` bytes of zeroes.
    pub fn new(len: usize) -> io::Result<Self> {
        // SAFETY: A new private mapping.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        match NonNull::new(start.cast()) {
            Some(start) => Ok(Region { start, len }),
            None => Err(io::Error::other("memory at address zero")),
        }
    }

    /// Describes a range; the memory is repeated endlessly, but a range must not cross its end.
    pub fn slice(&self, offset: u64, len: usize) -> io::Result<libc::iovec> {
        let offset = (offset % self.len as u64) as usize;
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(libc::iovec {
                // SAFETY: Within the mapping, as was just checked.
                iov_base: unsafe { self.start.as_ptr().add(offset) }.cast(),
                iov_len: len,
            }),
            _ => Err(io::Error::other("a range outside of the volume")),
        }
    }

    /// Copies bytes in; the range as for [`Region::slice`].
    pub fn write(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        let to = self.slice(offset, from.len())?;
        // SAFETY: The range was checked; the mapping and `from` do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to.iov_base.cast(), from.len()) };
        Ok(())
    }

    /// CRC-32C of a range.
    pub fn crc32c(&self, offset: u64, len: usize) -> io::Result<u32> {
        let range = self.slice(offset, len)?;
        // SAFETY: The range was checked. A client that writes while it reads gets a wrong sum.
        let bytes = unsafe { std::slice::from_raw_parts(range.iov_base.cast::<u8>(), len) };
        Ok(crc32c::crc32c(bytes))
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: Mapped by `new`, and nobody uses it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Keeps all memory of the process where it is.
pub fn lock_all() -> io::Result<()> {
    // SAFETY: No arguments that could be wrong.
    match unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
