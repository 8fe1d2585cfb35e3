// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Which volume or snapshot has which identity: so that a copy is noticed.
//!
//! A directory that was copied with its `meta` is a second volume with the identity
//! of the first. Hosts tell disks apart by that, so of two such volumes neither is
//! opened until one has another identity, or is gone. So it is with snapshots, which
//! are copied beside the first or to where volumes are.
//!
//! An engine keeps an index of its volumes, and all engines of a node look into each
//! other's, but not at each other's storage: one that hangs holds up no other engine. Opening a volume
//! costs a look at the directories of the pools, and at each volume's of its snapshots (with thousands of
//! volumes not each time): only one that has changed is read again, and there only descriptions that
//! have. What has changed within the last seconds is read again in any case, since times of files
//! are coarse. Descriptions that somebody overwrites in place are noticed when the
//! whole index is looked through, at the start and for a list of volumes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use neonsan_api::{SnapshotName, VolumeName};

use super::layout::SNAPSHOTS;
use super::meta::Meta;
use super::walk;

/// Times of files are not finer than this, with a margin for file systems that count
/// in seconds.
const COARSE: Duration = Duration::from_secs(3);

/// A look at the snapshots of all volumes that takes longer is not made for each volume that is opened:
/// when a node starts again, all are opened at once.
const LONG_LOOK: Duration = Duration::from_millis(5);

/// Then looking takes at most one part in so many of the time.
const LOOK_SHARE: u32 = 20;

/// How a file or directory is known again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    changed: (i64, i64),
    modified: (i64, i64),
    len: u64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: (metadata.dev(), metadata.ino()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            len: metadata.len(),
        }
    }

    fn at(path: &Path) -> Option<Self> {
        fs::symlink_metadata(path).ok().as_ref().map(Self::of)
    }

    /// Whether a later change would have another time than this.
    fn is_settled(&self, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let changed = u64::try_from(self.changed.0).unwrap_or(0);
        now > Duration::from_secs(changed) + COARSE
    }
}

/// What was seen, and whether it can have changed unseen.
#[derive(Clone, Copy, Debug)]
struct Seen {
    stamp: Stamp,
    settled: bool,
}

impl Seen {
    fn is_still(seen: Option<&Self>, stamp: Option<Stamp>) -> bool {
        match (seen, stamp) {
            (Some(seen), Some(stamp)) => seen.settled && seen.stamp == stamp,
            _ => false,
        }
    }

    fn now(stamp: Option<Stamp>, now: SystemTime) -> Option<Self> {
        stamp.map(|stamp| Self {
            stamp,
            settled: stamp.is_settled(now),
        })
    }
}

/// A volume or a snapshot.
#[derive(Debug, Default)]
struct Known {
    /// Its description.
    seen: Option<Seen>,
    /// `None`: it cannot be read.
    id: Option<[u8; 16]>,
}

#[derive(Debug, Default)]
struct Volume {
    own: Known,
    /// The directory of its snapshots; `None`: not read, or it can have changed.
    seen: Option<Seen>,
    /// Its snapshots by their directories.
    snapshots: HashMap<PathBuf, Known>,
}

#[derive(Debug, Default)]
struct Pool {
    seen: Option<Seen>,
    volumes: HashMap<VolumeName, Volume>,
}

/// What is on the storage, as it was seen.
#[derive(Debug, Default)]
struct State {
    root: Option<Seen>,
    pools: HashMap<String, Pool>,
    /// When the last look at the snapshots ended, and how long it took.
    snapshots_looked: Option<(Instant, Duration)>,
}

impl State {
    /// Whether the last look at the snapshots of all volumes was long, and not long ago.
    fn spares_snapshots(&self, now: Instant) -> bool {
        self.snapshots_looked.is_some_and(|(ended, took)| {
            took > LONG_LOOK && now.saturating_duration_since(ended) < took * LOOK_SHARE
        })
    }
}

