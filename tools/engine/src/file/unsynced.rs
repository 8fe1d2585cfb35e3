// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Which volumes have answered changes that are not known to be synced, open or
//! closed since: what a node that stops in order has to sync. After a process that was
//! killed, and whose boot id is kept, that is all of them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::ErrorKind as IoKind;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use neonsan_api::VolumeName;

use super::walk;
use crate::{Error, Result};

/// Of one volume: set before a change is answered, taken away when a flush begins, and
/// set again if that fails.
pub(super) type Mark = Arc<AtomicBool>;

/// The volumes of an engine that are open or have the mark, by their directories.
///
/// The mutex is held to look at the map, never during I/O.
#[derive(Debug, Default)]
pub(super) struct Unsynced(Mutex<BTreeMap<PathBuf, Mark>>);

impl Unsynced {
    fn marks(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Mark>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The volume in `dir` is opened. It may have the mark from before.
    pub(super) fn opened(&self, dir: &Path) -> Mark {
        Arc::clone(self.marks().entry(dir.to_owned()).or_default())
    }

    /// Marks every volume: the process before may have answered changes to any of them. Blocks.
    ///
    /// # Errors
    ///
    /// A volume cannot be seen, as in a pool that this process may not read: the one before may
    /// have run as another user.
    pub(super) fn mark_all(&self, root: &Path) -> Result<()> {
        for (pool, path) in walk::pools(root)? {
            for (volume, path) in walk::entries(&path)? {
                if VolumeName::new(&pool, &volume).is_err() {
                    continue;
                }
                match fs::metadata(path.join("data")) {
                    Ok(_) => self.opened(&path).store(true, Ordering::Release),
                    Err(e) if e.kind() == IoKind::NotFound => {}
                    Err(e) => {
                        return Err(Error::os(e, format!("cannot look into {}", path.display())))
                    }
                }
            }
        }
        Ok(())
    }

    /// It is closed.
    pub(super) fn closed(&self, dir: &Path) {
        let mut marks = self.marks();
        if marks
            .get(dir)
            .is_some_and(|mark| !mark.load(Ordering::Acquire))
        {
            marks.remove(dir);
        }
    }

    /// It is deleted.
    pub(super) fn forget(&self, dir: &Path) {
        self.marks().remove(dir);
    }

    /// Syncs every volume that has the mark, while nobody changes any. Blocks.
    ///
    /// # Errors
    ///
    /// The first failure: then the state of none is known. That of a volume that is not there is
    /// one too, since its file system may have gone: the engine forgets what it deletes itself.
    pub(super) fn sync(&self) -> Result<()> {
        let marked: Vec<(PathBuf, Mark)> = self
            .marks()
            .iter()
            .filter(|(_, mark)| mark.load(Ordering::Acquire))
            .map(|(dir, mark)| (dir.clone(), Arc::clone(mark)))
            .collect();
        for (dir, mark) in marked {
            let path = dir.join("data");
            match File::open(&path).and_then(|data| data.sync_data()) {
                Ok(()) => mark.store(false, Ordering::Release),
                Err(e) => return Err(Error::os(e, format!("cannot sync {}", path.display()))),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::ErrorKind;

    #[test]
    fn a_volume_is_synced_though_it_was_closed_and_one_that_has_gone_by_itself_is_a_failure() {
        let dir = tempfile::tempdir().unwrap();
        let unsynced = Unsynced::default();
        let names = ["clean", "deleted", "dirty", "gone"].map(|name| dir.path().join(name));
        for name in &names {
            std::fs::create_dir(name).unwrap();
            std::fs::write(name.join("data"), b"x").unwrap();
            unsynced
                .opened(name)
                .store(!name.ends_with("clean"), Ordering::Release);
            unsynced.closed(name);
        }
        let [_, deleted, dirty, gone] = &names;
        assert_eq!(unsynced.marks().len(), 3);
        std::fs::remove_dir_all(deleted).unwrap();
        unsynced.forget(deleted);
        std::fs::remove_dir_all(gone).unwrap();
        let error = unsynced.sync().unwrap_err();
        assert!(error.to_string().contains("gone/data"), "{error}");
        assert!(!unsynced.opened(dirty).load(Ordering::Acquire));
        unsynced.forget(gone);
        unsynced.sync().unwrap();
        // A directory can be synced too: only what cannot be opened fails.
        std::fs::remove_file(dirty.join("data")).unwrap();
        std::fs::create_dir(dirty.join("data")).unwrap();
        unsynced.opened(dirty).store(true, Ordering::Release);
        unsynced.sync().unwrap();
    }

    /// Runs `f` as a user who is not root, in a thread of its own.
    fn unprivileged<T: Send>(f: impl FnOnce() -> T + Send) -> T {
        let as_nobody = || {
            if rustix::process::geteuid().is_root() {
                rustix::thread::set_thread_uid(rustix::fs::Uid::from_raw(65534)).unwrap();
            }
            f()
        };
        std::thread::scope(|scope| scope.spawn(as_nobody).join().unwrap())
    }

    #[test]
    fn what_a_process_of_another_user_may_have_written_counts_though_this_one_cannot_see_it() {
        let set_mode = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let root = tempfile::tempdir().unwrap();
        let [pool, volume] = ["pool", "pool/volume"].map(|name| root.path().join(name));
        fs::create_dir_all(&volume).unwrap();
        fs::write(volume.join("data"), b"x").unwrap();
        fs::create_dir(root.path().join("lost+found")).unwrap();
        set_mode(&root.path().join("lost+found"), 0);
        for path in [root.path(), &pool, &volume] {
            set_mode(path, 0o755);
        }
        let unsynced = Unsynced::default();
        unprivileged(|| unsynced.mark_all(root.path())).unwrap();
        assert!(unsynced.opened(&volume).load(Ordering::Acquire));
        for (hidden, named) in [(&volume, "pool/volume"), (&pool, "pool")] {
            set_mode(hidden, 0);
            let error = unprivileged(|| Unsynced::default().mark_all(root.path())).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotPermitted, "{error}");
            assert!(error.to_string().contains(named), "{error}");
            set_mode(hidden, 0o755);
        }
    }
}
