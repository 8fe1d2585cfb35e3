// SPDX-License-Identifier: GPL-2.0

//! Carries out what the control machine decides.
//!
//! One work item for each device. It is the only one that stops and resumes connections, so these
//! never run at the same time for one device. It never waits for the network: connecting, which
//! does, has workers of its own. Nor does it wait for memory, since dirty pages may wait for it: what
//! the sockets need comes from the reserves (they see to that themselves), and an event for which
//! there is no memory at once is not sent.

use crate::{
    clock::now,
    connection::{ConnectStep, ConnectTask, Connection, CONNECT_WORK, TRANSMIT_WORK},
    control,
    device::Device,
    error::block_status_of_loss,
    info,
    params::Message,
    trace, uapi,
};
use kernel::{
    prelude::*,
    sync::{atomic::Relaxed, Arc},
};
use neonsan_kernel::{errno, net::SocketAddr};
use neonsan_proto::Status;
use neonsan_session::{
    client::{Action, ConnectKind, GateState, Notice, SessionState},
    CloseCause, Instant,
};

/// Whether trying again cannot mend this failure to connect, as long as nobody changes anything.
pub(crate) fn is_permanent(cause: CloseCause) -> bool {
    !matches!(
        cause,
        CloseCause::Refused(
            Status::Draining
                | Status::GoingAway
                | Status::Busy
                | Status::UnknownSession
                | Status::NotOwner
        ) | CloseCause::NoMemory
    )
}

/// Looks at what happened, and does what is due.
pub(crate) fn run(device: &Arc<Device>) {
    let before = info::session_state(device);
    collect(device);
    while let Some((action, node)) = next_action(device) {
        execute(device, action, node);
    }
    let (due, generation) = {
        let session = device.session().lock();
        (session.poll_timeout(), session.generation())
    };
    if let Some(at) = due {
        if !device.is_closing() {
            device.wake_after_ms(at.since_ms(now()) + 1);
        }
    }
    let after = info::session_state(device);
    if before != after {
        trace::session_state(device.index(), before, after, generation.0, "");
    }
    let (progress, changed) = device.progress();
    // Whoever waits looks at the machine with this lock held, so he does not miss the call.
    drop(progress.lock());
    changed.notify_all();
}

/// What is to be done next; with the address of the node, if it is to connect to one: its place in the
/// list is right for as long as the machine is locked.
fn next_action(device: &Device) -> Option<(Action, Option<SocketAddr>)> {
    let mut session = device.session().lock();
    let action = session.poll_action()?;
    let node = match action {
        Action::Connect { node, .. } => device.node(node).map(|node| node.addr),
        _ => None,
    };
    Some((action, node))
}

/// Tells the machine what happened since the last run.
fn collect(device: &Arc<Device>) {
    let count = device.session().lock().connection_count();
    let going_away = device.take_going_away();
    for i in 0..count {
        let Some(connection) = device.connection(i) else {
            continue;
        };
        let fault = connection.shared.lock().fault.take();
        if connection.transmit.state() == GateState::Blocked {
            // The socket may have been short of memory, not of room: then nobody calls.
            connection.clone().queue_work::<TRANSMIT_WORK>();
        }
        let heard_at = Instant(connection.heard_at.load(Relaxed));
        let mut session = device.session().lock();
        session.on_heard(i, heard_at);
        if let Some(cause) = fault {
            session.on_lost(i, cause, now());
        }
    }
    let mut session = device.session().lock();
    if going_away {
        session.on_going_away(now());
    }
    session.handle_timeout(now());
    drop(session);
    if going_away {
        control::event_going_away(device, "the node is about to stop");
    }
}

#[inline(never)]
fn execute(device: &Arc<Device>, action: Action, node: Option<SocketAddr>) {
    match action {
        Action::Connect {
            connection,
            kind,
            deadline,
            ..
        } => {
            let Some(connection) = device.connection(connection) else {
                return;
            };
            {
                let mut shared = connection.shared.lock();
                shared.task = Some(ConnectTask {
                    node,
                    kind,
                    deadline,
                    is_inquiry: false,
                });
                shared.step = ConnectStep::Tcp;
                shared.node = node;
                let (ConnectKind::Open { epoch, .. } | ConnectKind::Join { epoch, .. }) = kind;
                shared.epoch = epoch;
            }
            traced(
                device,
                connection.index,
                uapi::ConnectionState::Connecting,
                "",
            );
            queue_connect(device, connection);
        }
        Action::Resume { connection } => resume(device, connection),
        Action::Stop {
            connection: index,
            cause,
        } => stop(device, index, cause),
        Action::Ping { connection } => {
            let Some(connection) = device.connection(connection) else {
                return;
            };
            connection.shared.lock().ping = true;
            connection.queue_work::<TRANSMIT_WORK>();
        }
        Action::FailRequests { cause } => {
            begin_failing(device, cause);
            if cause == CloseCause::Fenced {
                inquire(device);
            }
        }
        // The node closes when it was told that the session is over.
        Action::Notify(Notice::Lost { .. }) if device.is_closing() => {}
        Action::Notify(Notice::Lost { cause }) => note_lost(device, cause),
        Action::Notify(Notice::StillLost { .. }) if device.is_closing() => {}
        Action::Notify(Notice::StillLost { lost_for_ms, cause }) => {
            let text = Message::from_fmt(format_args!("{cause}"));
            control::event_still_lost(device, lost_for_ms, text.as_str());
        }
        Action::Notify(Notice::Recovered { lost_for_ms }) => {
            pr_info!("{}: back after {lost_for_ms} ms\n", device.name());
        }
    }
}

