// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What the control API does with volumes.
//!
//! Engine calls block, so they run on the runtime's threads for that. What
//! changes a volume claims it from the hub first, which keeps everybody else
//! away from it until the claim ends, also when the caller has gone.

use std::sync::Arc;

use neonsan_api::{
    ApiError, ErrorCode, SessionInfo, VolumeCreate, VolumeInfo, VolumeLimits, VolumeList,
    VolumeName, VolumeResize,
};
use neonsan_engine::{Error, ErrorKind, Limits, VolumeSpec, VolumeStat};
use tokio::sync::oneshot;

use super::claim::{check_absent_holder, check_unclear_owner, held_volume, Claim, Resizing};
use crate::engines::of_engine;
use crate::hub::{find_engine, find_sole_engine, ToHub};
use crate::shared::{hex, Shared};

type Result<T> = std::result::Result<T, ApiError>;

/// Runs what blocks.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ApiError::new(
            ErrorCode::Internal,
            format!("the request could not be carried out: {error}"),
        )),
    }
}

pub(super) fn stopping<T>(_: T) -> ApiError {
    ApiError::new(ErrorCode::ShuttingDown, "the node is stopping")
}

/// The refusal that tells of an engine's failure.
pub(super) fn from_engine(error: &Error) -> ApiError {
    let (code, hint) = match error.kind() {
        ErrorKind::NotFound => (
            ErrorCode::NotFound,
            Some("`neonsan volume list` shows what there is"),
        ),
        ErrorKind::NoSuchSnapshot => (
            ErrorCode::NotFound,
            Some("`neonsan volume snapshot list` shows what there is"),
        ),
        ErrorKind::AlreadyExists => (ErrorCode::AlreadyExists, Some("choose another name")),
        ErrorKind::Busy => (ErrorCode::Busy, None),
        ErrorKind::NotOwner => (
            ErrorCode::Busy,
            Some("ask the node that has the volume now: `neonsan node list` shows the nodes"),
        ),
        ErrorKind::NoSpace => (
            ErrorCode::NoSpace,
            Some("delete volumes, or give the engine's file system more space"),
        ),
        ErrorKind::BadSize => (ErrorCode::BadSize, None),
        ErrorKind::Unsupported => (ErrorCode::Unsupported, None),
        ErrorKind::Corrupt => (
            ErrorCode::Corrupt,
            Some("restore it from a copy, or delete it"),
        ),
        ErrorKind::Conflict => (ErrorCode::Conflict, None),
        ErrorKind::NotPermitted => (
            ErrorCode::NotPermitted,
            Some(
                "the node's user must own the engine's directory; in a Ceph cluster the engine's \
                 user needs the caps mon \"profile rbd\" and osd \"profile rbd pool=POOL\"",
            ),
        ),
        ErrorKind::Unavailable => (
            ErrorCode::Unavailable,
            Some(
                "`neonsan node health` shows how the engines are; take one that is gone for good \
                 out of the configuration",
            ),
        ),
        ErrorKind::NoResources | ErrorKind::Io => (ErrorCode::Io, None),
        ErrorKind::OutOfRange
        | ErrorKind::Misaligned
        | ErrorKind::TooLarge
        | ErrorKind::AtomicLimit => (ErrorCode::Internal, None),
    };
    let api = ApiError::new(code, error.to_string());
    match hint {
        Some(hint) => api.with_hint(hint),
        None => api,
    }
}

fn limits_info(limits: &Limits) -> VolumeLimits {
    VolumeLimits {
        volatile_write_cache: limits.volatile_cache,
        fua: limits.fua,
        max_io_bytes: limits.max_io_bytes,
        optimal_io_bytes: limits.io_opt_bytes,
        discard_granularity_bytes: limits.discard_granularity,
        max_discard_bytes: u64::from(limits.max_discard_bytes),
        max_write_zeroes_bytes: u64::from(limits.max_write_zeroes_bytes),
        atomic_write_min_bytes: limits.atomic_min_bytes,
        atomic_write_max_bytes: limits.atomic_max_bytes,
    }
}

/// What is told of a volume. Blocks for the state of its engine.
pub(super) fn volume_info(
    shared: &Shared,
    engine: usize,
    name: VolumeName,
    stat: &VolumeStat,
    limits: Option<&Limits>,
    sessions: Vec<SessionInfo>,
) -> VolumeInfo {
    let named = &shared.engines[engine];
    let mut warnings = Vec::new();
    if let Ok(status) = named.status() {
        if stat.physical_block_size > status.untorn_bytes {
            warnings.push(format!(
                "the storage of engine {} guarantees only blocks of {} bytes against torn writes: \
                 a loss of power can tear the volume's blocks of {} bytes",
                named.name, status.untorn_bytes, stat.physical_block_size
            ));
        }
        if let Some(available) = status.available_bytes {
            if stat.size_bytes.saturating_sub(stat.allocated_bytes) > available {
                warnings.push(format!(
                    "the engine {} has {available} bytes left, fewer than the volume may still need",
                    named.name
                ));
            }
        }
    }
    let same_identity = named.engine.same_identity(&name, &stat.id);
    if !same_identity.is_empty() {
        warnings.push(format!(
            "{} has the same identity: one is a copy of the other, and neither is opened until \
             `neonsan volume adopt` has given the copy one of its own",
            same_identity.join(" and ")
        ));
    }
    VolumeInfo {
        name,
        id: hex(&stat.id),
        engine: named.name.clone(),
        size_bytes: stat.size_bytes,
        allocated_bytes: Some(stat.allocated_bytes),
        logical_block_size_bytes: stat.logical_block_size,
        physical_block_size_bytes: stat.physical_block_size,
        created_unix_s: stat.created_unix_s,
        parent: stat.parent.clone(),
        limits: limits.map(limits_info),
        sessions,
        same_identity,
        warnings,
    }
}

