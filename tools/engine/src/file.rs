// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The engine `file`: volumes in sparse files, through io_uring.
//!
//! A directory that [`init()`] has made an engine's holds a directory for each
//! pool, which holds a directory for each volume:
//!
//! ```text
//! <root>/.neonsan-engine        that it is an engine's, and which (see `marker`)
//! <root>/.lock                  held by the node process which uses <root>
//! <root>/.probe                 in which it is tried what the storage can do (see `probe`)
//! <root>/.health                written and read now and then (see `health`)
//! <root>/<pool>/.health         the same, in a pool on a file system of its own
//! <root>/.boot                  identity of what is answered and not on stable
//!                               storage (see `boot`, `durability`, `witness`)
//! <root>/<pool>/<volume>/.neonsan-volume  that it is a volume (see `marker`)
//! <root>/<pool>/<volume>/meta   what the volume is (see `meta`)
//! <root>/<pool>/<volume>/record  the node's note of who holds it (see `record`)
//! <root>/<pool>/<volume>/data   its bytes; as long as the volume, rounded up
//!                               to 4096; holes are zeroes; locked while open
//! <root>/<pool>/<volume>/snapshots/  its snapshots (see `snapshots`)
//! <root>/<pool>/.create-<id>/   a volume which is being made
//! <root>/<pool>/.delete-<id>/   a volume which is being deleted
//! ```
//!
//! What else is there is none of the engine's: a directory without a marker is no
//! volume, and only files of these names are ever removed (see `layout`).
//!
//! Names of volumes do not begin with a dot, so nothing clashes. A volume
//! comes into being, changes its size and goes away by one `rename`, with the
//! directory synced after it, so a crash leaves either state and never a mix.
//!
//! # A killed node cannot write into its successor's volume
//!
//! `data` is locked by `flock`, and such a lock belongs to the open file, not
//! to the process. Each request that io_uring works on holds the open file.
//! So when a node is killed with writes in flight, the lock stays until the
//! last of them has ended, though the process is gone; and a new node, which
//! waits for the lock before it opens the volume, cannot have its data
//! overwritten by a write from the past. `tests/killed_node.rs` shows it.

mod boot;
mod durability;
mod freeze;
mod health;
mod identities;
mod init;
mod layout;
mod leftovers;
mod locks;
mod marker;
mod meta;
mod opening;
mod places;
mod probe;
mod queue;
mod record;
mod settle;
mod snapshots;
mod unsynced;
mod volume;
mod walk;
mod witness;
mod work;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use neonsan_api::{SnapshotName, VolumeName};
use rustix::fs::{renameat_with, FlockOperation, RenameFlags, CWD};
use rustix::io::Errno;

use crate::error::{SystemError, Written as _};
use crate::identity::{random_id, unix_seconds};
use crate::interface::has_snapshots;
use crate::tlv;
use crate::{
    Engine, EngineStatus, Error, ErrorKind, Limits, Result, SnapshotStat, Volume, VolumeSpec,
    VolumeStat, BUFFER_ALIGN,
};
use durability::Durability;
use health::PoolChecks;
use identities::Index;
pub use identities::{Conflict, Identities};
pub use init::{init, InitOptions, Initialized};
use layout::{file_options, make_dir};
pub use marker::EngineIdentity;
use meta::Meta;
use opening::lock_within;
pub use places::Place;
use probe::Storage;
use record::Records;
use settle::Superblock;
use unsynced::Unsynced;
use volume::{Common, FileVolume};

/// The lock of who changes a file, and that of who reads it.
const ALONE: FlockOperation = FlockOperation::NonBlockingLockExclusive;
const WITH_OTHERS: FlockOperation = FlockOperation::NonBlockingLockShared;

/// How the engine behaves.
#[derive(Clone, Debug)]
pub struct FileOptions {
    /// The directory, which [`init()`] has made an engine's.
    pub root: PathBuf,
    /// The identity that the engine must have; `None`: any.
    pub identity: Option<EngineIdentity>,
    /// The identities of the volumes of all engines that must not share one.
    pub identities: Arc<Identities>,
    /// Use the page cache even where direct I/O works.
    pub buffered: bool,
    /// Treat the storage as if it could do I/O only in blocks of this many
    /// bytes (a power of two up to 4096), though it says less.
    pub min_block_bytes: u32,
    /// How long to wait for the locks of a process that is ending.
    pub lock_wait: Duration,
}

