// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Notices when the process stood still for too long.
//!
//! A node which lost its volume is kept out by the cluster's blocklist, and
//! entries of that list expire. A process that was stopped for longer (by a
//! signal, a debugger, a suspended machine) could write again after that, as
//! if nothing had happened. So a thread notes the time now and then, and a
//! process which finds that it did not run for too long gives up every volume
//! that it had before.
//!
//! The same thread watches over requests of volumes that are lost. They end soon,
//! since librados gives up what takes too long. If one does not, nobody knows what
//! will be sent when the cluster can be reached again, and the process ends.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::time::{clock_gettime, ClockId};

use super::term::Ownership;
use crate::{Error, Result};

/// How often the time is noted.
const BEAT: Duration = Duration::from_millis(500);

/// Milliseconds since the machine was started, with the time during which it
/// was suspended.
fn now_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    // Neither is negative.
    (now.tv_sec as u64).saturating_mul(1000) + now.tv_nsec as u64 / 1_000_000
}

/// The process's sign of life. Written by its thread, read by everybody.
#[derive(Debug)]
pub(super) struct Pulse {
    max_pause_ms: u64,
    /// After this long without an answer of the cluster a term ends; 0: never.
    max_silence_ms: u64,
    /// Terms whose requests must end once they are lost. Locked to add one and
    /// by the thread, which never blocks meanwhile.
    watched: Mutex<Vec<Watched>>,
    /// When the thread ran last.
    beat_ms: AtomicU64,
    /// How often the process stood still for too long.
    pauses: AtomicU64,
    stop: AtomicBool,
}

/// A term, and the number of its requests that librbd has. It holds neither the
/// image nor the client.
#[derive(Debug)]
struct Watched {
    ownership: Arc<Ownership>,
    in_flight: Arc<AtomicUsize>,
}

fn in_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Pulse {
    /// Starts the thread; it ends after [`Pulse::stop`].
    pub(super) fn start(max_pause: Duration, max_operation: Duration) -> Result<Arc<Self>> {
        let pulse = Arc::new(Self {
            max_pause_ms: in_ms(max_pause),
            max_silence_ms: in_ms(max_operation),
            watched: Mutex::default(),
            beat_ms: AtomicU64::new(now_ms()),
            pauses: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        });
        let for_thread = Arc::clone(&pulse);
        thread::Builder::new()
            .name("rbd-pulse".to_owned())
            .spawn(move || {
                while !for_thread.stop.load(Ordering::Relaxed) {
                    for_thread.beat(now_ms());
                    for_thread.watch_over(now_ms());
                    thread::sleep(BEAT);
                }
            })
            .map_err(|e| Error::os(e, "cannot start a thread"))?;
        Ok(pulse)
    }

    /// Ends the thread soon.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn beat(&self, now_ms: u64) {
        let last = self.beat_ms.load(Ordering::Relaxed);
        if now_ms.saturating_sub(last) > self.max_pause_ms {
            tracing::error!(
                paused_ms = now_ms.saturating_sub(last),
                "the process stood still for too long: it gives up its volumes"
            );
            // Before the beat that hides the pause.
            self.pauses.fetch_add(1, Ordering::Release);
        }
        self.beat_ms.store(now_ms, Ordering::Release);
    }

    /// Now, as terms count the time.
    pub(super) fn now_ms() -> u64 {
        now_ms()
    }

    /// Watches over the requests of a term, until its image is closed.
    pub(super) fn watch(&self, ownership: &Arc<Ownership>, in_flight: Arc<AtomicUsize>) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.push(Watched {
            ownership: Arc::clone(ownership),
            in_flight,
        });
    }

    /// Ends the process if there are requests that should have been given up long
    /// ago: they could still be sent when the cluster does not keep them out any
    /// more.
    fn watch_over(&self, now_ms: u64) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        // The image is closed when nobody else counts.
        watched.retain(|w| Arc::strong_count(&w.in_flight) > 1);
        for Watched {
            ownership,
            in_flight,
        } in &*watched
        {
            let requests = in_flight.load(Ordering::Acquire);
            if self.is_overdue(ownership.lost_at_ms(), requests, now_ms) {
                tracing::error!(
                    ?ownership,
                    requests,
                    "requests of a volume that was lost do not end, and could be carried out when \
                     the cluster no longer keeps them out: the node ends at once"
                );
                // The log is written by a thread of its own.
                thread::sleep(BEAT);
                std::process::abort();
            }
        }
    }

    /// Whether there are requests though the term was lost so long ago that all
    /// must have been given up: each was begun before, and has the time of one
    /// operation, and once more that for slowness.
    fn is_overdue(&self, lost_at_ms: Option<u64>, requests: usize, now_ms: u64) -> bool {
        let patience_ms = self.max_silence_ms.saturating_mul(2);
        requests > 0
            && self.max_silence_ms > 0
            && lost_at_ms.is_some_and(|at| now_ms.saturating_sub(at) > patience_ms)
    }

    /// Whether the cluster has confirmed nothing for too long, if it did so last at
    /// `confirmed_ms`.
    pub(super) fn is_silent_since(&self, confirmed_ms: u64) -> bool {
        self.is_silent_at(confirmed_ms, now_ms())
    }

    fn is_silent_at(&self, confirmed_ms: u64, now_ms: u64) -> bool {
        self.max_silence_ms > 0 && now_ms.saturating_sub(confirmed_ms) > self.max_silence_ms
    }

    /// How often the process stood still until now.
    pub(super) fn pauses(&self) -> u64 {
        self.pauses.load(Ordering::Acquire)
    }

    /// Whether the process stood still for too long since there were `pauses`
    /// pauses.
    pub(super) fn paused_since(&self, pauses: u64) -> bool {
        self.is_paused_at(now_ms()) || self.pauses() != pauses
    }

    fn is_paused_at(&self, now_ms: u64) -> bool {
        let beat = self.beat_ms.load(Ordering::Acquire);
        now_ms.saturating_sub(beat) > self.max_pause_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(beat_ms: u64) -> Pulse {
        Pulse {
            max_pause_ms: 1000,
            max_silence_ms: 3000,
            watched: Mutex::default(),
            beat_ms: AtomicU64::new(beat_ms),
            pauses: AtomicU64::new(0),
            stop: AtomicBool::new(false),
        }
    }

    #[test]
    fn a_pause_is_noticed_before_and_after_the_next_beat() {
        let pulse = at(5000);
        assert!(!pulse.is_paused_at(6000));
        assert!(pulse.is_paused_at(6001));
        pulse.beat(6001);
        assert!(!pulse.is_paused_at(6001));
        assert_eq!(pulse.pauses(), 1);
        pulse.beat(7001);
        assert_eq!(pulse.pauses(), 1);
    }

    #[test]
    fn a_cluster_that_confirms_nothing_ends_terms_and_stuck_requests_the_process() {
        let mut pulse = at(0);
        assert!(!pulse.is_silent_at(1000, 4000));
        assert!(pulse.is_silent_at(1000, 4001));
        assert!(!pulse.is_overdue(None, 1, u64::MAX), "not lost");
        assert!(
            !pulse.is_overdue(Some(1000), 0, u64::MAX),
            "nothing is left"
        );
        assert!(!pulse.is_overdue(Some(1000), 1, 7000));
        assert!(pulse.is_overdue(Some(1000), 1, 7001));
        pulse.max_silence_ms = 0;
        assert!(!pulse.is_silent_at(0, u64::MAX) && !pulse.is_overdue(Some(0), 1, u64::MAX));
    }
}
