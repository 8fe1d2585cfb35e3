// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Snapshots: files that share their blocks with those of the volume until
//! either is changed. The file system does that (a *reflink*).
//!
//! ```text
//! <volume>/snapshots/<name>/meta   what it is, with an identity of its own
//! <volume>/snapshots/<name>/data   its bytes; locked, shared, while open
//! <volume>/rollback                the name of the snapshot to which the volume
//!                                  is being rolled back
//! <volume>/data.ready              its data, until it takes the place of `data`;
//! <volume>/meta.ready              its description, if that changes; both count
//!                                  for nothing without the note
//! ```
//!
//! A snapshot appears by one `rename`, when all of it is on stable storage, and
//! goes away by one. Rolling back changes two files. Both are made first, so that
//! a full disk is found out about while nothing has happened; then the note
//! `rollback` is there from before the first step until after the last, all steps
//! can be taken again, and a volume with the note is finished before it is opened.
//! The snapshot is held, as if it were read, until all of that is done.
//!
//! A write which a killed process left behind cannot reach a volume that was
//! rolled back since: it goes to the old data file, which nobody reads.

use std::fs::{self, File};
use std::io::ErrorKind as IoKind;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use neonsan_api::{SnapshotName, VolumeName};
use rustix::fs::{ioctl_ficlone, renameat_with, RenameFlags, CWD};
use rustix::io::Errno;

use super::layout::{file_options, is_leftover, make_dir, write_file, SNAPSHOTS};
use super::meta::Meta;
use super::record::Records;
use super::{layout, marker, remove_failed, sync_dir, temporary, walk};
use crate::error::{SystemError, Written as _};
use crate::identity::{random_id, unix_seconds};
use crate::interface::{no_such_snapshot, snapshot_exists};
use crate::{Error, ErrorKind, Result, SnapshotStat};

/// What a file system without reflinks means for people.
pub(super) const NO_REFLINK: &str =
    "the file system cannot share blocks between files: snapshots and clones need a directory on \
     XFS (made with reflink=1, the default) or btrfs";

fn snapshots_dir(volume_dir: &Path) -> PathBuf {
    volume_dir.join(SNAPSHOTS)
}

pub(super) fn snapshot_dir(volume_dir: &Path, name: &SnapshotName) -> PathBuf {
    snapshots_dir(volume_dir).join(name.snapshot())
}

/// Makes the file `path` with the content of `source`, which it shares.
pub(super) fn share(source: impl AsFd, path: &Path) -> Result<File> {
    let file = create_file(path)?;
    share_into(source, &file, path)?;
    Ok(file)
}

fn create_file(path: &Path) -> Result<File> {
    file_options()
        .create_new(true)
        .read(true)
        .write(true)
        .open(path)
        .map_err(|e| Error::os(e, format!("cannot make {}", path.display())))
}

fn share_into(source: impl AsFd, file: &File, path: &Path) -> Result<()> {
    match ioctl_ficlone(file, source) {
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::XDEV | Errno::NOSYS) => {
            Err(Error::new(ErrorKind::Unsupported, NO_REFLINK))
        }
        // It writes out first what the source has in memory.
        result => result.written().map_err(|e| {
            let text = format!("cannot share data with {}", path.display());
            Error::os(e, text)
        }),
    }
}

/// Makes a snapshot of the volume in `dir`, whose description is `meta` and
/// whose data is `data`. `frozen` holds changing requests back as long as its
/// result lives.
pub(super) fn create<F>(
    dir: &Path,
    name: &SnapshotName,
    meta: &Meta,
    data: &File,
    frozen: impl FnOnce() -> Result<F>,
) -> Result<SnapshotStat> {
    let parent = snapshots_dir(dir);
    match make_dir(&parent) {
        Ok(()) => sync_dir(dir)?,
        Err(e) if e.kind() == IoKind::AlreadyExists => {}
        Err(e) => return Err(Error::os(e, format!("cannot make {}", parent.display()))),
    }
    let target = snapshot_dir(dir, name);
    if target.exists() {
        return Err(snapshot_exists(name));
    }
    let temporary = temporary(&parent, "create")?;
    let make = || {
        make_dir(&temporary)
            .map_err(|e| Error::os(e, format!("cannot make {}", temporary.display())))?;
        marker::write_volume(&temporary)?;
        let path = temporary.join("data");
        let file = create_file(&path)?;
        let held = frozen()?;
        let meta = Meta {
            id: random_id()?,
            created_unix_s: unix_seconds(),
            ..meta.clone()
        };
        share_into(data, &file, &path)?;
        drop(held);
        file.sync_all()
            .written()
            .map_err(|e| Error::os(e, format!("cannot write {}", path.display())))?;
        meta.store(&temporary)?;
        renameat_with(CWD, &temporary, CWD, &target, RenameFlags::NOREPLACE).map_err(
            |e| match e {
                Errno::EXIST => snapshot_exists(name),
                e => Error::os(e, format!("cannot make {}", target.display())),
            },
        )?;
        Ok(meta)
    };
    let meta = make().inspect_err(|_| remove_failed(&temporary))?;
    sync_dir(&parent)?;
    Ok(stat(name, &meta))
}

