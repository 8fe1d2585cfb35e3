// SPDX-License-Identifier: GPL-2.0

//! Making one connection: the blocking part of it, in a worker of its own.

use crate::{
    clock::now,
    connection::{ConnectStep, ConnectTask, Connection, Established},
    device::Device,
    params::DeviceError,
};
use kernel::{prelude::*, sync::Arc};
use neonsan_kernel::{
    errno,
    mm::NoReclaimScope,
    net::{SocketAddr, TcpSocket},
};
use neonsan_session::{
    client::{ConnectKind, Handshake, Opened, Progress},
    CloseCause,
};

/// Makes the connection that is due, and tells the device what came of it.
pub(crate) fn run(connection: &Arc<Connection>) {
    let Some(task) = connection.shared.lock().task.take() else {
        return;
    };
    let result = connect(connection, &task);
    // The last owner of a socket releases it, which sleeps: never under the lock.
    let done_with = {
        let mut shared = connection.shared.lock();
        shared.step = ConnectStep::None;
        shared.connecting.take()
    };
    drop(done_with);
    if task.is_inquiry {
        // Should the node let it in after all, that ends with the socket.
        let error = result.err().and_then(|failure| failure.error);
        return connection.device.note_inquiry(error);
    }
    match result {
        Ok((established, opened)) => on_opened(connection, established, &opened),
        Err(failure) => on_failed(connection, &task, failure),
    }
    connection.device.wake();
}

/// A node has opened the volume.
// Not inline: what it has on the stack is not there while the network is waited for. So below.
#[inline(never)]
fn on_opened(connection: &Connection, established: Established, opened: &Opened) {
    let device = &connection.device;
    let older = connection.shared.lock().established.replace(established);
    drop(older);
    device.set_opened();
    let max_connections = opened.reply.max_connections.get();
    device.notes().lock().refusal = None;
    let mut session = device.session().lock();
    let node_count = device.nodes().lock().len() as u16;
    session.set_nodes(node_count);
    let wanted = session.on_opened(connection.index, max_connections, now());
    // Before recovery, which needs the machine, sends anything.
    let lost_bytes = match wanted {
        true => device.on_volume(opened),
        false => None,
    };
    drop(session);
    if !wanted {
        let unwanted = connection.shared.lock().established.take();
        drop(unwanted);
    }
    if let Some(bytes) = lost_bytes {
        device.report_lost_writes(bytes);
    }
}

/// The connection could not be made.
#[inline(never)]
fn on_failed(connection: &Connection, task: &ConnectTask, Failure { cause, error }: Failure) {
    let device = &connection.device;
    // What comes of a node that the operator names no more says nothing of those that are named now.
    let is_listed = |addr| device.nodes().lock().lists(&addr);
    let error = error.filter(|_| task.node.is_none_or(is_listed));
    match cause {
        // The node has said no, or was never asked: so a session that was released stays so, though
        // its connections were to be made anew when the node closed them.
        CloseCause::Refused(_) | CloseCause::ConnectFailed(_) | CloseCause::Detached => {}
        // Whatever became of what was asked.
        _ => device.set_held(),
    }
    if let (CloseCause::VolumeShrunk(size_bytes), ConnectKind::Open { .. }) = (cause, task.kind) {
        device.note_shrunk(size_bytes);
    }
    if let Some(error) = error {
        device.note_connect_failure(connection.index, cause, error);
    }
    device
        .session()
        .lock()
        .on_connect_failed(connection.index, cause, now());
}

/// A connection that could not be made: the cause, and what to tell people unless the next try is
/// another one.
struct Failure {
    cause: CloseCause,
    error: Option<DeviceError>,
}

impl Failure {
    /// `text` is the node's own, may be empty.
    #[inline(never)]
    fn new(device: &Device, node: Option<SocketAddr>, cause: CloseCause, text: &str) -> Self {
        // Copied out: nothing is written with the lock held.
        let node = node.map(|addr| device.nodes().lock().at(&addr));
        Failure {
            cause,
            error: Some(match node {
                Some(node) => DeviceError::from_cause(cause, &node, text),
                None => EINVAL.into(),
            }),
        }
    }
}

#[inline(never)]
fn connect(
    connection: &Arc<Connection>,
    task: &ConnectTask,
) -> Result<(Established, Opened), Failure> {
    let device = &connection.device;
    let fail = |cause| Failure::new(device, task.node, cause, "");
    let node = task.node.ok_or(CloseCause::ConnectFailed(EINVAL_NUMBER));
    let node = node.map_err(fail)?;
    let socket = open_socket(connection, &node).map_err(fail)?;
    let mut handshake = begin_handshake(device, task).map_err(fail)?;
    if let Err(cause) = shake_hands(connection, &socket, task, &mut handshake) {
        return Err(on_refused(device, task.node, cause, &handshake));
    }
    conclude(device, socket, node, &handshake).map_err(fail)
}

