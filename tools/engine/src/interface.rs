// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The interface of engines, and the checks which are the same for all.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use neonsan_api::{SnapshotName, VolumeName};

use crate::{Buffer, Error, ErrorKind, Result};

/// What a volume is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeSpec {
    /// Size; a multiple of the logical block size, not 0.
    pub size_bytes: u64,
    /// A power of two from 512 to 4096.
    pub logical_block_size: u32,
    /// A power of two from the logical block size to 65536; `None`: what the
    /// engine guarantees not to tear, and at least the logical block size.
    pub physical_block_size: Option<u32>,
}

/// What is known of a volume without opening it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeStat {
    /// Random, given at creation.
    pub id: [u8; 16],
    /// Size.
    pub size_bytes: u64,
    /// Unit of addressing.
    pub logical_block_size: u32,
    /// What the volume says it does not tear.
    pub physical_block_size: u32,
    /// Creation time in seconds since 1970.
    pub created_unix_s: u64,
    /// Bytes allocated for it.
    pub allocated_bytes: u64,
    /// The snapshot that it was cloned from, as long as it needs that.
    pub parent: Option<SnapshotName>,
}

/// What is known of a snapshot: the content of a volume at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotStat {
    /// `pool/volume@snapshot`.
    pub name: SnapshotName,
    /// Its own, given at creation; another one than its volume's.
    pub id: [u8; 16],
    /// Size of the volume at that moment.
    pub size_bytes: u64,
    /// That moment, in seconds since 1970.
    pub created_unix_s: u64,
    /// What is wrong with it, for people; of a damaged snapshot only the name
    /// and this are known, and the rest is zero.
    pub damage: Option<String>,
}

impl SnapshotStat {
    /// A snapshot of which only the name is known, and what is wrong with it.
    pub(crate) fn damaged(name: SnapshotName, damage: String) -> Self {
        Self {
            name,
            id: [0; 16],
            size_bytes: 0,
            created_unix_s: 0,
            damage: Some(damage),
        }
    }
}

/// What a node has told the others of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeNote {
    /// Which node: one note each.
    pub key: String,
    /// What it says; the engine does not look into it.
    pub text: String,
}

/// State of an engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineStatus {
    /// Bytes it can store in all, if there is a bound.
    pub capacity_bytes: Option<u64>,
    /// Bytes it can still store.
    pub available_bytes: Option<u64>,
    /// Largest aligned block that it guarantees never to tear.
    pub untorn_bytes: u32,
    /// How it reaches its storage, for people.
    pub notes: Vec<String>,
}

/// What an engine can do with one volume. Sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Completed writes may be lost with power until a flush.
    pub volatile_cache: bool,
    /// `fua` is honoured.
    pub fua: bool,
    /// Longest read or write.
    pub max_io_bytes: u32,
    /// Smallest request without a penalty.
    pub io_min_bytes: u32,
    /// Best size of a request; 0: unknown.
    pub io_opt_bytes: u32,
    /// Unit in which discards free space; 0: no discard.
    pub discard_granularity: u32,
    /// Longest discard; 0: no discard.
    pub max_discard_bytes: u32,
    /// Longest write-zeroes.
    pub max_write_zeroes_bytes: u32,
    /// Smallest atomic write; 0: none.
    pub atomic_min_bytes: u32,
    /// Largest atomic write; 0: none. Atomic writes have a power of two as
    /// their length and are aligned to it, so they cross no boundary.
    pub atomic_max_bytes: u32,
    /// Seeks cost.
    pub rotational: bool,
}

/// One operation.
#[derive(Debug)]
pub enum Op {
    /// Fill `buffer` from `offset`.
    Read {
        /// First byte.
        offset: u64,
        /// Its length is that of the range.
        buffer: Buffer,
    },
    /// Write `buffer` to `offset`.
    Write {
        /// First byte.
        offset: u64,
        /// The data.
        buffer: Buffer,
        /// Complete only when it is on stable storage.
        fua: bool,
        /// After a crash all of it or none of it is there.
        atomic: bool,
    },
    /// Put all completed writes on stable storage.
    Flush,
    /// The range is no longer needed; it reads as zeroes afterwards.
    Discard {
        /// First byte.
        offset: u64,
        /// Length of the range.
        len: u32,
    },
    /// The range reads as zeroes afterwards.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Length of the range.
        len: u32,
        /// Complete only when it is on stable storage.
        fua: bool,
        /// Keep the space allocated.
        no_unmap: bool,
    },
}