/// The directories of volumes and snapshots that have an identity.
type Places = HashMap<[u8; 16], BTreeSet<PathBuf>>;

/// The volumes of one engine by identity.
#[derive(Debug)]
pub(super) struct Index {
    root: PathBuf,
    /// Held for a look, which reads directories and may hang with the storage: only
    /// this engine's own threads take it.
    state: Mutex<State>,
    /// What came of it, for the other engines too. Taken under `state` or alone, and
    /// never held for I/O.
    places: Mutex<Places>,
}

impl Index {
    pub(super) fn new(root: &Path) -> Arc<Self> {
        Arc::new(Self {
            root: root.to_owned(),
            state: Mutex::default(),
            places: Mutex::default(),
        })
    }

    fn path(&self, name: &VolumeName) -> PathBuf {
        self.root.join(name.pool()).join(name.volume())
    }

    fn places(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The volume or snapshot had one identity and has another; `None`: none.
    fn change(&self, dir: &Path, before: Option<[u8; 16]>, after: Option<[u8; 16]>) {
        if before == after {
            return;
        }
        let mut all = self.places();
        if let Some(before) = before {
            if let Some(places) = all.get_mut(&before) {
                places.remove(dir);
                if places.is_empty() {
                    all.remove(&before);
                }
            }
        }
        if let Some(after) = after {
            all.entry(after).or_default().insert(dir.to_owned());
        }
    }

    /// Reads the description in a directory again if it can have changed.
    fn read(&self, dir: &Path, known: &mut Known, now: SystemTime) {
        let stamp = Stamp::at(&dir.join("meta"));
        if Seen::is_still(known.seen.as_ref(), stamp) {
            return;
        }
        let id = Meta::load(dir).ok().map(|meta| meta.id);
        self.change(dir, known.id, id);
        *known = Known {
            seen: Seen::now(stamp, now),
            id,
        };
    }

    /// The volume is gone, with its snapshots.
    fn forget(&self, name: &VolumeName, volume: &Volume) {
        self.change(&self.path(name), volume.own.id, None);
        for (dir, known) in &volume.snapshots {
            self.change(dir, known.id, None);
        }
    }

    /// Reads which snapshots a volume has if that can have changed, and their
    /// descriptions.
    fn read_snapshots(&self, name: &VolumeName, volume: &mut Volume, thorough: bool) {
        let parent = self.path(name).join(SNAPSHOTS);
        let stamp = Stamp::at(&parent);
        // Most volumes have none, and never had.
        let none = stamp.is_none() && volume.snapshots.is_empty();
        if none || (!thorough && Seen::is_still(volume.seen.as_ref(), stamp)) {
            return;
        }
        let now = SystemTime::now();
        // Before its content is read.
        volume.seen = Seen::now(stamp, now);
        let mut before = std::mem::take(&mut volume.snapshots);
        for (snapshot, dir) in walk::entries(&parent).unwrap_or_default() {
            // What is half made or half deleted has no such name.
            if SnapshotName::new(name, &snapshot).is_ok() {
                let mut known = before.remove(&dir).unwrap_or_default();
                self.read(&dir, &mut known, now);
                volume.snapshots.insert(dir, known);
            }
        }
        for (dir, known) in before {
            self.change(&dir, known.id, None);
        }
    }

    /// Reads a pool, and of its volumes those that have changed.
    fn read_pool(&self, state: &mut State, name: &str, path: &Path, stamp: Option<Stamp>) {
        let now = SystemTime::now();
        let mut before = state.pools.remove(name).unwrap_or_default().volumes;
        let mut pool = Pool {
            // Before its content is read.
            seen: Seen::now(stamp, now),
            volumes: HashMap::new(),
        };
        for (volume, dir) in walk::entries(path).unwrap_or_default() {
            let Ok(volume) = VolumeName::new(name, &volume) else {
                continue;
            };
            let mut known = before.remove(&volume).unwrap_or_default();
            self.read(&dir, &mut known.own, now);
            pool.volumes.insert(volume, known);
        }
        for (volume, known) in before {
            self.forget(&volume, &known);
        }
        state.pools.insert(name.to_owned(), pool);
    }

    /// Sees what is there now. `thorough`: looks at each description. Blocks.
    fn look(&self, thorough: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = Stamp::at(&self.root);
        if thorough || !Seen::is_still(state.root.as_ref(), stamp) {
            state.root = Seen::now(stamp, SystemTime::now());
            let there: BTreeSet<String> = walk::entries(&self.root)
                .unwrap_or_default()
                .into_iter()
                .map(|(name, _)| name)
                .filter(|name| VolumeName::new(name, "x").is_ok())
                .collect();
            state.pools.retain(|name, pool| {
                let is_there = there.contains(name);
                if !is_there {
                    for (name, volume) in &pool.volumes {
                        self.forget(name, volume);
                    }
                }
                is_there
            });
            for name in there {
                state.pools.entry(name).or_default();
            }
        }
        let pools: Vec<String> = state.pools.keys().cloned().collect();
        for name in pools {
            let path = self.root.join(&name);
            let stamp = Stamp::at(&path);
            let seen = state.pools.get(&name).and_then(|pool| pool.seen.as_ref());
            if thorough || !Seen::is_still(seen, stamp) {
                self.read_pool(&mut state, &name, &path, stamp);
            }
        }
        if !thorough && state.spares_snapshots(Instant::now()) {
            return;
        }
        let begun = Instant::now();
        for pool in state.pools.values_mut() {
            for (name, volume) in &mut pool.volumes {
                self.read_snapshots(name, volume, thorough);
            }
        }
        let ended = Instant::now();
        state.snapshots_looked = Some((ended, ended.duration_since(begun)));
    }

    /// The engine has made a volume, given one another identity, or (`None`) deleted
    /// one: so that the other engines need not wait for the next look.
    pub(super) fn note(&self, name: &VolumeName, id: Option<[u8; 16]>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let volumes = &mut state
            .pools
            .entry(name.pool().to_owned())
            .or_default()
            .volumes;
        let Some(id) = id else {
            if let Some(volume) = volumes.remove(name) {
                self.forget(name, &volume);
            }
            return;
        };
        let volume = volumes.entry(name.clone()).or_default();
        self.change(&self.path(name), volume.own.id, Some(id));
        // To be read when the pool is looked at, and the snapshots, which an adopted
        // volume has given others too, when they are.
        volume.own = Known {
            seen: None,
            id: Some(id),
        };
        volume.seen = None;
        for known in volume.snapshots.values_mut() {
            known.seen = None;
        }
    }

    /// Sees what has changed since the last look. Blocks.
    fn look_again(&self) {
        self.look(false);
    }

    /// Looks at each description, so that none is missed that was overwritten.
    /// Blocks.
    pub(super) fn look_at_all(&self) {
        self.look(true);
    }

    /// The volumes and snapshots that have this identity. Blocks.
    fn with(&self, id: &[u8; 16]) -> Vec<PathBuf> {
        self.look_again();
        let mut paths = self.seen_with(id);
        // What the index says may be old; what they say themselves is not.
        paths.retain(|path| Meta::load(path).is_ok_and(|meta| meta.id == *id));
        paths
    }

    /// Those that had it when this engine was looked at last. Does not block.
    fn seen_with(&self, id: &[u8; 16]) -> Vec<PathBuf> {
        let all = self.places();
        all.get(id).into_iter().flatten().cloned().collect()
    }
}

/// Volumes or snapshots with one identity: paths, which also say the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The identity.
    pub id: [u8; 16],
    /// The directories of the volumes and snapshots: two at least.
    pub volumes: Vec<PathBuf>,
}

