// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What is known of an engine's health.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use neonsan_api::{show_time, EngineState};
use neonsan_engine::{EngineStatus, Error, ErrorKind};

use super::SILENT;
use crate::metrics::OpKind;

/// Failed requests make an engine degraded for this long.
const REMEMBER: Duration = Duration::from_secs(600);

/// Below this share of its space an engine is a problem: one in 20.
const LOW_SPACE_SHARE: u64 = 20;

/// A request that failed.
struct Failure {
    at: Instant,
    at_unix_s: u64,
    text: String,
    /// Failed ones since the last time that none was remembered.
    count: u64,
}

#[derive(Default)]
struct Inner {
    /// It was opened, or could not be, once at least.
    tried: bool,
    /// Since when the engine is being asked something.
    asking: Option<Instant>,
    /// What it answered last: what is wrong though it works, or why it does not.
    answer: Option<Result<Vec<String>, String>>,
    /// What is wrong with volumes of the configuration.
    volumes: Vec<String>,
    status: Option<EngineStatus>,
    failure: Option<Failure>,
}

impl Inner {
    /// For how long it has not answered, if that is long.
    fn silent_for(&self) -> Option<Duration> {
        let silent = self.asking?.elapsed();
        (silent >= SILENT).then_some(silent)
    }
}

/// What is known of an engine's health. Its lock is held for looking and noting
/// only, never while the engine is asked.
#[derive(Default)]
pub(super) struct Report {
    inner: Mutex<Inner>,
    changed: Condvar,
    /// Requests that failed, by what they did.
    pub(super) failures: [AtomicU64; OpKind::ALL.len()],
}

impl Report {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The engine is asked from now on.
    pub(super) fn begin(&self) {
        self.inner().asking = Some(Instant::now());
    }

    /// It has answered, also if that is an error of opening it.
    pub(super) fn end(&self, answer: Result<Vec<String>, String>, status: Option<EngineStatus>) {
        let mut inner = self.inner();
        inner.tried = true;
        inner.asking = None;
        inner.answer = Some(answer);
        inner.status = status;
        self.changed.notify_all();
    }

    /// Whether it has been asked for long, and has not answered.
    pub(super) fn is_silent(&self) -> bool {
        self.inner().silent_for().is_some()
    }

    /// What is wrong with volumes of the configuration.
    pub(super) fn set_volume_problems(&self, problems: Vec<String>) {
        self.inner().volumes = problems;
    }

    pub(super) fn status(&self) -> Option<EngineStatus> {
        self.inner().status.clone()
    }

    /// Waits until the engine was opened, or could not be; `false` at the deadline.
    pub(super) fn wait_until_tried(&self, deadline: Instant) -> bool {
        let left = deadline.saturating_duration_since(Instant::now());
        let (inner, _) = self
            .changed
            .wait_timeout_while(self.inner(), left, |inner| !inner.tried)
            .unwrap_or_else(PoisonError::into_inner);
        inner.tried
    }

    /// A request of a volume has failed.
    pub(super) fn request_failed(&self, volume: &dyn fmt::Display, op: OpKind, error: &Error) {
        let is_storage = match error.kind() {
            ErrorKind::Io
            | ErrorKind::Corrupt
            | ErrorKind::NotPermitted
            | ErrorKind::NoResources
            | ErrorKind::Unavailable => true,
            // What the client asked for was wrong, or the space tells it, or
            // another node has the volume, or health names what is in the way.
            ErrorKind::NotFound
            | ErrorKind::NoSuchSnapshot
            | ErrorKind::AlreadyExists
            | ErrorKind::Busy
            | ErrorKind::NoSpace
            | ErrorKind::BadSize
            | ErrorKind::OutOfRange
            | ErrorKind::Misaligned
            | ErrorKind::TooLarge
            | ErrorKind::AtomicLimit
            | ErrorKind::Unsupported
            | ErrorKind::Conflict
            | ErrorKind::NotOwner => false,
        };
        if !is_storage {
            return;
        }
        self.failures[op as usize].fetch_add(1, Ordering::Relaxed);
        let now = Instant::now();
        let mut inner = self.inner();
        let count = inner
            .failure
            .take()
            .filter(|failure| now.duration_since(failure.at) < REMEMBER)
            .map_or(0, |failure| failure.count);
        inner.failure = Some(Failure {
            at: now,
            at_unix_s: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| d.as_secs()),
            text: format!("{} of {volume}: {error}", op.name()),
            count: count + 1,
        });
    }

    /// The state in a word, and what is wrong. `open`: the engine is open.
    pub(super) fn state(&self, open: bool) -> (EngineState, Vec<String>) {
        let inner = self.inner();
        let mut problems = Vec::new();
        if !open {
            let Some(Err(reason)) = &inner.answer else {
                return (
                    EngineState::Starting,
                    vec!["it is still being opened".to_owned()],
                );
            };
            problems.push(reason.clone());
            return (EngineState::Down, problems);
        }
        let silent = inner.silent_for();
        if let Some(silent) = silent {
            problems.push(format!("it does not answer for {} s", silent.as_secs()));
        }
        let mut is_failing = silent.is_some();
        match &inner.answer {
            None => {}
            Some(Ok(notes)) => problems.extend(notes.iter().cloned()),
            Some(Err(reason)) => {
                is_failing = true;
                problems.push(reason.clone());
            }
        }
        if let Some(failure) = &inner.failure {
            if failure.at.elapsed() < REMEMBER {
                problems.push(format!(
                    "{} requests have failed, the last one at {}: {}",
                    failure.count,
                    show_time(failure.at_unix_s),
                    failure.text
                ));
            }
        }
        problems.extend(inner.volumes.iter().cloned());
        problems.extend(inner.status.as_ref().and_then(low_space));
        let state = match (is_failing, problems.is_empty()) {
            (true, _) => EngineState::Failing,
            (false, true) => EngineState::Ok,
            (false, false) => EngineState::Degraded,
        };
        (state, problems)
    }
}