fn stat(name: &SnapshotName, meta: &Meta) -> SnapshotStat {
    SnapshotStat {
        name: name.clone(),
        id: meta.id,
        size_bytes: meta.size_bytes,
        created_unix_s: meta.created_unix_s,
        damage: None,
    }
}

/// The directories in that of the snapshots of the volume in `dir`.
pub(super) fn directories(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let parent = snapshots_dir(dir);
    match layout::is_dir(&parent) {
        Ok(true) => walk::entries(&parent),
        Ok(false) => Ok(Vec::new()),
        Err(e) => Err(Error::os(e, format!("cannot look at {}", parent.display()))),
    }
}

/// The names of the snapshots of the volume in `dir`, in no order. What is none of
/// ours is none.
pub(super) fn names(dir: &Path, volume: &VolumeName) -> Result<Vec<SnapshotName>> {
    let mut names = Vec::new();
    for (name, path) in directories(dir)? {
        if let (Ok(name), true) = (SnapshotName::new(volume, &name), marker::is_ours(&path)?) {
            names.push(name);
        }
    }
    Ok(names)
}

/// The snapshots of the volume in `dir`, the oldest first. One whose description
/// cannot be read hides no other.
pub(super) fn list(dir: &Path, volume: &VolumeName) -> Result<Vec<SnapshotStat>> {
    let mut all = Vec::new();
    for name in names(dir, volume)? {
        all.push(match Meta::load(&snapshot_dir(dir, &name)) {
            Ok(meta) => stat(&name, &meta),
            Err(error) => SnapshotStat::damaged(name, error.to_string()),
        });
    }
    all.sort_by(|a, b| (a.created_unix_s, &a.name).cmp(&(b.created_unix_s, &b.name)));
    Ok(all)
}

/// What crashes left half made or half deleted.
pub(super) fn leftovers(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut directories = directories(dir)?;
    directories.retain(|(name, _)| is_leftover(name));
    Ok(directories.into_iter().map(|(_, path)| path).collect())
}

/// Deletes the snapshot; nobody has it open.
pub(super) fn delete(dir: &Path, name: &SnapshotName) -> Result<()> {
    layout::check_ours(&snapshot_dir(dir, name))?;
    let parent = snapshots_dir(dir);
    let temporary = temporary(&parent, "delete")?;
    fs::rename(snapshot_dir(dir, name), &temporary)
        .map_err(|e| Error::os(e, format!("cannot delete the snapshot {name}")))?;
    sync_dir(&parent)?;
    // Gone; the rest only frees its space, and the next start tries again.
    if let Err(error) = layout::remove(&temporary) {
        tracing::warn!(path = %temporary.display(), %error, "cannot free a deleted snapshot");
    }
    Ok(())
}

fn note_path(dir: &Path) -> PathBuf {
    dir.join("rollback")
}

/// The snapshot to which the volume in `dir` is being rolled back.
pub(super) fn pending(dir: &Path, volume: &VolumeName) -> Result<Option<SnapshotName>> {
    let path = note_path(dir);
    match fs::read_to_string(&path) {
        Ok(text) => SnapshotName::new(volume, &text).map(Some).map_err(|_| {
            Error::new(
                ErrorKind::Corrupt,
                format!("{} does not name a snapshot", path.display()),
            )
        }),
        Err(e) if e.kind() == IoKind::NotFound => Ok(None),
        Err(e) => Err(Error::os(e, format!("cannot read {}", path.display()))),
    }
}

fn ready_data(dir: &Path) -> PathBuf {
    dir.join("data.ready")
}

fn ready_meta(dir: &Path) -> PathBuf {
    dir.join("meta.ready")
}

fn remove_if_there(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != IoKind::NotFound => {
            Err(Error::os(e, format!("cannot remove {}", path.display())))
        }
        _ => Ok(()),
    }
}