impl Op {
    /// The range it touches: first byte and length. A flush has none.
    pub fn range(&self) -> Option<(u64, u64)> {
        match self {
            Op::Read { offset, buffer } | Op::Write { offset, buffer, .. } => {
                Some((*offset, buffer.len() as u64))
            }
            Op::Discard { offset, len } | Op::WriteZeroes { offset, len, .. } => {
                Some((*offset, u64::from(*len)))
            }
            Op::Flush => None,
        }
    }

    /// Takes the buffer out, to hand it back.
    pub fn into_buffer(self) -> Option<Buffer> {
        match self {
            Op::Read { buffer, .. } | Op::Write { buffer, .. } => Some(buffer),
            Op::Flush | Op::Discard { .. } | Op::WriteZeroes { .. } => None,
        }
    }

    /// The checks every engine makes before it begins.
    pub fn check(&self, size_bytes: u64, logical_block_size: u32, limits: &Limits) -> Result<()> {
        let Some((offset, len)) = self.range() else {
            return Ok(());
        };
        let block = u64::from(logical_block_size);
        if offset % block != 0 || len % block != 0 {
            return Err(Error::new(
                ErrorKind::Misaligned,
                format!("{len} bytes at {offset} are not whole blocks of {block} bytes"),
            ));
        }
        if len == 0 || offset.checked_add(len).is_none_or(|end| end > size_bytes) {
            return Err(Error::new(
                ErrorKind::OutOfRange,
                format!("{len} bytes at {offset} are not within the volume's {size_bytes} bytes"),
            ));
        }
        let max = match self {
            Op::Read { .. } | Op::Write { .. } => limits.max_io_bytes,
            Op::Discard { .. } => limits.max_discard_bytes,
            Op::WriteZeroes { .. } => limits.max_write_zeroes_bytes,
            Op::Flush => u32::MAX,
        };
        if max == 0 {
            return Err(Error::new(
                ErrorKind::Unsupported,
                "the engine cannot discard",
            ));
        }
        if len > u64::from(max) {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("{len} bytes are more than the limit of {max} bytes"),
            ));
        }
        if let Op::Write { atomic: true, .. } = self {
            let (min, max) = (limits.atomic_min_bytes, limits.atomic_max_bytes);
            if max == 0
                || !len.is_power_of_two()
                || offset % len != 0
                || !(u64::from(min)..=u64::from(max)).contains(&len)
            {
                return Err(Error::new(
                    ErrorKind::AtomicLimit,
                    format!(
                        "{len} bytes at {offset} cannot be written atomically \
                         (a power of two from {min} to {max} bytes, aligned to itself, can)"
                    ),
                ));
            }
        }
        Ok(())
    }
}

/// An operation with the caller's mark, which comes back with its completion.
#[derive(Debug)]
pub struct Request {
    /// Whatever the caller tells its requests apart by.
    pub token: u64,
    /// What to do.
    pub op: Op,
}

/// The end of a request.
#[derive(Debug)]
pub struct Completion {
    /// The request's mark.
    pub token: u64,
    /// How it ended.
    pub result: Result<()>,
    /// The request's buffer: the data that was read if it was a read and all
    /// went well; with any content if not.
    pub buffer: Option<Buffer>,
}

/// Does I/O on one open volume for one thread: `submit` as often as there are
/// requests, then `kick`, then `reap`, and again when `event_fd` is readable.
///
/// Dropping a queue with requests in flight waits for them, since their
/// memory belongs to the kernel until they end.
pub trait Queue: Send {
    /// Takes a request. Never blocks; whatever happens is told by its
    /// completion, also when the request is wrong.
    fn submit(&mut self, request: Request);

    /// Begins all that was submitted since the last call; one system call for
    /// many requests. If the system takes no more for the moment the rest
    /// begins with a later call: make one now and then while requests are in
    /// flight.
    fn kick(&mut self);

    /// Appends the completions there are. Never blocks.
    fn reap(&mut self, completions: &mut Vec<Completion>);

