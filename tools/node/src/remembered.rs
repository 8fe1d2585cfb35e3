// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Which engine the node has served at a path, from one start to the next: so that
//! it notices when another disk is mounted there, or none.
//!
//! One file in the node's own directory, `engines.json`, replaced as a whole while
//! `.lock` beside it is held, since several nodes of a machine may share it. What
//! a later release has put into it is kept.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use neonsan_engine::file::EngineIdentity;
use nix::libc;
use rustix::fs::{flock, FlockOperation};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::config::read_regular;

/// Where it is if the configuration does not say.
pub(crate) const DEFAULT_PATH: &str = "/var/lib/neonsan-node";

const VERSION: u32 = 1;

/// How long a node or command that is at the file is waited for.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize, Deserialize)]
struct Known {
    path: String,
    identity: String,
    #[serde(flatten)]
    unknown: BTreeMap<String, serde_json::Value>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Contents {
    version: u32,
    engines: Vec<Known>,
    #[serde(flatten)]
    unknown: BTreeMap<String, serde_json::Value>,
}

/// What the node remembers.
#[derive(Debug)]
pub(crate) struct Remembered {
    directory: PathBuf,
    /// The configuration names another directory than the usual one: then it must work.
    configured: bool,
}

/// What goes wrong, in words that say what to do.
type Result<T> = std::result::Result<T, String>;

/// The lock of the file; held for a look or a change.
struct Locked {
    _lock: File,
}

/// How an engine's path is written: whole, and without a slash at its end, which a shell adds.
fn key(path: &Path) -> Result<String> {
    let path = std::path::absolute(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let path: PathBuf = path.components().collect();
    match path.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(format!("{} is no text", path.display())),
    }
}

impl Remembered {
    /// What is remembered in this directory.
    pub(crate) fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            configured: directory != Path::new(DEFAULT_PATH),
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.join("engines.json")
    }

    fn lock(&self) -> io::Result<Locked> {
        match DirBuilder::new().mode(0o750).create(&self.directory) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o640)
            // A pipe that nobody reads would be waited for.
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(self.directory.join(".lock"))?;
        let end = Instant::now() + LOCK_PATIENCE;
        loop {
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Locked { _lock: lock }),
                Err(Errno::AGAIN | Errno::INTR) if Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(Errno::AGAIN) => {
                    let text = "another program has its file .lock locked, as a node that is \
                                starting does for a moment: see which (`lslocks`)";
                    return Err(io::Error::other(text));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn load(&self) -> Result<Contents> {
        let path = self.path();
        let text = match read_regular(&path) {
            Ok(text) => text,
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound) => {
                return Ok(Contents {
                    version: VERSION,
                    engines: Vec::new(),
                    unknown: BTreeMap::new(),
                })
            }
            Err(e) => {
                return Err(format!(
                    "cannot read {}, where the node has noted which engine it serves: {e}; give it \
                     to the node's user (`chown --reference={} {0}`), or set state_path",
                    path.display(),
                    self.directory.display()
                ))
            }
        };
        let contents: Contents = serde_json::from_str(&text).map_err(|e| {
            format!(
                "{} is damaged ({e}): see that the right disks are mounted, then remove it, and the \
                 node begins a new one",
                path.display()
            )
        })?;
        if contents.version != VERSION {
            return Err(format!(
                "{} has version {}, and this program knows version {VERSION} only: a newer release \
                 wrote it; use that",
                path.display(),
                contents.version
            ));
        }
        Ok(contents)
    }

    /// Gives the new file to the owner of the one before, or else of the directory: root runs
    /// `forget`, and the node, which has no privilege, reads the file afterwards.
    fn give(&self, new: &File) -> io::Result<()> {
        let before = fs::metadata(self.path()).or_else(|_| fs::metadata(&self.directory))?;
        let is_his = new.metadata()?;
        let owner = (before.uid(), before.gid());
        if rustix::process::geteuid().is_root() && (is_his.uid(), is_his.gid()) != owner {
            std::os::unix::fs::fchown(new, Some(owner.0), Some(owner.1))?;
        }
        Ok(())
    }

