// SPDX-License-Identifier: GPL-2.0 OR MIT
//! How fast a client must take what it asked for, and bring what it announced.
//!
//! Bytes of requests in flight come from budgets that others share. A client that takes its replies a
//! byte at a time would keep them for ever, though it is never silent. So there is a least rate:
//! within [`TIMEOUTS`] heartbeat timeouts [`LEAST_BYTES`] must go, or all that waited if that is less.
//! It is a rate and not a time for all of it, since much may be in flight on a slow link: with the
//! default timeouts 29 KB/s, at which a host would long have lost patience (its request timeout is 30
//! seconds) but an honest link is not cut.

use neonsan_session::Instant;

use crate::config::{TimeoutsConfig, MAX_IO_BYTES};

/// The time for [`LEAST_BYTES`], in heartbeat timeouts.
const TIMEOUTS: u64 = 4;

/// What must go in that time: the longest payload there is.
const LEAST_BYTES: u64 = MAX_IO_BYTES;

/// The time in which what waits must get on; a payload must arrive whole within it.
pub(super) fn limit_ms(timeouts: &TimeoutsConfig) -> u64 {
    TIMEOUTS * u64::from(timeouts.heartbeat_timeout_ms)
}

/// The pace of what is sent on one connection.
///
/// ```text
///   1 Nothing waits ── some is left after sending ──▶ 2 Due
///          ▲                                           │  ▲
///          └────────── all was sent ───────────────────┘  └─ as much went as was due
/// ```
#[derive(Debug, Default)]
pub(super) struct Pace {
    due: Option<Due>,
}

/// So many bytes must have gone within the limit.
#[derive(Debug)]
struct Due {
    since: Instant,
    bytes: u64,
}

impl Pace {
    /// `sent` bytes have gone, and `waiting` wait now.
    pub(super) fn on_sent(&mut self, sent: u64, waiting: u64, now: Instant) {
        match &mut self.due {
            _ if waiting == 0 => self.due = None,
            Some(due) if sent < due.bytes => due.bytes -= sent,
            Some(_) | None => {
                self.due = Some(Due {
                    since: now,
                    bytes: waiting.min(LEAST_BYTES),
                });
            }
        }
    }

    /// What was due did not go within `limit_ms`.
    pub(super) fn is_too_slow(&self, now: Instant, limit_ms: u64) -> bool {
        let due = self.due.as_ref();
        due.is_some_and(|due| now.since_ms(due.since) >= limit_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT_MS: u64 = 36_000;
    const MUCH: u64 = 64 << 20;

    /// When a client is given up that takes `bytes` each `every_ms` of ever the same backlog.
    fn given_up(bytes: u64, every_ms: u64, backlog: u64) -> Option<u64> {
        let mut pace = Pace::default();
        pace.on_sent(0, backlog, Instant(0));
        let mut at = 0;
        while at < 100 * LIMIT_MS {
            at += every_ms;
            if pace.is_too_slow(Instant(at), LIMIT_MS) {
                return Some(at);
            }
            pace.on_sent(bytes, backlog, Instant(at));
        }
        None
    }

    #[test]
    fn whoever_takes_less_than_the_least_rate_is_given_up() {
        // Never silent, and never done.
        assert_eq!(given_up(1, 1_000, MUCH), Some(LIMIT_MS));
        assert_eq!(given_up(4096, 1_000, MUCH), Some(LIMIT_MS));
        // However little waits: it must go as a whole.
        assert_eq!(given_up(1, 1_000, 4128), Some(LIMIT_MS));
        assert_eq!(given_up(0, 1_000, 32), Some(LIMIT_MS));
    }

    #[test]
    fn a_slow_link_is_not_cut_however_much_waits() {
        // 30 KB/s and 1 Mbit/s, of 64 MiB; 300 bytes a second of small replies.
        assert_eq!(given_up(30_000, 1_000, MUCH), None);
        assert_eq!(given_up(125_000, 1_000, MUCH), None);
        assert_eq!(given_up(300, 1_000, 4128), None);
        // Sockets take it in lumps.
        assert_eq!(given_up(1 << 20, 30_000, MUCH), None);
    }

    #[test]
    fn the_time_begins_anew_when_nothing_waits() {
        let mut pace = Pace::default();
        pace.on_sent(0, 100, Instant(0));
        pace.on_sent(100, 0, Instant(LIMIT_MS - 1));
        assert!(!pace.is_too_slow(Instant(10 * LIMIT_MS), LIMIT_MS));
        pace.on_sent(0, 100, Instant(10 * LIMIT_MS));
        assert!(!pace.is_too_slow(Instant(11 * LIMIT_MS - 1), LIMIT_MS));
        assert!(pace.is_too_slow(Instant(11 * LIMIT_MS), LIMIT_MS));
    }
}
