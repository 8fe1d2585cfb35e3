// SPDX-License-Identifier: GPL-2.0

//! A device: `/dev/neonsanN`, its session and its connections.
//!
//! # Locks, in this order
//!
//! 1. `lifecycle` (mutex): attaching and detaching.
//! 2. `disk` (mutex): the disk comes and goes.
//!    2a. `suspended` (mutex): what happens to new requests.
//! 3. `progress` (mutex): who waits for the control machine looks at it with this held.
//! 4. `session` (mutex): the control machine.
//! 5. A connection's own, see [`crate::connection`].
//! 6. `connections`, `volume`, `shrinking` (below `volume`), `nodes`, `notes`, `session_id` (mutexes): only
//!    around reading or changing them.
//! 7. `events`, `timeouts` (spin locks, interrupts off): likewise.
//! 8. `at_rest` (spin lock, interrupts off): around queueing work.

mod changes;
mod holding;
mod settings;
mod work;

use crate::{
    connection::Connection,
    left::Left,
    limits,
    nodes::Nodes,
    notes::Notes,
    params::{AttachParams, DeviceError, Node},
    queue::Queue,
    uapi::{self, SuspendMode},
};
use kernel::{
    impl_has_delayed_work, impl_has_work, new_condvar, new_delayed_work, new_mutex, new_work,
    prelude::*,
    str::CString,
    sync::{
        atomic::{AtomicFlag, Relaxed},
        Arc, CondVar, Mutex,
    },
    workqueue::{DelayedWork, Work},
};
use neonsan_kernel::{
    block::mq::{GenDisk, QueueLimits},
    net::TcpSocket,
    random,
    sync::{new_spinlock_irq, SpinLockIrq},
    workqueue::OwnedQueue,
};
use neonsan_proto::{Capabilities, Features, Geometry, Mode, OpenReply, VolumeName};
use neonsan_session::{
    client::{self, AtRisk, Config, Durability, Identity, Opened, Session, Tally},
    CloseCause, Instant, Timeouts,
};

/// Work of a device: the control machine.
const CONTROL_WORK: u64 = 0;
/// Its timer.
const TIMER_WORK: u64 = 1;
/// Changes of the disk that wait for requests, so they must not run where recovery does.
const CHANGE_WORK: u64 = 2;

/// Name and version of this software, for a node's log.
const PRODUCT: &str = "neonsan.ko";

/// What is known of the volume.
#[derive(Clone, Copy)]
pub(crate) struct Volume {
    /// Size, limits, abilities.
    pub(crate) geometry: Geometry,
    /// Identity of the volume.
    pub(crate) volume_id: [u8; 16],
    /// Identity of the node's volatile state.
    pub(crate) boot_id: [u8; 16],
    /// Features in force.
    pub(crate) features: Features,
    /// Requests in flight that the node allows on each connection.
    pub(crate) max_depth: u16,
    /// All that the node said.
    reply: OpenReply,
}

/// The control machine, with its connections on the heap: kernel stacks are small.
pub(crate) type DeviceSession = Session<KVec<client::Connection>>;

/// What nodes have told, not yet acted on.
#[derive(Default)]
struct Events {
    size_bytes: Option<u64>,
    geometry: Option<Geometry>,
    going_away: bool,
}

/// A volume that has become smaller than its device, which waits for a person to decide. Written by
/// whoever learns of it and by netlink; over when the volume is opened.
#[derive(Default)]
struct Shrinking {
    /// The size that it has now, in bytes.
    told_bytes: Option<u64>,
    /// The size that the person accepts.
    accepted_bytes: Option<u64>,
}

/// How attaching goes on.
pub(crate) struct Progress {
    /// Connections that could not be made so far.
    pub(crate) failures: u32,
    /// Why the last of them could not.
    pub(crate) error: Option<DeviceError>,
    /// The last failure is one that trying again does not mend.
    pub(crate) permanent: bool,
    /// The device is in no list any more.
    pub(crate) gone: bool,
}

