// SPDX-License-Identifier: GPL-2.0

//! Snapshots of a device for people: a stuck request can be explained from the outside.

use crate::{
    clock::now,
    connection::{ConnectStep, Connection},
    device::{Device, Lifecycle, Volume},
    params::{Message, Node},
    queue::op_of,
    uapi,
};
use kernel::{
    prelude::*,
    sync::{atomic::Relaxed, Arc},
};
use neonsan_session::{
    client::{self, SlotInfo, SlotState},
    Instant,
};

/// A device.
pub(crate) struct DeviceInfo {
    /// Where the session is.
    pub(crate) state: uapi::SessionState,
    /// Since when it has no service, in milliseconds ago; zero if it has.
    pub(crate) lost_for_ms: u64,
    /// Fencing counter of the session.
    pub(crate) generation: u64,
    /// Identity of the session.
    pub(crate) session_id: [u8; 16],
    /// What is known of the volume; `None` before the first connection was made.
    pub(crate) volume: Option<Volume>,
    /// How many connections there are; final once the device is attached.
    pub(crate) connections: u16,
    /// How many of them, the last ones, are poll queues; likewise.
    pub(crate) poll_queues: u16,
    /// How many times the disk is open; zero without a disk.
    pub(crate) openers: u32,
    /// There is a disk.
    pub(crate) has_disk: bool,
    /// Tags of each connection.
    pub(crate) queue_depth: u32,
    /// In how many milliseconds I/O begins to fail, unless the volume comes back.
    pub(crate) loss_deadline_ms: Option<u64>,
    /// What happens to new requests; `None` unless suspended.
    pub(crate) suspend: Option<uapi::SuspendMode>,
    /// Bytes that a lost cache may have taken, and that nobody has taken note of.
    pub(crate) at_risk_bytes: u64,
    /// The size to which the volume was shrunk, if the device waits for a person.
    pub(crate) shrunk_bytes: Option<u64>,
    /// Why I/O fails.
    pub(crate) failure: Option<Message>,
    /// From whom attach took the volume.
    pub(crate) fenced: Option<Message>,
}

impl DeviceInfo {
    /// Nothing known yet. A constant is copied from where it lies to where it is filled in: a whole
    /// one is too large for the stack.
    const EMPTY: DeviceInfo = DeviceInfo {
        state: uapi::SessionState::Opening,
        lost_for_ms: 0,
        generation: 0,
        session_id: [0; 16],
        volume: None,
        connections: 0,
        poll_queues: 0,
        openers: 0,
        has_disk: false,
        queue_depth: 0,
        loss_deadline_ms: None,
        suspend: None,
        at_risk_bytes: 0,
        shrunk_bytes: None,
        failure: None,
        fenced: None,
    };
}

/// A connection.
pub(crate) struct ConnectionInfo {
    /// Where it is.
    pub(crate) state: uapi::ConnectionState,
    /// For how long.
    pub(crate) since_ms: u64,
    /// The node at the other end, or the one tried last.
    pub(crate) node: Option<Node>,
    /// How often it was made.
    pub(crate) epoch: u64,
    /// How often it was lost.
    pub(crate) losses: u64,
    /// Requests that hold a slot.
    pub(crate) in_flight: u32,
    /// Those of them that are parked.
    pub(crate) parked: u32,
    /// Why it was lost, or could not be made, last.
    pub(crate) last_cause: Option<Message>,
    /// The request that waits for the longest time.
    pub(crate) oldest: Option<RequestInfo>,
    /// When something was received last, in milliseconds ago.
    pub(crate) silent_for_ms: u64,
    /// In how many milliseconds the next try begins, if that is what it waits for.
    pub(crate) retry_in_ms: Option<u64>,
    /// In how many milliseconds the try, or the silent connection, is given up.
    pub(crate) deadline_in_ms: Option<u64>,
    /// Counters since attach.
    pub(crate) statistics: Statistics,
}

