// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The engine `mem`: volumes in the memory of the process.
//!
//! For tests and benchmarks: everything is gone when the node stops. Memory
//! is allocated in chunks when they are first written, and counts against a
//! bound which all volumes of the engine share.
//!
//! Locks, in this order: `MemEngine::volumes`, then a volume's snapshots, then
//! one of `Store::shards`; never two shards at a time, but all of them in order
//! while a volume is copied. A shard's lock is held while bytes are copied, so a
//! request that stays within a chunk is seen whole or not at all.
//!
//! Snapshots and clones are copies, and count against the bound like volumes.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use neonsan_api::{SnapshotName, VolumeName};

use crate::identity::{random_id, unix_seconds};
use crate::interface::{
    check_size, has_snapshots, no_such_snapshot, snapshot_exists, snapshot_is_read_only,
};
use crate::{
    Completion, Engine, EngineStatus, Error, ErrorKind, Limits, Op, Queue, Request, Result,
    SnapshotStat, Volume, VolumeSpec, VolumeStat,
};

/// Unit of allocation and largest atomic write.
const CHUNK_BYTES: u32 = 64 * 1024;

/// Locks per volume; requests on different chunks seldom share one.
const SHARDS: u64 = 64;

/// Longest read or write.
const MAX_IO_BYTES: u32 = 1 << 20;

/// Longest discard or write-zeroes; bounds the time that one request takes.
const MAX_UNMAP_BYTES: u32 = 64 << 20;

/// How the engine behaves.
#[derive(Clone, Copy, Debug)]
pub struct MemOptions {
    /// Bytes that all volumes together may allocate.
    pub capacity_bytes: u64,
    /// Whether volumes say that they have a volatile cache, so that clients
    /// send flushes as they would to a disk.
    pub volatile_cache: bool,
}

/// Volumes in memory.
#[derive(Debug)]
pub struct MemEngine {
    options: MemOptions,
    boot_id: [u8; 16],
    /// Owned by the engine: the volumes exist through this map alone.
    volumes: Mutex<HashMap<VolumeName, Entry>>,
    budget: Arc<Budget>,
}

#[derive(Debug)]
struct Entry {
    store: Arc<Store>,
    snapshots: Arc<Snapshots>,
    record: Option<Vec<u8>>,
    /// Alive while the volume is open.
    open: Weak<MemVolume>,
}

impl Entry {
    fn new(store: Store) -> Self {
        Self {
            store: Arc::new(store),
            snapshots: Arc::default(),
            record: None,
            open: Weak::new(),
        }
    }

    fn check_closed(&self, name: &VolumeName) -> Result<()> {
        if self.open.strong_count() == 0 {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Busy,
            format!("the volume {name} is open"),
        ))
    }
}

/// Bytes allocated by all volumes.
#[derive(Debug)]
struct Budget {
    used: AtomicU64,
    capacity: u64,
}

impl Budget {
    fn take_chunk(&self) -> Result<()> {
        let chunk = u64::from(CHUNK_BYTES);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(chunk)
                    .filter(|&total| total <= self.capacity)
            })
            .map(|_| ())
            .map_err(|used| {
                Error::new(
                    ErrorKind::NoSpace,
                    format!(
                        "the mem engine has used {used} of its {} bytes",
                        self.capacity
                    ),
                )
            })
    }

    fn give_chunks(&self, count: u64) {
        self.used
            .fetch_sub(count * u64::from(CHUNK_BYTES), Ordering::Relaxed);
    }
}

type Chunk = Box<[u8]>;

/// The bytes of a volume: chunks by index; a chunk that is absent is zeroes.
#[derive(Debug)]
struct Store {
    id: [u8; 16],
    created_unix_s: u64,
    logical_block_size: u32,
    physical_block_size: u32,
    size_bytes: AtomicU64,
    shards: Vec<RwLock<BTreeMap<u64, Chunk>>>,
    chunks: AtomicU64,
    budget: Arc<Budget>,
}

impl Drop for Store {
    fn drop(&mut self) {
        self.budget.give_chunks(*self.chunks.get_mut());
    }
}