impl Progress {
    /// Why attaching comes to nothing: what was noted last, or else this cause.
    #[inline(never)]
    pub(crate) fn why(&self, cause: CloseCause) -> DeviceError {
        match &self.error {
            Some(error) => error.clone(),
            None => DeviceError::new(crate::error::errno_of(cause), format_args!("{cause}")),
        }
    }
}

/// Where a device is in its life.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lifecycle {
    /// There is no disk yet.
    Attaching,
    /// In use.
    Attached,
    /// Being taken away.
    Detaching,
}

/// Bytes that answered requests of one connection have changed, FUA left out. In a cache line of its
/// own, since the connections' receiving sides run on different CPUs.
#[repr(align(64))]
struct Answered(Tally);

/// A mode as on the wire.
pub(crate) fn wire_mode(mode: uapi::Mode) -> Mode {
    match mode {
        uapi::Mode::Exclusive => Mode::Exclusive,
        uapi::Mode::Shared => Mode::Shared,
        uapi::Mode::ReadOnly => Mode::ReadOnly,
    }
}

/// A device.
#[pin_data]
pub(crate) struct Device {
    index: u32,
    name: CString,
    params: KBox<AttachParams>,
    queue: OwnedQueue,
    /// For connecting, which waits for the network: when no memory is left for workers, one rescuer
    /// does all of a queue's work, and must not wait there.
    connecting: OwnedQueue,
    /// For changes of the disk, which wait for requests.
    changes: OwnedQueue,
    /// Never connected. As long as there is a socket that may use the memory reserves, making and ending
    /// another one only counts; the first and the last on the host change the kernel's text, under
    /// locks that a connection which dirty pages wait for must not need.
    _reserves: TcpSocket,
    /// The device is being taken away: nothing new begins.
    closing: AtomicFlag,
    /// What a node's power could take. Used if the volume has a write cache.
    durability: Durability,
    /// How much that is, and was.
    at_risk: AtRisk,
    /// What answered writes have changed, for each connection; added to by its receiving side.
    answered: KVec<Answered>,
    /// Attach was forced, and a node has named the holder: from now on it is asked by force.
    forcing: AtomicFlag,
    /// The session is one that another device has left, and no node has let it in yet.
    resuming: AtomicFlag,
    /// A node may hold the volume for the session.
    may_be_held: AtomicFlag,
    /// Another only if a node does not let a resumed session in.
    #[pin]
    session_id: Mutex<[u8; 16]>,
    #[pin]
    lifecycle: Mutex<Lifecycle>,
    #[pin]
    disk: Mutex<Option<GenDisk<Queue>>>,
    /// Changed by [`crate::suspend`] only.
    #[pin]
    suspended: Mutex<Option<SuspendMode>>,
    #[pin]
    nodes: Mutex<KBox<Nodes>>,
    #[pin]
    notes: Mutex<Notes>,
    #[pin]
    session: Mutex<DeviceSession>,
    #[pin]
    connections: Mutex<KVec<Arc<Connection>>>,
    #[pin]
    volume: Mutex<Option<Volume>>,
    #[pin]
    shrinking: Mutex<Shrinking>,
    #[pin]
    events: SpinLockIrq<Events>,
    #[pin]
    timeouts: SpinLockIrq<Timeouts>,
    /// The device's work is over, see [`Device::finish_work`].
    #[pin]
    at_rest: SpinLockIrq<bool>,
    #[pin]
    progress: Mutex<Progress>,
    /// The control machine has done something.
    #[pin]
    changed: CondVar,
    #[pin]
    control_work: Work<Device, CONTROL_WORK>,
    #[pin]
    timer_work: DelayedWork<Device, TIMER_WORK>,
    #[pin]
    change_work: Work<Device, CHANGE_WORK>,
}

impl_has_work! {
    impl HasWork<Self, CONTROL_WORK> for Device { self.control_work }
    impl HasWork<Self, CHANGE_WORK> for Device { self.change_work }
}
impl_has_delayed_work! {
    impl HasDelayedWork<Self, TIMER_WORK> for Device { self.timer_work }
}

