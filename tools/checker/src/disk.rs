// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The disk under test: a block device or a file, without the page cache.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::ReadWriteFlags;

/// What is needed of a disk. All calls block until the disk answers.
pub trait Disk: Send + Sync {
    /// Fills `data` from `offset`.
    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()>;

    /// Writes `data` to `offset`; with `fua` it is durable when this returns.
    fn write(&self, offset: u64, data: &[u8], fua: bool) -> io::Result<()>;

    /// What was written is durable when this returns.
    fn flush(&self) -> io::Result<()>;
}

/// Alignment of buffers: what any disk asks for.
const ALIGN: usize = 4096;

/// Memory that direct I/O takes.
#[derive(Debug)]
pub struct Buffer {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Buffer {
    /// Zeroes.
    pub fn new(length: usize) -> Self {
        let memory = vec![0; length + ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN);
        Buffer {
            memory,
            start,
            length,
        }
    }

    /// The first bytes of it.
    pub fn first(&mut self, length: usize) -> &mut [u8] {
        let length = length.min(self.length);
        &mut self.memory[self.start..self.start + length]
    }
}

/// A block device or a file.
#[derive(Debug)]
pub struct FileDisk {
    file: File,
    block_bytes: u32,
    size_bytes: u64,
}

impl FileDisk {
    /// Opens a block device; or a file, with blocks of `block_bytes`, made `size_bytes` long if it
    /// is shorter.
    pub fn open(
        path: &Path,
        block_bytes: Option<u32>,
        size_bytes: Option<u64>,
    ) -> io::Result<Self> {
        let is_device = std::fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device());
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(!is_device)
            .truncate(false)
            .custom_flags(OFlags::DIRECT.bits() as i32)
            .open(path)?;
        let block_bytes = match (is_device, block_bytes) {
            (true, None) => rustix::fs::ioctl_blksszget(&file)?,
            (false, None) => 4096,
            (_, Some(block_bytes)) => block_bytes,
        };
        let mut length = (&file).seek(SeekFrom::End(0))?;
        if let (false, Some(size)) = (is_device, size_bytes) {
            if length < size {
                file.set_len(size)?;
                length = size;
            }
        }
        Ok(FileDisk {
            file,
            block_bytes,
            size_bytes: size_bytes.unwrap_or(length).min(length),
        })
    }

    /// Logical block size.
    pub fn block_bytes(&self) -> u32 {
        self.block_bytes
    }

    /// Size of the part that is used.
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }
}

impl Disk for FileDisk {
    fn read(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(data, offset)
    }

    fn write(&self, offset: u64, data: &[u8], fua: bool) -> io::Result<()> {
        let flags = if fua {
            ReadWriteFlags::DSYNC
        } else {
            ReadWriteFlags::empty()
        };
        let mut done = 0;
        while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
            let at = offset + done as u64;
            match rustix::io::pwritev2(&self.file, &[IoSlice::new(rest)], at, flags) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => done += n,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}
