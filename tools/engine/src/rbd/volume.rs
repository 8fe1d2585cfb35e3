// SPDX-License-Identifier: GPL-2.0 OR MIT
//! An open volume of the engine rbd.

use std::sync::mpsc::{self, Sender};
use std::sync::Arc;
use std::thread;

use neonsan_api::{SnapshotName, VolumeName};

use super::attributes::Attributes;
use super::queue::{RbdQueue, Shape};
use super::registry::Registry;
use super::snapshot::{find_snapshot, parent_of};
use super::term::{keep, Term};
use crate::interface::{check_size, snapshot_exists};
use crate::{Error, ErrorKind, Limits, Queue, Result, SnapshotStat, Volume, VolumeStat};

/// Longest read or write.
const MAX_IO_BYTES: u32 = 1 << 20;

/// Longest discard: a few objects, so that one request takes a bounded time.
const MAX_DISCARD_BYTES: u32 = 64 << 20;

/// Longest write-zeroes, which may have to be written out.
const MAX_WRITE_ZEROES_BYTES: u32 = 16 << 20;

/// What is smaller than this is overwritten with zeroes and frees nothing.
const DISCARD_GRANULARITY: u32 = 64 * 1024;

/// What can be done with a volume whose objects have this size.
pub(super) fn limits(object_bytes: u64, logical_block_size: u32) -> Limits {
    let object_bytes = u32::try_from(object_bytes).unwrap_or(1 << 31);
    Limits {
        volatile_cache: false,
        fua: true,
        max_io_bytes: MAX_IO_BYTES,
        io_min_bytes: logical_block_size,
        io_opt_bytes: object_bytes,
        discard_granularity: DISCARD_GRANULARITY,
        max_discard_bytes: MAX_DISCARD_BYTES,
        max_write_zeroes_bytes: MAX_WRITE_ZEROES_BYTES,
        // A write within an object is one transaction of its OSDs.
        atomic_min_bytes: logical_block_size,
        atomic_max_bytes: MAX_IO_BYTES.min(object_bytes),
        rotational: false,
    }
}

/// An open volume. Its end is carried out by the thread that keeps the term.
pub(super) struct RbdVolume {
    name: VolumeName,
    registry: Arc<Registry>,
    /// Present until the volume is dropped.
    term: Option<Arc<Term>>,
    closing: Sender<Arc<Term>>,
    attributes: Attributes,
    object_bytes: u64,
    /// Its size is written by `resize`, and by the thread that keeps the term
    /// when somebody else has changed it.
    shape: Arc<Shape>,
}

impl RbdVolume {
    /// A volume whose term has begun.
    pub(super) fn new(
        name: &VolumeName,
        registry: &Arc<Registry>,
        term: Term,
        attributes: Attributes,
    ) -> Result<Self> {
        let (size_bytes, object_bytes) = term.image.sizes()?;
        let term = Arc::new(term);
        let weak = Arc::downgrade(&term);
        let shape = Arc::new(Shape::new(0, attributes.logical_block_size, None));
        shape.set_size(shape.whole_blocks(size_bytes));
        let for_thread = Arc::clone(&shape);
        let (closing, to_close) = mpsc::channel();
        thread::Builder::new()
            .name("rbd-keeper".to_owned())
            .spawn(move || keep(&weak, &for_thread, &to_close))
            .map_err(|e| Error::os(e, "cannot start a thread"))?;
        registry.begun(name, &term);
        Ok(Self {
            name: name.clone(),
            registry: Arc::clone(registry),
            term: Some(term),
            closing,
            attributes,
            object_bytes,
            shape,
        })
    }

    /// The term, which is there as long as anybody can call this.
    fn term(&self) -> Result<&Arc<Term>> {
        self.term
            .as_ref()
            .ok_or_else(|| Error::new(ErrorKind::NotOwner, "the volume is closed"))
    }

    /// The term, for what only the owner may do.
    fn owned(&self) -> Result<&Arc<Term>> {
        let term = self.term()?;
        if term.ownership.is_lost() {
            return Err(term.ownership.error());
        }
        Ok(term)
    }
}

impl Drop for RbdVolume {
    fn drop(&mut self) {
        self.registry.closing(&self.name);
        if let Some(term) = self.term.take() {
            if let Err(mpsc::SendError(term)) = self.closing.send(term) {
                // The thread has ended, so it is for this one to block.
                drop(term);
            }
        }
    }
}

impl Volume for RbdVolume {
    fn stat(&self) -> VolumeStat {
        VolumeStat {
            id: self.attributes.id,
            size_bytes: self.size_bytes(),
            logical_block_size: self.attributes.logical_block_size,
            physical_block_size: self.attributes.physical_block_size,
            created_unix_s: self.attributes.created_unix_s,
            // Counting looks at every object, and whoever takes a volume from a
            // node that died has no time for that.
            allocated_bytes: 0,
            parent: self.term().ok().and_then(|term| parent_of(&term.image)),
        }
    }

    fn size_bytes(&self) -> u64 {
        self.shape.size_bytes()
    }

    fn is_lost(&self) -> bool {
        self.term.as_ref().is_none_or(|t| t.ownership.is_lost())
    }

    fn limits(&self) -> Limits {
        limits(self.object_bytes, self.attributes.logical_block_size)
    }

    fn resize(&self, size_bytes: u64) -> Result<()> {
        check_size(size_bytes, self.attributes.logical_block_size)?;
        let _resizing = self.shape.resizing();
        if size_bytes < self.size_bytes() && self.shape.queues() > 0 {
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "the volume {} is in use and cannot be made smaller",
                    self.name
                ),
            ));
        }
        let term = self.owned()?;
        term.ownership.settle(term.image.resize(size_bytes))?;
        self.shape.set_size(size_bytes);
        Ok(())
    }

    fn create_snapshot(&self, name: &SnapshotName) -> Result<SnapshotStat> {
        let term = self.owned()?;
        term.ownership
            .settle(term.image.create_snapshot(name.snapshot()))
            .map_err(|error| match error.kind() {
                ErrorKind::AlreadyExists => snapshot_exists(name),
                _ => error,
            })?;
        let made = find_snapshot(&term.image, name)?;
        Ok(made.stat(name, &self.attributes))
    }

    fn flatten(&self) -> Result<()> {
        let term = self.owned()?;
        match term.image.parent()? {
            Some(_) => term.ownership.settle(term.image.flatten()),
            None => Ok(()),
        }
    }

    fn queue(self: Arc<Self>, depth: u32) -> Result<Box<dyn Queue>> {
        let term = Arc::clone(self.term()?);
        let shape = Arc::clone(&self.shape);
        let limits = self.limits();
        Ok(Box::new(RbdQueue::new(term, self, shape, limits, depth)?))
    }
}
