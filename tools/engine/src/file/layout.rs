// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What the engine makes below its root, by name, and how it removes it: these
//! names and nothing else.
//!
//! Directories get the permissions 0750 and files 0640 (less what the umask
//! takes away), whoever runs the node.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::ErrorKind as IoKind;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::error::{SystemError, Written as _};
use crate::{Error, ErrorKind, Result};

/// Permissions of files: who may read one may read a volume.
const FILE_MODE: u32 = 0o640;

/// Permissions of directories.
const DIR_MODE: u32 = 0o750;

/// The files of a volume or a snapshot, of this release and those before.
const FILES: [&str; 13] = [
    super::marker::VOLUME_MARKER,
    super::marker::NEW_VOLUME_MARKER,
    "meta",
    "meta.new",
    "meta.ready",
    "data",
    "data.new",
    "data.ready",
    "record",
    "record.new",
    "record.old",
    "rollback",
    "rollback.new",
];

/// The directory of a volume's snapshots.
pub(super) const SNAPSHOTS: &str = "snapshots";

/// Options for making or opening a file with the right permissions.
pub(super) fn file_options() -> OpenOptions {
    let mut options = File::options();
    options.mode(FILE_MODE);
    options
}

/// Writes a file whole, with the right permissions; not durably.
pub(super) fn write_file(path: &Path, bytes: &[u8]) -> std::result::Result<File, SystemError> {
    use std::io::Write as _;
    let mut file = file_options()
        .create(true)
        .truncate(true)
        .write(true)
        // What a link leads to is nothing that was made here; and root runs `init` in a directory
        // that belongs to the node's user.
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    file.write_all(bytes).written()?;
    Ok(file)
}

/// Makes a directory with the right permissions.
pub(super) fn make_dir(path: &Path) -> std::io::Result<()> {
    DirBuilder::new().mode(DIR_MODE).create(path)
}

/// Whether it is a directory itself, and no link to one.
pub(super) fn is_dir(path: &Path) -> std::io::Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(metadata.is_dir()),
        Err(e) if matches!(e.kind(), IoKind::NotFound | IoKind::NotADirectory) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Whether the name is one of what is half made or half deleted: `.create-` or
/// `.delete-` and a number.
pub(super) fn is_leftover(name: &str) -> bool {
    [".create-", ".delete-"].iter().any(|prefix| {
        name.strip_prefix(prefix)
            .is_some_and(|id| !id.is_empty() && id.bytes().all(|b| b.is_ascii_hexdigit()))
    })
}

/// What removing a directory of ours consists of: files first, then the
/// directories that are empty by then.
#[derive(Debug, Default)]
struct Plan {
    files: Vec<PathBuf>,
    dirs: Vec<PathBuf>,
}

impl Plan {
    /// Adds what is in the directory of a volume or snapshot.
    fn add(&mut self, dir: &Path, may_have_snapshots: bool) -> Result<()> {
        let context = |e| Error::os(e, format!("cannot list the directory {}", dir.display()));
        for entry in fs::read_dir(dir).map_err(context)? {
            let entry = entry.map_err(context)?;
            let path = entry.path();
            let kind = entry.file_type().map_err(context)?;
            let name = entry.file_name();
            let name = name.to_str().unwrap_or("");
            if !kind.is_dir() && FILES.contains(&name) {
                self.files.push(path);
            } else if kind.is_dir() && may_have_snapshots && name == SNAPSHOTS {
                self.add_snapshots(&path)?;
            } else {
                return Err(foreign(&path));
            }
        }
        self.dirs.push(dir.to_owned());
        Ok(())
    }

    /// Adds the directory of a volume's snapshots, in which only what a crash has
    /// left may be.
    fn add_snapshots(&mut self, dir: &Path) -> Result<()> {
        let context = |e| Error::os(e, format!("cannot list the directory {}", dir.display()));
        for entry in fs::read_dir(dir).map_err(context)? {
            let entry = entry.map_err(context)?;
            let path = entry.path();
            let is_dir = entry.file_type().map_err(context)?.is_dir();
            if is_dir && entry.file_name().to_str().is_some_and(is_leftover) {
                self.add(&path, false)?;
            } else {
                return Err(foreign(&path));
            }
        }
        self.dirs.push(dir.to_owned());
        Ok(())
    }
}

fn foreign(path: &Path) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!(
            "{} is none of the engine's files, so nothing was removed: move it elsewhere first",
            path.display()
        ),
    )
}

/// Refuses if there is anything in the directory of a volume or snapshot that
/// the engine does not make, and names it.
pub(super) fn check_ours(dir: &Path) -> Result<()> {
    Plan::default().add(dir, true)
}

/// Removes the directory of a volume or snapshot with what the engine makes in
/// one. With anything else in it nothing is removed, and it is named.
pub(super) fn remove(dir: &Path) -> Result<()> {
    let mut plan = Plan::default();
    plan.add(dir, true)?;
    let context = |path: &Path| {
        let text = format!("cannot remove {}", path.display());
        move |e| Error::os(e, text)
    };
    for file in &plan.files {
        fs::remove_file(file).map_err(context(file))?;
    }
    for dir in &plan.dirs {
        // Not if something has come into it since.
        fs::remove_dir(dir).map_err(context(dir))?;
    }
    Ok(())
}