impl std::fmt::Display for Conflict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let paths: Vec<_> = self
            .volumes
            .iter()
            .map(|path| path.display().to_string())
            .collect();
        write!(
            f,
            "the volumes or snapshots {} have the same identity ({:032x}), since one is a copy of the \
             other; none of them is opened until `neonsan volume adopt POOL/VOLUME` has given the copy an \
             identity of its own, or it is deleted",
            paths.join(" and "),
            u128::from_be_bytes(self.id)
        )
    }
}

/// The indexes of all file engines of a node.
#[derive(Debug, Default)]
pub struct Identities {
    indexes: Mutex<Vec<Weak<Index>>>,
}

impl Identities {
    pub(super) fn add(&self, index: &Arc<Index>) {
        // What is there is read now, not when the first volume is opened.
        index.look_at_all();
        let mut indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        indexes.retain(|index| index.strong_count() > 0);
        indexes.push(Arc::downgrade(index));
    }

    fn indexes(&self) -> Vec<Arc<Index>> {
        let indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        indexes.iter().filter_map(Weak::upgrade).collect()
    }

    /// The directories of volumes and snapshots, other than this one, that have its identity.
    /// Of other engines what they have seen last counts, since their storage may hang.
    /// Blocks for that of this engine.
    pub(super) fn others(&self, index: &Index, own: &Path, id: &[u8; 16]) -> Vec<PathBuf> {
        let mut others = index.with(id);
        for other in self.indexes() {
            if !std::ptr::eq(&*other, index) {
                others.extend(other.seen_with(id));
            }
        }
        others.retain(|path| path != own);
        others.sort_unstable();
        others
    }

