// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The client's half.

mod at_risk;
mod durability;
mod handshake;
mod late;
mod ping_limit;
mod promise;
mod receiver;
mod send_gate;
mod session;
mod slots;
mod tally;
mod terms;

pub use at_risk::AtRisk;
pub use durability::{Durability, FlushMark, WritesLost};
pub use handshake::{check_same_volume, Handshake, Identity, Opened, Progress, RefusedOpen};
pub use late::{judge_late, Late};
pub use ping_limit::{PingLimit, MAX_PINGS, PING_MS};
pub use promise::{broken_promise, check_size};
pub use receiver::{damage_of_copy, Received, Receiver, Want};
pub use send_gate::{GateState, SendGate, Sender};
pub use session::{Connection, Session, MAX_CONNECTIONS};
pub use slots::{Matched, Request, Slot, SlotInfo, SlotState, SlotTable};
pub use tally::Tally;
pub use terms::{
    is_resumption_refused, Action, Config, ConnectKind, ConnectionState, Notice, SessionState,
    Used, SHRUNK_RETRY_MS, STILL_LOST_EVERY_MS, STILL_LOST_FIRST_MS, UNLISTED,
};
