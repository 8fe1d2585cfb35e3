// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Time as a parameter.

/// A point in time, in milliseconds of any clock that never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(pub u64);

impl Instant {
    /// The point `ms` milliseconds later.
    pub const fn after_ms(self, ms: u64) -> Instant {
        Instant(self.0.saturating_add(ms))
    }

    /// Milliseconds since `earlier`; zero if that is later.
    pub const fn since_ms(self, earlier: Instant) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// The named timeouts of a device, all in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// How long one request may go unanswered before its connection is closed and made anew.
    pub request_ms: u32,
    /// How long one try to connect and shake hands may take.
    pub connect_ms: u32,
    /// After how much silence a PING is sent.
    pub heartbeat_interval_ms: u32,
    /// After how much silence a connection is given up; more than the interval.
    pub heartbeat_timeout_ms: u32,
    /// Delay between the beginnings of the first try to reconnect, which is made at once, and of
    /// the second.
    pub reconnect_delay_min_ms: u32,
    /// Longest delay between tries.
    pub reconnect_delay_max_ms: u32,
    /// How long a volume may stay lost before its requests fail; zero: for ever.
    pub loss_ms: u32,
}

impl Timeouts {
    /// The values that fit most: a dead node is noticed within ten seconds, a restarted one found
    /// within one, and nothing ever fails by itself.
    pub const DEFAULT: Timeouts = Timeouts {
        request_ms: 30_000,
        connect_ms: 5_000,
        heartbeat_interval_ms: 3_000,
        heartbeat_timeout_ms: 9_000,
        reconnect_delay_min_ms: 100,
        reconnect_delay_max_ms: 500,
        loss_ms: 0,
    };

    /// The name of the first value that makes no sense, if any.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.request_ms < 100 {
            Err("request timeout: must be at least 100 ms")
        } else if self.connect_ms < 100 {
            Err("connect timeout: must be at least 100 ms")
        } else if self.heartbeat_interval_ms < 100 {
            Err("heartbeat interval: must be at least 100 ms")
        } else if self.heartbeat_timeout_ms <= self.heartbeat_interval_ms {
            Err("heartbeat timeout: must be longer than the heartbeat interval")
        } else if self.reconnect_delay_min_ms == 0 {
            Err("reconnect delay: the minimum must be at least 1 ms")
        } else if self.reconnect_delay_max_ms < self.reconnect_delay_min_ms {
            Err("reconnect delay: the maximum must not be below the minimum")
        } else {
            Ok(())
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts::DEFAULT
    }
}

/// Delays between tries: none before the first, then doubling with jitter up to a maximum.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    tries: u32,
    random: u64,
}

impl Backoff {
    /// `seed` spreads the tries of many hosts; any value will do.
    pub const fn new(seed: u64) -> Self {
        Backoff {
            tries: 0,
            random: seed | 1,
        }
    }

    /// The next try was a success: begin anew.
    pub fn reset(&mut self) {
        self.tries = 0;
    }

    /// How many tries there were since the last success.
    pub const fn tries(&self) -> u32 {
        self.tries
    }

    /// The delay before the next try: between half and all of the doubled delay, so that hosts
    /// which lost the same node do not come back in step.
    pub fn next_delay_ms(&mut self, timeouts: &Timeouts) -> u64 {
        let tries = self.tries;
        self.tries = self.tries.saturating_add(1);
        if tries == 0 {
            return 0;
        }
        let min = u64::from(timeouts.reconnect_delay_min_ms);
        let max = u64::from(timeouts.reconnect_delay_max_ms);
        let full = min.saturating_mul(1 << (tries - 1).min(16)).min(max).max(1);
        // xorshift64, Marsaglia 2003; quality does not matter here.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        full / 2 + self.random % (full - full / 2 + 1)
    }
}
