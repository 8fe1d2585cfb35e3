// SPDX-License-Identifier: GPL-2.0

//! One connection: a hardware queue's requests, and the socket that carries them.
//!
//! A request is at any time in one of these places, and whoever holds it decides on it:
//!
//! 1. `pending`: queued by blk-mq, or to be sent again.
//! 2. The [`Transmitter`](crate::transmit): taken from there, about to be sent.
//! 3. `table`: sent, waiting for its reply; its slot says `InFlight`, or `Parked` after a loss.
//! 4. The [`Receiver`](crate::receive::Receive): its payload is arriving.
//!
//! # Locks, in this order
//!
//! 1. `tx` (mutex): the transmitting side, private to [`crate::transmit`]. Held while the socket's lock
//!    is taken.
//! 2. `polling` (spin lock), see [`crate::polling`].
//! 3. The socket's lock: the receiving side.
//! 4. `shared` (spin lock, interrupts off): small facts passed between contexts.

use crate::{
    clock::now,
    device::Device,
    params::Node,
    polling::Polling,
    queue::{claim_again, Queue},
    receive::Receive,
    transmit::Transmit,
    uapi, //
};
use kernel::{
    impl_has_delayed_work, impl_has_work, new_delayed_work, new_work,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc,
    },
    time::msecs_to_jiffies,
    workqueue::{DelayedWork, Work, WorkItem},
};
use neonsan_kernel::{
    block::mq::{OwnedRequest, RequestLlist, RequestTable},
    net::{Attached, SocketAddr, SocketState, TcpSocket},
    sync::{new_spinlock_irq, SpinLockIrq},
    workqueue::{DelayedOn, OwnedQueue},
};
use neonsan_proto::Features;
use neonsan_session::{
    client::{damage_of_copy, ConnectKind, Slot, SlotState, SlotTable},
    CloseCause, Instant, Tag,
};

/// Work of a connection: which part of it is to run.
pub(crate) const CONNECT_WORK: u64 = 0;
/// Sending goes on: there is room again, or something to be sent that no request brought.
pub(crate) const TRANSMIT_WORK: u64 = 1;
/// Data waits that could not be taken when it came.
pub(crate) const RECEIVE_WORK: u64 = 2;

/// Requests that the node was too busy for are sent again.
const BUSY_WORK: u64 = 3;

/// How long they wait.
const BUSY_MS: u32 = 20;

/// A socket of which the handshake succeeded, before it carries requests.
pub(crate) struct Established {
    /// The socket.
    pub(crate) socket: Arc<TcpSocket>,
    /// What both ends agreed to.
    pub(crate) features: Features,
    /// Most bytes of unanswered writes.
    pub(crate) window_bytes: u64,
    /// The node at the other end.
    pub(crate) node: SocketAddr,
}

/// A connection to be made.
#[derive(Clone, Copy)]
pub(crate) struct ConnectTask {
    /// Where the node listens; `None`: it is not known any more.
    pub(crate) node: Option<SocketAddr>,
    /// How to introduce it.
    pub(crate) kind: ConnectKind,
    /// When to give up.
    pub(crate) deadline: Instant,
    /// The session is over: the node is only to say why. The machine knows nothing of it.
    pub(crate) is_inquiry: bool,
}

/// Where making a connection is, for state dumps.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectStep {
    /// Nothing is being made.
    None,
    /// The TCP connection.
    Tcp,
    /// Hello, and open or join.
    Handshake,
}

/// Small facts passed between contexts. Whoever learns one puts it here.
pub(crate) struct Shared {
    /// Why the connection must be given up: the first cause wins. Taken by recovery.
    pub(crate) fault: Option<CloseCause>,
    /// A PING is due. Taken by the transmitter.
    pub(crate) ping: bool,
    /// A PONG with this cookie is due. Taken by the transmitter.
    pub(crate) pong: Option<u64>,
    /// The connection to be made. Taken by the connecting work.
    pub(crate) task: Option<ConnectTask>,
    /// Where that is.
    pub(crate) step: ConnectStep,
    /// The socket on which the connecting work may be waiting, so that it can be interrupted.
    pub(crate) connecting: Option<Arc<TcpSocket>>,
    /// The result of the connecting work. Taken by recovery.
    pub(crate) established: Option<Established>,
    /// The connection that carries requests.
    pub(crate) link: Option<Arc<Attached<Connection>>>,
    /// The node at the other end, or the one tried last.
    pub(crate) node: Option<SocketAddr>,
    /// How often the connection was made.
    pub(crate) epoch: u64,
    /// How often it was lost.
    pub(crate) losses: u64,
    /// The state that was traced last. Written by recovery.
    pub(crate) traced: uapi::ConnectionState,
}

