// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Snapshots of the engine rbd: Ceph's own, and images cloned from them.
//!
//! A snapshot is read through a client that all snapshots share: nothing is
//! locked and nobody needs to be fenced, since nobody can change it.
//!
//! Rolling back copies object by object. So that a node which dies meanwhile
//! leaves no mixture, the image's `neonsan_rollback` says to which snapshot it is
//! rolled back, from before the first object until after the last; a volume that
//! has it is finished by the node that opens it next.

use std::sync::Arc;
use std::thread;

use neonsan_api::{SnapshotName, VolumeName};

use super::attributes::{Attributes, ROLLBACK_KEY};
use super::queue::{RbdQueue, Served, Shape};
use super::sys::{Image, ImageSnapshot, Relative};
use super::term::Ownership;
use crate::interface::{no_such_snapshot, snapshot_is_read_only};
use crate::{Error, ErrorKind, Limits, Queue, Result, SnapshotStat, Volume, VolumeStat};

impl ImageSnapshot {
    /// What is known of it, as a snapshot of a volume with these attributes.
    pub(super) fn stat(&self, name: &SnapshotName, attributes: &Attributes) -> SnapshotStat {
        // Ceph's number makes it another identity than the volume's, and than
        // that of a snapshot made later with the same name.
        let id = u128::from_be_bytes(attributes.id) ^ (u128::from(self.id) << 32);
        SnapshotStat {
            name: name.clone(),
            id: id.to_be_bytes(),
            size_bytes: self.size_bytes,
            created_unix_s: self.created_unix_s,
            damage: None,
        }
    }
}

/// A snapshot of an open image.
pub(super) fn find_snapshot(image: &Image, name: &SnapshotName) -> Result<ImageSnapshot> {
    let mut snapshots = image.snapshots()?;
    let place = snapshots.iter().position(|s| s.name == name.snapshot());
    place
        .map(|place| snapshots.swap_remove(place))
        .ok_or_else(|| no_such_snapshot(name))
}

/// The snapshot that a clone needs, if it is one of a volume of the same pool.
pub(super) fn parent_of(image: &Image) -> Option<SnapshotName> {
    let parent = image.parent().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot get the parent of a volume");
        None
    });
    let (relative, snapshot) = parent?;
    let volume = VolumeName::new(&relative.namespace, &relative.image).ok()?;
    SnapshotName::new(&volume, &snapshot).ok()
}

/// The volume that a clone is, if it is one.
pub(super) fn volume_of(relative: &Relative, pool: &str) -> Option<VolumeName> {
    if relative.pool != pool {
        return None;
    }
    VolumeName::new(&relative.namespace, &relative.image).ok()
}

/// A clone in messages.
pub(super) fn show(relative: &Relative, pool: &str) -> String {
    match volume_of(relative, pool) {
        Some(volume) => volume.to_string(),
        None => format!(
            "the image {}/{}/{}",
            relative.pool, relative.namespace, relative.image
        ),
    }
}

/// Rolls back the image of a volume that this client owns.
pub(super) fn roll_back(image: &Image, snapshot: &str) -> Result<()> {
    image.set_metadata(ROLLBACK_KEY, snapshot)?;
    image.roll_back(snapshot)?;
    image.remove_metadata(ROLLBACK_KEY)
}

/// The snapshot to which the volume is being rolled back.
pub(super) fn pending_rollback(image: &Image) -> Result<Option<String>> {
    match image.metadata(ROLLBACK_KEY) {
        Ok(snapshot) => Ok(Some(snapshot)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// An open image at a snapshot.
struct Reading {
    image: Image,
    ownership: Arc<Ownership>,
}

impl Served for Reading {
    fn image(&self) -> &Image {
        &self.image
    }

    fn ownership(&self) -> &Arc<Ownership> {
        &self.ownership
    }
}

/// An open snapshot.
pub(super) struct RbdSnapshot {
    stat: SnapshotStat,
    attributes: Attributes,
    object_bytes: u64,
    shape: Arc<Shape>,
    /// Present until it is dropped.
    reading: Option<Arc<Reading>>,
}

impl RbdSnapshot {
    /// A snapshot whose image is open at it.
    pub(super) fn new(
        image: Image,
        stat: SnapshotStat,
        attributes: Attributes,
        ownership: Arc<Ownership>,
    ) -> Result<Self> {
        let (_, object_bytes) = image.sizes()?;
        let logical = attributes.logical_block_size;
        let shape = Shape::new(0, logical, Some(stat.name.clone()));
        shape.set_size(shape.whole_blocks(stat.size_bytes));
        Ok(Self {
            stat,
            attributes,
            object_bytes,
            shape: Arc::new(shape),
            reading: Some(Arc::new(Reading { image, ownership })),
        })
    }

    fn reading(&self) -> Result<&Arc<Reading>> {
        self.reading
            .as_ref()
            .ok_or_else(|| Error::new(ErrorKind::Io, "the snapshot is closed"))
    }

    fn refuse<T>(&self) -> Result<T> {
        Err(snapshot_is_read_only(&self.stat.name))
    }
}

impl Drop for RbdSnapshot {
    /// Closing blocks, and queues are gone by now: a thread does it.
    fn drop(&mut self) {
        let reading = self.reading.take();
        let spawned = thread::Builder::new()
            .name("rbd-close".to_owned())
            .spawn(move || drop(reading));
        if let Err(error) = spawned {
            tracing::warn!(%error, "no thread to close a snapshot");
        }
    }
}

impl Volume for RbdSnapshot {
    fn stat(&self) -> VolumeStat {
        VolumeStat {
            id: self.stat.id,
            size_bytes: self.shape.size_bytes(),
            logical_block_size: self.attributes.logical_block_size,
            physical_block_size: self.attributes.physical_block_size,
            created_unix_s: self.stat.created_unix_s,
            allocated_bytes: 0,
            parent: None,
        }
    }

    fn size_bytes(&self) -> u64 {
        self.shape.size_bytes()
    }

    /// The cluster refuses the client that all snapshots share.
    fn is_lost(&self) -> bool {
        self.reading.as_ref().is_none_or(|r| r.ownership.is_lost())
    }

    fn limits(&self) -> Limits {
        super::volume::limits(self.object_bytes, self.attributes.logical_block_size)
    }

    fn resize(&self, _size_bytes: u64) -> Result<()> {
        self.refuse()
    }

    fn create_snapshot(&self, _name: &SnapshotName) -> Result<SnapshotStat> {
        self.refuse()
    }

    fn flatten(&self) -> Result<()> {
        self.refuse()
    }

    fn queue(self: Arc<Self>, depth: u32) -> Result<Box<dyn Queue>> {
        let reading = Arc::clone(self.reading()?);
        let shape = Arc::clone(&self.shape);
        let limits = self.limits();
        let queue = RbdQueue::new(reading, self, shape, limits, depth)?;
        Ok(Box::new(queue))
    }
}
