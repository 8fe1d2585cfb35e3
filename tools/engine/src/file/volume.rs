// SPDX-License-Identifier: GPL-2.0 OR MIT
//! An open volume of the file engine: what its queues share.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use neonsan_api::SnapshotName;
use rustix::fs::{fallocate, FallocateFlags};

use super::durability::Durability;
use super::freeze::Freeze;
use super::locks::RangeLocks;
use super::meta::Meta;
use super::probe::Storage;
use super::queue::FileQueue;
use super::settle::Superblock;
use super::unsynced::{Mark, Unsynced};
use super::{data_len, snapshots};
use crate::error::{SystemError, Written as _};
use crate::interface::{check_size, snapshot_is_read_only};
use crate::{
    Buffer, Error, ErrorKind, Limits, Queue, Result, SnapshotStat, Volume, VolumeStat, BUFFER_ALIGN,
};

/// Longest read or write.
const MAX_IO_BYTES: u32 = 1 << 20;

/// Longest discard and write-zeroes where the file system does them itself.
const MAX_FALLOCATE_BYTES: u32 = 1 << 30;

/// Longest write-zeroes that has to be written out.
const MAX_WRITTEN_ZEROES_BYTES: u32 = 16 << 20;

/// How long a snapshot waits for the writes that are under way.
const FREEZE_PATIENCE: Duration = Duration::from_secs(20);

/// Piece in which zeroes are written out.
pub(super) const ZERO_PIECE_BYTES: usize = 256 * 1024;

/// An open volume.
///
/// # Invariants
///
/// * `data` is locked by `flock` as long as it is open (see [`super`]).
/// * `data` is `data_len(size_bytes)` long at least, and reads as zeroes from
///   `size_bytes` to there: a volume that grows must not show old bytes.
pub(super) struct FileVolume {
    /// For messages.
    pub(super) name: String,
    /// It is this snapshot, which nobody changes.
    snapshot: Option<SnapshotName>,
    dir: PathBuf,
    data: File,
    pub(super) storage: Arc<Storage>,
    /// Held while the volume is resized or a snapshot of it is taken. Before `meta`.
    changing: Mutex<()>,
    /// What the volume is. Written by `resize`, under `changing`; locked for a look.
    meta: Mutex<Meta>,
    pub(super) logical_block_size: u32,
    /// Read by every request; written by `resize` under `changing`.
    size_bytes: AtomicU64,
    /// Queues there are.
    pub(super) queues: AtomicUsize,
    /// Holds writes back while a snapshot is taken.
    pub(super) freeze: Freeze,
    /// Present if the volume's blocks are smaller than the storage's.
    pub(super) locks: Option<RangeLocks>,
    /// Zeroes for those file systems which cannot make them.
    pub(super) zeroes: Buffer,
    /// Whether it may be said that what was written is durable.
    pub(super) durability: Arc<Durability>,
    /// Where its data is.
    pub(super) superblock: Superblock,
    /// The count of losses under which its last queue was made, or else it was opened.
    joined: AtomicU64,
    /// It has answered changes that are not known to be synced.
    pub(super) unsynced: Mark,
    all_unsynced: Arc<Unsynced>,
}

/// What all volumes of an engine share.
#[derive(Clone)]
pub(super) struct Common {
    pub(super) storage: Arc<Storage>,
    pub(super) durability: Arc<Durability>,
    pub(super) unsynced: Arc<Unsynced>,
}

/// Refuses a data file which is shorter than its volume.
pub(super) fn check_len(name: &str, path: &Path, len: u64, meta: &Meta) -> Result<()> {
    let expected = data_len(meta.size_bytes);
    if len >= expected {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Corrupt,
        format!(
            "the volume {name} is damaged: {} has {len} bytes where {expected} should be \
             (was it truncated or not copied whole?)",
            path.display()
        ),
    ))
}

impl FileVolume {
    /// Checks and mends the data file: `data` is open and locked.
    pub(super) fn open(
        name: &str,
        dir: PathBuf,
        data: File,
        meta: Meta,
        common: Common,
    ) -> Result<Self> {
        let size_bytes = meta.size_bytes;
        let volume = Self::new(name, None, dir, data, meta, common)?;
        let context = |e| Error::os(e, format!("cannot prepare the data of {name}"));
        let expected = data_len(size_bytes);
        if volume.data.metadata().map_err(context)?.len() > expected {
            // A resize which a crash interrupted. What is too much is nothing
            // that was ever promised.
            volume.data.set_len(expected).map_err(context)?;
        }
        volume.zero_tail(size_bytes)?;
        Ok(volume)
    }

