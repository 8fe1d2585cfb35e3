// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The place of an engine that may not be open yet.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use neonsan_api::{SnapshotName, VolumeName};
use neonsan_engine::{
    Engine, EngineStatus, Error, ErrorKind, Limits, NodeNote, Result, SnapshotStat, Volume,
    VolumeSpec, VolumeStat,
};

/// What can be done with a volume of an engine that is not open: nothing. Nobody can
/// have opened one.
const NO_LIMITS: Limits = Limits {
    volatile_cache: false,
    fua: false,
    max_io_bytes: 0,
    io_min_bytes: 0,
    io_opt_bytes: 0,
    discard_granularity: 0,
    max_discard_bytes: 0,
    max_write_zeroes_bytes: 0,
    atomic_min_bytes: 0,
    atomic_max_bytes: 0,
    rotational: false,
};

/// Passes everything on to an engine once that is open, and refuses it with the
/// reason before. An engine that was opened stays open as long as the node runs.
pub struct StandIn {
    name: String,
    kind: &'static str,
    persistent: bool,
    shared: bool,
    /// Set once, by the supervisor.
    engine: OnceLock<(Arc<dyn Engine>, Instant)>,
    /// Why it could not be opened when that was tried last; `None`: not tried yet.
    /// Written by the supervisor.
    reason: Mutex<Option<String>>,
}

impl StandIn {
    pub(super) fn new(name: &str, kind: &'static str, persistent: bool, shared: bool) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            persistent,
            shared,
            engine: OnceLock::new(),
            reason: Mutex::default(),
        }
    }

    /// The engine, and since when it is open.
    pub(super) fn opened(&self) -> Option<(&Arc<dyn Engine>, Instant)> {
        self.engine.get().map(|(engine, since)| (engine, *since))
    }

    pub(super) fn open(&self, engine: Arc<dyn Engine>) {
        // Only the supervisor calls this, once.
        let _ = self.engine.set((engine, Instant::now()));
    }

    pub(super) fn failed(&self, reason: &Error) {
        let mut kept = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        *kept = Some(reason.to_string());
    }

    fn engine(&self) -> Result<&dyn Engine> {
        if let Some((engine, _)) = self.engine.get() {
            return Ok(&**engine);
        }
        let reason = self.reason.lock().unwrap_or_else(PoisonError::into_inner);
        let reason = reason.as_deref().unwrap_or("it is still being opened");
        Err(Error::new(
            ErrorKind::Unavailable,
            format!("the engine {} cannot be used: {reason}", self.name),
        ))
    }
}

impl Engine for StandIn {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn is_persistent(&self) -> bool {
        self.persistent
    }

    /// Zero while it is not open: there is nothing that could be lost.
    fn boot_id(&self) -> [u8; 16] {
        self.engine().map_or([0; 16], Engine::boot_id)
    }

    fn losses(&self) -> u64 {
        self.engine().map_or(0, Engine::losses)
    }

    /// There is nothing to sync if it is not open.
    fn stop(&self) -> Result<()> {
        self.engine().map_or(Ok(()), Engine::stop)
    }

    fn finish_notes(&self) {
        if let Ok(engine) = self.engine() {
            engine.finish_notes();
        }
    }

    fn status(&self) -> Result<EngineStatus> {
        self.engine()?.status()
    }

    fn health(&self) -> Result<Vec<String>> {
        self.engine()?.health()
    }

    fn create(&self, name: &VolumeName, spec: &VolumeSpec) -> Result<VolumeStat> {
        self.engine()?.create(name, spec)
    }

    fn list(&self) -> Result<Vec<VolumeName>> {
        self.engine()?.list()
    }

    fn stat(&self, name: &VolumeName) -> Result<VolumeStat> {
        self.engine()?.stat(name)
    }

    fn exists(&self, name: &VolumeName) -> Result<bool> {
        self.engine()?.exists(name)
    }

    fn limits(&self, stat: &VolumeStat) -> Limits {
        self.engine()
            .map_or(NO_LIMITS, |engine| engine.limits(stat))
    }

    fn open(&self, name: &VolumeName) -> Result<Arc<dyn Volume>> {
        self.engine()?.open(name)
    }

    fn is_shared(&self) -> bool {
        self.shared
    }

    fn take(&self, name: &VolumeName) -> Result<Arc<dyn Volume>> {
        self.engine()?.take(name)
    }

    fn is_in_other_hands(&self, name: &VolumeName) -> Result<bool> {
        self.engine()?.is_in_other_hands(name)
    }

    fn load_record(&self, name: &VolumeName) -> Result<Option<Vec<u8>>> {
        self.engine()?.load_record(name)
    }

    fn save_record(&self, name: &VolumeName, record: &[u8]) -> Result<()> {
        self.engine()?.save_record(name, record)
    }

    fn same_identity(&self, name: &VolumeName, id: &[u8; 16]) -> Vec<String> {
        self.engine()
            .map_or_else(|_| Vec::new(), |engine| engine.same_identity(name, id))
    }

    fn adopt(&self, name: &VolumeName) -> Result<VolumeStat> {
        self.engine()?.adopt(name)
    }

    fn delete(&self, name: &VolumeName) -> Result<()> {
        self.engine()?.delete(name)
    }

    fn snapshots(&self, name: &VolumeName) -> Result<Vec<SnapshotStat>> {
        self.engine()?.snapshots(name)
    }

    fn open_snapshot(&self, name: &SnapshotName) -> Result<Arc<dyn Volume>> {
        self.engine()?.open_snapshot(name)
    }

    fn delete_snapshot(&self, name: &SnapshotName) -> Result<()> {
        self.engine()?.delete_snapshot(name)
    }

    fn roll_back(&self, name: &SnapshotName, record: &[u8]) -> Result<()> {
        self.engine()?.roll_back(name, record)
    }

    fn clone_snapshot(&self, from: &SnapshotName, to: &VolumeName) -> Result<VolumeStat> {
        self.engine()?.clone_snapshot(from, to)
    }

    fn children(&self, name: &SnapshotName) -> Result<Vec<VolumeName>> {
        self.engine()?.children(name)
    }

    fn tell_node(&self, note: &NodeNote) -> Result<()> {
        self.engine()?.tell_node(note)
    }

    fn told_nodes(&self) -> Result<Vec<NodeNote>> {
        self.engine()?.told_nodes()
    }

    fn forget_node(&self, note: &NodeNote) -> Result<()> {
        self.engine()?.forget_node(note)
    }
}