/// What came of a handshake that went well.
#[inline(never)]
fn conclude(
    device: &Device,
    socket: Arc<TcpSocket>,
    node: SocketAddr,
    handshake: &Handshake,
) -> Result<(Established, Opened), CloseCause> {
    let opened = handshake.opened().ok_or(CloseCause::BadEvent)?;
    device.check_volume(&opened)?;
    device.nodes().lock().learn(handshake.nodes(), &node);
    let established = Established {
        socket,
        features: opened.features,
        window_bytes: opened.reply.max_inflight_bytes.get().into(),
        node,
    };
    Ok((established, opened))
}

/// A handshake that has not begun.
const NO_HANDSHAKE: Handshake = Handshake::empty(crate::crc::crc32c);

/// What is to be said, in memory of its own: it is too large for the stack.
#[inline(never)]
fn begin_handshake(device: &Device, task: &ConnectTask) -> Result<KBox<Handshake>, CloseCause> {
    let handshake = from_reserves(|| KBox::<Handshake>::new_uninit(GFP_KERNEL));
    let handshake = handshake.map_err(|_| CloseCause::NoMemory)?;
    // A constant is copied from where it lies: nothing of it is on the stack.
    let mut handshake = KBox::write(handshake, NO_HANDSHAKE);
    device.with_identity(|identity| handshake.begin(identity, task.kind))?;
    Ok(handshake)
}

/// The handshake has failed, perhaps with a word of the node.
#[inline(never)]
fn on_refused(
    device: &Device,
    node: Option<SocketAddr>,
    cause: CloseCause,
    handshake: &Handshake,
) -> Failure {
    let text = handshake.refused().map_or("", |refused| refused.text);
    match device.begin_anew(cause) || device.begin_forcing(cause, text) {
        true => Failure { cause, error: None },
        false => Failure::new(device, node, cause, text),
    }
}

/// Dirty pages may wait for this connection: the little that it needs comes from the reserves when
/// nothing else is left. Not around anything that waits for the network.
fn from_reserves<R>(make: impl FnOnce() -> R) -> R {
    let _scope = NoReclaimScope::enter();
    make()
}

/// The number of EINVAL, for causes.
const EINVAL_NUMBER: i32 = 22;

#[inline(never)]
fn open_socket(connection: &Connection, addr: &SocketAddr) -> Result<Arc<TcpSocket>, CloseCause> {
    let device = &connection.device;
    let failed = |e: Error| CloseCause::ConnectFailed(-e.to_errno());
    let socket = TcpSocket::new(&device.params().net, addr).map_err(failed)?;
    let socket =
        from_reserves(|| Arc::new(socket, GFP_KERNEL)).map_err(|_| CloseCause::NoMemory)?;
    let older = connection.shared.lock().connecting.replace(socket.clone());
    drop(older);
    connection.follow_timeouts();
    socket.begin_connect(addr).map_err(failed)?;
    // Whoever detaches says so first and then shuts the socket down. If he came before the line
    // above, that did nothing, and we see here what he said; from here on it interrupts us.
    if device.is_closing() {
        return Err(CloseCause::Detached);
    }
    Ok(socket)
}

/// What is left until the deadline; an error if nothing is.
fn remaining_ms(task: &ConnectTask) -> Result<u32, CloseCause> {
    match task.deadline.since_ms(now()) {
        0 => Err(CloseCause::ConnectTimeout),
        left => Ok(u32::try_from(left).unwrap_or(u32::MAX)),
    }
}

#[inline(never)]
fn shake_hands(
    connection: &Connection,
    socket: &TcpSocket,
    task: &ConnectTask,
    handshake: &mut Handshake,
) -> Result<(), CloseCause> {
    let failed = |e: Error| match e {
        e if e == EAGAIN => CloseCause::ConnectTimeout,
        e if e == EPIPE || e == errno!(ECONNRESET) => CloseCause::PeerClosed,
        e => CloseCause::SocketError(-e.to_errno()),
    };
    // The first call waits for the connection.
    let mut is_connected = false;
    loop {
        socket.set_timeout(remaining_ms(task)?);
        let data = handshake.poll_transmit();
        if !data.is_empty() {
            let n = socket.send(data).map_err(|e| match e {
                e if is_connected || e == EAGAIN => failed(e),
                e => CloseCause::ConnectFailed(-e.to_errno()),
            })?;
            if !is_connected {
                is_connected = true;
                connection.shared.lock().step = ConnectStep::Handshake;
            }
            handshake.transmitted(n);
            continue;
        }
        let n = socket.recv(handshake.want()).map_err(failed)?;
        if n == 0 {
            return Err(CloseCause::PeerClosed);
        }
        if handshake.received(n)? == Progress::Opened {
            return Ok(());
        }
    }
}