/// Calls `f` for the part of each chunk that the range covers: index of the
/// chunk, range within it, position within the request.
fn for_each_part(
    offset: u64,
    len: u64,
    mut f: impl FnMut(u64, std::ops::Range<usize>, usize) -> Result<()>,
) -> Result<()> {
    let chunk = u64::from(CHUNK_BYTES);
    let mut done = 0;
    while done < len {
        let at = offset + done;
        let start = at % chunk;
        let part = (chunk - start).min(len - done);
        f(
            at / chunk,
            start as usize..(start + part) as usize,
            done as usize,
        )?;
        done += part;
    }
    Ok(())
}

impl Store {
    fn shard(&self, index: u64) -> &RwLock<BTreeMap<u64, Chunk>> {
        &self.shards[(index % SHARDS) as usize]
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        for_each_part(offset, buffer.len() as u64, |index, range, at| {
            let target = &mut buffer[at..at + range.len()];
            let shard = self
                .shard(index)
                .read()
                .unwrap_or_else(PoisonError::into_inner);
            match shard.get(&index) {
                Some(chunk) => target.copy_from_slice(&chunk[range]),
                None => target.fill(0),
            }
            Ok(())
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        for_each_part(offset, data.len() as u64, |index, range, at| {
            let mut shard = self
                .shard(index)
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            let chunk = match shard.entry(index) {
                std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::btree_map::Entry::Vacant(entry) => {
                    self.budget.take_chunk()?;
                    self.chunks.fetch_add(1, Ordering::Relaxed);
                    entry.insert(vec![0; CHUNK_BYTES as usize].into_boxed_slice())
                }
            };
            let end = at + range.len();
            chunk[range].copy_from_slice(&data[at..end]);
            Ok(())
        })
    }

    /// Makes a range read as zeroes and, unless told to `keep` them, frees the
    /// chunks it covers whole.
    fn zero(&self, offset: u64, len: u64, keep: bool) -> Result<()> {
        for_each_part(offset, len, |index, range, _| {
            let mut shard = self
                .shard(index)
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            if range.len() == CHUNK_BYTES as usize && !keep {
                if shard.remove(&index).is_some() {
                    self.chunks.fetch_sub(1, Ordering::Relaxed);
                    self.budget.give_chunks(1);
                }
            } else if let Some(chunk) = shard.get_mut(&index) {
                chunk[range].fill(0);
            }
            Ok(())
        })
    }

    fn stat(&self) -> VolumeStat {
        VolumeStat {
            id: self.id,
            size_bytes: self.size_bytes.load(Ordering::Acquire),
            logical_block_size: self.logical_block_size,
            physical_block_size: self.physical_block_size,
            created_unix_s: self.created_unix_s,
            allocated_bytes: self.chunks.load(Ordering::Relaxed) * u64::from(CHUNK_BYTES),
            parent: None,
        }
    }

    /// A copy of the content at one moment, with another identity and time of
    /// creation: while it is made nothing is written, since all shards are
    /// locked.
    fn copy(&self, id: [u8; 16], created_unix_s: u64) -> Result<Self> {
        let shards: Vec<_> = self
            .shards
            .iter()
            .map(|shard| shard.read().unwrap_or_else(PoisonError::into_inner))
            .collect();
        let copy = Self {
            id,
            created_unix_s,
            logical_block_size: self.logical_block_size,
            physical_block_size: self.physical_block_size,
            size_bytes: AtomicU64::new(self.size_bytes.load(Ordering::Acquire)),
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            chunks: AtomicU64::new(0),
            budget: Arc::clone(&self.budget),
        };
        for (shard, target) in shards.iter().zip(&copy.shards) {
            let mut target = target.write().unwrap_or_else(PoisonError::into_inner);
            for (index, chunk) in shard.iter() {
                copy.budget.take_chunk()?;
                // Given back by `drop`, whatever happens.
                copy.chunks.fetch_add(1, Ordering::Relaxed);
                target.insert(*index, chunk.clone());
            }
        }
        Ok(copy)
    }
}

/// The snapshots of a volume, by name. Shared by the engine and the open
/// volume; locked for a look-up, or while one is made.
type Snapshots = Mutex<BTreeMap<SnapshotName, Arc<Store>>>;

fn lock(snapshots: &Snapshots) -> MutexGuard<'_, BTreeMap<SnapshotName, Arc<Store>>> {
    snapshots.lock().unwrap_or_else(PoisonError::into_inner)
}

fn snapshot_stat(name: &SnapshotName, store: &Store) -> SnapshotStat {
    SnapshotStat {
        name: name.clone(),
        id: store.id,
        size_bytes: store.size_bytes.load(Ordering::Acquire),
        created_unix_s: store.created_unix_s,
        damage: None,
    }
}

impl MemEngine {
    /// An engine without volumes.
    ///
    /// # Errors
    ///
    /// The system has no random bytes for its boot id.
    pub fn new(options: MemOptions) -> Result<Self> {
        Ok(Self {
            options,
            boot_id: random_id()?,
            volumes: Mutex::default(),
            budget: Arc::new(Budget {
                used: AtomicU64::new(0),
                capacity: options.capacity_bytes,
            }),
        })
    }