    /// Checks the data file of a volume or, if one is named, of a snapshot.
    pub(super) fn new(
        name: &str,
        snapshot: Option<SnapshotName>,
        dir: PathBuf,
        data: File,
        meta: Meta,
        common: Common,
    ) -> Result<Self> {
        let Common {
            storage,
            durability,
            unsynced,
        } = common;
        let context = |e| Error::os(e, format!("cannot prepare the data of {name}"));
        let len = data.metadata().map_err(context)?.len();
        check_len(name, &dir.join("data"), len, &meta)?;
        Ok(Self {
            name: name.to_owned(),
            snapshot,
            unsynced: unsynced.opened(&dir),
            all_unsynced: unsynced,
            superblock: Superblock::of(&dir),
            dir,
            data,
            logical_block_size: meta.logical_block_size,
            size_bytes: AtomicU64::new(meta.size_bytes),
            locks: (storage.block_bytes > meta.logical_block_size).then(RangeLocks::default),
            changing: Mutex::default(),
            meta: Mutex::new(meta),
            queues: AtomicUsize::new(0),
            storage,
            zeroes: Buffer::zeroed(ZERO_PIECE_BYTES)?,
            freeze: Freeze::default(),
            joined: AtomicU64::new(durability.losses()),
            durability,
        })
    }

    /// Refuses to change a snapshot.
    pub(super) fn check_changeable(&self) -> Result<()> {
        match &self.snapshot {
            Some(name) => Err(snapshot_is_read_only(name)),
            None => Ok(()),
        }
    }

    fn meta(&self) -> MutexGuard<'_, Meta> {
        self.meta.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn fd(&self) -> RawFd {
        self.data.as_raw_fd()
    }

    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    /// A queue is made: the count of losses that it belongs to.
    pub(super) fn join(&self) -> u64 {
        let joined = self.durability.join();
        self.joined.store(joined, Ordering::Release);
        joined
    }

    /// Puts the data file on stable storage. The kernel may tell this call, and
    /// nobody after it, that writes of clients are lost.
    fn sync_data(&self) -> std::result::Result<(), SystemError> {
        let asking = self.durability.settling.ask(&self.superblock);
        let synced = self.data.sync_all();
        if let Err(error) = &synced {
            self.durability
                .lose(&format!("cannot sync {}: {error}", self.name));
        }
        self.durability.settling.told(asking);
        synced.written()
    }

    /// Makes the data file as long as a volume of this size needs it.
    fn set_len(&self, size_bytes: u64) -> std::result::Result<(), SystemError> {
        self.data.set_len(data_len(size_bytes)).written()
    }

    /// Makes the bytes between the end of the volume and the end of its file
    /// zeroes. Only while there are no queues.
    fn zero_tail(&self, size_bytes: u64) -> Result<()> {
        let tail = data_len(size_bytes) - size_bytes;
        if tail == 0 {
            return Ok(());
        }
        let context =
            |e: SystemError| Error::os(e, format!("cannot prepare the end of {}", self.name));
        if self.storage.punch_hole {
            return fallocate(
                &self.data,
                FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                size_bytes,
                tail,
            )
            .written()
            .map_err(context);
        }
        // The last block of the file, by hand.
        let start = data_len(size_bytes) - BUFFER_ALIGN as u64;
        let mut block = Buffer::zeroed(BUFFER_ALIGN)?;
        let read =
            rustix::io::pread(&self.data, &mut block[..], start).map_err(|e| context(e.into()))?;
        let written = {
            block[(size_bytes - start) as usize..].fill(0);
            rustix::io::pwrite(&self.data, &block[..], start)
                .written()
                .map_err(context)?
        };
        if read != BUFFER_ALIGN || written != BUFFER_ALIGN {
            return Err(Error::new(
                ErrorKind::Io,
                format!("the last block of {} could not be prepared", self.name),
            ));
        }
        Ok(())
    }
}

