// SPDX-License-Identifier: GPL-2.0 OR MIT

//! How many PINGs a node may send: each asks for a PONG, so they must not be free.

use crate::{CloseCause, Instant};

/// How many PINGs may come at once.
pub const MAX_PINGS: u32 = 64;

/// How long it takes until one more may come, in milliseconds: no heartbeat is more frequent.
pub const PING_MS: u64 = 100;

/// Counts the PINGs of one connection: [`MAX_PINGS`] at once, and one more each [`PING_MS`].
#[derive(Debug)]
pub struct PingLimit {
    /// How many more may come, as of `since`.
    left: u32,
    since: Instant,
}

impl PingLimit {
    /// For a connection that begins now.
    pub const fn new(now: Instant) -> Self {
        PingLimit {
            left: MAX_PINGS,
            since: now,
        }
    }

    /// A PING has come.
    ///
    /// # Errors
    ///
    /// There are too many: the connection is to be closed.
    pub fn on_ping(&mut self, now: Instant) -> Result<(), CloseCause> {
        let earned = now.since_ms(self.since) / PING_MS;
        let left = u64::from(self.left).saturating_add(earned);
        if left >= MAX_PINGS.into() {
            // What was earned beyond that is lost.
            self.left = MAX_PINGS;
            self.since = now;
        } else {
            // Less than `MAX_PINGS`. The time that did not earn one yet still counts.
            self.left = left as u32;
            self.since = self.since.after_ms(earned * PING_MS);
        }
        self.left = self
            .left
            .checked_sub(1)
            .ok_or(CloseCause::TooMuchInFlight)?;
        Ok(())
    }
}
