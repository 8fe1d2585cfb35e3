// SPDX-License-Identifier: GPL-2.0

//! A TCP connection whose data is handed to the driver as it arrives.
//!
//! C headers: `include/net/sock.h` (`sk_data_ready` and its siblings), `include/net/tcp.h`
//! (`tcp_read_sock`).
//!
//! # Locks
//!
//! 1. The socket's lock: a spin lock for soft interrupts, a sleeping one for processes.
//! 2. `sk_callback_lock`, for reading while a callback runs, for writing while callbacks change.
//!
//! Callbacks run with the socket's lock held and take the second. [`Attached::stop`] takes the
//! second, lets go of it, and then takes the first.

use super::{SocketState, TcpSocket};
use crate::{mm::NoReclaimScope, skbuff::SkBuff};
use core::{cell::UnsafeCell, marker::PhantomPinned};
use kernel::{
    prelude::*,
    sync::Arc,
    types::ScopeGuard, //
};
use neonsan_bindings as bindings;

/// What is done with an [`Attached`] connection. Everything may be called in soft interrupts, with
/// the socket's lock held: nothing may sleep, and no call on the socket is allowed but those that
/// are handed in.
pub trait Callbacks: Send + Sync + 'static {
    /// The state of the receiving side. Whoever holds the socket's lock owns it.
    type Receive: Send;

    /// These bytes have arrived. Returns how many were taken; fewer than all stops the run, and
    /// the rest is offered again at the next one.
    fn receive(self: &Arc<Self>, rx: &mut Self::Receive, data: &[u8]) -> usize;

    /// How many bytes must have arrived until something can be done with them; at least 1.
    fn wanted(rx: &Self::Receive) -> u32;

    /// A run of [`Callbacks::receive`] is over: nothing more is there for now.
    fn receive_done(self: &Arc<Self>, rx: &mut Self::Receive);

    /// There is data, but the socket is in use: call [`Attached::read`] from a process.
    fn read_later(self: &Arc<Self>);

    /// There is room to send again.
    fn write_space(self: &Arc<Self>);

    /// The connection has changed its state.
    fn state_change(self: &Arc<Self>, state: SocketState);
}

/// The callbacks that a socket had before.
#[derive(Clone, Copy)]
struct Saved {
    data_ready: Option<unsafe extern "C" fn(*mut bindings::sock)>,
    state_change: Option<unsafe extern "C" fn(*mut bindings::sock)>,
    write_space: Option<unsafe extern "C" fn(*mut bindings::sock)>,
}

/// A connection with its callbacks installed.
///
/// # Invariants
///
/// - While the callbacks are installed, `sk_user_data` of the socket is the address of this value,
///   afterwards null; [`Attached::stop`] takes them off before the value is dropped.
/// - `rx` is used only with the socket's lock held. It is `None` from [`Attached::stop`] on.
#[pin_data(PinnedDrop)]
pub struct Attached<C: Callbacks> {
    socket: Arc<TcpSocket>,
    callbacks: Arc<C>,
    saved: Saved,
    rx: UnsafeCell<Option<C::Receive>>,
    #[pin]
    _pin: PhantomPinned,
}

// SAFETY: `rx` is protected by the socket's lock, the rest is constant.
unsafe impl<C: Callbacks> Send for Attached<C> {}
// SAFETY: As above.
unsafe impl<C: Callbacks> Sync for Attached<C> {}

/// One run of receiving: what [`recv_actor`] needs.
struct Run<'a, C: Callbacks> {
    callbacks: &'a Arc<C>,
    rx: &'a mut C::Receive,
}

