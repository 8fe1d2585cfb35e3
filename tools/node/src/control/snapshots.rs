// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What the control API does with snapshots and clones.

use std::sync::Arc;

use neonsan_api::{
    ApiError, SessionInfo, SnapshotClone, SnapshotInfo, SnapshotList, SnapshotName, VolumeInfo,
    VolumeName,
};
use neonsan_engine::{Engine, Error, ErrorKind, SnapshotStat, Volume};

use super::claim::{check_absent_holder, check_unclear_owner, held_volume, Claim};
use super::volumes::{self, blocking, check_free, from_engine, volume_info};
use crate::hub::{all_fenced, find_engine};
use crate::shared::{hex, Shared};

type Result<T> = std::result::Result<T, ApiError>;

fn info_of(stat: SnapshotStat, children: Vec<VolumeName>, all: &[SessionInfo]) -> SnapshotInfo {
    let reads = |s: &&SessionInfo| s.snapshot.as_deref() == Some(stat.name.snapshot());
    SnapshotInfo {
        volume: stat.name.volume().clone(),
        snapshot: stat.name.snapshot().to_owned(),
        id: hex(&stat.id),
        size_bytes: stat.size_bytes,
        created_unix_s: stat.created_unix_s,
        children,
        sessions: all.iter().filter(reads).cloned().collect(),
        warnings: stat.damage.into_iter().collect(),
        name: stat.name,
    }
}

/// The index of the engine that has the volume. Blocks.
fn engine_of(shared: &Shared, name: &VolumeName) -> Result<usize> {
    find_engine(shared, name).map_err(|e| from_engine(&e))
}

fn find(engine: &dyn Engine, name: &SnapshotName) -> Result<SnapshotStat> {
    let all = engine
        .snapshots(name.volume())
        .map_err(|e| from_engine(&e))?;
    all.into_iter().find(|s| s.name == *name).ok_or_else(|| {
        let message = format!("there is no snapshot {name}");
        from_engine(&Error::new(ErrorKind::NoSuchSnapshot, message))
    })
}

/// All snapshots of a volume.
pub(super) async fn list(shared: Arc<Shared>, name: VolumeName) -> Result<SnapshotList> {
    let sessions = volumes::sessions(&shared, Some(name.clone())).await?;
    blocking(move || {
        let engine = &shared.engines[engine_of(&shared, &name)?].engine;
        let all = engine.snapshots(&name).map_err(|e| from_engine(&e))?;
        let info = |stat| info_of(stat, Vec::new(), &sessions);
        Ok(SnapshotList {
            snapshots: all.into_iter().map(info).collect(),
        })
    })
    .await
}

/// One snapshot.
pub(super) async fn info(shared: Arc<Shared>, name: SnapshotName) -> Result<SnapshotInfo> {
    let sessions = volumes::sessions(&shared, Some(name.volume().clone())).await?;
    blocking(move || {
        let engine = &*shared.engines[engine_of(&shared, name.volume())?].engine;
        let stat = find(engine, &name)?;
        let children = engine.children(&name).map_err(|e| from_engine(&e))?;
        Ok(info_of(stat, children, &sessions))
    })
    .await
}

/// Does something with a volume that is open: with the one that sessions hold,
/// or with one that is opened for this. Blocks.
fn with_volume<T>(
    shared: &Arc<Shared>,
    name: &VolumeName,
    work: impl FnOnce(&dyn Volume) -> neonsan_engine::Result<T>,
) -> Result<T> {
    let index = engine_of(shared, name)?;
    if let Some(volume) = held_volume(shared, name)? {
        return work(&*volume).map_err(|e| from_engine(&e));
    }
    let _claim = Claim::take(shared, name.clone())?;
    check_unclear_owner(shared, index, name)?;
    let volume = shared.engines[index]
        .engine
        .open(name)
        .map_err(|e| from_engine(&e))?;
    work(&*volume).map_err(|e| from_engine(&e))
}

/// Makes a snapshot of a volume, held or not.
pub(super) async fn create(shared: Arc<Shared>, name: SnapshotName) -> Result<SnapshotInfo> {
    blocking(move || {
        let stat = with_volume(&shared, name.volume(), |volume| {
            volume.create_snapshot(&name)
        })?;
        tracing::info!(snapshot = %name, size_bytes = stat.size_bytes, "snapshot created");
        Ok(info_of(stat, Vec::new(), &[]))
    })
    .await
}

/// Deletes a snapshot that nobody reads or needs.
pub(super) async fn delete(shared: Arc<Shared>, name: SnapshotName) -> Result<()> {
    blocking(move || {
        let engine = engine_of(&shared, name.volume())?;
        let _claim = Claim::take(&shared, name.clone())?;
        shared.engines[engine]
            .engine
            .delete_snapshot(&name)
            .map_err(|e| from_engine(&e))?;
        tracing::info!(snapshot = %name, "snapshot deleted");
        Ok(())
    })
    .await
}

/// Rolls a volume back that nobody holds. Hosts that held it once do not come
/// back to it with what they had in flight.
pub(super) async fn roll_back(shared: Arc<Shared>, name: SnapshotName) -> Result<VolumeInfo> {
    let for_info = (Arc::clone(&shared), name.volume().clone());
    blocking(move || {
        let index = engine_of(&shared, name.volume())?;
        let engine = &*shared.engines[index].engine;
        find(engine, &name)?;
        let mut claim = Claim::take(&shared, name.volume().clone())?;
        check_absent_holder(&shared, index, name.volume())?;
        let record = all_fenced(engine, name.volume()).map_err(|e| from_engine(&e))?;
        // What the hub remembers of the volume is older from here on.
        claim.forget = true;
        engine
            .roll_back(&name, &record)
            .map_err(|e| from_engine(&e))?;
        tracing::info!(snapshot = %name, "volume rolled back");
        Ok(())
    })
    .await?;
    let (shared, name) = for_info;
    volumes::info(shared, name).await
}

/// Makes a volume from a snapshot.
pub(super) async fn clone(
    shared: Arc<Shared>,
    from: SnapshotName,
    clone: SnapshotClone,
) -> Result<VolumeInfo> {
    blocking(move || {
        let index = engine_of(&shared, from.volume())?;
        let _claim = Claim::take(&shared, clone.name.clone())?;
        check_free(&shared, &clone.name)?;
        let named = &shared.engines[index];
        let stat = named
            .engine
            .clone_snapshot(&from, &clone.name)
            .map_err(|e| from_engine(&e))?;
        tracing::info!(volume = %clone.name, snapshot = %from, "volume cloned");
        let limits = named.engine.limits(&stat);
        Ok(volume_info(
            &shared,
            index,
            clone.name,
            &stat,
            Some(&limits),
            Vec::new(),
        ))
    })
    .await
}

/// Ends a clone's dependence on its parent, held or not.
pub(super) async fn flatten(shared: Arc<Shared>, name: VolumeName) -> Result<VolumeInfo> {
    let for_info = (Arc::clone(&shared), name.clone());
    blocking(move || {
        with_volume(&shared, &name, |volume| volume.flatten())?;
        tracing::info!(volume = %name, "volume flattened");
        Ok(())
    })
    .await?;
    let (shared, name) = for_info;
    volumes::info(shared, name).await
}
