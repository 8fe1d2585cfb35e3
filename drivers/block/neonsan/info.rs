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
use kernel::sync::{atomic::Relaxed, Arc};
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
    /// Why I/O fails.
    pub(crate) failure: Option<Message>,
    /// From whom attach took the volume.
    pub(crate) fenced: Option<Message>,
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
#[derive(Clone, Copy, Default)]
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
    pub(crate) fn info(&self) -> DeviceInfo {
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
        let session = self.session().lock();
        let lost_for_ms = session
            .lost_since()
            .map_or(0, |since| now().since_ms(since));
        let (generation, connections) = (session.generation().0, session.connection_count());
        let loss_deadline_ms = session.loss_deadline().map(|at| at.since_ms(now()));
        drop(session);
        let (failure, fenced) = {
            let notes = self.notes().lock();
            (notes.failure, notes.fenced)
        };
        let volume = self.volume();
        let wish = self
            .params()
            .queue_depth
            .unwrap_or(crate::params::DEFAULT_QUEUE_DEPTH);
        DeviceInfo {
            state: session_state(self),
            lost_for_ms,
            generation,
            session_id: self.session_id(),
            volume,
            connections,
            poll_queues: self.poll_queues(),
            openers,
            has_disk,
            queue_depth: volume.map_or(wish, |v| wish.min(v.max_depth.into())),
            loss_deadline_ms,
            suspend: self.suspended(),
            at_risk_bytes: self.at_risk().open_bytes(),
            failure,
            fenced,
        }
    }

    /// A snapshot of one connection; `None` if there is none with this index. Sleeps.
    pub(crate) fn connection_info(&self, index: u16) -> Option<ConnectionInfo> {
        let connection = self.connection(index)?;
        let now = now();
        let (state, since, cause) = self.session().lock().connection(index)?;
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
        Some(ConnectionInfo {
            state: connection_state(state, step),
            since_ms: now.since_ms(since),
            node: connection.node(),
            epoch,
            losses,
            in_flight,
            parked,
            last_cause: cause.map(|cause| Message::from_fmt(format_args!("{cause}"))),
            oldest: oldest.map(|slot| request_info(&slot, timeouts.request_ms, now)),
            silent_for_ms,
            retry_in_ms: in_ms(retry_at),
            deadline_in_ms: in_ms(deadline),
        })
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

    /// Counters of one connection since attach; zero if there is none with this index. Takes no lock
    /// of the I/O path. Sleeps.
    pub(crate) fn connection_statistics(&self, index: u16) -> Statistics {
        let Some(connection) = self.connection(index) else {
            return Statistics::default();
        };
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

    /// Counters since attach, summed over the connections. Sleeps.
    pub(crate) fn statistics(&self) -> Statistics {
        let mut sum = Statistics {
            lost_bytes: self.at_risk().lost_bytes(),
            ..Statistics::default()
        };
        let count = self.session().lock().connection_count();
        for index in 0..count {
            let one = self.connection_statistics(index);
            sum.reads += one.reads;
            sum.writes += one.writes;
            sum.flushes += one.flushes;
            sum.discards += one.discards;
            sum.write_zeroes += one.write_zeroes;
            sum.read_bytes += one.read_bytes;
            sum.written_bytes += one.written_bytes;
            sum.errors += one.errors;
            sum.resent += one.resent;
            sum.timeouts += one.timeouts;
            sum.sends += one.sends;
        }
        sum
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
