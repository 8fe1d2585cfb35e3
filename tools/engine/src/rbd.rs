// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The engine `rbd`: volumes in a Ceph cluster, through librbd.
//!
//! A volume `pool/name` is the RBD image `name` in the RBD namespace `pool` of
//! one Ceph pool, so that a cluster's user can be bound to it, and `rbd` lists
//! what there is. An image is a volume by one entry of its metadata (see
//! `attributes`); images without it are left alone. Replication, recovery and
//! consistency are Ceph's.
//!
//! Several nodes share the engine's volumes. One node at a time has a volume
//! (see `term`): it holds the image's exclusive lock, and taking the lock from
//! another node fences that node in the cluster itself.
//!
//! There is no cache: a completed write is stored on the acting replicas, so
//! nothing is lost with a node, and flush and `fua` cost nothing.
//!
//! Nothing is carried out late: what the cluster has not done within
//! `max_operation` is given up together with the term, so that nothing of this
//! node is left to be sent when the cluster no longer keeps it out (see `term`).
//!
//! Who blocks: everything but queues. librbd's own threads complete requests;
//! they append to the queue's outbox and set its eventfd. A thread for each
//! open volume asks once a second who owns it, and closes it in the end.

mod attributes;
mod leftovers;
mod outbox;
mod pulse;
mod queue;
mod registry;
mod snapshot;
mod sys;
mod term;
mod volume;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use neonsan_api::{SnapshotName, VolumeName};

use crate::identity::{random_id, unix_seconds};
use crate::interface::{has_snapshots, no_such_snapshot};
use crate::{
    Engine, EngineStatus, Error, ErrorKind, Limits, NodeNote, Result, SnapshotStat, Volume,
    VolumeSpec, VolumeStat,
};
use attributes::{from_hex, to_hex, Attributes, RECORD_KEY, ROLLBACK_KEY, VOLUME_KEY};
use pulse::Pulse;
use registry::Registry;
use snapshot::{find_snapshot, parent_of, pending_rollback, roll_back, RbdSnapshot};
use sys::{Access, Cluster, ClusterOptions, Image, Pool};
use term::{live_owner, own, Manner, Ownership, Term};
use volume::RbdVolume;

/// What a crash tears at most: less than what an OSD writes at once.
const UNTORN_BYTES: u32 = 4096;

/// Names of images that are being made; no volume's name begins with a dot.
const CREATE_PREFIX: &str = ".neonsan-create-";

/// The object with what the nodes tell each other, in the pool's default
/// namespace.
const NODES_OBJECT: &str = "neonsan_nodes";

/// How long the end of the engine waits for volumes that are being closed.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// How the engine behaves.
#[derive(Clone, Debug)]
pub struct RbdOptions {
    /// Ceph's configuration file.
    pub conf: PathBuf,
    /// The user's keyring; `None`: what the configuration file says.
    pub keyring: Option<PathBuf>,
    /// The user, without `client.`.
    pub user: String,
    /// The Ceph pool.
    pub pool: String,
    /// Size of the objects of new volumes: a power of two from 64 KiB to
    /// 32 MiB.
    pub object_bytes: u64,
    /// How long connecting to the cluster may take.
    pub connect_timeout: Duration,
    /// How long to wait for a volume that is being closed.
    pub close_wait: Duration,
    /// A process that stood still for longer gives up its volumes. Much less
    /// than the time for which the cluster fences a client.
    pub max_pause: Duration,
    /// An operation that the cluster has not carried out for so long is given up,
    /// and with it the volume, which may be another node's by then. A third at
    /// most of the time for which the cluster fences a client. Zero, for tests
    /// which prove that they notice: nothing is given up.
    pub max_operation: Duration,
    /// Fence whoever a volume is taken from. Always, but in tests which prove
    /// that they notice when it is not done.
    pub fence: bool,
}

impl RbdOptions {
    /// The usual values, for a pool and a user without `client.`.
    pub fn new(conf: impl Into<PathBuf>, user: &str, pool: &str) -> Self {
        Self {
            conf: conf.into(),
            keyring: None,
            user: user.to_owned(),
            pool: pool.to_owned(),
            object_bytes: 4 << 20,
            connect_timeout: Duration::from_secs(30),
            close_wait: Duration::from_secs(30),
            max_pause: Duration::from_secs(60),
            max_operation: Duration::from_secs(600),
            fence: true,
        }
    }