/// Volumes in files below one directory.
#[derive(Debug)]
pub struct FileEngine {
    options: FileOptions,
    identity: EngineIdentity,
    index: Arc<Index>,
    storage: Arc<Storage>,
    durability: Arc<Durability>,
    unsynced: Arc<Unsynced>,
    records: Records,
    pool_checks: PoolChecks,
    /// What could not be cleared away at the start.
    leftovers: Vec<String>,
    /// Holds the lock on `<root>/.lock`.
    lock: File,
}

/// Length of the data file of a volume of `size_bytes`: direct I/O on the
/// last block must not meet the end of the file.
fn data_len(size_bytes: u64) -> u64 {
    size_bytes.next_multiple_of(BUFFER_ALIGN as u64)
}

/// Makes renames, creations and deletions in a directory durable.
fn sync_dir(path: &Path) -> Result<()> {
    let sync = || File::open(path)?.sync_all().written();
    sync().map_err(|e| Error::os(e, format!("cannot sync the directory {}", path.display())))
}

/// A name in a directory that nothing has, and which is cleared away if a crash
/// leaves it.
fn temporary(parent: &Path, what: &str) -> Result<PathBuf> {
    let id = u128::from_be_bytes(random_id()?);
    Ok(parent.join(format!(".{what}-{id:032x}")))
}

/// Removes what could not be made.
fn remove_failed(path: &Path) {
    if let Err(error) = layout::remove(path) {
        if error.kind() != ErrorKind::NotFound {
            tracing::warn!(path = %path.display(), %error, "cannot remove");
        }
    }
}

/// Checks that the directory is an engine's, the one that it should be if that is
/// known, and lies within no other. Changes nothing.
///
/// # Errors
///
/// [`ErrorKind::Conflict`] with what to do; [`ErrorKind::Corrupt`] for a damaged
/// marker.
pub fn examine(root: &Path, expected: Option<EngineIdentity>) -> Result<EngineIdentity> {
    let shown = root.display();
    let refused = |text: String| Err(Error::new(ErrorKind::Conflict, text));
    let is_dir = fs::metadata(root)
        .map(|metadata| metadata.is_dir())
        .map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound if root.is_relative() => Error::new(
                ErrorKind::Conflict,
                format!(
                    "the directory {shown} is not there: write its whole path: \"~\" is not replaced, \
                     and a path without a slash before it is sought where the node was started"
                ),
            ),
            std::io::ErrorKind::NotFound => Error::new(
                ErrorKind::Conflict,
                format!(
                    "the directory {shown} is not there: mount its disk, or run \
                     `neonsan-node init {shown}` if it is to be a new engine's"
                ),
            ),
            _ => Error::os(e, format!("cannot reach the directory {shown}")),
        })?;
    if !is_dir {
        return refused(format!("{shown} is not a directory"));
    }
    places::check_free(root)?;
    let found = marker::read_engine(root).map_err(|e| may_be_anothers(root, e))?;
    match (found, expected) {
        (Some(found), Some(expected)) if found != expected => refused(format!(
            "{shown} has the volumes of another engine ({found}) than before ({expected}): mount \
             the right disk there, or, if it is on purpose, run `neonsan-node forget {shown}`"
        )),
        (Some(found), _) => Ok(found),
        (None, Some(expected)) => refused(format!(
            "{shown} has none of the volumes that were there before, nor the marker of their \
             engine ({expected}): mount its disk; if the volumes are to be given up, run \
             `neonsan-node forget {shown}` and `neonsan-node init {shown}`"
        )),
        (None, None) if init::is_of_an_earlier_release(root) => refused(format!(
            "{shown} was made by an earlier release: run `neonsan-node init --adopt {shown}` \
             (if its disk is not mounted, mount it first)"
        )),
        (None, None) => refused(format!(
            "{shown} is no engine's directory: mount its disk, or, if it is to be a new \
             engine's, run `neonsan-node init {shown}`"
        )),
    }
}