    /// Readable whenever [`Queue::reap`] may have something to give. `None`:
    /// requests complete during `kick`, and there is nothing to wait for.
    fn event_fd(&self) -> Option<BorrowedFd<'_>>;

    /// Requests taken and not yet handed back by `reap`.
    fn in_flight(&self) -> usize;
}

/// A volume, open. It is closed when the last reference and the last queue
/// are gone.
pub trait Volume: Send + Sync {
    /// Size, block sizes, identity. Blocks for a short time; what is allocated
    /// is 0 where counting would take longer.
    fn stat(&self) -> VolumeStat;

    /// Its size now. Never blocks.
    fn size_bytes(&self) -> u64 {
        self.stat().size_bytes
    }

    /// Another node has taken the volume: every request ends with
    /// [`ErrorKind::NotOwner`], and all that is left is to close it. It never
    /// comes back. Of a snapshot: the storage refuses this node. Never blocks.
    fn is_lost(&self) -> bool {
        false
    }

    /// What can be done with it. Constant while it is open.
    fn limits(&self) -> Limits;

    /// Changes the size, durably. Blocks.
    ///
    /// # Errors
    ///
    /// Growing works at any time. Shrinking is refused with
    /// [`ErrorKind::Busy`] while there is a queue.
    fn resize(&self, size_bytes: u64) -> Result<()>;

    /// Keeps the content of this moment as a snapshot, durably, while requests
    /// go on. Changing requests wait meanwhile. Blocks.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::AlreadyExists`]; [`ErrorKind::Unsupported`] where the
    /// storage cannot, with what to do.
    fn create_snapshot(&self, name: &SnapshotName) -> Result<SnapshotStat>;

    /// Ends a clone's dependence on its parent. Nothing to do for a volume
    /// without one. Blocks, for as long as copying takes.
    fn flatten(&self) -> Result<()>;

    /// Makes a queue for at most `depth` requests at a time; further ones wait
    /// inside it. Blocks for a short time.
    fn queue(self: Arc<Self>, depth: u32) -> Result<Box<dyn Queue>>;
}

/// Keeps volumes. All methods block: they are for threads that may.
pub trait Engine: Send + Sync {
    /// `mem`, `file`, `rbd`.
    fn kind(&self) -> &'static str;

    /// Whether volumes outlive the process.
    fn is_persistent(&self) -> bool;

    /// Identity of its volatile state: another one whenever completed but
    /// unflushed writes may have been lost since it was last the same. It may
    /// change while the engine lives. A queue goes with what this says when the
    /// queue has been made: once it says something else, the queue completes no
    /// flush and no change with FUA with success. Never blocks.
    fn boot_id(&self) -> [u8; 16];

    /// How often it changed for a loss since the engine was opened. Never blocks.
    fn losses(&self) -> u64 {
        0
    }

    /// Puts everything on stable storage that was completed, and notes that for the
    /// next process, so that it begins with this boot id whatever becomes of the
    /// storage's caches. The last call: no queue works any more. Blocks as long as
    /// the storage takes, which may be for ever.
    ///
    /// # Errors
    ///
    /// When something could not be synced, or that could not be noted: then the
    /// next process finds out for itself what may be lost. If it is this one that
    /// knows, that is noted by then, as by [`Self::finish_notes`].
    fn stop(&self) -> Result<()> {
        Ok(())
    }

    /// For a process that ends without [`Self::stop`], since requests do not end: waits
    /// until the boot id in force is noted for the next process. Blocks as long as the
    /// storage takes, which may be for ever.
    fn finish_notes(&self) {}

    /// Its state now.
    fn status(&self) -> Result<EngineStatus>;

    /// Asks the storage below whether it does what it is there for, by doing a
    /// little of it. Gives what is wrong though it works, one sentence each.
    /// Blocks for as long as the storage takes, which may be for ever: whoever
    /// asks watches the time.
    ///
    /// # Errors
    ///
    /// The storage does not work.
    fn health(&self) -> Result<Vec<String>> {
        self.status().map(|_| Vec::new())
    }

    /// Makes a volume of zeroes. Afterwards it is there durably, or, after an
    /// error or a crash, not at all.
    fn create(&self, name: &VolumeName, spec: &VolumeSpec) -> Result<VolumeStat>;

