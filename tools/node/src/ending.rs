// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What the engines do when the node ends.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use neonsan_engine::Engine;

use crate::config::Config;
use crate::node::NodeError;
use crate::shared::NamedEngine;

/// Has the engines note for the next process what it must know, however this one ends in order: also
/// when it could not begin, or was not drained.
pub(crate) struct End {
    /// With their names. Empty when there is nothing more to do.
    engines: Vec<(String, Arc<dyn Engine>)>,
    limit_ms: u32,
    /// Requests may be in the engines when this goes.
    serves: bool,
}

impl End {
    /// For these engines.
    pub(crate) fn new(engines: &[NamedEngine], config: &Config) -> Self {
        Self {
            engines: engines
                .iter()
                .map(|named| (named.name.clone(), Arc::clone(&named.engine)))
                .collect(),
            limit_ms: config.timeouts.shutdown_drain_ms,
            serves: false,
        }
    }

    /// From here on requests may come, so that an engine can be stopped only when they have ended. A
    /// node that ends before that leaves its engines as the one before it did: stopped in order.
    pub(crate) fn begin_to_serve(&mut self) {
        self.serves = true;
    }

    /// Has the engines put on stable storage what they have answered, and note that. Waits no
    /// longer than for requests.
    pub(crate) fn stop_engines(mut self) -> Result<(), NodeError> {
        match self.stop() {
            true => Ok(()),
            false => Err(NodeError::NotSynced),
        }
    }

    fn stop(&mut self) -> bool {
        let stop = |name: &str, engine: &dyn Engine| match engine.stop() {
            Ok(()) => {
                tracing::info!(engine = %name, "what was answered is synced");
                true
            }
            Err(error) => {
                tracing::error!(
                    engine = %name, %error,
                    "what was answered may not be on stable storage: look at the kernel's log"
                );
                false
            }
        };
        let late = "what was answered is not synced yet, or that it is lost is not noted, and \
                    timeouts.shutdown_drain_ms is up: the node stops without";
        self.each(stop, late)
    }

    /// Does something with each engine, at the same time, but for those that hang. `false` if it was
    /// not done, or took too long.
    fn each(&mut self, act: fn(&str, &dyn Engine) -> bool, late: &str) -> bool {
        let (send, ended) = mpsc::channel();
        let mut all = true;
        let mut left = self.engines.len();
        for (name, engine) in std::mem::take(&mut self.engines) {
            let send = send.clone();
            let for_thread = name.clone();
            let spawned = thread::Builder::new()
                .name("stop-engine".to_owned())
                .spawn(move || {
                    // Nobody waits any more when it comes too late.
                    let _ = send.send(act(&for_thread, &*engine));
                });
            if let Err(error) = spawned {
                tracing::error!(engine = %name, %error, "cannot start a thread");
            }
        }
        drop(send);
        let limit = Duration::from_millis(u64::from(self.limit_ms));
        let deadline = Instant::now() + limit;
        loop {
            match ended.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(done) => {
                    all &= done;
                    left -= 1;
                }
                Err(RecvTimeoutError::Disconnected) => return all && left == 0,
                Err(RecvTimeoutError::Timeout) => {
                    tracing::error!(limit_ms = self.limit_ms, "{late}");
                    return false;
                }
            }
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if self.engines.is_empty() {
            return;
        }
        if !self.serves {
            self.stop();
            return;
        }
        let finish = |_: &str, engine: &dyn Engine| {
            engine.finish_notes();
            true
        };
        let late = "the new boot id of an engine is not noted yet, and timeouts.shutdown_drain_ms \
                    is up: before another node uses its directory, mount its file system anew or \
                    boot the machine";
        self.each(finish, late);
    }
}