/// One connection.
#[pin_data]
pub(crate) struct Connection {
    /// Its index in the session, and that of its hardware queue.
    pub(crate) index: u16,
    /// The device. A cycle, broken when the device is detached.
    pub(crate) device: Arc<Device>,
    /// Where each request is.
    pub(crate) slots: SlotTable<KVVec<Slot>>,
    /// The requests that wait for replies, or are parked.
    pub(crate) table: RequestTable<Queue>,
    /// The requests that wait to be sent.
    pub(crate) pending: RequestLlist<Queue>,
    /// The requests that the node had no room for; they wait a little.
    busy: RequestLlist<Queue>,
    /// When something was received last, in milliseconds.
    pub(crate) heard_at: Atomic<u64>,
    /// Bytes of unanswered writes.
    pub(crate) write_bytes_in_flight: Atomic<u64>,
    /// New requests fail: the device is suspended so. Written by [`crate::suspend`].
    pub(crate) refuses: Atomic<u32>,
    /// Requests that ended with an error.
    pub(crate) errors: Atomic<u64>,
    /// Requests whose timeout ran out.
    pub(crate) timeouts: Atomic<u64>,
    /// What polling needs.
    #[pin]
    pub(crate) polling: Polling,
    /// The transmitting side.
    #[pin]
    pub(crate) transmit: Transmit,
    /// Small facts.
    #[pin]
    pub(crate) shared: SpinLockIrq<Shared>,
    #[pin]
    connect_work: Work<Connection, CONNECT_WORK>,
    #[pin]
    transmit_work: Work<Connection, TRANSMIT_WORK>,
    #[pin]
    receive_work: Work<Connection, RECEIVE_WORK>,
    #[pin]
    busy_work: DelayedWork<Connection, BUSY_WORK>,
}

impl_has_work! {
    impl HasWork<Self, CONNECT_WORK> for Connection { self.connect_work }
    impl HasWork<Self, TRANSMIT_WORK> for Connection { self.transmit_work }
    impl HasWork<Self, RECEIVE_WORK> for Connection { self.receive_work }
}
impl_has_delayed_work! {
    impl HasDelayedWork<Self, BUSY_WORK> for Connection { self.busy_work }
}

impl Connection {
    /// A connection that is idle. May sleep.
    pub(crate) fn new(device: Arc<Device>, index: u16, depth: u32) -> Result<Arc<Self>> {
        let mut slots = KVVec::with_capacity(depth as usize, GFP_KERNEL)?;
        for _ in 0..depth {
            slots.push(Slot::new(), GFP_KERNEL)?;
        }
        let table = RequestTable::new(depth)?;
        let transmit = Transmit::new(depth, crate::limits::copy_bytes(device.params().checksums))?;
        let slots = SlotTable::new(index, slots);
        Arc::pin_init(
            pin_init!(Connection {
                index,
                device,
                slots,
                table,
                pending: RequestLlist::new(),
                busy: RequestLlist::new(),
                heard_at: Atomic::new(0),
                write_bytes_in_flight: Atomic::new(0),
                refuses: Atomic::new(0),
                errors: Atomic::new(0),
                timeouts: Atomic::new(0),
                polling <- Polling::new(),
                transmit <- transmit,
                shared <- new_spinlock_irq!(
                    Shared {
                        fault: None,
                        ping: false,
                        pong: None,
                        task: None,
                        step: ConnectStep::None,
                        connecting: None,
                        established: None,
                        link: None,
                        node: None,
                        epoch: 0,
                        losses: 0,
                        traced: uapi::ConnectionState::Idle,
                    },
                    "neonsan_connection"
                ),
                connect_work <- new_work!("neonsan_connect"),
                transmit_work <- new_work!("neonsan_transmit"),
                receive_work <- new_work!("neonsan_receive"),
                busy_work <- new_delayed_work!("neonsan_busy"),
            }),
            GFP_KERNEL,
        )
    }