    fn snapshot(&self, name: &SnapshotName) -> Result<Arc<Store>> {
        let volumes = self.volumes();
        let snapshot = volumes
            .get(name.volume())
            .and_then(|entry| lock(&entry.snapshots).get(name).cloned());
        snapshot.ok_or_else(|| no_such_snapshot(name))
    }

    fn volumes(&self) -> MutexGuard<'_, HashMap<VolumeName, Entry>> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check_absent(volumes: &HashMap<VolumeName, Entry>, name: &VolumeName) -> Result<()> {
    if !volumes.contains_key(name) {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::AlreadyExists,
        format!("there is a volume {name} already"),
    ))
}

fn not_found(name: &VolumeName) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!("the mem engine has no volume {name}"),
    )
}

impl Engine for MemEngine {
    fn kind(&self) -> &'static str {
        "mem"
    }

    fn is_persistent(&self) -> bool {
        false
    }

    fn boot_id(&self) -> [u8; 16] {
        self.boot_id
    }

    fn status(&self) -> Result<EngineStatus> {
        let used = self.budget.used.load(Ordering::Relaxed);
        Ok(EngineStatus {
            capacity_bytes: Some(self.budget.capacity),
            available_bytes: Some(self.budget.capacity.saturating_sub(used)),
            untorn_bytes: 4096,
            notes: vec!["volumes are lost when the node stops".to_owned()],
        })
    }

    fn create(&self, name: &VolumeName, spec: &VolumeSpec) -> Result<VolumeStat> {
        let physical_block_size = spec.settle(4096)?;
        let mut volumes = self.volumes();
        check_absent(&volumes, name)?;
        let store = Store {
            id: random_id()?,
            created_unix_s: unix_seconds(),
            logical_block_size: spec.logical_block_size,
            physical_block_size,
            size_bytes: AtomicU64::new(spec.size_bytes),
            shards: (0..SHARDS).map(|_| RwLock::default()).collect(),
            chunks: AtomicU64::new(0),
            budget: Arc::clone(&self.budget),
        };
        let stat = store.stat();
        volumes.insert(name.clone(), Entry::new(store));
        Ok(stat)
    }

    fn list(&self) -> Result<Vec<VolumeName>> {
        Ok(self.volumes().keys().cloned().collect())
    }

    fn stat(&self, name: &VolumeName) -> Result<VolumeStat> {
        let volumes = self.volumes();
        Ok(volumes
            .get(name)
            .ok_or_else(|| not_found(name))?
            .store
            .stat())
    }

    fn limits(&self, stat: &VolumeStat) -> Limits {
        limits(stat, self.options.volatile_cache)
    }

    fn open(&self, name: &VolumeName) -> Result<Arc<dyn Volume>> {
        let mut volumes = self.volumes();
        let entry = volumes.get_mut(name).ok_or_else(|| not_found(name))?;
        entry.check_closed(name)?;
        let volume = Arc::new(MemVolume {
            store: Arc::clone(&entry.store),
            snapshots: Ok(Arc::clone(&entry.snapshots)),
            queues: AtomicUsize::new(0),
            volatile_cache: self.options.volatile_cache,
        });
        entry.open = Arc::downgrade(&volume);
        Ok(volume)
    }

    fn load_record(&self, name: &VolumeName) -> Result<Option<Vec<u8>>> {
        let volumes = self.volumes();
        let entry = volumes.get(name).ok_or_else(|| not_found(name))?;
        Ok(entry.record.clone())
    }

    fn save_record(&self, name: &VolumeName, record: &[u8]) -> Result<()> {
        let mut volumes = self.volumes();
        let entry = volumes.get_mut(name).ok_or_else(|| not_found(name))?;
        entry.record = Some(record.to_owned());
        Ok(())
    }

    fn delete(&self, name: &VolumeName) -> Result<()> {
        let mut volumes = self.volumes();
        let entry = volumes.get(name).ok_or_else(|| not_found(name))?;
        entry.check_closed(name)?;
        let snapshots = lock(&entry.snapshots);
        if !snapshots.is_empty() {
            let names: Vec<&str> = snapshots.keys().map(SnapshotName::snapshot).collect();
            return Err(has_snapshots(name, &names));
        }
        drop(snapshots);
        volumes.remove(name);
        Ok(())
    }

    fn snapshots(&self, name: &VolumeName) -> Result<Vec<SnapshotStat>> {
        let volumes = self.volumes();
        let entry = volumes.get(name).ok_or_else(|| not_found(name))?;
        let mut snapshots: Vec<_> = lock(&entry.snapshots)
            .iter()
            .map(|(name, store)| snapshot_stat(name, store))
            .collect();
        snapshots.sort_by_key(|snapshot| snapshot.created_unix_s);
        Ok(snapshots)
    }

    fn open_snapshot(&self, name: &SnapshotName) -> Result<Arc<dyn Volume>> {
        Ok(Arc::new(MemVolume {
            store: self.snapshot(name)?,
            snapshots: Err(name.clone()),
            queues: AtomicUsize::new(0),
            volatile_cache: self.options.volatile_cache,
        }))
    }

    fn delete_snapshot(&self, name: &SnapshotName) -> Result<()> {
        let volumes = self.volumes();
        let entry = volumes
            .get(name.volume())
            .ok_or_else(|| no_such_snapshot(name))?;
        let mut snapshots = lock(&entry.snapshots);
        let store = snapshots.get(name).ok_or_else(|| no_such_snapshot(name))?;
        // Whoever has it open has a reference.
        if Arc::strong_count(store) > 1 {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("the snapshot {name} is open"),
            ));
        }
        snapshots.remove(name);
        Ok(())
    }

    fn roll_back(&self, name: &SnapshotName, record: &[u8]) -> Result<()> {
        let snapshot = self.snapshot(name)?;
        let mut volumes = self.volumes();
        let entry = volumes
            .get_mut(name.volume())
            .ok_or_else(|| not_found(name.volume()))?;
        entry.check_closed(name.volume())?;
        let (id, created_unix_s) = (entry.store.id, entry.store.created_unix_s);
        entry.store = Arc::new(snapshot.copy(id, created_unix_s)?);
        entry.record = Some(record.to_owned());
        Ok(())
    }

    fn clone_snapshot(&self, from: &SnapshotName, to: &VolumeName) -> Result<VolumeStat> {
        let snapshot = self.snapshot(from)?;
        let mut volumes = self.volumes();
        check_absent(&volumes, to)?;
        let store = snapshot.copy(random_id()?, unix_seconds())?;
        let stat = store.stat();
        volumes.insert(to.clone(), Entry::new(store));
        Ok(stat)
    }

    /// Copies need nothing of what they were made from.
    fn children(&self, name: &SnapshotName) -> Result<Vec<VolumeName>> {
        self.snapshot(name).map(|_| Vec::new())
    }
}

