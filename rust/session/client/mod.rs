// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The client's half.

mod durability;
mod handshake;
mod receiver;
mod session;
mod slots;

pub use durability::{Durability, FlushMark, WritesLost};
pub use handshake::{check_same_volume, Handshake, Identity, Opened, Progress, RefusedOpen};
pub use receiver::{Received, Receiver, Want};
pub use session::{
    Action, Config, ConnectKind, Connection, ConnectionState, Notice, Session, SessionState,
    MAX_CONNECTIONS,
};
pub use slots::{Matched, Request, Slot, SlotInfo, SlotState, SlotTable};