impl<C: Callbacks> Attached<C> {
    /// Installs the callbacks. Data that is there already is not announced: call
    /// [`Attached::read`] once. May sleep.
    pub fn new(socket: Arc<TcpSocket>, callbacks: Arc<C>, rx: C::Receive) -> Result<Arc<Self>> {
        let sk = socket.sk();
        // SAFETY: Nobody changes the callbacks of our socket but us.
        let saved = unsafe {
            if !(*sk).sk_user_data.is_null() {
                return Err(EBUSY);
            }
            Saved {
                data_ready: (*sk).sk_data_ready,
                state_change: (*sk).sk_state_change,
                write_space: (*sk).sk_write_space,
            }
        };
        let this = {
            // A lost connection comes back by this.
            let _scope = NoReclaimScope::enter();
            Arc::pin_init(
                pin_init!(Attached {
                    socket,
                    callbacks,
                    saved,
                    rx: UnsafeCell::new(Some(rx)),
                    _pin: PhantomPinned,
                }),
                GFP_KERNEL,
            )?
        };
        // INVARIANT: The address of the value does not change inside the `Arc`.
        // SAFETY: The socket is valid; its callback lock protects these fields.
        unsafe {
            bindings::write_lock_callbacks(sk);
            (*sk).sk_user_data = Arc::as_ptr(&this).cast_mut().cast();
            (*sk).sk_data_ready = Some(Self::data_ready);
            (*sk).sk_state_change = Some(Self::state_change);
            (*sk).sk_write_space = Some(Self::write_space);
            bindings::write_unlock_callbacks(sk);
        }
        Ok(this)
    }

    /// The socket, for sending.
    pub fn socket(&self) -> &TcpSocket {
        &self.socket
    }

    /// Receives what is there, after [`Callbacks::read_later`]. May sleep.
    pub fn read(&self) {
        let sk = self.socket.sk();
        // SAFETY: The socket is valid.
        unsafe { bindings::lock_sock(sk) };
        let unlock = ScopeGuard::new(|| {
            // SAFETY: Locked above.
            unsafe { bindings::release_sock(sk) };
        });
        // SAFETY: The socket's lock is held.
        unsafe { self.run() };
        drop(unlock);
    }

    /// Receives in the caller what is there; if nothing is, asks the network device for it, where
    /// there is one that can be asked. The callbacks go on as ever, so nothing depends on this being
    /// called. Does not sleep; process context.
    pub fn poll(&self) {
        let sk = self.socket.sk();
        // SAFETY: The socket is valid. What comes while the device is asked is received by its
        // callback, in this very call.
        unsafe {
            if bindings::sk_receive_queue_empty(sk) {
                bindings::sk_busy_loop_once(sk);
            }
            if bindings::sk_receive_queue_empty(sk) {
                return;
            }
            bindings::bh_lock_sock(sk);
        }
        let unlock = ScopeGuard::new(|| {
            // SAFETY: Locked above.
            unsafe { bindings::bh_unlock_sock(sk) };
        });
        // SAFETY: The socket's lock is held as a soft interrupt holds it: if a process has the
        // socket, it is left alone, and that process or the worker it has called receives.
        unsafe {
            if !bindings::sock_owned_by_user_nocheck(sk) && self.is_worth_reading() {
                self.run();
            }
        }
        drop(unlock);
    }

    /// Takes the callbacks off and waits until none of them runs. Returns the state of the
    /// receiving side, the first time. May sleep, but not for the network.
    pub fn stop(&self) -> Option<C::Receive> {
        let sk = self.socket.sk();
        // SAFETY: The socket is valid. Taking the callback lock for writing waits for callbacks
        // that run, and none begins afterwards. Then its own lock makes `rx` ours.
        unsafe {
            bindings::write_lock_callbacks(sk);
            (*sk).sk_user_data = core::ptr::null_mut();
            (*sk).sk_data_ready = self.saved.data_ready;
            (*sk).sk_state_change = self.saved.state_change;
            (*sk).sk_write_space = self.saved.write_space;
            bindings::write_unlock_callbacks(sk);
            bindings::lock_sock(sk);
            let rx = (*self.rx.get()).take();
            bindings::release_sock(sk);
            rx
        }
    }

    /// Hands everything that is there to the driver.
    ///
    /// # Safety
    ///
    /// The caller must hold the socket's lock.
    unsafe fn run(&self) {
        // SAFETY: By the caller's promise and the type's invariants.
        let Some(rx) = (unsafe { &mut *self.rx.get() }) else {
            return;
        };
        let mut run = Run {
            callbacks: &self.callbacks,
            rx,
        };
        let mut desc: bindings::read_descriptor_t = pin_init::zeroed();
        desc.count = 1;
        desc.arg.data = (&raw mut run).cast();
        // SAFETY: The socket is locked; the actor gets `run` back, which outlives the call.
        unsafe { bindings::tcp_read_sock(self.socket.sk(), &mut desc, Some(recv_actor::<C>)) };
        run.callbacks.receive_done(run.rx);
    }