/// From now on requests fail: tells everybody who wants to know.
#[inline(never)]
fn begin_failing(device: &Arc<Device>, cause: CloseCause) {
    let why = device.failure_text(cause);
    device.notes().lock().failure = Some(why);
    fail_requests(device, cause);
    let text = Message::from_fmt(format_args!("{why}: requests fail from now on"));
    pr_err!("{}: {text}\n", device.name());
    control::event_failed(device, text.as_str());
}

#[inline(never)]
fn note_lost(device: &Device, cause: CloseCause) {
    let text = Message::from_fmt(format_args!("{cause}"));
    pr_warn!("{}: lost ({text}); requests wait\n", device.name());
}

/// A connection was made: it carries requests from now on.
#[inline(never)]
fn resume(device: &Arc<Device>, index: u16) {
    let Some(connection) = device.connection(index) else {
        return;
    };
    let established = connection.shared.lock().established.take();
    match established
        .ok_or(errno!(ENOTCONN))
        .and_then(|e| connection.resume(e))
    {
        Ok(()) => {
            if device.notes().lock().failure.take().is_some() {
                stop_failing(device);
            }
            traced(device, index, uapi::ConnectionState::Live, "");
            if connection.shared.lock().losses > 0 {
                control::event_connection_recovered(device, index.into());
            }
        }
        Err(_) => connection.fault(CloseCause::NoMemory),
    }
}

/// Asks the node who has the volume now, unless it has said so. It refuses a session that was fenced,
/// and names the new holder.
fn inquire(device: &Arc<Device>) {
    let Some(connection) = device.connection(0) else {
        return;
    };
    if device.notes().lock().refusal.is_some() {
        return;
    }
    let (node, generation) = {
        let session = device.session().lock();
        let node = device.node(session.node()).map(|node| node.addr);
        (node, session.generation())
    };
    let patience_ms = u64::from(device.timeouts().connect_ms);
    {
        let mut shared = connection.shared.lock();
        shared.task = Some(ConnectTask {
            node,
            kind: ConnectKind::Open {
                generation: generation.next(),
                epoch: shared.epoch + 1,
                promote: true,
            },
            deadline: now().after_ms(patience_ms),
            is_inquiry: true,
        });
    }
    queue_connect(device, connection);
}

/// Lets the connecting work of a connection look at what there is.
fn queue_connect(device: &Device, connection: Arc<Connection>) {
    device.enqueue_connecting(|queue| {
        // If it is queued already, it will see what there is.
        let _ = queue.enqueue::<_, CONNECT_WORK>(connection);
    });
}

/// Tells whoever traces that a connection has come to another state.
fn traced(device: &Arc<Device>, index: u16, to: uapi::ConnectionState, cause: &str) {
    let Some(connection) = device.connection(index) else {
        return;
    };
    let from = core::mem::replace(&mut connection.shared.lock().traced, to);
    trace::connection_state(device.index(), index.into(), from, to, cause);
}

#[inline(never)]
fn stop(device: &Arc<Device>, index: u16, cause: CloseCause) {
    let Some(connection) = device.connection(index) else {
        return;
    };
    let text = Message::from_fmt(format_args!("{cause}"));
    traced(
        device,
        index,
        uapi::ConnectionState::Draining,
        text.as_str(),
    );
    let parked = connection.park();
    traced(device, index, uapi::ConnectionState::Idle, "");
    // Releasing a socket sleeps: not under the lock.
    let unused = connection.shared.lock().established.take();
    drop(unused);
    if !device.is_closing() {
        pr_debug!(
            "{}: connection {index}: {text}; {parked} parked\n",
            device.name()
        );
        control::event_connection_lost(device, index.into(), text.as_str());
    }
    device.session().lock().on_drained(index, now());
}

/// Requests of every connection wait again: the volume is back.
fn stop_failing(device: &Arc<Device>) {
    let count = device.session().lock().connection_count();
    for i in 0..count {
        if let Some(connection) = device.connection(i) {
            connection.stop_failing();
        }
    }
}

/// Ends every request of the device with an error, and those that come.
pub(crate) fn fail_requests(device: &Arc<Device>, cause: CloseCause) {
    let status = block_status_of_loss(cause);
    let count = device.session().lock().connection_count();
    for i in 0..count {
        if let Some(connection) = device.connection(i) {
            connection.fail(status);
        }
    }
}

/// Whether the session can serve requests, or never will.
pub(crate) fn outcome(device: &Device) -> Option<Result<(), CloseCause>> {
    let session = device.session().lock();
    match session.state() {
        SessionState::Failed(cause) => Some(Err(cause)),
        SessionState::Closed => Some(Err(CloseCause::Detached)),
        SessionState::Live if session.is_usable() => Some(Ok(())),
        SessionState::Opening | SessionState::Live | SessionState::Reopening => None,
    }
}
