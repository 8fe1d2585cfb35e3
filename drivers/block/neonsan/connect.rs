// SPDX-License-Identifier: GPL-2.0

//! Making one connection: the blocking part of it, in a worker of its own.

use crate::{
    clock::now,
    connection::{ConnectStep, ConnectTask, Connection, Established},
    params::{DeviceError, Node},
};
use kernel::{prelude::*, sync::Arc};
use neonsan_kernel::{
    mm::NoReclaimScope,
    net::TcpSocket, //
};
use neonsan_session::{
    client::{Handshake, Opened, Progress},
    CloseCause,
};

/// Makes the connection that is due, and tells the device what came of it.
pub(crate) fn run(connection: &Arc<Connection>) {
    let Some(task) = connection.shared.lock().task.take() else {
        return;
    };
    // Dirty pages may wait for this connection: when nothing else is left, what it needs (a socket,
    // once in a while) comes from the reserves.
    let _scope = NoReclaimScope::enter();
    let result = connect(connection, &task);
    // The last owner of a socket releases it, which sleeps: never under the lock.
    let done_with = {
        let mut shared = connection.shared.lock();
        shared.step = ConnectStep::None;
        shared.connecting.take()
    };
    drop(done_with);
    let device = &connection.device;
    if task.is_inquiry {
        // Should the node let it in after all, that ends with the socket.
        return device.note_inquiry(result.err().and_then(|failure| failure.error));
    }
    match result {
        Ok((established, opened)) => {
            let older = connection.shared.lock().established.replace(established);
            drop(older);
            let max_connections = opened.reply.max_connections.get();
            device.notes().lock().refusal = None;
            let node_count = device.nodes().lock().len() as u16;
            let mut session = device.session().lock();
            session.set_nodes(node_count);
            let wanted = session.on_opened(connection.index, max_connections, now());
            // Before recovery, which needs the machine, sends anything.
            let lost_bytes = match wanted {
                true => device.on_volume(&opened),
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
        Err(Failure { cause, error }) => {
            if let Some(error) = error {
                device.note_connect_failure(connection.index, cause, error);
            }
            device
                .session()
                .lock()
                .on_connect_failed(connection.index, cause, now());
        }
    }
    device.wake();
}

/// A connection that could not be made: the cause, and what to tell people unless the next try is
/// another one.
struct Failure {
    cause: CloseCause,
    error: Option<DeviceError>,
}

fn connect(
    connection: &Arc<Connection>,
    task: &ConnectTask,
) -> Result<(Established, Opened), Failure> {
    let device = &connection.device;
    let Some(node) = device.node(task.node) else {
        let cause = CloseCause::ConnectFailed(EINVAL_NUMBER);
        return Err(Failure {
            cause,
            error: Some(EINVAL.into()),
        });
    };
    let fail = |cause| Failure {
        cause,
        error: Some(DeviceError::from_cause(cause, &node, "")),
    };
    let socket = open_socket(connection, &node).map_err(fail)?;

    let handshake = device
        .with_identity(|identity| Handshake::new(identity, task.kind, crate::crc::crc32c))
        .map_err(fail)?;
    let mut handshake = KBox::new(handshake, GFP_KERNEL).map_err(|_| fail(CloseCause::NoMemory))?;
    match shake_hands(connection, &socket, task, &mut handshake) {
        Ok(()) => {}
        Err(cause) => {
            let text = handshake.refused().map_or("", |refused| refused.text);
            let error = match device.begin_forcing(cause, text) {
                true => None,
                false => Some(DeviceError::from_cause(cause, &node, text)),
            };
            return Err(Failure { cause, error });
        }
    }
    let opened = handshake
        .opened()
        .ok_or_else(|| fail(CloseCause::BadEvent))?;
    device.check_volume(&opened).map_err(fail)?;
    device.nodes().lock().learn(handshake.nodes(), task.node);
    let established = Established {
        socket,
        features: opened.features,
        window_bytes: opened.reply.max_inflight_bytes.get().into(),
        node: task.node,
    };
    Ok((established, opened))
}

/// The number of EINVAL, for causes.
const EINVAL_NUMBER: i32 = 22;

fn open_socket(connection: &Connection, node: &Node) -> Result<Arc<TcpSocket>, CloseCause> {
    let device = &connection.device;
    let failed = |e: Error| CloseCause::ConnectFailed(-e.to_errno());
    let socket = TcpSocket::new(&device.params().net, &node.addr).map_err(failed)?;
    let socket = Arc::new(socket, GFP_KERNEL).map_err(|_| CloseCause::NoMemory)?;
    let older = connection.shared.lock().connecting.replace(socket.clone());
    drop(older);
    // What was sent but not acknowledged for as long as silence is tolerated is a dead node.
    socket
        .set_user_timeout(device.timeouts().heartbeat_timeout_ms)
        .map_err(failed)?;
    socket.begin_connect(&node.addr).map_err(failed)?;
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

fn shake_hands(
    connection: &Connection,
    socket: &TcpSocket,
    task: &ConnectTask,
    handshake: &mut Handshake,
) -> Result<(), CloseCause> {
    let failed = |e: Error| match e {
        e if e == EAGAIN => CloseCause::ConnectTimeout,
        e if e == EPIPE || e == ECONNRESET => CloseCause::PeerClosed,
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
