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

use super::marker;
use crate::error::{SystemError, Written as _};
use crate::{Error, ErrorKind, Result};

/// Permissions of files: who may read one may read a volume.
const FILE_MODE: u32 = 0o640;

/// Permissions of directories.
const DIR_MODE: u32 = 0o750;

/// The files of a volume or a snapshot, of this release and those before.
const FILES: [&str; 13] = [
    marker::VOLUME_MARKER,
    marker::NEW_VOLUME_MARKER,
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

/// Whether this is the number in the name of something temporary.
pub(super) fn is_number(digits: &str) -> bool {
    digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Whether the name is one of what is half made or half deleted: `.create-` or
/// `.delete-` and a number.
pub(super) fn is_leftover(name: &str) -> bool {
    [".create-", ".delete-"]
        .iter()
        .any(|prefix| name.strip_prefix(prefix).is_some_and(is_number))
}

/// Refuses a directory with such a name that the engine did not make: its marker is the first thing that
/// comes into one, and the last that goes.
pub(super) fn check_leftover(dir: &Path) -> Result<()> {
    let context = |e| Error::os(e, format!("cannot list the directory {}", dir.display()));
    for entry in fs::read_dir(dir).map_err(context)? {
        let name = entry.map_err(context)?.file_name();
        if name != marker::NEW_VOLUME_MARKER && !marker::is_ours(dir)? {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "{} is called as what the engine makes for a moment, and has no marker of it: \
                     remove it, or call it something else",
                    dir.display()
                ),
            ));
        }
    }
    Ok(())
}

/// A step of removing.
#[derive(Debug)]
enum Step {
    File(PathBuf),
    /// Empty by then.
    Dir(PathBuf),
}

/// What removing a directory of ours consists of, in order. A crash after any step leaves what is known
/// to be ours: what is below first, and the marker last, or the description where there is none.
#[derive(Debug, Default)]
struct Plan(Vec<Step>);

impl Plan {
    /// Adds what is in the directory of a volume or snapshot.
    fn add(&mut self, dir: &Path, may_have_snapshots: bool) -> Result<()> {
        let context = |e| Error::os(e, format!("cannot list the directory {}", dir.display()));
        let (mut files, mut last) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(dir).map_err(context)? {
            let entry = entry.map_err(context)?;
            let path = entry.path();
            let kind = entry.file_type().map_err(context)?;
            let name = entry.file_name();
            let name = name.to_str().unwrap_or("");
            if !kind.is_dir() && FILES.contains(&name) {
                match name {
                    "meta" => last.insert(0, path),
                    marker::VOLUME_MARKER => last.push(path),
                    _ => files.push(path),
                }
            } else if kind.is_dir() && may_have_snapshots && name == SNAPSHOTS {
                self.add_snapshots(&path)?;
            } else {
                return Err(foreign(&path));
            }
        }
        files.append(&mut last);
        self.0.extend(files.into_iter().map(Step::File));
        self.0.push(Step::Dir(dir.to_owned()));
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
                check_leftover(&path)?;
                self.add(&path, false)?;
            } else {
                return Err(foreign(&path));
            }
        }
        self.0.push(Step::Dir(dir.to_owned()));
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
    for step in &plan.0 {
        match step {
            Step::File(path) => fs::remove_file(path).map_err(context(path))?,
            // Not if something has come into it since.
            Step::Dir(path) => fs::remove_dir(path).map_err(context(path))?,
        }
    }
    Ok(())
}