impl Device {
    /// A device without a disk, of which the session has not begun. It resumes the session that
    /// another one has left for it, if there is one. May sleep.
    #[inline(never)]
    pub(crate) fn new(
        index: u32,
        params: KBox<AttachParams>,
        left: Option<&Left>,
        now: Instant,
    ) -> Result<Arc<Self>> {
        let wish = params.all_connections();
        let depth = crate::params::DEFAULT_QUEUE_DEPTH;
        let depth = params.queue_depth.unwrap_or(depth);
        let device = Self::without_connections(index, params, left, now)?;
        let mut connections = KVec::with_capacity(wish as usize, GFP_KERNEL)?;
        for i in 0..wish {
            connections.push(
                Connection::new(device.clone(), i as u16, depth)?,
                GFP_KERNEL,
            )?;
        }
        *device.connections.lock() = connections;
        Ok(device)
    }

    #[inline(never)]
    fn without_connections(
        index: u32,
        params: KBox<AttachParams>,
        left: Option<&Left>,
        now: Instant,
    ) -> Result<Arc<Self>> {
        let name = CString::try_from_fmt(fmt!("neonsan{index}"))?;
        let queue = OwnedQueue::new_mem_reclaim(&name)?;
        let connecting = OwnedQueue::new_mem_reclaim(&name)?;
        let changes = OwnedQueue::new_unbound(&name)?;
        let any_node = params.nodes.first().ok_or(EINVAL)?;
        let reserves = TcpSocket::new(&params.net, &any_node.addr)?;
        let mut session_id = [0; 16];
        random::fill(&mut session_id);
        if let Some(left) = left {
            session_id = left.session_id;
        }
        let mut seed = [0; 8];
        random::fill(&mut seed);
        let wish = params.all_connections();
        let config = Config {
            connections: wish as u16,
            nodes: params.nodes.len() as u16,
            timeouts: params.timeouts,
            seed: u64::from_ne_bytes(seed),
            used: left.map_or_else(Default::default, |left| left.used),
        };
        let mut states = KVec::with_capacity(wish as usize, GFP_KERNEL)?;
        states.resize(wish as usize, client::Connection::default(), GFP_KERNEL)?;
        let session = Session::with_storage(config, states, now);
        let mut answered = KVec::with_capacity(wish as usize, GFP_KERNEL)?;
        for _ in 0..wish {
            answered.push(Answered(Tally::new()), GFP_KERNEL)?;
        }
        let timeouts = params.timeouts;
        let nodes = Nodes::new(&params.nodes)?;
        Arc::pin_init(
            pin_init!(Device {
                index,
                name,
                params,
                queue,
                connecting,
                changes,
                _reserves: reserves,
                closing: AtomicFlag::new(false),
                durability: Durability::new(),
                at_risk: AtRisk::new(),
                answered,
                forcing: AtomicFlag::new(false),
                resuming: AtomicFlag::new(left.is_some()),
                may_be_held: AtomicFlag::new(left.is_some()),
                session_id <- new_mutex!(session_id, "neonsan_session_id"),
                lifecycle <- new_mutex!(Lifecycle::Attaching, "neonsan_lifecycle"),
                disk <- new_mutex!(None, "neonsan_disk"),
                suspended <- new_mutex!(None, "neonsan_suspended"),
                nodes <- new_mutex!(nodes, "neonsan_nodes"),
                notes <- new_mutex!(Notes::default(), "neonsan_notes"),
                session <- new_mutex!(session, "neonsan_session"),
                connections <- new_mutex!(KVec::new(), "neonsan_connections"),
                volume <- new_mutex!(None, "neonsan_volume"),
                shrinking <- new_mutex!(Shrinking::default(), "neonsan_shrinking"),
                events <- new_spinlock_irq!(Events::default(), "neonsan_events"),
                timeouts <- new_spinlock_irq!(timeouts, "neonsan_timeouts"),
                at_rest <- new_spinlock_irq!(false, "neonsan_at_rest"),
                progress <- new_mutex!(
                    Progress { failures: 0, error: None, permanent: false, gone: false },
                    "neonsan_progress"
                ),
                changed <- new_condvar!("neonsan_changed"),
                control_work <- new_work!("neonsan_control"),
                timer_work <- new_delayed_work!("neonsan_timer"),
                change_work <- new_work!("neonsan_change"),
            }),
            GFP_KERNEL,
        )
    }