/// Removes what was prepared for rolling back.
fn remove_prepared(dir: &Path) -> Result<()> {
    for path in [ready_data(dir), ready_meta(dir), dir.join("rollback.new")] {
        remove_if_there(&path)?;
    }
    Ok(())
}

/// Files that a crash left in a volume's directory and that nobody will use: a
/// description that did not get its place, and what was prepared for rolling back
/// if that had not begun.
pub(super) fn unused(dir: &Path) -> Vec<PathBuf> {
    let mut names = vec!["meta.new", marker::NEW_VOLUME_MARKER];
    if !note_path(dir).exists() {
        names.extend(["data.ready", "data.new", "meta.ready", "rollback.new"]);
    }
    let mut paths: Vec<PathBuf> = names.iter().map(|name| dir.join(name)).collect();
    paths.retain(|path| path.symlink_metadata().is_ok());
    paths
}

/// What the volume in `dir` is now, and what it is when it was rolled back.
fn before_and_after(dir: &Path, name: &SnapshotName) -> Result<(Meta, Meta)> {
    let snapshot = Meta::load(&snapshot_dir(dir, name))?;
    let volume = Meta::load(dir)?;
    let rolled_back = Meta {
        size_bytes: snapshot.size_bytes,
        ..volume.clone()
    };
    Ok((volume, rolled_back))
}

/// Makes the data of a snapshot the content of a new file, durably.
fn copy_data(dir: &Path, name: &SnapshotName, path: &Path) -> Result<()> {
    let context = |e: SystemError| Error::os(e, format!("cannot roll back to {name}"));
    remove_if_there(path)?;
    let source = File::open(snapshot_dir(dir, name).join("data")).map_err(|e| context(e.into()))?;
    share(&source, path)?.sync_all().written().map_err(context)
}

/// Makes everything that rolling back needs space for, then begins: from here on
/// it will be done, whatever happens. The caller holds the volume and the
/// snapshot. After an error nothing has happened, unless the note is there.
pub(super) fn begin_rollback(
    dir: &Path,
    name: &SnapshotName,
    records: &Records,
    record: &[u8],
) -> Result<()> {
    let path = note_path(dir);
    let new = dir.join("rollback.new");
    let begin = || {
        remove_prepared(dir)?;
        copy_data(dir, name, &ready_data(dir))?;
        let (before, after) = before_and_after(dir, name)?;
        if before != after {
            after.write(&ready_meta(dir))?;
        }
        let context = |e: SystemError| Error::os(e, format!("cannot write {}", path.display()));
        write_file(&new, name.snapshot().as_bytes())
            .and_then(|file| file.sync_all().written())
            .map_err(context)?;
        sync_dir(dir)?;
        records.store(dir, record)?;
        fs::rename(&new, &path).map_err(|e| context(e.into()))
    };
    begin().inspect_err(|_| {
        if let Err(error) = remove_prepared(dir) {
            tracing::warn!(%error, "cannot clear away");
        }
    })?;
    sync_dir(dir)
}

/// Takes the steps of rolling back, or takes them again. The caller holds the
/// volume.
pub(super) fn finish_rollback(dir: &Path, name: &SnapshotName) -> Result<()> {
    let (before, after) = before_and_after(dir, name)?;
    let describe = || {
        if before == after {
            return Ok(());
        }
        let ready = ready_meta(dir);
        match ready.exists() {
            true => Meta::put(&ready, dir),
            false => after.store(dir),
        }
    };
    let context = |e| Error::os(e, format!("cannot roll back to {name}"));
    let mut new = ready_data(dir);
    if !new.exists() {
        // It is in its place, or there never was one: an older version began.
        new = dir.join("data.new");
        copy_data(dir, name, &new)?;
    }
    // The data is never shorter than the description says.
    let shrinks = after.size_bytes < before.size_bytes;
    if shrinks {
        describe()?;
    }
    fs::rename(&new, dir.join("data")).map_err(context)?;
    sync_dir(dir)?;
    if !shrinks {
        describe()?;
    }
    fs::remove_file(note_path(dir)).map_err(context)?;
    sync_dir(dir)
}

/// Checks that there is a snapshot, so that what is missing within it later is
/// damage.
pub(super) fn existing(dir: &Path, name: &SnapshotName) -> Result<PathBuf> {
    let path = snapshot_dir(dir, name);
    match marker::is_ours(&path)? {
        true => Ok(path),
        false => Err(no_such_snapshot(name)),
    }
}
