// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Finds out what the storage below a directory can do, by trying.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use io_uring::IoUring;
use rustix::fs::{fallocate, statx, AtFlags, FallocateFlags, Mode, OFlags, Statx, StatxFlags};
use rustix::io::Errno;

use super::layout::file_options;
use super::snapshots;
use crate::identity::random_id;
use crate::{Buffer, Error, ErrorKind, Result, BUFFER_ALIGN};

/// `STATX_WRITE_ATOMIC` of `linux/stat.h` (Linux 6.11).
const STATX_WRITE_ATOMIC: u32 = 0x0001_0000;

/// What the storage below a directory can do.
#[derive(Debug)]
pub(super) struct Storage {
    /// The engine's directory.
    pub(super) root: PathBuf,
    /// Open with `O_DIRECT`.
    pub(super) direct: bool,
    /// I/O happens in aligned blocks of this many bytes; 1 with the page
    /// cache, which takes anything.
    pub(super) block_bytes: u32,
    /// Memory for direct I/O is aligned to this.
    pub(super) memory_align: u32,
    /// Block size of the file system: the unit in which holes are punched.
    pub(super) fs_block_bytes: u32,
    /// Largest aligned block that a loss of power does not tear.
    pub(super) untorn_bytes: u32,
    /// Bounds of atomic writes; 0: none.
    pub(super) atomic_bytes: (u32, u32),
    /// Holes can be punched.
    pub(super) punch_hole: bool,
    /// Ranges can be zeroed while they stay allocated.
    pub(super) zero_range: bool,
    /// Files can share blocks.
    pub(super) reflink: bool,
    /// The disk turns.
    pub(super) rotational: bool,
    /// The findings, for people.
    pub(super) notes: Vec<String>,
}

/// A file for trying things, removed when it goes out of scope.
struct Trial {
    path: PathBuf,
}

impl Drop for Trial {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove");
        }
    }
}

impl Storage {
    /// Tries everything in a file below `root`.
    pub(super) fn probe(root: &Path, buffered: bool, min_block_bytes: u32) -> Result<Self> {
        if !min_block_bytes.is_power_of_two() || min_block_bytes as usize > BUFFER_ALIGN {
            return Err(Error::new(
                ErrorKind::BadSize,
                format!("a block size of {min_block_bytes} bytes is not a power of two up to {BUFFER_ALIGN}"),
            ));
        }
        IoUring::new(2).map_err(|e| {
            Error::os(
                e,
                "io_uring, through which files are read and written, cannot be used: allow it (`sysctl \
                 kernel.io_uring_disabled=0`; in a container, the calls io_uring_setup, io_uring_enter \
                 and io_uring_register in its seccomp filter)",
            )
        })?;
        let id = u128::from_be_bytes(random_id()?);
        let trial = Trial {
            path: root.join(format!(".probe-{id:032x}")),
        };
        let context = |e| Error::os(e, format!("cannot try {}", trial.path.display()));
        let mut file = file_options()
            .create_new(true)
            .write(true)
            .read(true)
            .open(&trial.path)
            .map_err(context)?;
        file.write_all(&[1; 4 * BUFFER_ALIGN]).map_err(context)?;

        let punch_hole = fallocate(
            &file,
            FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            0,
            BUFFER_ALIGN as u64,
        )
        .is_ok();
        let zero_range = fallocate(
            &file,
            FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
            BUFFER_ALIGN as u64,
            BUFFER_ALIGN as u64,
        )
        .is_ok();
        let other = Trial {
            path: root.join(format!(".probe-{id:032x}-shared")),
        };
        let reflink = match snapshots::share(&file, &other.path) {
            Ok(_) => true,
            Err(error) if error.kind() == ErrorKind::Unsupported => false,
            Err(error) => return Err(error),
        };
        drop(other);
        let stat = statx(
            &file,
            c"",
            AtFlags::EMPTY_PATH,
            StatxFlags::BASIC_STATS
                | StatxFlags::DIOALIGN
                | StatxFlags::from_bits_retain(STATX_WRITE_ATOMIC),
        )
        .map_err(|e| Error::os(e, format!("cannot stat {}", trial.path.display())))?;
        // Not what `statx` says: with XFS that is a page at least, whatever its
        // blocks are. Larger blocks than the file system's can lie across two of
        // the disk's.
        let block_bytes = rustix::fs::fstatvfs(&file)
            .map_err(|e| Error::os(e, format!("cannot stat {}", root.display())))?
            .f_bsize;
        let file_block_bytes = u32::try_from(block_bytes).unwrap_or(u32::MAX);
        drop(file);

        let disk = Disk::below(&stat);
        let fs_block_bytes = stat.stx_blksize.clamp(512, 1 << 20);
        let mut notes = Vec::new();
        let direct = if buffered {
            notes.push("page cache, as configured".to_owned());
            None
        } else {
            match try_direct(&trial.path, &stat)? {
                Some(aligns) => {
                    notes.push(format!("direct I/O in blocks of {} bytes", aligns.0));
                    Some(aligns)
                }
                None => {
                    notes.push(
                        "page cache, since the file system does not support direct I/O".to_owned(),
                    );
                    None
                }
            }
        };
        let (block_bytes, memory_align) = direct.unwrap_or((1, 1));
        let block_bytes = if direct.is_some() {
            block_bytes.max(min_block_bytes)
        } else {
            block_bytes
        };
        // Through the page cache blocks reach the disk in pages, which it may
        // tear; directly they arrive as they are. Without a disk (tmpfs) there
        // is nothing which survives to be torn.
        let untorn_bytes = match &disk {
            Some(disk) => disk.untorn_bytes.min(file_block_bytes),
            None => 512,
        };
        let atomic_bytes = if direct.is_some() && stat.stx_mask & STATX_WRITE_ATOMIC != 0 {
            (
                stat.stx_atomic_write_unit_min,
                stat.stx_atomic_write_unit_max,
            )
        } else {
            (0, 0)
        };
        if !punch_hole {
            notes.push("no discard, since the file system cannot punch holes".to_owned());
        }
        if !reflink {
            notes.push(
                "no snapshots, since the file system cannot share blocks between files".to_owned(),
            );
        }
        Ok(Self {
            root: root.to_owned(),
            direct: direct.is_some(),
            block_bytes,
            memory_align,
            fs_block_bytes,
            untorn_bytes,
            atomic_bytes,
            punch_hole,
            zero_range,
            reflink,
            rotational: disk.is_some_and(|d| d.rotational),
            notes,
        })
    }