    /// Queues a part of the connection's work. Any context.
    pub(crate) fn queue_work<const ID: u64>(self: Arc<Self>)
    where
        Arc<Self>: kernel::workqueue::RawWorkItem<ID, EnqueueOutput = Result<(), Arc<Self>>>,
    {
        let device = self.device.clone();
        device.enqueue(|queue| {
            // If it is queued already, it will see what there is.
            let _ = queue.enqueue::<_, ID>(self);
        });
    }

    /// The node that this connection is with, or will be tried with next.
    // Nodes are large, and so are the frames of who shows them.
    #[inline(never)]
    pub(crate) fn node(&self) -> Option<Node> {
        let node = self.shared.lock().node;
        match node {
            Some(addr) => Some(self.device.nodes().lock().at(&addr)),
            None => self.device.node(0),
        }
    }

    /// Whether nothing is connected.
    pub(crate) fn is_lost(&self) -> bool {
        self.shared.lock().link.is_none()
    }

    /// Something is wrong with the connection: recovery stops it. Any context.
    pub(crate) fn fault(&self, cause: CloseCause) {
        self.shared.lock().fault.get_or_insert(cause);
        self.device.wake();
    }

    /// The same of a link, which may have been replaced meanwhile: then nothing is wrong. Any context.
    fn fault_link(&self, link: &Arc<Attached<Connection>>, cause: CloseCause) {
        {
            let mut shared = self.shared.lock();
            let current = shared.link.as_ref();
            if !current.is_some_and(|current| Arc::ptr_eq(current, link)) {
                return;
            }
            shared.fault.get_or_insert(cause);
        }
        self.device.wake();
    }

    /// Makes `link` carry the requests: those that were parked first. Called by recovery.
    pub(crate) fn resume(self: &Arc<Self>, established: Established) -> Result {
        let now = now();
        self.heard_at.store(now.0, Relaxed);
        let has_write_cache = self
            .device
            .volume()
            .is_some_and(|v| Device::has_write_cache(&v));
        let rx = Receive::new(established.features, has_write_cache);
        {
            // What the last link had to say is over.
            let mut shared = self.shared.lock();
            shared.node = Some(established.node);
            shared.fault = None;
            shared.ping = false;
            shared.pong = None;
        }
        let link = Attached::new(established.socket, self.clone(), rx)?;
        self.shared.lock().link = Some(link.clone());
        // They may have been changed since connecting began. Who changes them from now on sees the link.
        self.follow_timeouts();
        self.polling.set_link(Some(link.clone()));
        let mut resent = 0;
        for tag in 0..self.slots.depth() {
            let tag = Tag(tag as u16);
            if !matches!(self.slots.info(tag), Some(info) if info.state == SlotState::Parked) {
                continue;
            }
            let Some(rq) = self.table.take(tag.0) else {
                continue;
            };
            if let Some((cookie, _)) = self.slots.reclaim(tag, now) {
                rq.data().rename(cookie);
            }
            self.pending.push(rq);
            resent += 1;
        }
        self.write_bytes_in_flight.store(0, Relaxed);
        self.open_gate(link, established.features, established.window_bytes, resent);
        // What came before the callbacks were there, data or an end, was announced to nobody.
        self.clone().queue_work::<RECEIVE_WORK>();
        Ok(())
    }

    /// Stops both sides and parks what is in flight; returns how many requests that is. When this
    /// returns, nothing but the table and the pending list holds a request, and TCP sends no page of
    /// one any more; what it has given to a network card, or over loopback to the node's socket, is
    /// out of reach (Documentation/locking.rst). May sleep, but not for the network. Called by recovery.
    pub(crate) fn park(self: &Arc<Self>) -> u32 {
        self.close_gate();
        self.polling.set_link(None);
        let link = {
            let mut shared = self.shared.lock();
            shared.losses += 1;
            shared.link.take()
        };
        if let Some(link) = link {
            if let Some(rx) = link.stop() {
                // It was only partly received: it will be received again.
                if let Some(rq) = rx.into_request() {
                    self.put_back(rq);
                }
            }
            link.socket().abort();
        }
        let mut parked = 0;
        for tag in 0..self.slots.depth() {
            let tag = Tag(tag as u16);
            let Some(info) = self.slots.info(tag) else {
                continue;
            };
            match info.state {
                SlotState::InFlight | SlotState::Receiving => {
                    self.slots.park(tag);
                    parked += 1;
                }
                SlotState::Parked => parked += 1,
                // Still in `pending` or with the transmitter.
                SlotState::Queued | SlotState::Free => {}
            }
        }
        parked
    }

