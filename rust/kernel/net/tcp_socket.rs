// SPDX-License-Identifier: GPL-2.0

//! One TCP connection.
//!
//! C header: `include/linux/net.h` (`struct socket`).

use super::{addr::RawAddr, send_batch::SendFlags, Net, SendBatch, SocketAddr};
use crate::{block::mq::Operations, errno, mm::NoReclaimScope};
use core::ptr::{self, NonNull};
use kernel::{
    error::to_result,
    prelude::*,
    time::{msecs_to_jiffies, Msecs},
};
use neonsan_bindings as bindings;

/// Where a connection is, as far as a driver cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketState {
    /// Both directions work.
    Established,
    /// The far side has ended its direction.
    PeerClosed,
    /// It is over, or has not begun.
    Closed,
}

/// A TCP socket of the kernel's own, fit for the way of dirty pages to their storage: it allocates
/// without starting I/O, and from the reserves if it must. Making and ending one, too, takes what it
/// needs from there, so callers need no scope of their own for that; sending does with
/// [`TcpSocket::send_messages`], whose batches are many.
///
/// Dropping it throws away what was not sent: pages that wait to be sent are released, and the far
/// side is told by a reset. Nothing of an old connection can be sent after that.
///
/// # Invariants
///
/// `sock` is a TCP socket that belongs to this value.
pub struct TcpSocket {
    sock: NonNull<bindings::socket>,
}

// SAFETY: The calls on a socket lock it themselves.
unsafe impl Send for TcpSocket {}
// SAFETY: As above.
unsafe impl Sync for TcpSocket {}

impl TcpSocket {
    /// Makes a socket for connecting to an address of this family. May sleep.
    pub fn new(net: &Net, addr: &SocketAddr) -> Result<Self> {
        let _scope = NoReclaimScope::enter();
        let mut sock = ptr::null_mut();
        // SAFETY: `net` is valid, and `sock` is for the result.
        to_result(unsafe {
            bindings::sock_create_kern(
                net.as_raw(),
                addr.family() as c_int,
                bindings::sock_type_SOCK_STREAM as c_int,
                bindings::IPPROTO_TCP as c_int,
                &mut sock,
            )
        })?;
        let sock = NonNull::new(sock).ok_or(ENOMEM)?;
        // INVARIANT: It was just made.
        let this = TcpSocket { sock };
        // SAFETY: The socket is valid and not connected yet.
        unsafe {
            bindings::sock_prepare(this.as_raw());
            bindings::tcp_sock_set_nodelay(this.sk());
            bindings::sock_no_linger(this.sk());
        }
        Ok(this)
    }

    pub(super) fn as_raw(&self) -> *mut bindings::socket {
        self.sock.as_ptr()
    }

    pub(super) fn sk(&self) -> *mut bindings::sock {
        // SAFETY: By the type's invariants; a socket keeps its `sk` until it is released.
        unsafe { (*self.as_raw()).sk }
    }

    /// How long the blocking calls below may take; they fail with `EAGAIN` afterwards.
    pub fn set_timeout(&self, timeout_ms: u32) {
        let jiffies = msecs_to_jiffies(timeout_ms as Msecs) as c_long;
        // SAFETY: By the type's invariants.
        unsafe {
            bindings::sock_set_rcvtimeo(self.sk(), jiffies);
            bindings::sock_set_sndtimeo_jiffies(self.sk(), jiffies);
        }
    }

    /// How long sent data may stay without an acknowledgement before the connection is given up.
    /// Times longer than TCP knows (24 days) are that long. Any context.
    pub fn set_user_timeout(&self, timeout_ms: u32) {
        let timeout = c_int::try_from(timeout_ms).unwrap_or(c_int::MAX);
        // SAFETY: By the type's invariants. It fails for a negative time only.
        unsafe { bindings::tcp_sock_set_user_timeout(self.sk(), timeout) };
    }

    /// Begins to connect, and does not wait for it: [`TcpSocket::send`] does, and fails with what
    /// connecting failed with. From when this returns [`TcpSocket::shutdown`] ends the try. May
    /// sleep, but not for the network.
    pub fn begin_connect(&self, addr: &SocketAddr) -> Result {
        let (mut raw, len) = addr.to_raw();
        // SAFETY: The address is valid for `len` bytes.
        let begun = to_result(unsafe {
            bindings::kernel_connect(
                self.as_raw(),
                (&raw mut raw).cast(),
                len as c_int,
                bindings::O_NONBLOCK as c_int,
            )
        });
        match begun {
            Err(e) if e == errno!(EINPROGRESS) => Ok(()),
            result => result,
        }
    }

