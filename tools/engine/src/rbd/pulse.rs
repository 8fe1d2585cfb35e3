// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Notices when the process stood still for too long.
//!
//! A node which lost its volume is kept out by the cluster's blocklist, and
//! entries of that list expire. A process that was stopped for longer (by a
//! signal, a debugger, a suspended machine) could write again after that, as
//! if nothing had happened. So a thread notes the time now and then, and a
//! process which finds that it did not run for too long gives up every volume
//! that it had before.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::time::{clock_gettime, ClockId};

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
    /// When the thread ran last.
    beat_ms: AtomicU64,
    /// How often the process stood still for too long.
    pauses: AtomicU64,
    stop: AtomicBool,
}

impl Pulse {
    /// Starts the thread; it ends after [`Pulse::stop`].
    pub(super) fn start(max_pause: Duration) -> Result<Arc<Self>> {
        let pulse = Arc::new(Self {
            max_pause_ms: u64::try_from(max_pause.as_millis()).unwrap_or(u64::MAX),
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
}