/// Who holds the volume, or all volumes.
pub(super) async fn sessions(
    shared: &Shared,
    name: Option<VolumeName>,
) -> Result<Vec<SessionInfo>> {
    let (reply, answer) = oneshot::channel();
    shared.tell_hub(ToHub::Sessions { name, reply });
    answer.await.map_err(stopping)
}

/// All volumes, or those of a pool, ordered by name. A damaged one is listed
/// with what is known, which is its name, and a warning. An engine that fails
/// does not hide the volumes of others: the list says that it is missing.
pub(super) async fn list(shared: Arc<Shared>, pool: Option<String>) -> Result<VolumeList> {
    let sessions = sessions(&shared, None).await?;
    blocking(move || {
        let (mut volumes, mut missing) = (Vec::new(), Vec::new());
        for (index, named) in shared.engines.iter().enumerate() {
            let names = match named.engine.list() {
                Ok(names) => names,
                // With one engine only, nothing is left to be listed.
                Err(error) if shared.engines.len() == 1 => return Err(from_engine(&error)),
                Err(error) => {
                    missing.push(of_engine(&named.name, &error));
                    continue;
                }
            };
            for name in names {
                if pool.as_ref().is_some_and(|pool| pool != name.pool()) {
                    continue;
                }
                let held: Vec<_> = sessions
                    .iter()
                    .filter(|s| s.volume == name && s.snapshot.is_none())
                    .cloned()
                    .collect();
                match named.engine.stat(&name) {
                    Ok(stat) => {
                        volumes.push(volume_info(&shared, index, name, &stat, None, held));
                    }
                    // Deleted since it was listed.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(error) => volumes.push(damaged(&named.name, name, &error)),
                }
            }
        }
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(VolumeList { volumes, missing })
    })
    .await
}

fn damaged(engine: &str, name: VolumeName, error: &Error) -> VolumeInfo {
    VolumeInfo {
        name,
        id: hex(&[0; 16]),
        engine: engine.to_owned(),
        size_bytes: 0,
        allocated_bytes: None,
        logical_block_size_bytes: 0,
        physical_block_size_bytes: 0,
        created_unix_s: 0,
        parent: None,
        limits: None,
        sessions: Vec::new(),
        same_identity: Vec::new(),
        warnings: vec![error.to_string()],
    }
}

/// One volume.
pub(super) async fn info(shared: Arc<Shared>, name: VolumeName) -> Result<VolumeInfo> {
    let mut sessions = sessions(&shared, Some(name.clone())).await?;
    sessions.retain(|session| session.snapshot.is_none());
    blocking(move || {
        let engine = find_engine(&shared, &name).map_err(|e| from_engine(&e))?;
        let stat = shared.engines[engine]
            .engine
            .stat(&name)
            .map_err(|e| from_engine(&e))?;
        let limits = shared.engines[engine].engine.limits(&stat);
        Ok(volume_info(
            &shared,
            engine,
            name,
            &stat,
            Some(&limits),
            sessions,
        ))
    })
    .await
}

/// Creates a volume.
pub(super) async fn create(shared: Arc<Shared>, create: VolumeCreate) -> Result<VolumeInfo> {
    blocking(move || {
        let engine = match &create.engine {
            None => 0,
            Some(wanted) => shared
                .engines
                .iter()
                .position(|e| e.name == *wanted)
                .ok_or_else(|| no_engine(&shared, wanted))?,
        };
        let _claim = Claim::take(&shared, create.name.clone())?;
        check_free(&shared, &create.name)?;
        let spec = VolumeSpec {
            size_bytes: create.size_bytes,
            logical_block_size: create.logical_block_size_bytes,
            physical_block_size: create.physical_block_size_bytes,
        };
        let named = &shared.engines[engine];
        let stat = named
            .engine
            .create(&create.name, &spec)
            .map_err(|e| from_engine(&e))?;
        tracing::info!(volume = %create.name, engine = %named.name, size_bytes = stat.size_bytes, "volume created");
        let limits = named.engine.limits(&stat);
        Ok(volume_info(
            &shared,
            engine,
            create.name,
            &stat,
            Some(&limits),
            Vec::new(),
        ))
    })
    .await
}

