// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The client's half.

mod at_risk;
mod durability;
mod handshake;
mod promise;
mod receiver;
mod session;
mod slots;
mod terms;

pub use at_risk::AtRisk;
pub use durability::{Durability, FlushMark, WritesLost};
pub use handshake::{check_same_volume, Handshake, Identity, Opened, Progress, RefusedOpen};
pub use promise::broken_promise;
pub use receiver::{Received, Receiver, Want, MAX_DAMAGED_WRITES};
pub use session::{Connection, Session, MAX_CONNECTIONS};
pub use slots::{Matched, Request, Slot, SlotInfo, SlotState, SlotTable};
pub use terms::{Action, Config, ConnectKind, ConnectionState, Notice, SessionState};