    /// The names of all volumes, in no order. Damaged ones are listed too.
    fn list(&self) -> Result<Vec<VolumeName>>;

    /// What is known of a volume. May take long: it counts what is allocated.
    fn stat(&self, name: &VolumeName) -> Result<VolumeStat>;

    /// Whether there is a volume of this name, damaged or not. Takes a short
    /// time.
    fn exists(&self, name: &VolumeName) -> Result<bool> {
        match self.stat(name) {
            Ok(_) => Ok(true),
            Err(error) => match error.kind() {
                ErrorKind::NotFound => Ok(false),
                ErrorKind::Corrupt => Ok(true),
                _ => Err(error),
            },
        }
    }

    /// What could be done with the volume if it were opened now.
    fn limits(&self, stat: &VolumeStat) -> Limits;

    /// Opens a volume. Open it once and share it: a volume which is open,
    /// here or in another process, is [`ErrorKind::Busy`] (after the engine
    /// has waited for a process that is ending).
    fn open(&self, name: &VolumeName) -> Result<Arc<dyn Volume>>;

    /// Whether other nodes can have the same volumes.
    fn is_shared(&self) -> bool {
        false
    }

    /// Opens a volume though another node may have it open: takes it from
    /// that node first. When this returns, nothing that the other node has
    /// begun or will begin can change or read what this one does with the
    /// volume. Only for [shared](Engine::is_shared) engines; others open.
    fn take(&self, name: &VolumeName) -> Result<Arc<dyn Volume>> {
        self.open(name)
    }

    /// Whether another node has the volume open and seems to be alive.
    fn is_in_other_hands(&self, _name: &VolumeName) -> Result<bool> {
        Ok(false)
    }

    /// The record that was saved last beside the volume; `None` if there
    /// never was one.
    fn load_record(&self, name: &VolumeName) -> Result<Option<Vec<u8>>>;

    /// Saves a record beside the volume, as durable as its data: of the old
    /// one and the new one a crash leaves one whole. It is the node's own, at
    /// most [`MAX_RECORD_BYTES`] long, and goes with the volume. One call at a
    /// time for each volume; the volume may be open.
    fn save_record(&self, name: &VolumeName, record: &[u8]) -> Result<()>;

    /// The other volumes, of this engine or of others that it knows of, that have the
    /// identity of this one, as a person finds them. Where there is one, neither is
    /// opened ([`ErrorKind::Conflict`]): one is a copy of the other.
    fn same_identity(&self, _name: &VolumeName, _id: &[u8; 16]) -> Vec<String> {
        Vec::new()
    }

    /// Gives a volume that is not open another identity, and its snapshots, and no
    /// record: it is a copy, and begins as a volume of its own. Durable.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Busy`] if it or one of its snapshots is open;
    /// [`ErrorKind::Unsupported`].
    fn adopt(&self, _name: &VolumeName) -> Result<VolumeStat> {
        Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "the engine {} gives no volume another identity",
                self.kind()
            ),
        ))
    }

    /// Deletes a volume that is not open.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Busy`] if it is open, or has snapshots, which are named.
    fn delete(&self, name: &VolumeName) -> Result<()>;

    /// The snapshots of a volume, the oldest first. Damaged ones are listed too
    /// (see [`SnapshotStat::damage`]).
    fn snapshots(&self, name: &VolumeName) -> Result<Vec<SnapshotStat>>;

    /// Opens a snapshot. It can be opened several times. Requests that would
    /// change it end with [`ErrorKind::NotPermitted`].
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchSnapshot`], also for a volume that is not there.
    fn open_snapshot(&self, name: &SnapshotName) -> Result<Arc<dyn Volume>>;

    /// Deletes a snapshot.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Busy`] if it is open, or has children, which are named.
    fn delete_snapshot(&self, name: &SnapshotName) -> Result<()>;

    /// Gives a volume that is not open the content and size of its snapshot,
    /// and this record. After a crash it has either, or is finished when the
    /// volume is opened or the call repeated.
    fn roll_back(&self, name: &SnapshotName, record: &[u8]) -> Result<()>;

    /// Makes a volume with the content of a snapshot, which shares with it what
    /// neither has changed. It is there durably, or not at all.
    fn clone_snapshot(&self, from: &SnapshotName, to: &VolumeName) -> Result<VolumeStat>;

    /// The volumes that were cloned from a snapshot and need it.
    fn children(&self, name: &SnapshotName) -> Result<Vec<VolumeName>>;

    /// Tells the other nodes of this one, or tells them anew. Only
    /// [shared](Engine::is_shared) engines do anything.
    fn tell_node(&self, _note: &NodeNote) -> Result<()> {
        Ok(())
    }

    /// What all nodes have told, in no order.
    fn told_nodes(&self) -> Result<Vec<NodeNote>> {
        Ok(Vec::new())
    }

    /// Forgets a node if it has not told anything else since.
    fn forget_node(&self, _note: &NodeNote) -> Result<()> {
        Ok(())
    }
}

