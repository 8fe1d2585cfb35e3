// SPDX-License-Identifier: GPL-2.0

//! The NeonSAN client: block devices for volumes on remote storage nodes.
//!
//! # Map
//!
//! - [`control`]: generic netlink, the way in. [`attach`]: attaching and detaching.
//! - [`device`]: a device. [`registry`]: all of them. [`info`], [`notes`]: what people are told.
//! - [`queue`]: from blk-mq to a connection. [`connection`]: one connection; [`transmit`] and
//!   [`receive`] are its two sides, [`connect`] makes it. [`polling`]: poll queues.
//! - [`recovery`]: carries out what the session machine (`neonsan_session`) decides.
//! - [`nodes`]: where the volume is served. [`suspend`], [`shutdown`]: ways out.
//! - [`limits`], [`error`]: from the wire's terms to the block layer's.
//!
//! What can be decided without a kernel is decided in the crates `neonsan_proto` and
//! `neonsan_session`; what needs `unsafe` is in `neonsan_kernel`.

// A refusal carries its message for people. It is made where someone waits for it, not on the way
// of requests.
#![allow(clippy::result_large_err)]

use kernel::prelude::*;
use neonsan_kernel::{genetlink, reboot};

mod attach;
mod clock;
mod connect;
mod connection;
mod control;
mod crc;
mod debugfs;
mod device;
mod error;
mod info;
mod left;
mod limits;
mod nodes;
mod notes;
mod params;
mod polling;
mod queue;
mod receive;
mod recovery;
mod registry;
mod shutdown;
mod suspend;
mod trace;
mod transmit;
#[allow(
    dead_code,
    unreachable_pub,
    reason = "shared with user space, which uses what is not used here"
)]
mod uapi;

module! {
    type: NeonSan,
    name: "neonsan",
    authors: ["NeonSAN developers"],
    description: "NeonSAN remote block device",
    license: "GPL",
    alias: ["net-pf-16-proto-16-family-neonsan"],
}

/// The loaded module.
///
/// Fields are dropped in this order: devices go, and no new ones come, while who listens can still
/// be told; then nobody can ask for anything any more.
struct NeonSan {
    _shutdown: reboot::Registration,
    _devices: Devices,
    _control: genetlink::Registration,
    _left: LeftSessions,
    _debugfs: debugfs::Files,
}

/// Detaches all devices when the module goes.
struct Devices;

impl Drop for Devices {
    fn drop(&mut self) {
        registry::close();
        registry::detach_all();
    }
}

/// Forgets the sessions that devices have left. After the last operation of the family: should unloading
/// be interrupted while it waits for one that takes a device away, that one still leaves a session.
struct LeftSessions;

impl Drop for LeftSessions {
    fn drop(&mut self) {
        left::forget_all();
    }
}

impl kernel::Module for NeonSan {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        registry::init();
        left::init();
        let sessions = LeftSessions;
        let devices = Devices;
        Ok(NeonSan {
            _debugfs: debugfs::create()?,
            _left: sessions,
            _control: control::register()?,
            _devices: devices,
            _shutdown: shutdown::NOTIFIER.register()?,
        })
    }
}
