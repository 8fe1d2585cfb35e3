// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Whether the storage below an engine's directory works: a block is written to a
//! file there, made durable and read back, as the data of volumes is.

use std::fs::File;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use super::opening::is_at;
use super::FileEngine;
use crate::error::{SystemError, Written as _};
use crate::identity::random_id;
use crate::{Buffer, Error, ErrorKind, Result, BUFFER_ALIGN};

/// Refuses a directory that is not the one any more which the engine was opened in: what is there now
/// is somebody else's, or what lies below a mount point. `lock` is the engine's lock.
///
/// # Errors
///
/// [`ErrorKind::Unavailable`]: the right one may come back.
pub(super) fn check_place(root: &Path, lock: &File) -> Result<()> {
    let place = root.join(".lock");
    if is_at(lock, &place).map_err(|e| Error::os(e, format!("cannot reach {}", place.display())))? {
        return Ok(());
    }
    Err(not_the_place(root))
}

/// What [`check_place`] says.
pub(super) fn not_the_place(root: &Path) -> Error {
    Error::new(
        ErrorKind::Unavailable,
        format!(
            "{} is not the directory any more in which this node began: was it moved, or \
             something mounted over it, or unmounted? Put it back, or restart the node",
            root.display()
        ),
    )
}

/// Writes, syncs and reads a block in `root`. `lock` is the engine's lock, which
/// was opened there; `direct`: as volumes are, without the page cache. Blocks for
/// as long as the storage takes.
pub(super) fn check(root: &Path, lock: &File, direct: bool) -> Result<()> {
    check_place(root, lock)?;
    let path = root.join(".health");
    let mut flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    if direct {
        flags |= OFlags::DIRECT;
    }
    let context =
        |what: &str, e: SystemError| Error::os(e, format!("cannot {what} {}", path.display()));
    let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|e| context("open", e.into()))?;
    let mut block = Buffer::zeroed(BUFFER_ALIGN)?;
    let mark = random_id()?;
    block[..mark.len()].copy_from_slice(&mark);
    let written = rustix::io::pwrite(&file, &block[..], 0)
        .written()
        .map_err(|e| context("write", e))?;
    rustix::fs::fdatasync(&file)
        .written()
        .map_err(|e| context("sync", e))?;
    block.fill(0);
    let read =
        rustix::io::pread(&file, &mut block[..], 0).map_err(|e| context("read", e.into()))?;
    if written != BUFFER_ALIGN || read != BUFFER_ALIGN || block[..mark.len()] != mark {
        return Err(Error::new(
            ErrorKind::Io,
            format!(
                "{} does not have what was written to it just now: the storage is broken",
                path.display()
            ),
        ));
    }
    Ok(())
}

/// The pools that the node may not read, one sentence each: their volumes are
/// neither listed nor served.
pub(super) fn unreadable_pools(root: &Path) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for (_, pool) in FileEngine::pools(root)? {
        if let Err(error) = std::fs::read_dir(&pool) {
            problems.push(format!(
                "the directory {} cannot be read, so what is in it is not served: {error}",
                pool.display()
            ));
        }
    }
    Ok(problems)
}