/// The error, with what to do if it came because the directory is another user's.
fn may_be_anothers(root: &Path, error: Error) -> Error {
    match error.kind() {
        ErrorKind::NotPermitted => Error::new(
            ErrorKind::NotPermitted,
            format!(
                "{error}: the node's user must own it (`chown -R USER: {}`)",
                root.display()
            ),
        ),
        _ => error,
    }
}

impl FileEngine {
    /// Opens the directory, waits for its lock, finds out what the storage
    /// can do and clears away what a crash left half made.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Busy`] when another process uses the directory; else what
    /// the system says.
    pub fn open(options: FileOptions) -> Result<Self> {
        let root = &options.root;
        let in_root = |text: &str| format!("{text} {}", root.display());
        let identity = examine(root, options.identity)?;
        let lock = file_options()
            .create(true)
            .write(true)
            .truncate(false)
            .open(root.join(".lock"))
            .map_err(|e| Error::os(e, in_root("cannot write in the directory")))
            .map_err(|e| may_be_anothers(root, e))?;
        if !lock_within(&lock, ALONE, options.lock_wait)
            .map_err(|e| Error::os(e, in_root("cannot lock the directory")))?
        {
            return Err(Error::new(
                ErrorKind::Busy,
                in_root("another process (another neonsan-node?) uses the directory"),
            ));
        }
        let mut storage = Storage::probe(root, options.buffered, options.min_block_bytes)?;
        let beginning = boot::begin(root)?;
        storage.notes.push(match beginning.seen.clone().whole() {
            Ok(witness) => {
                format!("the boot id outlives a killed node on this superblock ({witness})")
            }
            Err(why) => format!(
                "a node that is killed comes back with another boot id, so hosts that wrote \
                 without flushing are told by a failing flush: {why}"
            ),
        });
        let unsynced = Arc::new(Unsynced::default());
        let is_marked = match beginning.unsynced {
            true => unsynced.mark_all(root),
            false => Ok(()),
        };
        let durability = Arc::new(Durability::new(root.clone(), beginning));
        if let Err(error) = is_marked {
            durability.lose(&format!(
                "the node did not stop in order, and which volumes it had cannot be told: {error}"
            ));
        }
        let leftovers = leftovers::clear(root);
        let index = Index::new(root);
        options.identities.add(&index);
        Ok(Self {
            durability,
            unsynced,
            records: Records::default(),
            pool_checks: PoolChecks::default(),
            index,
            leftovers,
            options,
            identity,
            storage: Arc::new(storage),
            lock,
        })
    }

    /// Which engine it is.
    pub fn identity(&self) -> EngineIdentity {
        self.identity
    }

    /// What the storage below was found to be, one sentence each.
    pub fn notes(&self) -> &[String] {
        &self.storage.notes
    }

    fn common(&self) -> Common {
        Common {
            storage: Arc::clone(&self.storage),
            durability: Arc::clone(&self.durability),
            unsynced: Arc::clone(&self.unsynced),
        }
    }

    /// Refuses, before anything is looked up or made by its path, when another directory has come to
    /// the engine's place.
    fn check_place(&self) -> Result<()> {
        health::check_place(&self.options.root, &self.lock)
    }

    fn pool_dir(&self, name: &VolumeName) -> PathBuf {
        self.options.root.join(name.pool())
    }

    fn volume_dir(&self, name: &VolumeName) -> PathBuf {
        self.pool_dir(name).join(name.volume())
    }

