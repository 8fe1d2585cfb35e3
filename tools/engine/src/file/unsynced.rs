// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Which volumes have answered changes that are not known to be synced, open or
//! closed since: what a node that stops in order has to sync. After a process that was
//! killed, and whose boot id is kept, that is all of them.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
    use super::*;

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
}
