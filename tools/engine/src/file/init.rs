// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Makes a directory an engine's root, once, because a person said so.
//!
//! A node never does that by itself: a directory without a marker may be one
//! whose disk is not mounted.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use neonsan_api::VolumeName;
use rustix::fs::{chownat, AtFlags, Gid, Uid, CWD};

use super::layout::{file_options, make_dir};
use super::marker::{self, EngineIdentity, ENGINE_MARKER, NEW_ENGINE_MARKER};
use super::opening::lock_within;
use super::{sync_dir, walk, ALONE};
use crate::{Error, ErrorKind, Result};

/// What a file system has in its topmost directory by itself.
const OF_THE_FILE_SYSTEM: &str = "lost+found";

/// How a directory becomes an engine's root.
#[derive(Clone, Debug, Default)]
pub struct InitOptions {
    /// It has volumes of a release that made no markers.
    pub adopt: bool,
    /// Whose the directory is to be, and what is made in it: user and group.
    /// `None`: a directory that is there keeps its owner, who gets what is made in
    /// it; one that is made is the caller's.
    pub owner: Option<(u32, u32)>,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Initialized {
    /// The engine.
    pub identity: EngineIdentity,
    /// The directory was not there before.
    pub made: bool,
    /// Whose it is: user and group.
    pub owner: (u32, u32),
    /// Volumes that got a marker.
    pub adopted: Vec<VolumeName>,
    /// What looks like none of ours, and was left alone.
    pub left_alone: Vec<PathBuf>,
}

/// Whether a release without markers has used the directory.
pub(super) fn is_of_an_earlier_release(root: &Path) -> bool {
    if [".lock", ".boot"]
        .iter()
        .all(|name| root.join(name).is_file())
    {
        return true;
    }
    let has_volume = |pool: &(String, PathBuf)| {
        walk::entries(&pool.1).is_ok_and(|entries| {
            entries
                .iter()
                .any(|(_, path)| marker::is_ours(path).unwrap_or(false))
        })
    };
    walk::entries(root).is_ok_and(|pools| pools.iter().any(has_volume))
}

fn names_in(root: &Path) -> Result<Vec<String>> {
    let context = |e| Error::os(e, format!("cannot list the directory {}", root.display()));
    let mut names = Vec::new();
    for entry in fs::read_dir(root).map_err(context)? {
        let name = entry.map_err(context)?.file_name();
        if name != OF_THE_FILE_SYSTEM {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn refused(text: String) -> Error {
    Error::new(ErrorKind::Conflict, text)
}

/// How long an `init` waits for another one of the same directory.
const OTHER_INIT: Duration = Duration::from_secs(5);

/// Keeps every other `init` of the directory away as long as the result is open.
fn lock_directory(root: &Path) -> Result<File> {
    let context = |e| Error::os(e, format!("cannot lock the directory {}", root.display()));
    let lock = File::options()
        .read(true)
        .custom_flags(libc::O_DIRECTORY)
        .open(root)
        .map_err(context)?;
    match lock_within(&lock, ALONE, OTHER_INIT) {
        Ok(true) => Ok(lock),
        Ok(false) => Err(Error::new(
            ErrorKind::Busy,
            format!(
                "another process has the directory {} locked: wait until its `neonsan-node init` \
                 has ended, and see what it said",
                root.display()
            ),
        )),
        Err(e) => Err(context(e.into())),
    }
}

/// Removes what an `init` left that was killed while it wrote the marker. The caller
/// has the directory locked.
fn remove_unfinished(root: &Path) -> Result<()> {
    let path = root.join(NEW_ENGINE_MARKER);
    match fs::symlink_metadata(&path) {
        Ok(metadata) if metadata.is_file() => fs::remove_file(&path)
            .map_err(|e| Error::os(e, format!("cannot remove {}", path.display()))),
        // What else has this name was not made by `init`.
        _ => Ok(()),
    }
}

/// Refuses a directory that has anything in it.
fn check_empty(root: &Path) -> Result<()> {
    let names = names_in(root)?;
    let Some(first) = names.first() else {
        return Ok(());
    };
    let shown = root.display();
    if names.iter().any(|name| name == ENGINE_MARKER) {
        return Err(match marker::read_engine(root)? {
            Some(identity) => Error::new(
                ErrorKind::AlreadyExists,
                format!("{shown} is an engine's directory already (engine {identity})"),
            ),
            None => refused(format!("{shown} has just changed: try again")),
        });
    }
    if is_of_an_earlier_release(root) {
        return Err(refused(format!(
            "{shown} was made by an earlier release, and may have volumes: run \
             `neonsan-node init --adopt {shown}` to keep them"
        )));
    }
    Err(refused(format!(
        "{shown} is not empty (it has {first:?}{}): an engine needs a directory of its own, such as a \
         new one below it",
        match names.len() {
            1 => String::new(),
            more => format!(" and {} more", more - 1),
        }
    )))
}

/// Gives a path to its owner, if it is not his.
fn give(path: &Path, owner: (u32, u32)) -> Result<()> {
    let context = |e| Error::os(e, format!("cannot change the owner of {}", path.display()));
    let has = fs::symlink_metadata(path).map_err(context)?;
    if (has.uid(), has.gid()) == owner {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
    chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|e| context(e.into()))
}

/// Marks the volumes of a release without markers, and their snapshots.
fn adopt_volumes(root: &Path, owner: (u32, u32), done: &mut Initialized) -> Result<()> {
    let mark = |dir: &Path| -> Result<bool> {
        if marker::is_marked(dir)? {
            return Ok(false);
        }
        marker::write_volume(dir)?;
        give(&dir.join(marker::VOLUME_MARKER), owner)?;
        Ok(true)
    };
    for (pool, path) in walk::entries(root)? {
        if pool == OF_THE_FILE_SYSTEM {
            continue;
        }
        let mut has_volumes = false;
        let mut others = Vec::new();
        // What may not be read was none of the node's.
        let Ok(entries) = walk::entries(&path) else {
            done.left_alone.push(path);
            continue;
        };
        for (volume, dir) in entries {
            let name = VolumeName::new(&pool, &volume).ok();
            let is_ours = marker::is_ours(&dir).unwrap_or(false);
            let (Some(name), true) = (name, is_ours) else {
                // What is half made or half deleted is none of a person's.
                if !super::layout::is_leftover(&volume) {
                    others.push(dir);
                }
                continue;
            };
            has_volumes = true;
            for (_, snapshot) in super::snapshots::directories(&dir)? {
                if marker::is_ours(&snapshot)? {
                    mark(&snapshot)?;
                }
            }
            if mark(&dir)? {
                done.adopted.push(name);
            }
        }
        match has_volumes || others.is_empty() {
            true => done.left_alone.append(&mut others),
            false => done.left_alone.push(path),
        }
    }
    done.adopted.sort_unstable();
    done.left_alone.sort_unstable();
    Ok(())
}

/// Makes a directory an engine's root: with a marker and an identity of its own.
///
/// The directory is made if its parent is there. It must be empty but for
/// `lost+found`; with [`InitOptions::adopt`] it must have been used by a release
/// without markers, and its volumes get theirs. A directory with a marker can be
/// adopted again: then only volumes are marked that are not yet.
///
/// # Errors
///
/// What is in the way, with what to do. A directory that was made for it is gone
/// then.
pub fn init(root: &Path, options: &InitOptions) -> Result<Initialized> {
    let in_root = |text: &str| format!("{text} {}", root.display());
    let made = match make_dir(root) {
        Ok(()) => true,
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => false,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(refused(format!(
                "cannot make {}: the directory above it is not there; make that first, or mount \
                 its disk",
                root.display()
            )))
        }
        Err(e) => return Err(Error::os(e, in_root("cannot make the directory"))),
    };
    init_there(root, options, made).inspect_err(|_| {
        if made {
            // Only if it is empty.
            let _ = fs::remove_dir(root);
        }
    })
}

fn init_there(root: &Path, options: &InitOptions, made: bool) -> Result<Initialized> {
    let in_root = |text: &str| format!("{text} {}", root.display());
    let metadata = fs::metadata(root).map_err(|e| Error::os(e, in_root("cannot look at")))?;
    if !metadata.is_dir() {
        return Err(refused(in_root("not a directory:")));
    }
    super::places::check_free(root)?;
    let _alone = lock_directory(root)?;
    remove_unfinished(root)?;
    let owner = options.owner.unwrap_or((metadata.uid(), metadata.gid()));
    let mut done = Initialized {
        identity: EngineIdentity::new()?,
        made,
        owner,
        adopted: Vec::new(),
        left_alone: Vec::new(),
    };
    let known = marker::read_engine(root)?;
    if options.adopt {
        if known.is_none() && !is_of_an_earlier_release(root) {
            return Err(refused(format!(
                "{} has nothing that an earlier release made: mount its disk first, if that is not \
                 mounted; a new engine's directory is made without --adopt",
                root.display()
            )));
        }
        // A node that uses it has the lock, one of an earlier release too.
        let lock = file_options()
            .create(true)
            .write(true)
            .truncate(false)
            .custom_flags(libc::O_NOFOLLOW)
            .open(root.join(".lock"))
            .map_err(|e| Error::os(e, in_root("cannot write in the directory")))?;
        if !lock_within(&lock, ALONE, Duration::ZERO)
            .map_err(|e| Error::os(e, in_root("cannot lock the directory")))?
        {
            return Err(Error::new(
                ErrorKind::Busy,
                in_root("stop the neonsan-node first that uses"),
            ));
        }
        give(&root.join(".lock"), owner)?;
        adopt_volumes(root, owner, &mut done)?;
    } else {
        check_empty(root)?;
    }
    match known {
        Some(identity) => done.identity = identity,
        None => {
            marker::write_engine(root, done.identity)?;
            give(&root.join(ENGINE_MARKER), owner)?;
        }
    }
    give(root, owner)?;
    sync_dir(root)?;
    if made {
        if let Some(parent) = fs::canonicalize(root)
            .ok()
            .as_deref()
            .and_then(Path::parent)
        {
            sync_dir(parent)?;
        }
    }
    Ok(done)
}
