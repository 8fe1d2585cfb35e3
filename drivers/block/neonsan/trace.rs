// SPDX-License-Identifier: GPL-2.0

//! The driver's tracepoints with the driver's types. See `trace.h` for what each records.

use crate::uapi;
use neonsan_kernel::trace;

/// A request was given to the socket of `connection`; `offset` and `length` in bytes.
#[inline(always)]
pub(crate) fn request_sent(
    device: u32,
    connection: u32,
    tag: u32,
    cookie: u64,
    op: uapi::Op,
    offset: u64,
    length: u32,
) {
    trace::request_sent(device, connection, tag, cookie, op as u32, offset, length);
}

/// A reply was matched to its request and read in full; `status` as on the wire.
#[inline(always)]
pub(crate) fn reply_received(
    device: u32,
    connection: u32,
    tag: u32,
    cookie: u64,
    status: u16,
    length: u32,
) {
    trace::reply_received(device, connection, tag, cookie, status.into(), length);
}

/// A connection changed its state; `cause` may be empty.
#[inline(always)]
pub(crate) fn connection_state(
    device: u32,
    connection: u32,
    from: uapi::ConnectionState,
    to: uapi::ConnectionState,
    cause: &str,
) {
    trace::connection_state(device, connection, from as u32, to as u32, cause);
}

/// A session changed its state; `cause` may be empty.
#[inline(always)]
pub(crate) fn session_state(
    device: u32,
    from: uapi::SessionState,
    to: uapi::SessionState,
    generation: u64,
    cause: &str,
) {
    trace::session_state(device, from as u32, to as u32, generation, cause);
}