/// Refuses a name that a volume has, in any engine. Blocks.
pub(super) fn check_free(shared: &Shared, name: &VolumeName) -> Result<()> {
    let other = match find_engine(shared, name) {
        Ok(other) => other,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        // An engine that cannot say whether it has the volume may have it.
        Err(error) => return Err(from_engine(&error)),
    };
    let engine = &shared.engines[other].name;
    let message = format!("there is a volume {name} already, in engine {engine}");
    Err(ApiError::new(ErrorCode::AlreadyExists, message).with_hint("choose another name"))
}

fn no_engine(shared: &Shared, wanted: &str) -> ApiError {
    let names: Vec<&str> = shared.engines.iter().map(|e| e.name.as_str()).collect();
    ApiError::new(
        ErrorCode::NotFound,
        format!("the node has no engine {wanted:?}"),
    )
    .with_hint(format!("it has: {}", names.join(", ")))
}

/// Deletes a volume that nobody holds.
pub(super) async fn delete(shared: Arc<Shared>, name: VolumeName) -> Result<()> {
    blocking(move || {
        let engine = find_sole_engine(&shared, &name).map_err(|e| from_engine(&e))?;
        let mut claim = Claim::take(&shared, name.clone())?;
        check_absent_holder(&shared, engine, &name)?;
        shared.engines[engine]
            .engine
            .delete(&name)
            .map_err(|e| from_engine(&e))?;
        claim.forget = true;
        tracing::info!(volume = %name, "volume deleted");
        Ok(())
    })
    .await
}

/// Gives a copy of a volume an identity of its own.
pub(super) async fn adopt(shared: Arc<Shared>, name: VolumeName) -> Result<VolumeInfo> {
    let for_info = (Arc::clone(&shared), name.clone());
    blocking(move || {
        let index = find_sole_engine(&shared, &name).map_err(|e| from_engine(&e))?;
        let engine = &shared.engines[index].engine;
        let mut claim = Claim::take(&shared, name.clone())?;
        let before = engine.stat(&name).map_err(|e| from_engine(&e))?;
        // Where there is another one of its identity no host comes back to either. Else one may, and
        // would find another volume.
        if engine.same_identity(&name, &before.id).is_empty() {
            check_absent_holder(&shared, index, &name)?;
        }
        // What the hub remembers is of the other one.
        claim.forget = true;
        let stat = engine.adopt(&name).map_err(|e| from_engine(&e))?;
        tracing::info!(
            volume = %name, before = %hex(&before.id), id = %hex(&stat.id),
            "volume adopted: it has an identity of its own"
        );
        Ok(())
    })
    .await?;
    let (shared, name) = for_info;
    info(shared, name).await
}

/// Gives a volume another size.
pub(super) async fn resize(
    shared: Arc<Shared>,
    name: VolumeName,
    resize: VolumeResize,
) -> Result<VolumeInfo> {
    let for_info = (Arc::clone(&shared), name.clone());
    blocking(move || {
        let index = find_engine(&shared, &name).map_err(|e| from_engine(&e))?;
        let engine = &shared.engines[index].engine;
        let _resizing = Resizing::begin(&shared, &name)?;
        if let Some(volume) = held_volume(&shared, &name)? {
            if !is_smaller(&name, &resize, volume.size_bytes())? {
                volume
                    .resize(resize.size_bytes)
                    .map_err(|e| from_engine(&e))?;
                shared.tell_hub(ToHub::Resized(name.into()));
                return Ok(());
            }
        }
        let _claim = Claim::take(&shared, name.clone())?;
        // Not before the claim: from here on nobody changes it.
        let stat = engine.stat(&name).map_err(|e| from_engine(&e))?;
        if is_smaller(&name, &resize, stat.size_bytes)? {
            check_absent_holder(&shared, index, &name)?;
        } else {
            check_unclear_owner(&shared, index, &name)?;
        }
        let volume = engine.open(&name).map_err(|e| from_engine(&e))?;
        volume
            .resize(resize.size_bytes)
            .map_err(|e| from_engine(&e))?;
        tracing::info!(volume = %name, size_bytes = resize.size_bytes, "volume resized");
        Ok(())
    })
    .await?;
    let (shared, name) = for_info;
    info(shared, name).await
}

/// Whether the volume, of `has_bytes` now, is to become smaller; refused unless that is allowed.
fn is_smaller(name: &VolumeName, resize: &VolumeResize, has_bytes: u64) -> Result<bool> {
    let is_smaller = resize.size_bytes < has_bytes;
    if is_smaller && !resize.allow_shrink {
        let message = format!(
            "{} bytes are fewer than the {has_bytes} bytes that the volume {name} has",
            resize.size_bytes
        );
        return Err(ApiError::new(ErrorCode::BadSize, message).with_hint(
            "making it smaller destroys what lies behind the new end: --allow-shrink (allow_shrink in \
             the API) says that this is meant",
        ));
    }
    Ok(is_smaller)
}