impl ConnectionInfo {
    /// Nothing known yet, as [`DeviceInfo::EMPTY`].
    const EMPTY: ConnectionInfo = ConnectionInfo {
        state: uapi::ConnectionState::Idle,
        since_ms: 0,
        node: None,
        epoch: 0,
        losses: 0,
        in_flight: 0,
        parked: 0,
        last_cause: None,
        oldest: None,
        silent_for_ms: 0,
        retry_in_ms: None,
        deadline_in_ms: None,
        statistics: Statistics::NONE,
    };
}

/// A request in flight.
#[derive(Clone, Copy)]
pub(crate) struct RequestInfo {
    /// Its tag.
    pub(crate) tag: u32,
    /// Its name on the wire.
    pub(crate) cookie: u64,
    /// What it asks for.
    pub(crate) op: uapi::Op,
    /// Where it is.
    pub(crate) state: uapi::RequestState,
    /// First byte.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) length: u32,
    /// How long it has been where it is.
    pub(crate) age_ms: u64,
    /// In how many milliseconds its connection is given up for its sake, if it is sent.
    pub(crate) deadline_in_ms: Option<u64>,
}

/// Counters since attach.
#[derive(Clone, Copy)]
pub(crate) struct Statistics {
    /// READ requests.
    pub(crate) reads: u64,
    /// WRITE requests.
    pub(crate) writes: u64,
    /// FLUSH requests.
    pub(crate) flushes: u64,
    /// DISCARD requests.
    pub(crate) discards: u64,
    /// WRITE_ZEROES requests.
    pub(crate) write_zeroes: u64,
    /// Bytes read.
    pub(crate) read_bytes: u64,
    /// Bytes written.
    pub(crate) written_bytes: u64,
    /// Requests that ended with an error.
    pub(crate) errors: u64,
    /// Requests sent again.
    pub(crate) resent: u64,
    /// Request timeouts.
    pub(crate) timeouts: u64,
    /// Calls that gave data to the socket.
    pub(crate) sends: u64,
    /// Bytes that a lost cache may have taken; of the device as a whole.
    pub(crate) lost_bytes: u64,
}

impl Statistics {
    const NONE: Statistics = Statistics {
        reads: 0,
        writes: 0,
        flushes: 0,
        discards: 0,
        write_zeroes: 0,
        read_bytes: 0,
        written_bytes: 0,
        errors: 0,
        resent: 0,
        timeouts: 0,
        sends: 0,
        lost_bytes: 0,
    };

    /// Adds those of a connection.
    fn add(&mut self, one: &Statistics) {
        self.reads += one.reads;
        self.writes += one.writes;
        self.flushes += one.flushes;
        self.discards += one.discards;
        self.write_zeroes += one.write_zeroes;
        self.read_bytes += one.read_bytes;
        self.written_bytes += one.written_bytes;
        self.errors += one.errors;
        self.resent += one.resent;
        self.timeouts += one.timeouts;
        self.sends += one.sends;
    }
}

/// Where the session of a device is, for people.
pub(crate) fn session_state(device: &Device) -> uapi::SessionState {
    if device.is_closing() {
        return uapi::SessionState::Detaching;
    }
    let session = device.session().lock();
    if session.is_failing() {
        return uapi::SessionState::Failed;
    }
    match session.state() {
        client::SessionState::Failed(_) => uapi::SessionState::Failed,
        client::SessionState::Closed => uapi::SessionState::Detaching,
        client::SessionState::Live if session.is_usable() => uapi::SessionState::Live,
        _ if session.lost_since().is_some() => uapi::SessionState::Recovering,
        client::SessionState::Live => uapi::SessionState::Degraded,
        client::SessionState::Opening | client::SessionState::Reopening => {
            uapi::SessionState::Opening
        }
    }
}

