// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Opens data files by their paths, and locks them.
//!
//! Between opening a file and locking it another one can take its path: rolling
//! back puts a new file there, and a volume can be deleted and made anew. So once
//! a file is locked it must still be the one at its path. From then on it stays
//! that, since whoever changes what is there has the lock.

use std::fs::{self, File};
use std::io::ErrorKind as IoKind;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use neonsan_api::{SnapshotName, VolumeName};
use rustix::fs::{flock, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::{snapshots, FileEngine, ALONE};
use crate::interface::no_such_snapshot;
use crate::{Error, ErrorKind, Result};

/// Takes a lock of an open file (an operation that does not block), waiting for
/// up to `wait`. `Ok(false)`: someone else still has it.
pub(super) fn lock_within(
    file: impl AsFd,
    operation: FlockOperation,
    wait: Duration,
) -> std::result::Result<bool, Errno> {
    let deadline = Instant::now() + wait;
    loop {
        match flock(file.as_fd(), operation) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(Errno::WOULDBLOCK) => return Ok(false),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Whether the open file is the one at the path.
pub(super) fn is_at(file: &File, path: &Path) -> std::io::Result<bool> {
    let opened = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (opened.dev(), opened.ino())),
        Err(e) if e.kind() == IoKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Opens and locks the file at a path. `Ok(None)`: someone else has the lock.
fn open_locked(
    path: &Path,
    flags: OFlags,
    operation: FlockOperation,
    wait: Duration,
) -> std::io::Result<Option<File>> {
    loop {
        let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        if !lock_within(&file, operation, wait)? {
            return Ok(None);
        }
        if is_at(&file, path)? {
            return Ok(Some(file));
        }
    }
}

/// Refuses data that has another name too: whoever uses it by that changes it here.
fn check_alone(file: &File, path: &Path, what: &str) -> Result<()> {
    let metadata = file
        .metadata()
        .map_err(|e| Error::os(e, format!("cannot look at {}", path.display())))?;
    if metadata.nlink() < 2 {
        return Ok(());
    }
    let shown = path.display();
    Err(Error::new(
        ErrorKind::Conflict,
        format!(
            "the data of {what} has another name too ({shown} has {} hard links), as after `cp -l`: \
             what is written by one name is changed under the other. `find DIRECTORY -samefile {shown}` \
             shows the names; copy the file if both are needed, and remove one (a volume with `neonsan \
             volume delete`)",
            metadata.nlink()
        ),
    ))
}

impl FileEngine {
    fn flags(&self, access: OFlags) -> OFlags {
        let direct = match self.storage.direct {
            true => OFlags::DIRECT,
            false => OFlags::empty(),
        };
        access | OFlags::CLOEXEC | direct
    }

    /// Opens and locks the data file of a volume.
    pub(super) fn open_data(&self, name: &VolumeName, dir: &Path, wait: Duration) -> Result<File> {
        let data = self.lock_data(name, dir, wait)?;
        check_alone(&data, &dir.join("data"), &format!("the volume {name}"))?;
        Ok(data)
    }

    /// The same for a volume that is to be deleted, whatever else has its data.
    pub(super) fn lock_data(&self, name: &VolumeName, dir: &Path, wait: Duration) -> Result<File> {
        let path = dir.join("data");
        match open_locked(&path, self.flags(OFlags::RDWR), ALONE, wait) {
            Ok(Some(data)) => Ok(data),
            Ok(None) => Err(Error::new(
                ErrorKind::Busy,
                format!("the volume {name} is open in this or another process"),
            )),
            Err(e) if e.kind() == IoKind::NotFound && !dir.exists() => Err(Self::not_found(name)),
            Err(e) if e.kind() == IoKind::NotFound => Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "the volume {name} has no data: {} is missing",
                    path.display()
                ),
            )),
            Err(e) => Err(Error::os(e, format!("cannot open {}", path.display()))),
        }
    }

    /// The same; finishes rolling back first if a crash has interrupted it.
    pub(super) fn open_finished(
        &self,
        name: &VolumeName,
        dir: &Path,
        wait: Duration,
    ) -> Result<File> {
        let data = self.open_data(name, dir, wait)?;
        match snapshots::pending(dir, name)? {
            None => Ok(data),
            Some(snapshot) => {
                tracing::warn!(%snapshot, "finishing to roll back, which was interrupted");
                snapshots::finish_rollback(dir, &snapshot)?;
                drop(data);
                self.open_data(name, dir, wait)
            }
        }
    }

    /// Opens and locks the data of a snapshot.
    pub(super) fn open_snapshot_data(
        &self,
        name: &SnapshotName,
        dir: &Path,
        operation: FlockOperation,
    ) -> Result<File> {
        let data = self.lock_snapshot_data(name, dir, operation)?;
        check_alone(&data, &dir.join("data"), &format!("the snapshot {name}"))?;
        Ok(data)
    }

    /// The same for a snapshot that is to be deleted, whatever else has its data.
    pub(super) fn lock_snapshot_data(
        &self,
        name: &SnapshotName,
        dir: &Path,
        operation: FlockOperation,
    ) -> Result<File> {
        let path = dir.join("data");
        match open_locked(&path, self.flags(OFlags::RDONLY), operation, Duration::ZERO) {
            Ok(Some(data)) => Ok(data),
            Ok(None) => Err(Error::new(
                ErrorKind::Busy,
                format!("the snapshot {name} is open"),
            )),
            Err(e) if e.kind() == IoKind::NotFound && !dir.exists() => Err(no_such_snapshot(name)),
            Err(e) if e.kind() == IoKind::NotFound => Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "the snapshot {name} has no data: {} is missing",
                    path.display()
                ),
            )),
            Err(e) => Err(Error::os(e, format!("cannot open {}", path.display()))),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_has_lost_its_path_is_not_taken_for_the_one_there() {
        let dir = tempfile::tempdir().unwrap();
        let (path, new) = (dir.path().join("data"), dir.path().join("data.new"));
        fs::write(&path, b"old").unwrap();
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let open = |wait| open_locked(&path, flags, ALONE, wait);
        let old = open(Duration::ZERO).unwrap().unwrap();
        assert!(open(Duration::ZERO).unwrap().is_none());
        let taken = std::thread::scope(|scope| {
            let waiter = scope.spawn(|| open(Duration::from_secs(20)));
            // It has the old file open by now, or else it sees the new one anyway.
            std::thread::sleep(Duration::from_millis(100));
            fs::write(&new, b"new").unwrap();
            fs::rename(&new, &path).unwrap();
            drop(old);
            waiter.join().unwrap().unwrap().unwrap()
        });
        assert!(is_at(&taken, &path).unwrap());
        fs::remove_file(&path).unwrap();
        drop(taken);
        let gone = open(Duration::ZERO).unwrap_err();
        assert_eq!(gone.kind(), IoKind::NotFound);
    }
}