    /// Puts a request into the table. Its place is free, since tags are unique.
    pub(crate) fn put_back(&self, rq: OwnedRequest<Queue>) {
        if let Err(rq) = self.table.put(rq) {
            // Ends it with an error rather than losing it.
            pr_err!("two requests with tag {}\n", rq.tag());
        }
    }

    /// The node has not carried out this request, of which the slot is free: it is sent again a little
    /// later. Any context.
    pub(crate) fn send_later(self: &Arc<Self>, rq: OwnedRequest<Queue>) {
        if claim_again(self, &rq) {
            // Only the first sets the time: more of them must not put off those that wait.
            if self.busy.push(rq) {
                let delay = msecs_to_jiffies(BUSY_MS);
                self.device
                    .enqueue(|_| OwnedQueue::mod_delayed::<_, BUSY_WORK>(self.clone(), delay));
            }
        }
    }

    /// The node has refused this write, of which the slot is free, because its data was not what its
    /// checksum says: it is sent again from a copy. Any context.
    ///
    /// # Errors
    ///
    /// The connection must be closed: it was sent from a copy already, so the path has damaged it. It
    /// is kept for the next connection.
    pub(crate) fn send_from_copy(
        self: &Arc<Self>,
        rq: OwnedRequest<Queue>,
    ) -> Result<(), CloseCause> {
        let was_copy = rq.data().has_changed();
        if claim_again(self, &rq) {
            rq.data().set_changed();
            self.pending.push(rq);
            if !was_copy {
                self.clone().queue_work::<TRANSMIT_WORK>();
            }
        }
        if was_copy {
            Err(damage_of_copy())
        } else {
            Ok(())
        }
    }

    /// Moves the requests that the node was too busy for to where all wait.
    pub(crate) fn retry_busy(&self) {
        for rq in self.busy.take() {
            self.pending.push(rq);
        }
    }

    /// Takes delayed work back. Nothing may queue it any more.
    pub(crate) fn cancel_work(self: &Arc<Self>) {
        OwnedQueue::cancel_delayed_sync::<_, BUSY_WORK>(self);
    }

    /// Lets TCP give up when the session does: what was sent but not acknowledged for as long as
    /// silence is tolerated is a dead node. Any context but interrupts.
    pub(crate) fn follow_timeouts(&self) {
        let timeout_ms = self.device.timeouts().heartbeat_timeout_ms;
        let (link, connecting) = {
            let shared = self.shared.lock();
            (shared.link.clone(), shared.connecting.clone())
        };
        let sockets = [link.as_deref().map(Attached::socket), connecting.as_deref()];
        for socket in sockets.into_iter().flatten() {
            socket.set_user_timeout(timeout_ms);
        }
    }

    /// The connecting work may be waiting for the network: let it fail at once.
    pub(crate) fn interrupt_connecting(&self) {
        let socket = self.shared.lock().connecting.clone();
        if let Some(socket) = socket {
            socket.shutdown();
        }
    }
}

impl WorkItem<CONNECT_WORK> for Connection {
    type Pointer = Arc<Connection>;

    fn run(this: Arc<Connection>) {
        crate::connect::run(&this);
    }
}

impl WorkItem<TRANSMIT_WORK> for Connection {
    type Pointer = Arc<Connection>;

    fn run(this: Arc<Connection>) {
        this.transmit_again();
    }
}

impl DelayedOn<BUSY_WORK> for Connection {
    fn queue(&self) -> &OwnedQueue {
        DelayedOn::queue(&*self.device)
    }
}

impl WorkItem<BUSY_WORK> for Connection {
    type Pointer = Arc<Connection>;

    fn run(this: Arc<Connection>) {
        this.retry_busy();
        this.transmit_again();
    }
}

impl WorkItem<RECEIVE_WORK> for Connection {
    type Pointer = Arc<Connection>;

    fn run(this: Arc<Connection>) {
        let link = this.shared.lock().link.clone();
        if let Some(link) = link {
            link.read();
            if link.socket().state() != SocketState::Established {
                this.fault_link(&link, CloseCause::PeerClosed);
            }
        }
    }
}
