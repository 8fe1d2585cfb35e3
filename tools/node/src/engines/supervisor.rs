// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The thread of an engine: opens it, then asks it how it is.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use neonsan_engine::{Engine, ErrorKind, VolumeSpec};

use crate::config::VolumeConfig;

use super::{Opener, Supervised, FIRST_PAUSE, LONGEST_PAUSE, PERIOD, STOP_PATIENCE};

/// The threads. They end when this is stopped, or soon after.
#[derive(Default)]
pub struct Supervisors {
    threads: Vec<Thread>,
}

struct Thread {
    engine: String,
    /// Dropped to end the thread.
    stop: Sender<()>,
    /// Disconnected when the thread has ended.
    ended: Receiver<()>,
}

impl Supervisors {
    /// Starts the thread of one engine.
    pub(super) fn start(
        &mut self,
        name: &str,
        supervised: Arc<Supervised>,
        opener: Opener,
        volumes: Vec<VolumeConfig>,
    ) -> std::io::Result<()> {
        let (stop, stopped) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let engine = name.to_owned();
        thread::Builder::new()
            .name(format!("engine-{name}"))
            .spawn(move || {
                supervise(&engine, &supervised, opener, &volumes, &stopped);
                // What it holds of the engine is given up first.
                drop(supervised);
                drop(end);
            })?;
        self.threads.push(Thread {
            engine: name.to_owned(),
            stop,
            ended,
        });
        Ok(())
    }

    /// Ends the threads. Waits for a moment only: an engine may not answer.
    pub fn stop(self) {
        let deadline = Instant::now() + STOP_PATIENCE;
        let ends: Vec<_> = self
            .threads
            .into_iter()
            .map(|thread| {
                drop(thread.stop);
                (thread.engine, thread.ended)
            })
            .collect();
        for (engine, ended) in ends {
            let left = deadline.saturating_duration_since(Instant::now());
            if let Err(RecvTimeoutError::Timeout) = ended.recv_timeout(left) {
                tracing::warn!(%engine, "the engine does not answer: it is not closed in order");
            }
        }
    }
}

/// Waits; `true` if the thread is to end.
fn pause(stopped: &Receiver<()>, pause: Duration) -> bool {
    !matches!(stopped.recv_timeout(pause), Err(RecvTimeoutError::Timeout))
}

fn supervise(
    name: &str,
    supervised: &Supervised,
    opener: Opener,
    volumes: &[VolumeConfig],
    stopped: &Receiver<()>,
) {
    let Some(engine) = open(name, supervised, opener, volumes, stopped) else {
        return;
    };
    let mut last = None;
    loop {
        ask(name, supervised, &*engine, &mut last);
        if pause(stopped, PERIOD) {
            return;
        }
    }
}

/// Tries to open the engine until that works; `None`: the node ends.
fn open(
    name: &str,
    supervised: &Supervised,
    mut opener: Opener,
    volumes: &[VolumeConfig],
    stopped: &Receiver<()>,
) -> Option<Arc<dyn Engine>> {
    let mut wait = FIRST_PAUSE;
    let mut last = String::new();
    loop {
        supervised.report.begin();
        match opener() {
            Ok(engine) => {
                let status = engine.status();
                let notes = match &status {
                    Ok(status) => status.notes.join("; "),
                    Err(error) => error.to_string(),
                };
                let problems = create_volumes(name, &*engine, volumes);
                supervised.report.set_volume_problems(problems);
                tracing::info!(engine = %name, kind = engine.kind(), %notes, "engine ready");
                supervised.stand_in.open(Arc::clone(&engine));
                supervised.report.end(Ok(Vec::new()), status.ok());
                return Some(engine);
            }
            Err(error) => {
                let text = error.to_string();
                if text != last {
                    tracing::error!(
                        engine = %name, %error,
                        "the engine cannot be used: its volumes are not served until it can; it is tried again"
                    );
                    last.clone_from(&text);
                }
                supervised.stand_in.failed(&error);
                supervised.report.end(Err(text), None);
            }
        }
        if pause(stopped, wait) {
            return None;
        }
        wait = (wait * 2).min(LONGEST_PAUSE);
    }
}

/// Creates the volumes of the configuration that are not there; what is wrong with
/// those that cannot be created.
fn create_volumes(name: &str, engine: &dyn Engine, volumes: &[VolumeConfig]) -> Vec<String> {
    let mut problems = Vec::new();
    for volume in volumes {
        let spec = VolumeSpec {
            size_bytes: volume.size_bytes,
            logical_block_size: volume.logical_block_size_bytes,
            physical_block_size: volume.physical_block_size_bytes,
        };
        match engine.create(&volume.name, &spec) {
            Ok(_) => tracing::info!(volume = %volume.name, engine = %name, "volume created"),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => {
                let problem = format!("the volume {} cannot be created: {error}", volume.name);
                tracing::error!(engine = %name, "{problem}");
                problems.push(problem);
            }
        }
    }
    problems
}

/// Asks the engine how it is; `last` is what it said last, so that only news is logged.
fn ask(name: &str, supervised: &Supervised, engine: &dyn Engine, last: &mut Option<String>) {
    supervised.report.begin();
    let status = engine.status();
    let answer = match (engine.health(), &status) {
        (Err(error), _) => Err(error.to_string()),
        (Ok(_), Err(error)) => Err(error.to_string()),
        (Ok(problems), Ok(_)) => Ok(problems),
    };
    let said = match &answer {
        Ok(problems) if problems.is_empty() => None,
        Ok(problems) => Some(problems.join("; ")),
        Err(reason) => Some(reason.clone()),
    };
    supervised.report.end(answer, status.ok());
    if said != *last {
        match &said {
            Some(problems) => tracing::error!(engine = %name, %problems, "the engine has problems"),
            None => tracing::info!(engine = %name, "the engine is well again"),
        }
        *last = said;
    }
}