    /// Makes a volume: in a directory that `fill` makes whole, and which gets
    /// its name then.
    fn make(
        &self,
        name: &VolumeName,
        fill: impl FnOnce(&Path) -> Result<Meta>,
    ) -> Result<VolumeStat> {
        self.check_place()?;
        let pool = self.pool_dir(name);
        match make_dir(&pool) {
            Ok(()) => sync_dir(&self.options.root)?,
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && self.is_pool(&pool)? => {}
            Err(e) => return Err(Error::os(e, format!("cannot make {}", pool.display()))),
        }
        let target = self.volume_dir(name);
        let temporary = temporary(&pool, "create")?;
        let make = || {
            make_dir(&temporary)
                .map_err(|e| Error::os(e, format!("cannot make {}", temporary.display())))?;
            marker::write_volume(&temporary)?;
            let meta = fill(&temporary)?;
            record::create(&temporary)?;
            meta.store(&temporary)?;
            renameat_with(CWD, &temporary, CWD, &target, RenameFlags::NOREPLACE).map_err(
                |e| match e {
                    Errno::EXIST => Error::new(
                        ErrorKind::AlreadyExists,
                        match marker::is_ours(&target) {
                            Ok(false) => format!(
                                "{} is there already, and is no volume: move it elsewhere",
                                target.display()
                            ),
                            _ => format!("there is a volume {name} already"),
                        },
                    ),
                    e => Error::os(e, format!("cannot make {}", target.display())),
                },
            )
        };
        make().inspect_err(|_| remove_failed(&temporary))?;
        sync_dir(&pool)?;
        let stat = self.stat(name)?;
        self.index.note(name, Some(stat.id));
        Ok(stat)
    }

    /// Makes the data of a new volume in `dir`.
    fn make_data(dir: &Path, meta: &Meta) -> Result<()> {
        let path = dir.join("data");
        let context = |e: SystemError| Error::os(e, format!("cannot make {}", path.display()));
        let data = file_options()
            .create_new(true)
            .write(true)
            .open(&path)
            .map_err(|e| context(e.into()))?;
        data.set_len(data_len(meta.size_bytes)).map_err(|e| {
            let error = context(e.into());
            match error.kind() {
                ErrorKind::BadSize => Error::new(
                    ErrorKind::BadSize,
                    format!(
                        "the file system cannot hold a file of {} bytes",
                        meta.size_bytes
                    ),
                ),
                _ => error,
            }
        })?;
        data.sync_all().written().map_err(context)
    }

    fn not_found(name: &VolumeName) -> Error {
        Error::new(
            ErrorKind::NotFound,
            format!("the file engine has no volume {name}"),
        )
    }

    /// Whether there is a pool at this path. A link to one is none.
    ///
    /// # Errors
    ///
    /// A file is in its place: then nobody can say what was there.
    fn is_pool(&self, pool: &Path) -> Result<bool> {
        let context = |e| Error::os(e, format!("cannot reach the pool {}", pool.display()));
        match fs::symlink_metadata(pool) {
            Ok(metadata) if metadata.is_dir() => Ok(true),
            Ok(metadata) if metadata.is_symlink() => Ok(false),
            Ok(_) => Err(context(Errno::NOTDIR.into())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(context(e)),
        }
    }

    /// Checks that the volume is there at all, so that what is missing within
    /// it later is damage.
    fn existing_dir(&self, name: &VolumeName) -> Result<PathBuf> {
        self.check_place()?;
        let dir = self.volume_dir(name);
        let pool = self.pool_dir(name);
        // What lies behind a link is nothing that was made here.
        let is_there = self.is_pool(&pool)? && marker::is_ours(&dir)?;
        match is_there {
            true => Ok(dir),
            false => Err(Self::not_found(name)),
        }
    }

    /// Refuses a volume or snapshot, in `dir`, that has the identity of another one.
    fn check_identity(&self, dir: &Path, id: &[u8; 16]) -> Result<()> {
        let mut volumes = self.options.identities.others(&self.index, dir, id);
        if volumes.is_empty() {
            return Ok(());
        }
        volumes.insert(0, dir.to_owned());
        let conflict = Conflict { id: *id, volumes };
        Err(Error::new(ErrorKind::Conflict, conflict.to_string()))
    }

    /// Refuses a volume whose data is on another file system than its pool: that this one was mounted
    /// anew would not be noticed, nor what it lost.
    fn check_file_system(&self, name: &VolumeName, dir: &Path) -> Result<()> {
        let (data, pool) = (dir.join("data"), self.pool_dir(name));
        if !witness::is_elsewhere(&data, &pool) {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Conflict,
            format!(
                "the data of the volume {name} ({}) is on another file system than its pool, where its \
                 losses would not be noticed: move it into the pool, or mount that file system at a \
                 pool of its own and move the volume there",
                data.display()
            ),
        ))
    }