    fn cluster(&self) -> ClusterOptions {
        ClusterOptions {
            conf: self.conf.clone(),
            keyring: self.keyring.clone(),
            user: self.user.clone(),
            connect_timeout_s: u32::try_from(self.connect_timeout.as_secs().max(1))
                .unwrap_or(u32::MAX),
            operation_timeout_s: u32::try_from(self.max_operation.as_secs()).unwrap_or(u32::MAX),
            blocklist: self.fence,
        }
    }
}

/// Volumes in a Ceph cluster.
pub struct RbdEngine {
    options: RbdOptions,
    order: u32,
    /// The client for everything but open volumes. It never holds a lock that
    /// another node could break.
    cluster: Arc<Cluster>,
    fsid: [u8; 16],
    registry: Arc<Registry>,
    pulse: Arc<Pulse>,
    /// What could not be cleared away at the start.
    leftovers: Vec<String>,
}

impl RbdEngine {
    /// Connects to the cluster.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] where Ceph's libraries are not installed;
    /// [`ErrorKind::NotPermitted`] for a user or key that the cluster does not
    /// know, [`ErrorKind::NotFound`] if there is no such pool; else what the
    /// libraries say.
    pub fn open(options: RbdOptions) -> Result<Self> {
        let object_bytes = options.object_bytes;
        if !object_bytes.is_power_of_two() || !((64 << 10)..=(32 << 20)).contains(&object_bytes) {
            return Err(Error::new(
                ErrorKind::BadSize,
                format!("objects of {object_bytes} bytes are not possible: a power of two from 65536 to 33554432 is"),
            ));
        }
        let cluster = Arc::new(Cluster::connect(&options.cluster())?);
        let leftovers = leftovers::clear(&cluster, &options.pool)?;
        Ok(Self {
            leftovers,
            order: object_bytes.ilog2(),
            fsid: cluster.fsid()?,
            pulse: Pulse::start(options.max_pause, options.max_operation)?,
            cluster,
            options,
            registry: Arc::default(),
        })
    }

    fn pool_of(&self, name: &VolumeName) -> Result<Arc<Pool>> {
        self.cluster
            .pool(&self.options.pool, name.pool())
            .map(Arc::new)
    }

    fn not_found(name: &VolumeName) -> Error {
        Error::new(
            ErrorKind::NotFound,
            format!("the rbd engine has no volume {name}"),
        )
    }

    /// Opens the image of a volume to look at it.
    fn look_at(&self, name: &VolumeName) -> Result<Image> {
        self.image(name, Access::Read)
    }

    fn image(&self, name: &VolumeName, access: Access) -> Result<Image> {
        Image::open(&self.pool_of(name)?, name.volume(), access)
            .map_err(|error| or_not_found(error, name))
    }

    /// The attributes of an image.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if it is no volume of ours.
    fn attributes(name: &VolumeName, image: &Image) -> Result<Attributes> {
        let value = image
            .metadata(VOLUME_KEY)
            .map_err(|error| or_not_found(error, name))?;
        Attributes::decode(&value)
    }

    fn stat_image(name: &VolumeName, image: &Image) -> Result<VolumeStat> {
        let attributes = Self::attributes(name, image)?;
        let (size_bytes, _) = image.sizes()?;
        Ok(VolumeStat {
            id: attributes.id,
            size_bytes,
            logical_block_size: attributes.logical_block_size,
            physical_block_size: attributes.physical_block_size,
            created_unix_s: attributes.created_unix_s,
            allocated_bytes: image.allocated_bytes()?,
            parent: parent_of(image),
        })
    }

    /// Makes the image `temporary` a volume named `name`.
    fn finish(
        pool: &Arc<Pool>,
        temporary: &str,
        name: &VolumeName,
        attributes: &Attributes,
    ) -> Result<()> {
        let image = Image::open(pool, temporary, Access::Write)?;
        // A clone begins with what its parent's image has.
        image.remove_metadata(RECORD_KEY)?;
        image.remove_metadata(ROLLBACK_KEY)?;
        image.set_metadata(VOLUME_KEY, &attributes.encode())?;
        drop(image);
        pool.rename_image(temporary, name.volume())
            .map_err(|error| match error.kind() {
                ErrorKind::AlreadyExists => Error::new(
                    ErrorKind::AlreadyExists,
                    format!("there is a volume {name} already, or another image of that name"),
                ),
                _ => error,
            })
    }

