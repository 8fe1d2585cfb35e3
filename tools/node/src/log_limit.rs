// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Bounds on lines of the log that anybody who reaches the data port can cause.
//!
//! A connection that is refused costs its client nothing, and each one is worth a line: so a client
//! that is not let in could fill the disk of the log, and push out the lines that matter. Of each
//! kind so many are written within a period; when it is over one line says how many were left out.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use neonsan_session::Instant;

/// Lines of one kind within a period.
const LINES: u64 = 10;

/// The period, which begins with the first line of its kind.
const PERIOD_MS: u64 = 10_000;

/// A kind of lines: what they say, and the cause, if lines of several causes say the same.
pub type Kind = (&'static str, &'static str);

/// How many lines of a kind there were.
#[derive(Debug)]
struct Period {
    since: Instant,
    lines: u64,
}

/// Which lines may be written. Its callers say the time.
#[derive(Debug, Default)]
struct LogLimit {
    periods: BTreeMap<Kind, Period>,
}

impl LogLimit {
    /// Whether a line of this kind may be written now; else it counts as left out.
    fn admits(&mut self, kind: Kind, now: Instant) -> bool {
        let period = self.periods.entry(kind).or_insert(Period {
            since: now,
            lines: 0,
        });
        period.lines += 1;
        period.lines <= LINES
    }

    /// Ends the periods that are over; gives the kinds of which lines were left out, and how many.
    fn ended(&mut self, now: Instant) -> Vec<(Kind, u64)> {
        let mut left_out = Vec::new();
        self.periods.retain(|kind, period| {
            let is_over = now.since_ms(period.since) >= PERIOD_MS;
            if is_over && period.lines > LINES {
                left_out.push((*kind, period.lines - LINES));
            }
            !is_over
        });
        left_out
    }
}

/// The bounds of a node, for all its threads. Locked where such a line would be written, and ten
/// times a second, never for I/O.
#[derive(Debug, Default)]
pub struct LogLimits {
    limit: Mutex<LogLimit>,
    left_out: AtomicU64,
}

impl LogLimits {
    /// Whether a line of this kind may be written at `now`; else it counts as left out.
    pub fn admits(&self, kind: Kind, now: Instant) -> bool {
        let mut limit = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
        let admits = limit.admits(kind, now);
        if !admits {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
        admits
    }

    /// Lines that were left out since the node started.
    pub fn left_out(&self) -> u64 {
        self.left_out.load(Ordering::Relaxed)
    }

    /// Writes what was left out in the periods that are over. To be called often.
    pub fn tell(&self, now: Instant) {
        let ended = {
            let mut limit = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
            limit.ended(now)
        };
        for ((what, cause), lines) in ended {
            tracing::warn!(
                lines,
                cause,
                "left out {lines} more lines like \"{what}\" within {} seconds: somebody connects \
                 again and again; see who in the lines that were written",
                PERIOD_MS / 1000
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DENIED: Kind = ("not let in", "");
    const CLOSED: Kind = ("closed", "refused");

    /// How many of so many lines are written at that time.
    fn written(limit: &mut LogLimit, kind: Kind, lines: u64, at: u64) -> usize {
        (0..lines)
            .filter(|_| limit.admits(kind, Instant(at)))
            .count()
    }

    #[test]
    fn of_each_kind_only_so_many_are_written_and_the_rest_is_counted() {
        let mut limit = LogLimit::default();
        assert_eq!(written(&mut limit, DENIED, 10_000, 5), 10);
        // Another kind has a bound of its own.
        assert_eq!(written(&mut limit, CLOSED, 12, 6), 10);
        assert_eq!(written(&mut limit, DENIED, 1, 10_004), 0);
        assert_eq!(limit.ended(Instant(10_004)), []);
        assert_eq!(limit.ended(Instant(10_005)), [(DENIED, 9_991)]);
        assert_eq!(limit.ended(Instant(10_006)), [(CLOSED, 2)]);
        // Told once.
        assert_eq!(limit.ended(Instant(30_000)), []);
    }

    #[test]
    fn a_new_period_has_its_lines_and_a_quiet_one_says_nothing() {
        let mut limit = LogLimit::default();
        assert_eq!(written(&mut limit, DENIED, 10, 0), 10);
        assert_eq!(limit.ended(Instant(10_000)), []);
        assert_eq!(written(&mut limit, DENIED, 11, 10_001), 10);
        // Nobody looked for a while: no more lines are written for that.
        assert_eq!(written(&mut limit, DENIED, 5, 90_000), 0);
        assert_eq!(limit.ended(Instant(90_000)), [(DENIED, 6)]);
        assert_eq!(written(&mut limit, DENIED, 1, 90_001), 1);
    }

    #[test]
    fn nothing_is_kept_of_a_kind_whose_period_is_over() {
        let mut limit = LogLimit::default();
        written(&mut limit, DENIED, 3, 0);
        limit.ended(Instant(10_000));
        assert!(limit.periods.is_empty());
    }
}
