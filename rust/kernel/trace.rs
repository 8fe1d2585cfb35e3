// SPDX-License-Identifier: GPL-2.0

//! Tracepoints of the driver.
//!
//! The events are declared in `drivers/block/neonsan/trace.h`. A disabled tracepoint costs one
//! no-op instruction, which the kernel patches into a jump when somebody listens.
//!
//! The functions may be called in any context, interrupts included.

use neonsan_bindings as bindings;

/// Declares the safe Rust entry of tracepoints. Arguments are evaluated by the caller, so they
/// should be values that are at hand.
///
/// The macro must only be used for functions whose C side does nothing but read its arguments, and
/// whose pointers are covered by the expression in `call`.
macro_rules! declare_trace {
    ($(
        $(#[$attr:meta])*
        pub fn $name:ident = $event:ident($($argument:ident: $ty:ty),* $(,)?) => ($($call:expr),* $(,)?);
    )*) => {$(
        $(#[$attr])*
        #[inline(always)]
        #[allow(clippy::too_many_arguments)]
        pub fn $name($($argument: $ty),*) {
            #[cfg(CONFIG_TRACEPOINTS)]
            kernel::macros::paste! {
                // SAFETY: The static is a tracepoint that trace.c defines, and its key is a static
                // key; reading it is always allowed.
                let listened = unsafe {
                    kernel::jump_label::static_branch_unlikely!(
                        bindings::[<__tracepoint_ $event>],
                        bindings::tracepoint,
                        key
                    )
                };
                if listened {
                    // SAFETY: Numbers are copied; a text is a pointer and a length taken from one
                    // `&str`, which lives through the call and which C reads no further than that.
                    unsafe { bindings::[<rust_do_trace_ $event>]($($call),*) };
                }
            }
            #[cfg(not(CONFIG_TRACEPOINTS))]
            let _ = ($($argument,)*);
        }
    )*};
}

/// The length of a text as C takes it. Longer ones are cut; causes are a sentence.
fn text_len(text: &str) -> u32 {
    text.len().min(255) as u32
}

declare_trace! {
    /// A request was given to the socket of `connection`. `op` is a number of `uapi::Op`; `offset`
    /// and `length` are in bytes.
    pub fn request_sent = neonsan_request_sent(
        device: u32, connection: u32, tag: u32, cookie: u64, op: u32, offset: u64, length: u32,
    ) => (device, connection, tag, cookie, op, offset, length);

    /// A reply was matched to its request and read in full. `status` is the status of the wire,
    /// `length` the bytes of its payload.
    pub fn reply_received = neonsan_reply_received(
        device: u32, connection: u32, tag: u32, cookie: u64, status: u32, length: u32,
    ) => (device, connection, tag, cookie, status, length);

    /// A connection changed its state. `from` and `to` are numbers of `uapi::ConnectionState`;
    /// `cause` may be empty.
    pub fn connection_state = neonsan_connection_state(
        device: u32, connection: u32, from: u32, to: u32, cause: &str,
    ) => (device, connection, from, to, cause.as_ptr().cast(), text_len(cause));

    /// A session changed its state. `from` and `to` are numbers of `uapi::SessionState`; `cause`
    /// may be empty.
    pub fn session_state = neonsan_session_state(
        device: u32, from: u32, to: u32, generation: u64, cause: &str,
    ) => (device, from, to, generation, cause.as_ptr().cast(), text_len(cause));
}