    /// Makes a volume from the image that `make` makes with the name that it is
    /// given, in the namespace of `name`.
    fn make(
        &self,
        name: &VolumeName,
        attributes: &Attributes,
        make: impl FnOnce(&Pool, &str) -> Result<()>,
    ) -> Result<VolumeStat> {
        let root = self.cluster.pool(&self.options.pool, "")?;
        if !root.namespaces()?.iter().any(|n| n == name.pool()) {
            match root.create_namespace(name.pool()) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                // By another node, if not by this one.
                _ => {}
            }
        }
        let pool = self.pool_of(name)?;
        let temporary = format!("{CREATE_PREFIX}{:032x}", u128::from_be_bytes(attributes.id));
        make(&pool, &temporary)?;
        if let Err(error) = Self::finish(&pool, &temporary, name, attributes) {
            if let Err(e) = pool.remove_image(&temporary) {
                tracing::warn!(image = %temporary, error = %e, "cannot remove");
            }
            return Err(error);
        }
        self.stat(name)
    }

    /// Opens the image of a snapshot's volume to look at it.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NoSuchSnapshot`] if there is no such volume.
    fn look_at_volume_of(&self, name: &SnapshotName) -> Result<(Image, Attributes)> {
        let look = || {
            let image = self.look_at(name.volume())?;
            let attributes = Self::attributes(name.volume(), &image)?;
            Ok((image, attributes))
        };
        look().map_err(|error: Error| match error.kind() {
            ErrorKind::NotFound => no_such_snapshot(name),
            _ => error,
        })
    }

    /// The clones of a snapshot, as Ceph knows them.
    fn relatives(&self, name: &SnapshotName) -> Result<Vec<sys::Relative>> {
        let (image, _) = self.look_at_volume_of(name)?;
        find_snapshot(&image, name)?;
        image.set_snapshot(name.snapshot())?;
        image.children()
    }

    fn begin_term(&self, name: &VolumeName, manner: Manner) -> Result<Arc<dyn Volume>> {
        let claim = self.registry.claim(name, self.options.close_wait)?;
        let attributes = Self::attributes(name, &self.look_at(name)?)?;
        let options = self.options.cluster();
        let term = Term::begin(&options, &self.options.pool, claim, &self.pulse, manner)
            .map_err(|error| or_not_found(error, name))?;
        if let Some(snapshot) = pending_rollback(&term.image)? {
            tracing::warn!(volume = %name, %snapshot, "finishing to roll back, which was interrupted");
            roll_back(&term.image, &snapshot)?;
        }
        let volume = RbdVolume::new(name, &self.registry, term, attributes)?;
        Ok(Arc::new(volume))
    }
}

/// The usual words when a volume is not there.
fn or_not_found(error: Error, name: &VolumeName) -> Error {
    match error.kind() {
        ErrorKind::NotFound => RbdEngine::not_found(name),
        _ => error,
    }
}

impl Drop for RbdEngine {
    fn drop(&mut self) {
        self.pulse.stop();
        if !self.registry.wait_until_empty(CLOSE_PATIENCE) {
            tracing::warn!("volumes could not be closed in time; the next node breaks their locks");
        }
    }
}

