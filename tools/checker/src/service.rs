// SPDX-License-Identifier: GPL-2.0 OR MIT

//! How long nothing was answered.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

/// A time without service that is shorter than this is not listed.
const LISTED: Duration = Duration::from_millis(250);

/// How many are listed.
const MAX_LISTED: usize = 1000;

/// A time without an answer, though requests waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// The last answer before it, in milliseconds since 1970.
    pub from_unix_ms: u64,
    /// The first answer after it.
    pub to_unix_ms: u64,
    /// Its length.
    pub ms: u64,
}

/// Counts answers and the time between them. Answers that are errors are no service.
#[derive(Debug)]
pub struct Service(Mutex<State>);

#[derive(Debug)]
struct State {
    last: Instant,
    last_unix_ms: u64,
    longest: Duration,
    gaps: Vec<Gap>,
    slowest: Duration,
}

fn unix_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

impl Service {
    /// Begins now.
    pub fn start() -> Self {
        Service(Mutex::new(State {
            last: Instant::now(),
            last_unix_ms: unix_ms(),
            longest: Duration::ZERO,
            gaps: Vec::new(),
            slowest: Duration::ZERO,
        }))
    }

    /// A request that was sent at `sent` was answered well.
    pub fn on_answer(&self, sent: Instant) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let now_unix_ms = unix_ms();
        let gap = now.saturating_duration_since(state.last);
        if gap >= LISTED && state.gaps.len() < MAX_LISTED {
            let from_unix_ms = state.last_unix_ms;
            state.gaps.push(Gap {
                from_unix_ms,
                to_unix_ms: now_unix_ms,
                ms: millis(gap),
            });
        }
        state.longest = state.longest.max(gap);
        state.slowest = state.slowest.max(now.saturating_duration_since(sent));
        state.last = now;
        state.last_unix_ms = now_unix_ms;
    }

    /// The times without service: the longest and all that are listed, and the slowest answer.
    pub fn summary(&self) -> Summary {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Summary {
            longest_gap_ms: millis(state.longest),
            slowest_ms: millis(state.slowest),
            gaps: state.gaps.clone(),
        }
    }
}

/// What [`Service`] saw.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// The longest time in which nothing was answered.
    pub longest_gap_ms: u64,
    /// The longest time that one request took.
    pub slowest_ms: u64,
    /// Every such time of a quarter of a second or more.
    pub gaps: Vec<Gap>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_long_gaps_are_listed() {
        let service = Service::start();
        let sent = Instant::now();
        service.on_answer(sent);
        std::thread::sleep(LISTED + Duration::from_millis(20));
        service.on_answer(sent);
        service.on_answer(sent);
        let summary = service.summary();
        assert_eq!(summary.gaps.len(), 1);
        assert_eq!(summary.gaps[0].ms, summary.longest_gap_ms);
        assert!(summary.slowest_ms >= summary.longest_gap_ms);
    }
}