fn limits(stat: &VolumeStat, volatile_cache: bool) -> Limits {
    Limits {
        volatile_cache,
        fua: true,
        max_io_bytes: MAX_IO_BYTES,
        io_min_bytes: stat.physical_block_size,
        io_opt_bytes: CHUNK_BYTES,
        discard_granularity: CHUNK_BYTES,
        max_discard_bytes: MAX_UNMAP_BYTES,
        max_write_zeroes_bytes: MAX_UNMAP_BYTES,
        atomic_min_bytes: stat.logical_block_size,
        atomic_max_bytes: CHUNK_BYTES,
        rotational: false,
    }
}

#[derive(Debug)]
struct MemVolume {
    store: Arc<Store>,
    /// Those of the volume; or the name of the snapshot that this is.
    snapshots: std::result::Result<Arc<Snapshots>, SnapshotName>,
    queues: AtomicUsize,
    volatile_cache: bool,
}

impl MemVolume {
    /// The volume's snapshots.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotPermitted`] if it is a snapshot itself.
    fn changeable(&self) -> Result<&Arc<Snapshots>> {
        self.snapshots.as_ref().map_err(snapshot_is_read_only)
    }
}

impl Volume for MemVolume {
    fn stat(&self) -> VolumeStat {
        self.store.stat()
    }

