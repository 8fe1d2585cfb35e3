// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The decisions of both ends of a NeonSAN session, as pure state machines.
//!
//! Nothing here opens a socket, reads a clock, takes a lock or allocates on the I/O path. Time is a
//! parameter ([`Instant`]); bytes and events go in through `on_*`, `received` and `submit`-like
//! calls, and what is to be done comes out of `poll_*` and `want`. The kernel module, the storage
//! node, the user-space client and the simulator drive the same code.
//!
//! # Client half
//!
//! - [`client::Handshake`]: bytes of the hellos and of OPEN or JOIN, in and out.
//! - [`client::SlotTable`]: a place for every request in flight on one connection; shared between
//!   the submitting, the receiving and the recovering side without a lock.
//! - [`client::Receiver`]: deframes what a node sends, says where payload goes, names violations.
//! - [`client::Session`]: which connection to make when, what to drain, what to resend.
//!
//! # Server half (feature `server`)
//!
//! - [`server::Handshake`], [`server::Receiver`]: the mirror images.
//! - [`server::Gate`]: who holds a volume, with which generation, and when a newer one may begin.
//!
//! # No-panic contract
//!
//! Whatever a peer sends, nothing here panics: every violation is a [`CloseCause`].

#![cfg_attr(not(any(MODULE, test, loom)), no_std)]
#![forbid(unsafe_code)]
#![deny(missing_docs)]

#[cfg(feature = "server")]
extern crate alloc;

pub mod client;
mod close;
mod cookie;
#[cfg(feature = "server")]
pub mod server;
mod sync;
mod time;

pub use close::CloseCause;
pub use cookie::{Cookie, Generation, Tag};
pub use time::{Backoff, BadTimeout, Instant, TimeoutBound, Timeouts, MAX_TIMEOUT_MS};