fn low_space(status: &EngineStatus) -> Option<String> {
    let (capacity, available) = (status.capacity_bytes?, status.available_bytes?);
    (available < capacity / LOW_SPACE_SHARE)
        .then(|| format!("it has {available} of {capacity} bytes left"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_has_its_state() {
        let report = Report::default();
        assert_eq!(report.state(false).0, EngineState::Starting);
        report.begin();
        assert_eq!(report.state(false).0, EngineState::Starting);
        report.end(Err("no such directory".to_owned()), None);
        let (state, problems) = report.state(false);
        assert_eq!(state, EngineState::Down);
        assert_eq!(problems, ["no such directory"]);
        report.end(Ok(Vec::new()), None);
        assert_eq!(report.state(true), (EngineState::Ok, Vec::new()));
        report.end(Ok(vec!["a leftover".to_owned()]), None);
        assert_eq!(report.state(true).0, EngineState::Degraded);
        report.end(Err("EIO".to_owned()), None);
        assert_eq!(report.state(true).0, EngineState::Failing);
        let status = EngineStatus {
            capacity_bytes: Some(1000),
            available_bytes: Some(1),
            ..EngineStatus::default()
        };
        report.end(Ok(Vec::new()), Some(status));
        let (state, problems) = report.state(true);
        assert_eq!(state, EngineState::Degraded);
        assert!(problems[0].contains("1 of 1000 bytes"), "{problems:?}");
    }

    #[test]
    fn failed_requests_are_remembered_with_the_last_and_wrong_ones_are_not() {
        let report = Report::default();
        report.end(Ok(Vec::new()), None);
        let error = |kind| Error::new(kind, "it fails");
        report.request_failed(&"p/v", OpKind::Write, &error(ErrorKind::OutOfRange));
        report.request_failed(&"p/v", OpKind::Write, &error(ErrorKind::NotOwner));
        assert_eq!(report.state(true).0, EngineState::Ok);
        report.request_failed(&"p/v", OpKind::Read, &error(ErrorKind::Io));
        report.request_failed(&"p/w", OpKind::Flush, &error(ErrorKind::Io));
        let (state, problems) = report.state(true);
        assert_eq!(state, EngineState::Degraded);
        let text = &problems[0];
        assert!(
            text.starts_with("2 requests") && text.contains("flush of p/w: it fails"),
            "{text}"
        );
    }

    #[test]
    fn an_engine_that_does_not_answer_is_said_so() {
        let report = Report::default();
        report.end(Ok(Vec::new()), None);
        report.begin();
        assert_eq!(report.state(true).0, EngineState::Ok);
        let Some(past) = Instant::now().checked_sub(SILENT) else {
            // The machine was started less than that ago.
            return;
        };
        report.inner().asking = Some(past);
        let (state, problems) = report.state(true);
        assert_eq!(state, EngineState::Failing);
        assert!(
            problems[0].starts_with("it does not answer for 1"),
            "{problems:?}"
        );
    }
}
