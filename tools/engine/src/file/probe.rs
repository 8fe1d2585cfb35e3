// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Finds out what the storage below a directory can do, by trying.

use std::fs::{self, File};
use std::io::ErrorKind as IoKind;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use io_uring::IoUring;
use rustix::fs::{
    fallocate, ioctl_ficlone, statx, AtFlags, FallocateFlags, Mode, OFlags, Statx, StatxFlags,
};
use rustix::io::Errno;

use super::layout::file_options;
use super::snapshots;
use crate::error::SystemError;
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

/// The file in which things are tried. It is kept, so that a start needs no room which a full disk
/// does not have.
const TRIAL: &str = ".probe";

/// The parts of the trial file: where holes are punched, where zeroes are made, and what is read.
const PUNCHED_AT: u64 = 0;
const ZEROED_AT: u64 = BUFFER_ALIGN as u64;
const WRITTEN_AT: u64 = 2 * BUFFER_ALIGN as u64;
const TRIAL_BYTES: u64 = 4 * BUFFER_ALIGN as u64;

/// Whether an error only says that there is no room.
fn is_full(error: &std::io::Error) -> bool {
    [IoKind::StorageFull, IoKind::QuotaExceeded].contains(&error.kind())
}

/// Whether the file system does something: it may have tried, and found no room.
fn is_done(result: std::result::Result<(), Errno>) -> bool {
    match result {
        Ok(()) => true,
        Err(error) => is_full(&error.into()),
    }
}

/// The file in which things are tried, and its path.
struct Trial {
    file: File,
    path: PathBuf,
    /// What is read from it was written, and is no hole.
    is_written: bool,
}

impl Trial {
    /// Opens it, and makes it if there is room.
    fn open(root: &Path) -> Result<Self> {
        let open = |name: &str| {
            let path = root.join(name);
            let file = file_options()
                .create(true)
                .truncate(false)
                .write(true)
                .read(true)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&path);
            match file {
                Ok(file) => Ok((file, path)),
                Err(e) => Err((e, path)),
            }
        };
        // There is a file in any case, which is never read.
        let opened = open(TRIAL).or_else(|(error, path)| match is_full(&error) {
            true => open(".lock"),
            false => Err((error, path)),
        });
        let (file, path) = opened
            .map_err(|(error, path)| Error::os(error, format!("cannot try {}", path.display())))?;
        let mut trial = Self {
            file,
            path,
            is_written: true,
        };
        match trial.write() {
            Err(error) if is_full(&error) => trial.is_written = false,
            result => result.map_err(|e| trial.context(e))?,
        }
        Ok(trial)
    }

    fn context(&self, error: impl Into<SystemError>) -> Error {
        Error::os(error, format!("cannot try {}", self.path.display()))
    }

    /// Gives it its length, and what is read its content, unless it has them.
    fn write(&mut self) -> std::io::Result<()> {
        let metadata = self.file.metadata()?;
        let is_whole =
            metadata.len() >= TRIAL_BYTES && metadata.blocks() * 512 >= TRIAL_BYTES - WRITTEN_AT;
        if is_whole {
            return Ok(());
        }
        self.file.set_len(TRIAL_BYTES)?;
        self.file
            .write_all_at(&[1; (TRIAL_BYTES - WRITTEN_AT) as usize], WRITTEN_AT)?;
        self.file.sync_data()
    }

    fn fallocate(&self, flags: FallocateFlags, at: u64) -> bool {
        let flags = flags | FallocateFlags::KEEP_SIZE;
        is_done(fallocate(&self.file, flags, at, BUFFER_ALIGN as u64))
    }

    /// Whether files can share blocks.
    fn can_share(&self) -> Result<bool> {
        let other = self.path.with_extension("shared");
        let removed = match fs::remove_file(&other) {
            Err(e) if e.kind() != IoKind::NotFound => Err(e),
            _ => Ok(()),
        };
        removed.map_err(|e| Error::os(e, format!("cannot remove {}", other.display())))?;
        let shared = snapshots::share(&self.file, &other);
        if let Err(error) = fs::remove_file(&other) {
            if error.kind() != IoKind::NotFound {
                tracing::warn!(path = %other.display(), %error, "cannot remove");
            }
        }
        match shared {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::Unsupported => Ok(false),
            // Not even for another file. With itself none shares blocks, for another reason than
            // that none can.
            Err(error) if error.kind() == ErrorKind::NoSpace => {
                let result = ioctl_ficlone(&self.file, &self.file);
                let never = [Errno::OPNOTSUPP, Errno::NOTTY, Errno::NOSYS];
                Ok(!result.is_err_and(|e| never.contains(&e)))
            }
            Err(error) => Err(error),
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
        let trial = Trial::open(root)?;
        let file = &trial.file;
        let punch_hole = trial.fallocate(FallocateFlags::PUNCH_HOLE, PUNCHED_AT);
        let zero_range = trial.fallocate(FallocateFlags::ZERO_RANGE, ZEROED_AT);
        let reflink = trial.can_share()?;
        let stat = statx(
            file,
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
        let block_bytes = rustix::fs::fstatvfs(file)
            .map_err(|e| Error::os(e, format!("cannot stat {}", root.display())))?
            .f_bsize;
        let file_block_bytes = u32::try_from(block_bytes).unwrap_or(u32::MAX);

        let disk = Disk::below(&stat);
        let fs_block_bytes = stat.stx_blksize.clamp(512, 1 << 20);
        let mut notes = Vec::new();
        let direct = if buffered {
            notes.push("page cache, as configured".to_owned());
            None
        } else {
            match try_direct(&trial, &stat)? {
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
fn try_direct(trial: &Trial, stat: &Statx) -> Result<Option<(u32, u32)>> {
    let context = |e| {
        let path = trial.path.display();
        Error::os(e, format!("cannot try direct I/O on {path}"))
    };
    let file = match rustix::fs::open(
        &trial.path,
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
    } else if trial.is_written {
        512
    } else {
        // A hole is read in any piece.
        max
    };
    let mut block = first;
    while block <= max {
        let mut buffer = Buffer::zeroed(block as usize)?;
        match rustix::io::pread(&file, &mut buffer[..], WRITTEN_AT + u64::from(block)) {
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