impl Device {
    /// A snapshot of the device. Sleeps.
    pub(crate) fn info(&self) -> Result<KBox<DeviceInfo>> {
        let mut info = KBox::new(DeviceInfo::EMPTY, GFP_KERNEL)?;
        self.look_at_session(&mut info);
        info.volume = self.volume();
        let wish = self
            .params()
            .queue_depth
            .unwrap_or(crate::params::DEFAULT_QUEUE_DEPTH);
        let max_depth = info.volume.as_ref().map(|v| v.max_depth.into());
        info.queue_depth = max_depth.map_or(wish, |max| wish.min(max));
        {
            let notes = self.notes().lock();
            info.failure.clone_from(&notes.failure);
            info.fenced.clone_from(&notes.fenced);
        }
        info.suspend = self.suspended();
        info.at_risk_bytes = self.at_risk().open_bytes();
        info.shrunk_bytes = self.shrunk_bytes();
        Ok(info)
    }

    /// What the disk and the session machine say.
    #[inline(never)]
    fn look_at_session(&self, info: &mut DeviceInfo) {
        let (has_disk, openers) = match self.lifecycle().try_lock() {
            // While it is being taken away, the disk may be waited for a long time.
            Some(lifecycle) if *lifecycle == Lifecycle::Attached => {
                match self.disk().try_lock() {
                    Some(disk) => (disk.is_some(), disk.as_ref().map_or(0, |d| d.openers())),
                    // Its limits are being changed, which waits for requests.
                    None => (true, 0),
                }
            }
            _ => (false, 0),
        };
        info.has_disk = has_disk;
        info.openers = openers;
        info.session_id = self.session_id();
        info.state = session_state(self);
        info.poll_queues = self.poll_queues();
        let session = self.session().lock();
        let lost_since = session.lost_since();
        info.lost_for_ms = lost_since.map_or(0, |since| now().since_ms(since));
        info.generation = session.generation().0;
        info.connections = session.connection_count();
        info.loss_deadline_ms = session.loss_deadline().map(|at| at.since_ms(now()));
    }

    /// Snapshots of all connections, with their places in the session. Sleeps.
    pub(crate) fn connection_infos(&self) -> Result<KVec<(u16, ConnectionInfo)>> {
        let count = self.session().lock().connection_count();
        let mut infos = KVec::with_capacity(count.into(), GFP_KERNEL)?;
        for index in 0..count {
            let Some(connection) = self.connection(index) else {
                continue;
            };
            // Filled in where it lies.
            infos.push((index, ConnectionInfo::EMPTY), GFP_KERNEL)?;
            if let Some((_, info)) = infos.last_mut() {
                self.look_at_connection(&connection, info);
            }
        }
        Ok(infos)
    }

    #[inline(never)]
    fn look_at_connection(&self, connection: &Connection, info: &mut ConnectionInfo) {
        let now = now();
        let Some((state, since, cause)) = self.session().lock().connection(connection.index) else {
            return;
        };
        let (step, epoch, losses) = {
            let shared = connection.shared.lock();
            (shared.step, shared.epoch, shared.losses)
        };
        let timeouts = self.timeouts();
        let heard_at = Instant(connection.heard_at.load(Relaxed));
        let silent_for_ms = now.since_ms(heard_at);
        let (retry_at, deadline) = match state {
            client::ConnectionState::Idle { retry_at } => (retry_at, None),
            client::ConnectionState::Connecting { deadline } => (None, Some(deadline)),
            // Only a silence that was answered by a PING counts down.
            client::ConnectionState::Live
                if silent_for_ms >= u64::from(timeouts.heartbeat_interval_ms) =>
            {
                let patience_ms = timeouts.heartbeat_timeout_ms.into();
                (None, Some(heard_at.after_ms(patience_ms)))
            }
            client::ConnectionState::Live | client::ConnectionState::Stopping => (None, None),
        };
        let in_ms = |at: Option<Instant>| at.map(|at| at.since_ms(now));
        let (mut in_flight, mut parked, mut oldest) = (0, 0, None::<SlotInfo>);
        for info in connection.slots.iter() {
            in_flight += 1;
            if info.state == SlotState::Parked {
                parked += 1;
            }
            if oldest.is_none_or(|o| info.since < o.since) {
                oldest = Some(info);
            }
        }
        info.state = connection_state(state, step);
        info.since_ms = now.since_ms(since);
        info.node = connection.node();
        info.epoch = epoch;
        info.losses = losses;
        info.in_flight = in_flight;
        info.parked = parked;
        info.last_cause = cause.map(|cause| Message::from_fmt(format_args!("{cause}")));
        info.oldest = oldest.map(|slot| request_info(&slot, timeouts.request_ms, now));
        info.silent_for_ms = silent_for_ms;
        info.retry_in_ms = in_ms(retry_at);
        info.deadline_in_ms = in_ms(deadline);
        info.statistics = connection_statistics(connection);
    }