impl Engine for RbdEngine {
    fn kind(&self) -> &'static str {
        "rbd"
    }

    fn is_persistent(&self) -> bool {
        true
    }

    /// The cluster's: nothing that is completed is lost with a node.
    fn boot_id(&self) -> [u8; 16] {
        self.fsid
    }

    fn status(&self) -> Result<EngineStatus> {
        Ok(EngineStatus {
            capacity_bytes: None,
            available_bytes: None,
            untorn_bytes: UNTORN_BYTES,
            notes: vec![format!(
                "Ceph cluster {:032x}, pool {}, as client.{}",
                u128::from_be_bytes(self.fsid),
                self.options.pool,
                self.options.user
            )],
        })
    }

    /// Asks an OSD of the pool, and the monitors.
    fn health(&self) -> Result<Vec<String>> {
        self.cluster
            .pool(&self.options.pool, "")?
            .keys(NODES_OBJECT)?;
        self.cluster.wait_for_latest_osdmap()?;
        Ok(self.leftovers.clone())
    }

    fn create(&self, name: &VolumeName, spec: &VolumeSpec) -> Result<VolumeStat> {
        let attributes = Attributes {
            id: random_id()?,
            logical_block_size: spec.logical_block_size,
            physical_block_size: spec.settle(UNTORN_BYTES)?,
            created_unix_s: unix_seconds(),
        };
        self.make(name, &attributes, |pool, temporary| {
            pool.create_image(temporary, spec.size_bytes, self.order)
        })
    }

    fn list(&self) -> Result<Vec<VolumeName>> {
        let mut names = Vec::new();
        for namespace in self.cluster.pool(&self.options.pool, "")?.namespaces()? {
            if VolumeName::new(&namespace, "x").is_err() {
                continue;
            }
            let images = match self.cluster.pool(&self.options.pool, &namespace)?.images() {
                Ok(images) => images,
                // Removed meanwhile.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let volumes = images
                .iter()
                .map(|image| VolumeName::new(&namespace, image));
            names.extend(volumes.flatten());
        }
        Ok(names)
    }

    fn stat(&self, name: &VolumeName) -> Result<VolumeStat> {
        Self::stat_image(name, &self.look_at(name)?)
    }

    /// Without what `stat` does: looking at every object of the image.
    fn exists(&self, name: &VolumeName) -> Result<bool> {
        let look = || Self::attributes(name, &self.look_at(name)?).map(drop);
        match look() {
            Ok(()) => Ok(true),
            Err(error) => match error.kind() {
                ErrorKind::NotFound => Ok(false),
                ErrorKind::Corrupt => Ok(true),
                _ => Err(error),
            },
        }
    }

    fn limits(&self, stat: &VolumeStat) -> Limits {
        volume::limits(self.options.object_bytes, stat.logical_block_size)
    }

    fn open(&self, name: &VolumeName) -> Result<Arc<dyn Volume>> {
        self.begin_term(name, Manner::Polite)
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn take(&self, name: &VolumeName) -> Result<Arc<dyn Volume>> {
        self.begin_term(name, Manner::Force)
    }

    fn is_in_other_hands(&self, name: &VolumeName) -> Result<bool> {
        if self.registry.term(name).is_some() {
            return Ok(false);
        }
        // librbd tells the owner only to who could become it.
        Ok(live_owner(&self.image(name, Access::Write)?)?.is_some())
    }

    fn load_record(&self, name: &VolumeName) -> Result<Option<Vec<u8>>> {
        match self.look_at(name)?.metadata(RECORD_KEY) {
            Ok(text) => from_hex(&text).map(Some),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Saves through the client of the volume's term, so that a node which has
    /// lost the volume cannot save any more.
    fn save_record(&self, name: &VolumeName, record: &[u8]) -> Result<()> {
        let Some(term) = self.registry.term(name) else {
            return Err(Error::new(
                ErrorKind::NotOwner,
                format!("the volume {name} is not open on this node"),
            ));
        };
        if term.ownership.is_lost() {
            return Err(term.ownership.error());
        }
        let saved = term.image.set_metadata(RECORD_KEY, &to_hex(record));
        term.ownership.settle(saved)
    }

    /// Through a client of its own: it takes the image's lock, and another node
    /// may break it.
    fn delete(&self, name: &VolumeName) -> Result<()> {
        let _claim = self.registry.claim(name, self.options.close_wait)?;
        let image = self.look_at(name)?;
        Self::attributes(name, &image)?;
        let snapshots = image.snapshots()?;
        if !snapshots.is_empty() {
            let names: Vec<&str> = snapshots.iter().map(|s| s.name.as_str()).collect();
            return Err(has_snapshots(name, &names));
        }
        drop(image);
        let cluster = Arc::new(Cluster::connect(&self.options.cluster())?);
        let pool = cluster.pool(&self.options.pool, name.pool())?;
        pool.remove_image(name.volume())
            .map_err(|error| match error.kind() {
                ErrorKind::NotFound => Self::not_found(name),
                ErrorKind::Busy => Error::new(
                    ErrorKind::Busy,
                    format!(
                        "the volume {name} is open on another node, or was until its node died \
                         less than half a minute ago"
                    ),
                ),
                _ => error,
            })
    }

    fn snapshots(&self, name: &VolumeName) -> Result<Vec<SnapshotStat>> {
        let image = self.look_at(name)?;
        let attributes = Self::attributes(name, &image)?;
        let mut snapshots = image.snapshots()?;
        snapshots.sort_by_key(|snapshot| snapshot.id);
        Ok(snapshots
            .iter()
            // What has no snapshot's name is none of ours.
            .filter_map(|s| Some(s.stat(&SnapshotName::new(name, &s.name).ok()?, &attributes)))
            .collect())
    }

    fn open_snapshot(&self, name: &SnapshotName) -> Result<Arc<dyn Volume>> {
        let (image, attributes) = self.look_at_volume_of(name)?;
        let stat = find_snapshot(&image, name)?.stat(name, &attributes);
        drop(image);
        let ownership = Ownership::of_snapshot(name.volume().clone());
        let pool = self.pool_of(name.volume())?;
        let image = Image::open_snapshot(&pool, name.volume().volume(), name.snapshot()).map_err(
            |error| match error.kind() {
                ErrorKind::NotFound => no_such_snapshot(name),
                _ => error,
            },
        )?;
        let snapshot = RbdSnapshot::new(image, stat, attributes, ownership)?;
        Ok(Arc::new(snapshot))
    }

    /// By the client that has the volume: librbd asks the owner of the lock if
    /// another node has it. If nobody has, through a client of its own, as for
    /// deleting a volume.
    fn delete_snapshot(&self, name: &SnapshotName) -> Result<()> {
        let children = self.relatives(name)?;
        if !children.is_empty() {
            let pool = &self.options.pool;
            let names: Vec<_> = children.iter().map(|c| snapshot::show(c, pool)).collect();
            return Err(Error::new(
                ErrorKind::Busy,
                format!(
                    "the snapshot {name} has clones that need it: {}; flatten or delete them first",
                    names.join(", ")
                ),
            ));
        }
        let volume = name.volume();
        if pending_rollback(&self.look_at(volume)?)?.as_deref() == Some(name.snapshot()) {
            return Err(Error::new(
                ErrorKind::Busy,
                format!("the volume {volume} is being rolled back to the snapshot {name}"),
            ));
        }
        if let Some(term) = self.registry.term(volume) {
            return term.image.remove_snapshot(name.snapshot());
        }
        let _claim = self.registry.claim(volume, self.options.close_wait)?;
        let cluster = Arc::new(Cluster::connect(&self.options.cluster())?);
        let pool = Arc::new(cluster.pool(&self.options.pool, volume.pool())?);
        let image = Image::open(&pool, volume.volume(), Access::Write)?;
        if live_owner(&image)?.is_none() {
            own(&cluster, &image, volume)?;
        }
        image.remove_snapshot(name.snapshot())
    }

    fn roll_back(&self, name: &SnapshotName, record: &[u8]) -> Result<()> {
        let volume = name.volume();
        let claim = self.registry.claim(volume, self.options.close_wait)?;
        find_snapshot(&self.look_at_volume_of(name)?.0, name)?;
        let options = self.options.cluster();
        let manner = Manner::Polite;
        let term = Term::begin(&options, &self.options.pool, claim, &self.pulse, manner)?;
        term.image.set_metadata(RECORD_KEY, &to_hex(record))?;
        roll_back(&term.image, name.snapshot())
    }

    fn clone_snapshot(&self, from: &SnapshotName, to: &VolumeName) -> Result<VolumeStat> {
        let (image, attributes) = self.look_at_volume_of(from)?;
        find_snapshot(&image, from)?;
        drop(image);
        let attributes = Attributes {
            id: random_id()?,
            created_unix_s: unix_seconds(),
            ..attributes
        };
        let source = self.pool_of(from.volume())?;
        self.make(to, &attributes, |pool, temporary| {
            source.clone_image(from.volume().volume(), from.snapshot(), pool, temporary)
        })
    }

    fn children(&self, name: &SnapshotName) -> Result<Vec<VolumeName>> {
        let pool = &self.options.pool;
        Ok(self
            .relatives(name)?
            .iter()
            .filter_map(|relative| snapshot::volume_of(relative, pool))
            .collect())
    }

    fn tell_node(&self, note: &NodeNote) -> Result<()> {
        self.cluster
            .pool(&self.options.pool, "")?
            .set_key(NODES_OBJECT, &note.key, &note.text)
    }

    fn told_nodes(&self) -> Result<Vec<NodeNote>> {
        let notes = self
            .cluster
            .pool(&self.options.pool, "")?
            .keys(NODES_OBJECT)?;
        let note = |(key, text)| NodeNote { key, text };
        Ok(notes.into_iter().map(note).collect())
    }

    fn forget_node(&self, note: &NodeNote) -> Result<()> {
        self.cluster
            .pool(&self.options.pool, "")?
            .remove_key(NODES_OBJECT, &note.key, &note.text)
    }
}
