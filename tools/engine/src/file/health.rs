// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Whether the storage below an engine's directory works: a block is written to a
//! file there, made durable and read back, as the data of volumes is. Pools that are
//! on file systems of their own are asked too.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};

use super::durability::Durability;
use super::opening::is_at;
use super::settle::Superblock;
use super::walk;
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

/// Writes, syncs and reads a block in `dir`. `direct`: as volumes are, without the page cache. Its sync
/// may be the one that hears of what the disk has lost. Blocks for as long as the storage takes.
pub(super) fn check(dir: &Path, direct: bool, durability: &Arc<Durability>) -> Result<()> {
    let asking = durability.settling.ask(&Superblock::of(dir));
    let checked = durability.noted(write_and_read(dir, direct));
    durability.settling.told(asking);
    checked
}

fn write_and_read(dir: &Path, direct: bool) -> Result<()> {
    let path = dir.join(".health");
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

/// How long the checks of pools are waited for: what asks for the engine's health is not to take the
/// whole engine for dead when one of its pools is.
const POOL_PATIENCE: Duration = Duration::from_secs(3);

/// A check of one pool that has begun.
#[derive(Debug)]
struct Running {
    since: Instant,
    result: Receiver<Result<()>>,
}

/// The checks of pools that are on file systems of their own, each on a thread of its own: one that
/// hangs is not asked again, and keeps the health of the rest from nobody.
#[derive(Debug, Default)]
pub(super) struct PoolChecks(Mutex<BTreeMap<PathBuf, Running>>);

impl PoolChecks {
    /// What is wrong, one sentence each.
    pub(super) fn check(
        &self,
        root: &Path,
        direct: bool,
        durability: &Arc<Durability>,
    ) -> Result<Vec<String>> {
        let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
        let at_root = device(root);
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut problems = Vec::new();
        let mut pools = Vec::new();
        for (_, pool) in walk::pools(root)? {
            if device(&pool) == at_root {
                continue;
            }
            if !running.contains_key(&pool) {
                running.insert(pool.clone(), begin(&pool, direct, durability)?);
            }
            pools.push(pool);
        }
        for pool in pools {
            let Some(check) = running.get(&pool) else {
                continue;
            };
            let shown = pool.display();
            let left = POOL_PATIENCE.saturating_sub(check.since.elapsed());
            match check.result.recv_timeout(left) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => problems.push(format!("the pool {shown} has a problem: {error}")),
                Err(RecvTimeoutError::Disconnected) => {
                    problems.push(format!("the check of the pool {shown} has failed"));
                }
                Err(RecvTimeoutError::Timeout) => {
                    problems.push(format!(
                        "the file system of the pool {shown} does not answer (for {} s): its volumes \
                         hang",
                        check.since.elapsed().as_secs()
                    ));
                    continue;
                }
            }
            running.remove(&pool);
        }
        Ok(problems)
    }
}

fn begin(pool: &Path, direct: bool, durability: &Arc<Durability>) -> Result<Running> {
    let (send, result) = mpsc::channel();
    let (pool, durability) = (pool.to_owned(), Arc::clone(durability));
    std::thread::Builder::new()
        .name("check-pool".to_owned())
        .spawn(move || {
            let checked = check(&pool, direct, &durability);
            // First, so that whoever was told finds nothing of the engine here any more.
            drop(durability);
            let _ = send.send(checked);
        })
        .map_err(|e| Error::os(e, "cannot start a thread"))?;
    Ok(Running {
        since: Instant::now(),
        result,
    })
}

/// The pools that the node may not read, one sentence each: their volumes are
/// neither listed nor served.
pub(super) fn unreadable_pools(root: &Path) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for (_, pool) in walk::pools(root)? {
        if let Err(error) = fs::read_dir(&pool) {
            problems.push(format!(
                "the directory {} cannot be read, so what is in it is not served: {error}",
                pool.display()
            ));
        }
    }
    Ok(problems)
}