    /// Calls `f` for each request that holds a slot of a connection. Sleeps if `f` does.
    pub(crate) fn for_each_request(&self, index: u16, f: &mut dyn FnMut(RequestInfo)) {
        let connection: Option<Arc<Connection>> = self.connection(index);
        if let Some(connection) = connection {
            let timeout_ms = self.timeouts().request_ms;
            for slot in connection.slots.iter() {
                f(request_info(&slot, timeout_ms, now()));
            }
        }
    }

    /// Counters since attach, summed over the connections.
    pub(crate) fn statistics(&self, connections: &[(u16, ConnectionInfo)]) -> Statistics {
        let mut sum = Statistics {
            lost_bytes: self.at_risk().lost_bytes(),
            ..Statistics::NONE
        };
        for (_, connection) in connections {
            sum.add(&connection.statistics);
        }
        sum
    }
}

/// Counters of one connection since attach. Takes no lock of the I/O path.
fn connection_statistics(connection: &Connection) -> Statistics {
    let counts = connection.transmit.counts();
    Statistics {
        reads: counts.reads,
        writes: counts.writes,
        flushes: counts.flushes,
        discards: counts.discards,
        write_zeroes: counts.write_zeroes,
        read_bytes: counts.read_bytes,
        written_bytes: counts.written_bytes,
        errors: connection.errors.load(Relaxed),
        resent: counts.resent,
        timeouts: connection.timeouts.load(Relaxed),
        sends: counts.sends,
        lost_bytes: 0,
    }
}

fn connection_state(state: client::ConnectionState, step: ConnectStep) -> uapi::ConnectionState {
    match state {
        client::ConnectionState::Idle { retry_at: None } => uapi::ConnectionState::Idle,
        client::ConnectionState::Idle { retry_at: Some(_) } => uapi::ConnectionState::Waiting,
        client::ConnectionState::Connecting { .. } if step == ConnectStep::Handshake => {
            uapi::ConnectionState::Handshake
        }
        client::ConnectionState::Connecting { .. } => uapi::ConnectionState::Connecting,
        client::ConnectionState::Live => uapi::ConnectionState::Live,
        client::ConnectionState::Stopping => uapi::ConnectionState::Draining,
    }
}

fn request_info(slot: &SlotInfo, timeout_ms: u32, now: Instant) -> RequestInfo {
    let is_sent = matches!(slot.state, SlotState::InFlight | SlotState::Receiving);
    let deadline = slot.since.after_ms(timeout_ms.into());
    RequestInfo {
        tag: slot.tag.0.into(),
        cookie: slot.cookie.to_wire(),
        op: op_of(slot.request.kind),
        state: match slot.state {
            SlotState::Free | SlotState::Queued => uapi::RequestState::Queued,
            SlotState::InFlight | SlotState::Receiving => uapi::RequestState::Sent,
            SlotState::Parked => uapi::RequestState::Parked,
        },
        offset: slot.request.offset,
        length: slot.request.length,
        age_ms: now.since_ms(slot.since),
        deadline_in_ms: is_sent.then(|| deadline.since_ms(now)),
    }
}