    // ---- what it is ----

    /// N of `/dev/neonsanN`.
    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// The name of the disk.
    pub(crate) fn name(&self) -> &CStr {
        &self.name
    }

    /// What it was attached with.
    pub(crate) fn params(&self) -> &AttachParams {
        &self.params
    }

    /// Identity of the session.
    pub(crate) fn session_id(&self) -> [u8; 16] {
        *self.session_id.lock()
    }

    /// The node with this index in the list of nodes.
    pub(crate) fn node(&self, index: u16) -> Option<Node> {
        self.nodes.lock().get(index)
    }

    /// The nodes that may serve the device.
    pub(crate) fn nodes(&self) -> &Mutex<KBox<Nodes>> {
        &self.nodes
    }

    /// Attach was forced, and a node has named the holder.
    pub(crate) fn forcing(&self) -> &AtomicFlag {
        &self.forcing
    }

    /// What people are told when they ask.
    pub(crate) fn notes(&self) -> &Mutex<Notes> {
        &self.notes
    }

    /// What happens to new requests.
    pub(crate) fn suspend_mode(&self) -> &Mutex<Option<SuspendMode>> {
        &self.suspended
    }

    /// The control machine.
    pub(crate) fn session(&self) -> &Mutex<DeviceSession> {
        &self.session
    }

    /// The disk, if there is one.
    pub(crate) fn disk(&self) -> &Mutex<Option<GenDisk<Queue>>> {
        &self.disk
    }

    /// Where the device is in its life.
    pub(crate) fn lifecycle(&self) -> &Mutex<Lifecycle> {
        &self.lifecycle
    }

    /// How attaching goes on, and what tells of changes.
    pub(crate) fn progress(&self) -> (&Mutex<Progress>, &CondVar) {
        (&self.progress, &self.changed)
    }

    /// The connection with this index.
    pub(crate) fn connection(&self, index: u16) -> Option<Arc<Connection>> {
        self.connections.lock().get(usize::from(index)).cloned()
    }

    /// Forgets the connections, which refer back to the device.
    pub(crate) fn drop_connections(&self) {
        let connections = core::mem::take(&mut *self.connections.lock());
        drop(connections);
    }

    /// What is known of the volume; `None` before the first connection was made.
    pub(crate) fn volume(&self) -> Option<Volume> {
        *self.volume.lock()
    }

    /// The named timeouts.
    pub(crate) fn timeouts(&self) -> Timeouts {
        *self.timeouts.lock()
    }

    /// Whether a node, or recovery, still has a request of the device.
    pub(crate) fn has_requests_in_flight(&self) -> bool {
        let connections = self.connections.lock();
        let mut all = connections.iter();
        all.any(|connection| connection.slots.iter().next().is_some())
    }

