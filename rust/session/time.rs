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

    /// What each of them may be, in the order of [`Timeouts::values`]. The one place of these
    /// numbers: the module, the command and the user-space client check by it, and a test holds the
    /// netlink family's spec against it.
    pub const BOUNDS: [TimeoutBound; 7] = [
        TimeoutBound::new("request", "request timeout", 100),
        TimeoutBound::new("connect", "connect timeout", 100),
        TimeoutBound::new("heartbeat-interval", "heartbeat interval", 100),
        TimeoutBound::new("heartbeat-timeout", "heartbeat timeout", 100),
        TimeoutBound::new("reconnect-delay-min", "minimum of the reconnect delay", 1),
        TimeoutBound::new("reconnect-delay-max", "maximum of the reconnect delay", 1),
        // Zero is for ever.
        TimeoutBound::new("loss", "loss timeout", 0),
    ];

    /// The values, in the order of [`Timeouts::BOUNDS`].
    pub const fn values(&self) -> [u32; 7] {
        [
            self.request_ms,
            self.connect_ms,
            self.heartbeat_interval_ms,
            self.heartbeat_timeout_ms,
            self.reconnect_delay_min_ms,
            self.reconnect_delay_max_ms,
            self.loss_ms,
        ]
    }

    /// Checks every value, and those that depend on each other.
    ///
    /// # Errors
    ///
    /// The first fault, with a text for people.
    pub fn check(&self) -> Result<(), BadTimeout> {
        for (bound, value) in Timeouts::BOUNDS.iter().zip(self.values()) {
            bound.check(value)?;
        }
        if self.heartbeat_timeout_ms <= self.heartbeat_interval_ms {
            return Err(BadTimeout::Heartbeat);
        }
        if self.reconnect_delay_max_ms < self.reconnect_delay_min_ms {
            return Err(BadTimeout::ReconnectDelay);
        }
        Ok(())
    }
}

/// Longest value of any timeout, 24 days: just below 2^31 ms, where the kernel's own (in ticks, or
/// of a socket in milliseconds) end or begin to mean "for ever".
pub const MAX_TIMEOUT_MS: u32 = 24 * 24 * 60 * 60 * 1000;

/// What a timeout may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeoutBound {
    /// Its name as an attribute of the netlink family.
    pub name: &'static str,
    /// Its name for people.
    pub label: &'static str,
    /// The least value, in milliseconds. The greatest is [`MAX_TIMEOUT_MS`] for all.
    pub min_ms: u32,
}

impl TimeoutBound {
    const fn new(name: &'static str, label: &'static str, min_ms: u32) -> Self {
        TimeoutBound {
            name,
            label,
            min_ms,
        }
    }

    /// Checks a value, in milliseconds.
    ///
    /// # Errors
    ///
    /// It is out of range: a text for people.
    pub fn check(&self, value_ms: u32) -> Result<(), BadTimeout> {
        if (self.min_ms..=MAX_TIMEOUT_MS).contains(&value_ms) {
            Ok(())
        } else {
            Err(BadTimeout::Range(*self))
        }
    }
}

/// Why timeouts make no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadTimeout {
    /// This one is out of range.
    Range(TimeoutBound),
    /// A connection would be given up before a heartbeat was sent on it.
    Heartbeat,
    /// The longest delay is shorter than the shortest.
    ReconnectDelay,
}

impl core::fmt::Display for BadTimeout {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            BadTimeout::Range(TimeoutBound { label, min_ms, .. }) => write!(
                f,
                "{label}: must be {min_ms} ms to 24 days ({MAX_TIMEOUT_MS} ms){}",
                match min_ms {
                    0 => ", 0 is for ever",
                    _ => "",
                }
            ),
            BadTimeout::Heartbeat => {
                f.write_str("heartbeat timeout: must be longer than the heartbeat interval")
            }
            BadTimeout::ReconnectDelay => {
                f.write_str("reconnect delay: the maximum must not be below the minimum")
            }
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