    /// Replaces the file, durably.
    fn store(&self, _locked: &Locked, contents: &Contents) -> io::Result<()> {
        let new = self.directory.join("engines.json.new");
        match fs::remove_file(&new) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        // A new file, never what a link leads to: root may write here, and the directory is the node's.
        let mut file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o640)
            .open(&new)?;
        self.give(&file)?;
        let mut text = serde_json::to_vec_pretty(contents)?;
        text.push(b'\n');
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&new, self.path())?;
        File::open(&self.directory)?.sync_all()
    }

    /// The engine that was served at a path, if any was.
    pub(crate) fn identity(&self, root: &Path) -> Result<Option<EngineIdentity>> {
        let key = key(root)?;
        let known = self.load()?.engines;
        match known.iter().find(|known| known.path == key) {
            None => Ok(None),
            Some(known) => known.identity.parse().map(Some).map_err(|()| {
                format!(
                    "{} is damaged: the identity of {key} is {:?}",
                    self.path().display(),
                    known.identity
                )
            }),
        }
    }

    /// Notes that an engine is served at a path; for the first time, since the engine is not opened
    /// if it is another one than before.
    ///
    /// # Errors
    ///
    /// The configuration names a directory that cannot be written. That the usual one cannot is only
    /// said in the log: a node that somebody runs for himself may have no right to it.
    pub(crate) fn remember(&self, root: &Path, identity: EngineIdentity) -> Result<()> {
        let key = key(root)?;
        if self.identity(root)? == Some(identity) {
            return Ok(());
        }
        let failed = |error: io::Error| {
            let text = format!(
                "cannot note in {} which engine is at {key}, so that another disk there would not be \
                 noticed: {error}; make the directory writable for the node's user, or set state_path",
                self.directory.display()
            );
            match self.configured {
                true => Err(text),
                false => {
                    tracing::warn!("{text}");
                    Ok(())
                }
            }
        };
        let locked = match self.lock() {
            Ok(locked) => locked,
            Err(error) => return failed(error),
        };
        let mut contents = self.load()?;
        contents.engines.retain(|known| known.path != key);
        contents.engines.push(Known {
            path: key.clone(),
            identity: identity.to_string(),
            unknown: BTreeMap::new(),
        });
        self.store(&locked, &contents).or_else(failed)
    }

    /// Forgets what was served at a path; `false`: nothing was.
    pub(crate) fn forget(&self, root: &Path) -> Result<bool> {
        let key = key(root)?;
        let failed = |error: io::Error| format!("cannot write {}: {error}", self.path().display());
        if self.identity(root)?.is_none() {
            return Ok(false);
        }
        let locked = self.lock().map_err(failed)?;
        let mut contents = self.load()?;
        contents.engines.retain(|known| known.path != key);
        self.store(&locked, &contents).map_err(failed)?;
        Ok(true)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn identity(byte: u8) -> EngineIdentity {
        EngineIdentity([byte; 16])
    }

    #[test]
    fn what_is_remembered_is_known_until_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let (a, b) = (Path::new("/srv/a"), Path::new("/srv/b"));
        let remembered = Remembered::new(&state);
        assert_eq!(remembered.identity(a).unwrap(), None);
        assert!(!state.exists(), "a look makes nothing");
        remembered.remember(a, identity(1)).unwrap();
        remembered.remember(b, identity(2)).unwrap();
        let remembered = Remembered::new(&state);
        assert_eq!(remembered.identity(a).unwrap(), Some(identity(1)));
        assert!(remembered.forget(a).unwrap());
        assert!(!remembered.forget(a).unwrap());
        assert_eq!(remembered.identity(a).unwrap(), None);
        assert_eq!(remembered.identity(b).unwrap(), Some(identity(2)));
    }

    #[test]
    fn a_slash_at_the_end_makes_no_other_path() {
        let dir = tempfile::tempdir().unwrap();
        let remembered = Remembered::new(dir.path());
        remembered
            .remember(Path::new("/srv/a"), identity(1))
            .unwrap();
        for same in ["/srv/a/", "/srv//a", "/srv/./a/."] {
            let known = remembered.identity(Path::new(same)).unwrap();
            assert_eq!(known, Some(identity(1)), "{same}");
        }
        assert!(remembered.forget(Path::new("/srv/a/")).unwrap());
    }

    #[test]
    fn the_node_can_read_what_root_has_changed() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIP the_node_can_read_what_root_has_changed: not root, who alone gives files away");
            return;
        }
        let (node, group) = (65_534, 65_533);
        let dir = tempfile::tempdir().unwrap();
        let remembered = Remembered::new(dir.path());
        let file = dir.path().join("engines.json");
        std::os::unix::fs::chown(dir.path(), Some(node), Some(group)).unwrap();
        let owner = || {
            let metadata = fs::metadata(&file).unwrap();
            (metadata.uid(), metadata.gid())
        };
        remembered.remember(Path::new("/a"), identity(1)).unwrap();
        assert_eq!(owner(), (node, group), "that of the directory");
        std::os::unix::fs::chown(dir.path(), Some(0), Some(group)).unwrap();
        // Whoever has the directory gets nothing that a link leads to.
        let foreign = tempfile::NamedTempFile::new().unwrap();
        fs::write(foreign.path(), "root's").unwrap();
        let before = fs::metadata(foreign.path()).unwrap().uid();
        let new = dir.path().join("engines.json.new");
        std::os::unix::fs::symlink(foreign.path(), new).unwrap();
        remembered.forget(Path::new("/a")).unwrap();
        assert_eq!(owner(), (node, group), "that of the file before");
        assert_eq!(fs::read_to_string(foreign.path()).unwrap(), "root's");
        assert_eq!(fs::metadata(foreign.path()).unwrap().uid(), before);
    }

    #[test]
    fn what_a_later_release_has_added_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let remembered = Remembered::new(dir.path());
        let text = format!(
            "{{\"version\":1,\"more\":[1],\"engines\":[{{\"path\":\"/a\",\"identity\":\"{}\",\"since\":7}}]}}",
            identity(1)
        );
        fs::write(dir.path().join("engines.json"), text).unwrap();
        remembered.remember(Path::new("/b"), identity(2)).unwrap();
        let text = fs::read_to_string(dir.path().join("engines.json")).unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["more"][0], 1);
        assert_eq!(value["engines"][0]["since"], 7);
        assert_eq!(value["engines"][1]["path"], "/b");
    }

    #[test]
    fn nothing_is_waited_for_without_end() {
        let dir = tempfile::tempdir().unwrap();
        let remembered = Remembered::new(dir.path());
        let pipe = |name: &str| {
            let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
            rustix::fs::mknodat(rustix::fs::CWD, dir.path().join(name), kind, mode, 0).unwrap();
        };
        pipe("engines.json");
        let why = remembered.identity(Path::new("/a")).unwrap_err();
        assert!(why.contains("no regular file"), "{why}");
        fs::remove_file(dir.path().join("engines.json")).unwrap();
        pipe(".lock");
        let noted = remembered.remember(Path::new("/a"), identity(1));
        assert!(noted.unwrap_err().contains("cannot note"));
        fs::remove_file(dir.path().join(".lock")).unwrap();
        remembered.remember(Path::new("/a"), identity(1)).unwrap();
        let lock = File::open(dir.path().join(".lock")).unwrap();
        flock(&lock, FlockOperation::LockExclusive).unwrap();
        let why = remembered.forget(Path::new("/a")).unwrap_err();
        assert!(why.contains(".lock locked"), "{why}");
        drop(lock);
        assert!(remembered.forget(Path::new("/a")).unwrap());
    }

    #[test]
    fn what_cannot_be_read_is_not_taken_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let remembered = Remembered::new(dir.path());
        for (text, what) in [
            ("{", "damaged"),
            ("{\"version\":2,\"engines\":[]}", "newer release"),
            (
                "{\"version\":1,\"engines\":[{\"path\":\"/a\",\"identity\":\"x\"}]}",
                "damaged",
            ),
        ] {
            fs::write(dir.path().join("engines.json"), text).unwrap();
            let why = remembered.identity(Path::new("/a")).unwrap_err();
            assert!(why.contains(what), "{why}");
            assert!(remembered.remember(Path::new("/a"), identity(1)).is_err());
        }
    }
}