    /// The volumes of an engine that share an identity with another one, there or
    /// elsewhere. Blocks for the storage of this engine.
    pub(super) fn conflicts_of(&self, index: &Index) -> Vec<Conflict> {
        index.look_again();
        let mut conflicts = self.seen_conflicts();
        conflicts.retain(|conflict| {
            let mut volumes = conflict.volumes.iter();
            volumes.any(|path| path.starts_with(&index.root))
        });
        conflicts
    }

    /// All volumes that share an identity with another one. Looks at each volume of
    /// each engine, and blocks for that.
    pub fn conflicts(&self) -> Vec<Conflict> {
        for index in self.indexes() {
            index.look_at_all();
        }
        self.seen_conflicts()
    }

    fn seen_conflicts(&self) -> Vec<Conflict> {
        let mut volumes: BTreeMap<[u8; 16], Vec<PathBuf>> = BTreeMap::new();
        for index in self.indexes() {
            for (id, places) in index.places().iter() {
                let places = places.iter().cloned();
                volumes.entry(*id).or_default().extend(places);
            }
        }
        volumes.retain(|_, paths| paths.len() > 1);
        // Snapshots of volumes that are copies of each other are no news: what ends the
        // one ends the other.
        let in_conflict: BTreeSet<PathBuf> = volumes.values().flatten().cloned().collect();
        let has_news = |path: &PathBuf| {
            let volume = path.parent().and_then(Path::parent);
            !volume.is_some_and(|volume| in_conflict.contains(volume))
        };
        volumes.retain(|_, paths| paths.iter().any(has_news));
        let conflicts = volumes.into_iter().map(|(id, mut volumes)| {
            volumes.sort_unstable();
            Conflict { id, volumes }
        });
        conflicts.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_look_at_snapshots_is_spared_for_a_while() {
        let ended = Instant::now();
        let spares = |took, since| {
            let state = State {
                snapshots_looked: Some((ended, took)),
                ..State::default()
            };
            state.spares_snapshots(ended + since)
        };
        assert!(!State::default().spares_snapshots(ended));
        assert!(!spares(LONG_LOOK, Duration::ZERO), "a few volumes");
        let took = LONG_LOOK * 2;
        assert!(spares(took, took * (LOOK_SHARE - 1)));
        assert!(!spares(took, took * LOOK_SHARE));
    }
}