    /// [`Self::check_identity`] for what is read or changed without opening the volume: one whose
    /// description is damaged has no identity.
    fn check_identity_of(&self, name: &VolumeName) -> Result<()> {
        let dir = self.volume_dir(name);
        match Meta::load(&dir) {
            Ok(meta) => self.check_identity(&dir, &meta.id),
            Err(_) => Ok(()),
        }
    }

    /// The directory of a snapshot that is there.
    fn existing_snapshot(&self, name: &SnapshotName) -> Result<PathBuf> {
        self.check_place()?;
        snapshots::existing(&self.volume_dir(name.volume()), name)
    }
}

impl Engine for FileEngine {
    fn kind(&self) -> &'static str {
        "file"
    }

    fn is_persistent(&self) -> bool {
        true
    }

    fn boot_id(&self) -> [u8; 16] {
        self.durability.boot_id()
    }

    fn losses(&self) -> u64 {
        self.durability.losses()
    }

    fn stop(&self) -> Result<()> {
        let losses = self.losses();
        let synced = self
            .unsynced
            .sync()
            .inspect_err(|error| self.durability.lose(&error.to_string()));
        synced
            // What was synced is there only if it was on the file systems of before.
            .and_then(|()| self.durability.look())
            .and_then(|()| match self.losses() == losses {
                true => self.durability.note_stopped(),
                false => Err(Error::new(
                    ErrorKind::Io,
                    "a file system is not there any more to which something was written",
                )),
            })
            .inspect_err(|_| self.durability.finish_notes())
    }

    fn finish_notes(&self) {
        self.durability.finish_notes();
    }

    fn status(&self) -> Result<EngineStatus> {
        self.durability.look()?;
        let stat = rustix::fs::statvfs(&self.options.root).map_err(|e| {
            Error::os(
                e,
                format!("cannot get the state of {}", self.options.root.display()),
            )
        })?;
        Ok(EngineStatus {
            capacity_bytes: Some(stat.f_blocks.saturating_mul(stat.f_frsize)),
            available_bytes: Some(stat.f_bavail.saturating_mul(stat.f_frsize)),
            untorn_bytes: self.storage.untorn_bytes,
            notes: self.storage.notes.clone(),
        })
    }

    fn health(&self) -> Result<Vec<String>> {
        self.durability.look()?;
        self.check_place()?;
        let root = &self.options.root;
        health::check(root, self.storage.direct, &self.durability)?;
        let mut problems = self.leftovers.clone();
        let direct = self.storage.direct;
        problems.extend(self.pool_checks.check(root, direct, &self.durability)?);
        problems.extend(health::unreadable_pools(&self.options.root)?);
        let conflicts = self.options.identities.conflicts_of(&self.index);
        problems.extend(conflicts.iter().map(ToString::to_string));
        Ok(problems)
    }

    fn create(&self, name: &VolumeName, spec: &VolumeSpec) -> Result<VolumeStat> {
        let meta = Meta {
            id: random_id()?,
            size_bytes: spec.size_bytes,
            logical_block_size: spec.logical_block_size,
            physical_block_size: spec.settle(self.storage.untorn_bytes)?,
            created_unix_s: unix_seconds(),
            unknown: tlv::Entries::default(),
        };
        let made = self.make(name, |dir| Self::make_data(dir, &meta).map(|()| meta));
        self.durability.noted(made)
    }

    fn list(&self) -> Result<Vec<VolumeName>> {
        self.check_place()?;
        // So that the list says of each volume whether it is a copy.
        self.index.look_at_all();
        let mut names = Vec::new();
        for (pool, path) in walk::pools(&self.options.root)? {
            let entries = match walk::entries(&path) {
                Ok(entries) => entries,
                // One that the node may not read hides no other; health names it.
                Err(error) if error.kind() == ErrorKind::NotPermitted => {
                    tracing::warn!(%error, "a pool is left out");
                    continue;
                }
                Err(error) => return Err(error),
            };
            for (volume, path) in entries {
                let Ok(name) = VolumeName::new(&pool, &volume) else {
                    continue;
                };
                // What has no marker is none of ours. One whose marker cannot be
                // read is listed, and whoever looks at it learns why; unless the
                // node has no business there.
                let is_ours = marker::is_ours(&path);
                if is_ours.unwrap_or_else(|error| error.kind() != ErrorKind::NotPermitted) {
                    names.push(name);
                }
            }
        }
        Ok(names)
    }

    fn stat(&self, name: &VolumeName) -> Result<VolumeStat> {
        let dir = self.existing_dir(name)?;
        let meta = Meta::load(&dir)?;
        let path = dir.join("data");
        let data = fs::metadata(&path).map_err(|e| {
            Error::new(
                ErrorKind::Corrupt,
                format!("the volume {name} has no data: {}: {e}", path.display()),
            )
        })?;
        // While it is resized the file is longer, never shorter.
        volume::check_len(name.as_str(), &path, data.len(), &meta)?;
        Ok(meta.stat(&data))
    }

    fn limits(&self, stat: &VolumeStat) -> Limits {
        volume::limits(&self.storage, stat.logical_block_size)
    }

    fn open(&self, name: &VolumeName) -> Result<Arc<dyn Volume>> {
        let dir = self.existing_dir(name)?;
        let data = self.open_finished(name, &dir, self.options.lock_wait)?;
        // Read under the lock: a resize changes it.
        let meta = Meta::load(&dir)?;
        self.check_identity(&dir, &meta.id)?;
        self.check_file_system(name, &dir)?;
        self.durability.look()?;
        let volume = FileVolume::open(name.as_str(), dir, data, meta, self.common())?;
        Ok(Arc::new(volume))
    }

    fn load_record(&self, name: &VolumeName) -> Result<Option<Vec<u8>>> {
        let dir = self.existing_dir(name)?;
        self.durability.noted(self.records.load(&dir))
    }

    fn save_record(&self, name: &VolumeName, record: &[u8]) -> Result<()> {
        let dir = self.existing_dir(name)?;
        // Its sync may be the one that hears of what the disk has lost.
        let settling = &self.durability.settling;
        let asking = settling.ask(&Superblock::of(&dir));
        let stored = self.durability.noted(self.records.store(&dir, record));
        settling.told(asking);
        stored
    }

    fn same_identity(&self, name: &VolumeName, id: &[u8; 16]) -> Vec<String> {
        let dir = self.volume_dir(name);
        let others = self.options.identities.others(&self.index, &dir, id);
        others
            .iter()
            .map(|path| path.display().to_string())
            .collect()
    }

    fn adopt(&self, name: &VolumeName) -> Result<VolumeStat> {
        let dir = self.existing_dir(name)?;
        let _lock = self.open_finished(name, &dir, Duration::ZERO)?;
        let meta = Meta::load(&dir)?;
        let mut snapshots = Vec::new();
        for snapshot in snapshots::names(&dir, name)? {
            let path = snapshots::snapshot_dir(&dir, &snapshot);
            let lock = self.open_snapshot_data(&snapshot, &path, ALONE)?;
            snapshots.push((Meta::load(&path)?, path, lock));
        }
        // The volume after its snapshots: when it is one of its own, they are.
        for (meta, path, _lock) in snapshots {
            let id = random_id()?;
            Meta { id, ..meta }.store(&path)?;
        }
        let id = random_id()?;
        Meta { id, ..meta }.store(&dir)?;
        // Who held it, or was fenced, held the other one. Hosts know a volume by its
        // identity, so none of them comes back to this one.
        record::create(&dir)?;
        self.records.forget(&dir);
        if !marker::is_marked(&dir)? {
            marker::write_volume(&dir)?;
        }
        self.index.note(name, Some(id));
        self.stat(name)
    }

    fn delete(&self, name: &VolumeName) -> Result<()> {
        let dir = self.existing_dir(name)?;
        // A volume without data can be deleted, since nobody can have it open.
        let _lock = match self.lock_data(name, &dir, Duration::ZERO) {
            Ok(data) => Some(data),
            Err(error) if error.kind() == ErrorKind::Corrupt => None,
            Err(error) => return Err(error),
        };
        let snapshots = snapshots::names(&dir, name)?;
        if !snapshots.is_empty() {
            let names: Vec<&str> = snapshots.iter().map(SnapshotName::snapshot).collect();
            return Err(has_snapshots(name, &names));
        }
        // Before anything is changed.
        layout::check_ours(&dir)?;
        let pool = self.pool_dir(name);
        let temporary = temporary(&pool, "delete")?;
        fs::rename(&dir, &temporary)
            .map_err(|e| Error::os(e, format!("cannot delete {}", dir.display())))?;
        self.unsynced.forget(&dir);
        self.records.forget(&dir);
        self.durability.noted(sync_dir(&pool))?;
        // From here on the volume is gone; the rest only frees its space, and
        // the next start tries again.
        if let Err(error) = layout::remove(&temporary) {
            tracing::warn!(path = %temporary.display(), %error, "cannot free a deleted volume");
        }
        self.index.note(name, None);
        Ok(())
    }

    fn snapshots(&self, name: &VolumeName) -> Result<Vec<SnapshotStat>> {
        snapshots::list(&self.existing_dir(name)?, name)
    }

    fn open_snapshot(&self, name: &SnapshotName) -> Result<Arc<dyn Volume>> {
        let dir = self.existing_snapshot(name)?;
        self.check_identity_of(name.volume())?;
        let data = self.open_snapshot_data(name, &dir, WITH_OTHERS)?;
        let meta = Meta::load(&dir)?;
        self.check_identity(&dir, &meta.id)?;
        let volume = FileVolume::new(
            &name.to_string(),
            Some(name.clone()),
            dir,
            data,
            meta,
            self.common(),
        )?;
        Ok(Arc::new(volume))
    }

    fn delete_snapshot(&self, name: &SnapshotName) -> Result<()> {
        let dir = self.existing_snapshot(name)?;
        let volume_dir = self.volume_dir(name.volume());
        // One without data can be deleted, since nobody can have it open.
        let _lock = match self.lock_snapshot_data(name, &dir, ALONE) {
            Ok(data) => Some(data),
            Err(error) if error.kind() == ErrorKind::Corrupt => None,
            Err(error) => return Err(error),
        };
        // Only now: nobody begins to roll back to it any more. One that is under
        // way to another snapshot may want the space that this one takes.
        if snapshots::pending(&volume_dir, name.volume())?.as_ref() == Some(name) {
            self.open_finished(name.volume(), &volume_dir, Duration::ZERO)?;
        }
        let deleted = snapshots::delete(&volume_dir, name);
        self.durability.noted(deleted)
    }

    fn roll_back(&self, name: &SnapshotName, record: &[u8]) -> Result<()> {
        let snapshot_dir = self.existing_snapshot(name)?;
        self.check_identity_of(name.volume())?;
        self.storage.check_reflink()?;
        let dir = self.existing_dir(name.volume())?;
        let _lock = self.open_finished(name.volume(), &dir, Duration::ZERO)?;
        // Nobody deletes it meanwhile.
        let _held = self.open_snapshot_data(name, &snapshot_dir, WITH_OTHERS)?;
        self.durability
            .noted(snapshots::begin_rollback(&dir, name, &self.records, record))?;
        let finished = snapshots::finish_rollback(&dir, name);
        self.durability.noted(finished)
    }

    fn clone_snapshot(&self, from: &SnapshotName, to: &VolumeName) -> Result<VolumeStat> {
        let dir = self.existing_snapshot(from)?;
        self.storage.check_reflink()?;
        let source = self.open_snapshot_data(from, &dir, WITH_OTHERS)?;
        let meta = Meta {
            id: random_id()?,
            created_unix_s: unix_seconds(),
            ..Meta::load(&dir)?
        };
        let made = self.make(to, |dir| {
            let path = dir.join("data");
            snapshots::share(&source, &path)?
                .sync_all()
                .written()
                .map_err(|e| Error::os(e, format!("cannot write {}", path.display())))?;
            Ok(meta)
        });
        self.durability.noted(made)
    }

    /// Files that share blocks are whole each: a clone needs nobody.
    fn children(&self, name: &SnapshotName) -> Result<Vec<VolumeName>> {
        self.existing_snapshot(name).map(|_| Vec::new())
    }
}