/// What can be done with a volume of this logical block size.
pub(super) fn limits(storage: &Storage, logical: u32) -> Limits {
    let fallocated_zeroes = storage.punch_hole || storage.zero_range;
    let (atomic_min, atomic_max) = storage.atomic_bytes;
    // A write which is changed to whole blocks of the storage is not atomic.
    let atomic_max = if storage.block_bytes <= logical && atomic_max >= logical {
        atomic_max.min(MAX_IO_BYTES)
    } else {
        0
    };
    Limits {
        volatile_cache: true,
        fua: true,
        max_io_bytes: MAX_IO_BYTES,
        io_min_bytes: storage.block_bytes.max(logical),
        io_opt_bytes: storage.fs_block_bytes.max(64 * 1024),
        discard_granularity: if storage.punch_hole {
            storage.fs_block_bytes.next_power_of_two().max(logical)
        } else {
            0
        },
        max_discard_bytes: if storage.punch_hole {
            MAX_FALLOCATE_BYTES
        } else {
            0
        },
        max_write_zeroes_bytes: if fallocated_zeroes {
            MAX_FALLOCATE_BYTES
        } else {
            MAX_WRITTEN_ZEROES_BYTES
        },
        atomic_min_bytes: if atomic_max > 0 {
            atomic_min.max(logical)
        } else {
            0
        },
        atomic_max_bytes: atomic_max,
        rotational: storage.rotational,
    }
}

impl Volume for FileVolume {
    fn stat(&self) -> VolumeStat {
        let meta = self.meta();
        match self.data.metadata() {
            Ok(data) => meta.stat(&data),
            Err(error) => {
                // Nothing but a broken kernel fails here; the rest is right.
                tracing::warn!(volume = %self.name, %error, "cannot stat the data");
                VolumeStat {
                    id: meta.id,
                    size_bytes: meta.size_bytes,
                    logical_block_size: meta.logical_block_size,
                    physical_block_size: meta.physical_block_size,
                    created_unix_s: meta.created_unix_s,
                    allocated_bytes: 0,
                    parent: None,
                }
            }
        }
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
    }

    fn limits(&self) -> Limits {
        limits(&self.storage, self.logical_block_size)
    }

    fn resize(&self, size_bytes: u64) -> Result<()> {
        self.durability.noted(self.try_resize(size_bytes))
    }

    fn create_snapshot(&self, name: &SnapshotName) -> Result<SnapshotStat> {
        self.durability.noted(self.try_create_snapshot(name))
    }

    /// Clones depend on nothing from the start.
    fn flatten(&self) -> Result<()> {
        self.check_changeable()
    }

    fn queue(self: Arc<Self>, depth: u32) -> Result<Box<dyn Queue>> {
        Ok(Box::new(FileQueue::new(self, depth)?))
    }
}

impl FileVolume {
    fn try_resize(&self, size_bytes: u64) -> Result<()> {
        self.check_changeable()?;
        check_size(size_bytes, self.logical_block_size)?;
        let context = |e| Error::os(e, format!("cannot resize {}", self.name));
        let changing = self.changing.lock();
        let _changing = changing.unwrap_or_else(PoisonError::into_inner);
        let meta = self.meta().clone();
        let resized = Meta { size_bytes, ..meta };
        if size_bytes >= meta.size_bytes {
            // The file first: a longer file than the volume is harmless.
            self.set_len(size_bytes).map_err(context)?;
            self.sync_data().map_err(context)?;
            resized.store(&self.dir)?;
        } else {
            if self.queues.load(Ordering::Acquire) > 0 {
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!(
                        "the volume {} is in use and cannot be made smaller",
                        self.name
                    ),
                ));
            }
            resized.store(&self.dir)?;
            self.set_len(size_bytes).map_err(context)?;
            self.zero_tail(size_bytes)?;
            self.sync_data().map_err(context)?;
        }
        *self.meta() = resized;
        self.size_bytes.store(size_bytes, Ordering::Release);
        Ok(())
    }

    fn try_create_snapshot(&self, name: &SnapshotName) -> Result<SnapshotStat> {
        self.check_changeable()?;
        self.storage.check_reflink()?;
        // Nobody resizes it meanwhile. If writes do not end this takes long: nobody queues for it.
        let _changing = match self.changing.try_lock() {
            Ok(changing) => changing,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!(
                        "another snapshot of the volume {} is being taken, or its size is being \
                         changed: try again when that is done",
                        self.name
                    ),
                ));
            }
        };
        let meta = self.meta().clone();
        // Until somebody uses the volume who was told of it.
        self.durability
            .check(self.joined.load(Ordering::Acquire), &self.name)?;
        snapshots::create(&self.dir, name, &meta, &self.data, || {
            self.freeze.hold(FREEZE_PATIENCE)
        })
    }
}

impl Drop for FileVolume {
    fn drop(&mut self) {
        self.all_unsynced.closed(&self.dir);
    }
}