/// Longest record beside a volume.
pub const MAX_RECORD_BYTES: usize = 16_000;

/// Smallest and largest logical block size.
const LOGICAL_BLOCK_SIZES: std::ops::RangeInclusive<u32> = 512..=4096;

/// Largest physical block size.
const MAX_PHYSICAL_BLOCK_SIZE: u32 = 64 * 1024;

impl VolumeSpec {
    /// Checks the rules and settles the physical block size for an engine
    /// that does not tear blocks of `untorn_bytes`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::BadSize`], with what would be right.
    pub fn settle(&self, untorn_bytes: u32) -> Result<u32> {
        let bad = |text: String| Err(Error::new(ErrorKind::BadSize, text));
        let logical = self.logical_block_size;
        if !logical.is_power_of_two() || !LOGICAL_BLOCK_SIZES.contains(&logical) {
            return bad(format!(
                "a logical block size of {logical} bytes is not possible: it is 512, 1024, 2048 or 4096"
            ));
        }
        let physical = self
            .physical_block_size
            .unwrap_or(untorn_bytes.clamp(logical, MAX_PHYSICAL_BLOCK_SIZE));
        if !physical.is_power_of_two() || physical < logical || physical > MAX_PHYSICAL_BLOCK_SIZE {
            return bad(format!(
                "a physical block size of {physical} bytes is not possible: it is a power of two \
                 from the logical block size ({logical}) to {MAX_PHYSICAL_BLOCK_SIZE}"
            ));
        }
        check_size(self.size_bytes, logical)?;
        Ok(physical)
    }
}

/// The refusal for a snapshot that is not there.
pub(crate) fn no_such_snapshot(name: &SnapshotName) -> Error {
    Error::new(
        ErrorKind::NoSuchSnapshot,
        format!("there is no snapshot {name}"),
    )
}

/// The refusal for a snapshot that is there already.
pub(crate) fn snapshot_exists(name: &SnapshotName) -> Error {
    Error::new(
        ErrorKind::AlreadyExists,
        format!("there is a snapshot {name} already"),
    )
}

/// The refusal to delete a volume with snapshots.
pub(crate) fn has_snapshots(name: &VolumeName, snapshots: &[&str]) -> Error {
    let snapshots = snapshots.join(", ");
    Error::new(
        ErrorKind::Busy,
        format!("the volume {name} has snapshots, which must be deleted first: {snapshots}"),
    )
}

/// The refusal of everything that would change a snapshot.
pub(crate) fn snapshot_is_read_only(name: &SnapshotName) -> Error {
    Error::new(
        ErrorKind::NotPermitted,
        format!("the snapshot {name} can only be read"),
    )
}

/// Checks the size of a volume.
pub(crate) fn check_size(size_bytes: u64, logical_block_size: u32) -> Result<()> {
    let block = u64::from(logical_block_size);
    // The end of the volume, rounded up to any block, is a file offset.
    let max = (i64::MAX as u64) - u64::from(MAX_PHYSICAL_BLOCK_SIZE);
    if size_bytes == 0 || size_bytes % block != 0 || size_bytes > max {
        return Err(Error::new(
            ErrorKind::BadSize,
            format!(
                "a size of {size_bytes} bytes is not possible: \
                 it is a multiple of {block} bytes, more than 0 and at most {max}"
            ),
        ));
    }
    Ok(())
}