    /// Whether a run makes sense now. When what is wanted lacks no more than the next two segments,
    /// they are waited for: one run, and one acknowledgement, for all. TCP acknowledges every
    /// second segment late at most, so the far side has no reason to stop there; when it cannot
    /// send more, for want of room here, what there is is read.
    ///
    /// # Safety
    ///
    /// The caller must hold the socket's lock.
    unsafe fn is_worth_reading(&self) -> bool {
        // SAFETY: By the caller's promise and the type's invariants.
        let Some(rx) = (unsafe { &*self.rx.get() }) else {
            return false;
        };
        let wanted = C::wanted(rx);
        if wanted <= 1 {
            return true;
        }
        let sk = self.socket.sk();
        // SAFETY: The socket is valid and locked.
        unsafe {
            let soon = bindings::tcp_rcv_mss(sk).saturating_mul(2);
            let lacks_more = wanted > soon && !bindings::tcp_epollin_ready(sk, wanted - soon);
            lacks_more || bindings::tcp_epollin_ready(sk, wanted)
        }
    }

    /// Calls `f` with the value that belongs to a socket, if the callbacks are still installed.
    ///
    /// # Safety
    ///
    /// Called from a callback of `sk`.
    unsafe fn with(sk: *mut bindings::sock, f: impl FnOnce(&Self)) {
        // SAFETY: `sk` is valid in its callbacks. While the callback lock is held for reading, the
        // user data is either ours or null, and `stop` waits for us.
        unsafe {
            bindings::read_lock_callbacks(sk);
            if let Some(this) = (*sk).sk_user_data.cast::<Self>().as_ref() {
                f(this);
            }
            bindings::read_unlock_callbacks(sk);
        }
    }

    /// # Safety
    ///
    /// Called by the network with the lock of `sk` held.
    unsafe extern "C" fn data_ready(sk: *mut bindings::sock) {
        // SAFETY: This is a callback of `sk`.
        unsafe {
            Self::with(sk, |this| {
                // The lock is held by this soft interrupt, unless a process has it and is
                // catching up with what came meanwhile. It may be sending for us, so it must not
                // be kept.
                if bindings::sock_owned_by_user_nocheck(sk) {
                    this.callbacks.read_later();
                } else if this.is_worth_reading() {
                    this.run();
                }
            })
        }
    }

    /// # Safety
    ///
    /// Called by the network with the lock of `sk` held.
    unsafe extern "C" fn state_change(sk: *mut bindings::sock) {
        // SAFETY: This is a callback of `sk`.
        unsafe { Self::with(sk, |this| this.callbacks.state_change(this.socket.state())) }
    }

    /// # Safety
    ///
    /// Called by the network.
    unsafe extern "C" fn write_space(sk: *mut bindings::sock) {
        // SAFETY: This is a callback of `sk`.
        unsafe {
            Self::with(sk, |this| {
                if bindings::sk_stream_is_writeable(sk) {
                    bindings::clear_sock_nospace(sk);
                    this.callbacks.write_space();
                }
            })
        }
    }
}

/// # Safety
///
/// Called by `tcp_read_sock` from [`Attached::run`] of the same `C`.
unsafe extern "C" fn recv_actor<C: Callbacks>(
    desc: *mut bindings::read_descriptor_t,
    skb: *mut bindings::sk_buff,
    offset: c_uint,
    len: usize,
) -> c_int {
    // SAFETY: `run` has put its `Run` there.
    let run = unsafe { &mut *(*desc).arg.data.cast::<Run<'_, C>>() };
    // SAFETY: The packet is valid during the call.
    let skb = unsafe { SkBuff::from_raw(skb) };
    // A packet is far shorter than 2 GiB.
    let mut pieces = skb.pieces(offset, len as u32);
    let mut taken = 0;
    while let Some(piece) = pieces.next_piece() {
        let n = run.callbacks.receive(run.rx, piece).min(piece.len());
        taken += n;
        if n < piece.len() {
            break;
        }
    }
    taken as c_int
}

#[pinned_drop]
impl<C: Callbacks> PinnedDrop for Attached<C> {
    fn drop(self: Pin<&mut Self>) {
        drop(self.stop());
    }
}