    /// Whether the device is being taken away.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Relaxed)
    }

    /// From now on nothing new begins.
    pub(crate) fn set_closing(&self) {
        self.closing.store(true, Relaxed);
    }

    /// Calls `f` with who opens what.
    pub(crate) fn with_identity<R>(
        &self,
        f: impl FnOnce(&Identity<'_>) -> R,
    ) -> Result<R, CloseCause> {
        let params = &self.params;
        // It was checked when the device was attached.
        let volume = VolumeName::parse(params.volume.as_str())
            .map_err(|_| CloseCause::Refused(neonsan_proto::Status::BadName))?;
        let mut offered = Features::NONE;
        if params.checksums & crate::uapi::checksum::HEADER != 0 {
            offered = offered.union(Features::HEADER_CRC);
        }
        if params.checksums & crate::uapi::checksum::PAYLOAD != 0 {
            // Without one of the header, the checksum itself would not be protected.
            offered = offered
                .union(Features::HEADER_CRC)
                .union(Features::PAYLOAD_CRC);
        }
        Ok(f(&Identity {
            volume,
            mode: wire_mode(params.mode),
            // The first try without force is told by the node who the holder is.
            force: self.forcing.load(Relaxed),
            session_id: self.session_id(),
            host_id: params.host_id,
            host_boot: params.host_boot,
            host_name: params.host_name.as_str(),
            offered,
            required: offered,
            product: PRODUCT,
        }))
    }

    /// The limits of the disk.
    pub(crate) fn queue_limits(volume: &Volume) -> QueueLimits {
        limits::queue_limits(&volume.geometry, volume.features)
    }

    // ---- what happened ----

    /// A node has opened the volume: is it the one that the device was made for?
    pub(crate) fn check_volume(&self, opened: &Opened) -> Result<(), CloseCause> {
        match &*self.volume.lock() {
            Some(old) => {
                client::check_same_volume(&old.reply, &opened.reply)?;
                // It may have grown since the reply.
                let had_bytes = old.geometry.size_bytes.get();
                let has_bytes = opened.reply.geometry.size_bytes.get();
                client::check_size(had_bytes, has_bytes, self.shrinking.lock().accepted_bytes)
            }
            None => Ok(()),
        }
    }

    /// The session machine has taken the connection over which the node said this, and none of
    /// its requests is sent yet (the machine is locked). If writes may be lost that were answered,
    /// returns how many bytes of them.
    pub(crate) fn on_volume(self: &Arc<Self>, opened: &Opened) -> Option<u64> {
        let reply = &opened.reply;
        let new = Volume {
            geometry: reply.geometry,
            volume_id: reply.volume_id,
            boot_id: reply.boot_id,
            features: opened.features,
            max_depth: reply.max_depth.get(),
            reply: *reply,
        };
        let old = self.volume.lock().replace(new);
        *self.shrinking.lock() = Shrinking::default();
        let old = old?;
        if old.geometry != new.geometry {
            self.on_limits(new.geometry);
        }
        if old.boot_id != new.boot_id && self.durability.on_boot_changed() {
            return Some(self.at_risk.on_cache_lost(self.answered_bytes()));
        }
        None
    }

    /// Bytes that a lost cache may have taken.
    pub(crate) fn at_risk(&self) -> &AtRisk {
        &self.at_risk
    }

    /// A write of this connection, FUA left out, was answered. Called by its receiving side only.
    pub(crate) fn add_answered(&self, connection: u16, bytes: u32) {
        if let Some(Answered(tally)) = self.answered.get(usize::from(connection)) {
            tally.add(bytes.into());
        }
    }

    /// The running sum of what answered writes, FUA left out, have changed. Takes no lock: a FLUSH
    /// asks for it.
    pub(crate) fn answered_bytes(&self) -> u64 {
        let each = self.answered.iter().map(|Answered(tally)| tally.get());
        each.fold(0, u64::wrapping_add)
    }

    /// What a node's power could take.
    pub(crate) fn durability(&self) -> &Durability {
        &self.durability
    }

    /// Whether what is written is volatile until it is flushed.
    pub(crate) fn has_write_cache(volume: &Volume) -> bool {
        volume
            .geometry
            .capabilities()
            .contains(Capabilities::VOLATILE_CACHE)
    }

    /// The node will stop. Any context.
    pub(crate) fn on_going_away(self: &Arc<Self>, _grace_ms: u64) {
        self.events.lock().going_away = true;
        self.wake();
    }

    /// Whether the node has said that it will stop, once.
    pub(crate) fn take_going_away(&self) -> bool {
        core::mem::take(&mut self.events.lock().going_away)
    }
}