    /// Refuses what needs files that share blocks, where there are none.
    pub(super) fn check_reflink(&self) -> Result<()> {
        if self.reflink {
            return Ok(());
        }
        let place = format!("{} ({})", snapshots::NO_REFLINK, self.root.display());
        Err(Error::new(ErrorKind::Unsupported, place))
    }
}

/// Whether direct I/O works on the file, and its alignments: of ranges, of
/// memory.
fn try_direct(path: &Path, stat: &Statx) -> Result<Option<(u32, u32)>> {
    let context = |e| Error::os(e, format!("cannot try direct I/O on {}", path.display()));
    let file = match rustix::fs::open(
        path,
        OFlags::RDWR | OFlags::DIRECT | OFlags::CLOEXEC,
        Mode::empty(),
    ) {
        Ok(file) => file,
        Err(Errno::INVAL) => return Ok(None),
        Err(error) => return Err(context(error)),
    };
    let max = BUFFER_ALIGN as u32;
    // What the file system says, where it says anything sensible, and is
    // confirmed by trying; else the smallest that works.
    let stated = stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
    if stated && stat.stx_dio_offset_align == 0 {
        return Ok(None);
    }
    let memory_align = if stated && stat.stx_dio_mem_align.is_power_of_two() {
        stat.stx_dio_mem_align.min(max)
    } else {
        max
    };
    let first = if stated && stat.stx_dio_offset_align.is_power_of_two() {
        stat.stx_dio_offset_align.clamp(512, max)
    } else {
        512
    };
    let mut block = first;
    while block <= max {
        let mut buffer = Buffer::zeroed(block as usize)?;
        match rustix::io::pread(&file, &mut buffer[..], u64::from(block)) {
            Ok(len) if len == block as usize => return Ok(Some((block, memory_align))),
            Ok(_) | Err(Errno::INVAL) => block *= 2,
            Err(error) => return Err(context(error)),
        }
    }
    Ok(None)
}

/// The disk that holds a file, as sysfs describes it.
struct Disk {
    untorn_bytes: u32,
    rotational: bool,
}

impl Disk {
    /// `None` where the file system has no one block device, such as tmpfs,
    /// btrfs or a network's.
    fn below(stat: &Statx) -> Option<Self> {
        let device = PathBuf::from(format!(
            "/sys/dev/block/{}:{}",
            stat.stx_dev_major, stat.stx_dev_minor
        ));
        // A partition shares the queue of the disk it is on.
        let queue = [device.join("queue"), device.join("../queue")]
            .into_iter()
            .find(|path| path.is_dir())?;
        let number =
            |path: PathBuf| -> Option<u32> { fs::read_to_string(path).ok()?.trim().parse().ok() };
        let logical = number(queue.join("logical_block_size"))?;
        let physical = number(queue.join("physical_block_size"))?;
        let aligned = number(device.join("alignment_offset")) == Some(0);
        Some(Self {
            untorn_bytes: if aligned { physical } else { logical },
            rotational: number(queue.join("rotational")) == Some(1),
        })
    }
}
