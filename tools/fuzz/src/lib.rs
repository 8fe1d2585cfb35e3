// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Everything that can arrive from the network, tried.
//!
//! - [`targets`]: one function per parser or machine that takes arbitrary bytes and asserts what
//!   must hold whatever they are. `cargo test` replays the committed corpus and a seeded random
//!   run through them; `tools/fuzz/fuzz` wraps them for libFuzzer.
//! - [`hostile`]: every way in which a node may break the protocol, by name, each with the cause
//!   that a client must report. The tests play them to the client machines in memory, and
//!   `neonsan-hostile-node` plays them to the kernel driver.
//! - [`conversation`]: the small volume and the messages that both are built from.

pub mod conversation;
pub mod hostile;
pub mod node;
pub mod random;
pub mod targets;
