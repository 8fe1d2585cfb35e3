// SPDX-License-Identifier: GPL-2.0 OR MIT
//! An engine in front of another one, which changes some of what that one does:
//! everything that a layer does not say is passed on, here and nowhere else.
//!
//! Only built with the feature `test-faults`, which no release has.

use std::sync::Arc;

use neonsan_api::{SnapshotName, VolumeName};

use crate::{
    Engine, EngineStatus, Limits, NodeNote, Result, SnapshotStat, Volume, VolumeSpec, VolumeStat,
};

/// What a layer changes.
pub trait Layer: Send + Sync {
    /// The engine behind it.
    fn inner(&self) -> &dyn Engine;

    /// What it does, for people.
    fn note(&self) -> &'static str;

    /// Puts itself in front of an open volume or snapshot.
    fn wrap(&self, volume: Arc<dyn Volume>) -> Result<Arc<dyn Volume>>;

    /// Identity of the volatile state, with its own.
    fn own_boot_id(&self) -> [u8; 16] {
        self.inner().boot_id()
    }

    /// What it adds to the health of the engine behind it.
    fn own_health(&self) -> Result<()> {
        Ok(())
    }

    /// What can be done with a volume through it.
    fn own_limits(&self, inner: Limits) -> Limits {
        inner
    }
}

impl<L: Layer> Engine for L {
    fn kind(&self) -> &'static str {
        self.inner().kind()
    }

    fn is_persistent(&self) -> bool {
        self.inner().is_persistent()
    }

    fn boot_id(&self) -> [u8; 16] {
        self.own_boot_id()
    }

    fn losses(&self) -> u64 {
        self.inner().losses()
    }

    fn stop(&self) -> Result<()> {
        self.inner().stop()
    }

    fn finish_notes(&self) {
        self.inner().finish_notes();
    }

    fn status(&self) -> Result<EngineStatus> {
        let mut status = self.inner().status()?;
        status.notes.push(self.note().to_owned());
        Ok(status)
    }

    fn health(&self) -> Result<Vec<String>> {
        self.own_health()?;
        self.inner().health()
    }

    fn create(&self, name: &VolumeName, spec: &VolumeSpec) -> Result<VolumeStat> {
        self.inner().create(name, spec)
    }

    fn list(&self) -> Result<Vec<VolumeName>> {
        self.inner().list()
    }

    fn stat(&self, name: &VolumeName) -> Result<VolumeStat> {
        self.inner().stat(name)
    }

    fn exists(&self, name: &VolumeName) -> Result<bool> {
        self.inner().exists(name)
    }

    fn limits(&self, stat: &VolumeStat) -> Limits {
        self.own_limits(self.inner().limits(stat))
    }

    fn open(&self, name: &VolumeName) -> Result<Arc<dyn Volume>> {
        self.wrap(self.inner().open(name)?)
    }

    fn is_shared(&self) -> bool {
        self.inner().is_shared()
    }

    fn take(&self, name: &VolumeName) -> Result<Arc<dyn Volume>> {
        self.wrap(self.inner().take(name)?)
    }

    fn is_in_other_hands(&self, name: &VolumeName) -> Result<bool> {
        self.inner().is_in_other_hands(name)
    }

    fn load_record(&self, name: &VolumeName) -> Result<Option<Vec<u8>>> {
        self.inner().load_record(name)
    }

    fn save_record(&self, name: &VolumeName, record: &[u8]) -> Result<()> {
        self.inner().save_record(name, record)
    }

    fn same_identity(&self, name: &VolumeName, id: &[u8; 16]) -> Vec<String> {
        self.inner().same_identity(name, id)
    }

    fn adopt(&self, name: &VolumeName) -> Result<VolumeStat> {
        self.inner().adopt(name)
    }

    fn delete(&self, name: &VolumeName) -> Result<()> {
        self.inner().delete(name)
    }

    fn snapshots(&self, name: &VolumeName) -> Result<Vec<SnapshotStat>> {
        self.inner().snapshots(name)
    }

    fn open_snapshot(&self, name: &SnapshotName) -> Result<Arc<dyn Volume>> {
        self.wrap(self.inner().open_snapshot(name)?)
    }

    fn delete_snapshot(&self, name: &SnapshotName) -> Result<()> {
        self.inner().delete_snapshot(name)
    }

    fn roll_back(&self, name: &SnapshotName, record: &[u8]) -> Result<()> {
        self.inner().roll_back(name, record)
    }

    fn clone_snapshot(&self, from: &SnapshotName, to: &VolumeName) -> Result<VolumeStat> {
        self.inner().clone_snapshot(from, to)
    }

    fn children(&self, name: &SnapshotName) -> Result<Vec<VolumeName>> {
        self.inner().children(name)
    }

    fn tell_node(&self, note: &NodeNote) -> Result<()> {
        self.inner().tell_node(note)
    }

    fn told_nodes(&self) -> Result<Vec<NodeNote>> {
        self.inner().told_nodes()
    }

    fn forget_node(&self, note: &NodeNote) -> Result<()> {
        self.inner().forget_node(note)
    }
}
