// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The node's half.

mod gate;
mod handshake;
mod memory;
mod receiver;

pub use gate::{ConnectionId, Gate, GateAction, GateConfig, Holder, Opening, RefuseReason};
pub use handshake::{Handshake, Introduced, IntroducedAs};
pub use memory::{prune, Remembered, Standing};
pub use receiver::{Command, Limits, Received, Receiver, Want};