    /// Sends some of `data`; returns how many bytes. May sleep, up to the timeout.
    pub fn send(&self, data: &[u8]) -> Result<usize> {
        // SAFETY: `data` is valid for reads and is copied.
        let n = unsafe {
            bindings::sock_send(
                self.as_raw(),
                data.as_ptr().cast_mut().cast(),
                data.len(),
                bindings::MSG_NOSIGNAL as c_int,
            )
        };
        bytes_or_error(n)
    }

    /// Receives some bytes; zero at the end of the stream. May sleep, up to the timeout.
    pub fn recv(&self, data: &mut [u8]) -> Result<usize> {
        // SAFETY: `data` is valid for writes.
        let n =
            unsafe { bindings::sock_recv(self.as_raw(), data.as_mut_ptr().cast(), data.len(), 0) };
        bytes_or_error(n)
    }

    /// Sends some of what the vectors describe; returns how many bytes. Does not wait for room:
    /// `EAGAIN`, and the callback for room comes later. Takes the socket's lock, so it may sleep.
    ///
    /// # Safety
    ///
    /// The vectors must describe memory that is valid during the call, `len` bytes from `offset` on.
    /// Afterwards the socket has references of its own to the pages that it has taken.
    pub(super) unsafe fn send_pieces(
        &self,
        bvecs: &[bindings::bio_vec],
        offset: usize,
        len: usize,
        flags: SendFlags,
    ) -> Result<usize> {
        // SAFETY: By the caller's promise.
        let n = unsafe {
            bindings::sock_send_bvecs(
                self.as_raw(),
                bvecs.as_ptr(),
                bvecs.len(),
                offset,
                len,
                flags.as_raw(),
            )
        };
        bytes_or_error(n)
    }

    /// Sends what is left of a batch as far as there is room; true when all of it was sent. Takes
    /// the socket's lock, so it may sleep.
    pub fn send_batch<T: Operations>(&self, batch: &mut SendBatch<T>) -> Result<bool> {
        batch.send_to(self)
    }

    /// Ends both directions; blocking calls return. May sleep.
    pub fn shutdown(&self) {
        // SAFETY: By the type's invariants.
        unsafe {
            bindings::kernel_sock_shutdown(self.as_raw(), bindings::sock_shutdown_cmd_SHUT_RDWR)
        };
    }

    /// Ends the connection now: throws away what was not sent and tells the far side by a reset.
    /// When this returns, TCP has no page of a request any more; what it has given to a network card
    /// or, over loopback, to the far side's socket is out of reach. May sleep, but not for the
    /// network.
    pub fn abort(&self) {
        // For the packet of the reset.
        let _scope = NoReclaimScope::enter();
        let (mut raw, len) = RawAddr::unspecified();
        // SAFETY: By the type's invariants; the address is valid for `len` bytes. Connecting to no
        // address is how a socket is disconnected; for TCP that cannot fail.
        unsafe { bindings::kernel_connect(self.as_raw(), (&raw mut raw).cast(), len as c_int, 0) };
    }

    /// Where the connection is now. Any context.
    pub fn state(&self) -> SocketState {
        // SAFETY: By the type's invariants.
        match unsafe { bindings::sk_state(self.sk()) } as u32 {
            bindings::TCP_ESTABLISHED => SocketState::Established,
            bindings::TCP_CLOSE_WAIT => SocketState::PeerClosed,
            _ => SocketState::Closed,
        }
    }
}

/// A count of bytes, or a negative error number, as the socket calls return them.
fn bytes_or_error(n: c_int) -> Result<usize> {
    usize::try_from(n).map_err(|_| Error::from_errno(n))
}

impl Drop for TcpSocket {
    fn drop(&mut self) {
        self.abort();
        // SAFETY: By the type's invariants. It is disconnected, nobody else has it, and `sock_prepare`
        // let it use the reserves.
        unsafe {
            bindings::sock_clear_memalloc(self.sk());
            bindings::sock_release(self.as_raw());
        }
    }
}