    fn limits(&self) -> Limits {
        limits(&self.store.stat(), self.volatile_cache)
    }

    fn resize(&self, size_bytes: u64) -> Result<()> {
        self.changeable()?;
        check_size(size_bytes, self.store.logical_block_size)?;
        let old = self.store.size_bytes.load(Ordering::Acquire);
        if size_bytes < old {
            if self.queues.load(Ordering::Acquire) > 0 {
                return Err(Error::new(
                    ErrorKind::Busy,
                    "a volume in use cannot be made smaller",
                ));
            }
            self.store.zero(size_bytes, old - size_bytes, false)?;
        }
        self.store.size_bytes.store(size_bytes, Ordering::Release);
        Ok(())
    }

    fn create_snapshot(&self, name: &SnapshotName) -> Result<SnapshotStat> {
        let mut snapshots = lock(self.changeable()?);
        if snapshots.contains_key(name) {
            return Err(snapshot_exists(name));
        }
        let store = self.store.copy(random_id()?, unix_seconds())?;
        let stat = snapshot_stat(name, &store);
        snapshots.insert(name.clone(), Arc::new(store));
        Ok(stat)
    }

    fn flatten(&self) -> Result<()> {
        self.changeable().map(drop)
    }

    fn queue(self: Arc<Self>, _depth: u32) -> Result<Box<dyn Queue>> {
        self.queues.fetch_add(1, Ordering::AcqRel);
        let limits = self.limits();
        Ok(Box::new(MemQueue {
            limits,
            volume: self,
            done: Vec::new(),
        }))
    }
}

/// Requests are done while they are submitted.
struct MemQueue {
    volume: Arc<MemVolume>,
    limits: Limits,
    done: Vec<Completion>,
}

impl Drop for MemQueue {
    fn drop(&mut self) {
        self.volume.queues.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Queue for MemQueue {
    fn submit(&mut self, request: Request) {
        let Request { token, mut op } = request;
        let store = &self.volume.store;
        let size_bytes = store.size_bytes.load(Ordering::Acquire);
        let result = op
            .check(size_bytes, store.logical_block_size, &self.limits)
            .and_then(|()| match &op {
                Op::Read { .. } | Op::Flush => Ok(()),
                _ => self.volume.changeable().map(drop),
            })
            .and_then(|()| match &mut op {
                Op::Read { offset, buffer } => store.read(*offset, buffer),
                Op::Write { offset, buffer, .. } => store.write(*offset, buffer),
                Op::Flush => Ok(()),
                Op::Discard { offset, len } => store.zero(*offset, u64::from(*len), false),
                Op::WriteZeroes {
                    offset,
                    len,
                    no_unmap,
                    ..
                } => store.zero(*offset, u64::from(*len), *no_unmap),
            });
        self.done.push(Completion {
            token,
            result,
            buffer: op.into_buffer(),
        });
    }

    fn kick(&mut self) {}

    fn reap(&mut self, completions: &mut Vec<Completion>) {
        completions.append(&mut self.done);
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn in_flight(&self) -> usize {
        self.done.len()
    }
}
