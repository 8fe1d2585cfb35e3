// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The engines of the configuration, each on its own.
//!
//! An engine that cannot be opened keeps nothing else from being served: its place
//! is taken by a stand-in that refuses with the reason, and a thread tries again
//! with growing pauses until it opens. The same thread asks an open engine every
//! few seconds whether its storage works; whoever wants to know reads what it found
//! last, so a storage that does not answer holds up nobody but that thread, and
//! that it does not answer is a finding too.

mod looks;
mod report;
mod standin;
mod supervisor;

use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use neonsan_api::{EngineHealth, EngineState, VolumeName};
use neonsan_engine::{Engine, EngineStatus, Error};

use crate::config::{Config, EngineConfig};
use crate::metrics::OpKind;
use crate::shared::{Clock, NamedEngine};
use looks::Looks;
use report::Report;
pub(crate) use standin::StandIn;
pub use supervisor::Supervisors;

/// How often an open engine is asked how it is.
const PERIOD: Duration = Duration::from_secs(5);

/// An engine that has not answered for this long is said not to.
const SILENT: Duration = Duration::from_secs(10);

/// How long the start of the node waits for engines that have neither opened nor
/// failed: a lock of the node before may be held for a while.
const START_PATIENCE: Duration = Duration::from_secs(15);

/// Pauses between tries to open an engine: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How long the end of the node waits for a supervisor that is asking its engine.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// Opens one engine; may be called again after a failure.
pub(crate) type Opener = Box<dyn FnMut() -> Result<Arc<dyn Engine>, Error> + Send>;

/// What an engine says, with its name, which the refusal of a stand-in has already.
pub fn of_engine(name: &str, error: &Error) -> String {
    let text = error.to_string();
    if text.starts_with(&format!("the engine {name} ")) {
        text
    } else {
        format!("the engine {name}: {text}")
    }
}

/// How an engine is, and its place for as long as it cannot be used. Shared by its
/// supervisor, which writes, and everybody who reads.
pub struct Supervised {
    stand_in: Arc<StandIn>,
    report: Report,
    looks: Arc<Looks>,
}

impl Supervised {
    fn new(name: &str, config: &EngineConfig) -> Arc<Self> {
        let (kind, persistent, shared) = match config {
            EngineConfig::File { .. } => ("file", true, false),
            EngineConfig::Mem { .. } => ("mem", false, false),
            EngineConfig::Rbd { .. } => ("rbd", true, true),
        };
        Arc::new(Self {
            stand_in: Arc::new(StandIn::new(name, kind, persistent, shared)),
            report: Report::default(),
            looks: Arc::default(),
        })
    }

    /// Whether the engine `engine`, which this is about, has a volume of the name. Blocks for a moment at
    /// most, whatever the engine does.
    ///
    /// # Errors
    ///
    /// What it says; [`ErrorKind::Unavailable`](neonsan_engine::ErrorKind::Unavailable) if it does not
    /// answer.
    pub fn has(
        &self,
        engine_name: &str,
        engine: &Arc<dyn Engine>,
        name: &VolumeName,
    ) -> neonsan_engine::Result<bool> {
        if self.stand_in.opened().is_none() {
            // It says so at once.
            return engine.exists(name);
        }
        self.looks.exists(engine_name, engine, name)
    }

    /// Whether its storage has not answered for a while.
    pub fn is_silent(&self) -> bool {
        self.report.is_silent()
    }

    /// How the engine is, without asking it.
    pub fn health(&self, name: &str) -> EngineHealth {
        let (state, problems) = self.report.state(self.stand_in.opened().is_some());
        EngineHealth {
            name: name.to_owned(),
            kind: self.stand_in.kind().to_owned(),
            state,
            problems,
        }
    }

    /// Whether it can be used, as far as is known.
    pub fn is_up(&self) -> bool {
        let (state, _) = self.report.state(self.stand_in.opened().is_some());
        matches!(state, EngineState::Ok | EngineState::Degraded)
    }

    /// What the engine said of its storage when it was asked last.
    pub fn status(&self) -> Option<EngineStatus> {
        self.report.status()
    }

    /// Since when the engine can be used: hosts that wait for its volumes have their
    /// time from then on. Before that it is now.
    pub fn usable_since(&self, clock: &Clock) -> neonsan_session::Instant {
        match self.stand_in.opened() {
            Some((_, since)) => clock.at(since),
            None => clock.now(),
        }
    }

    /// A request of a volume has failed. At most a short lock, and only then.
    pub fn request_failed(&self, volume: &dyn std::fmt::Display, op: OpKind, error: &Error) {
        self.report.request_failed(volume, op, error);
    }

    /// Requests that have failed, by what they did.
    pub fn failures(&self, op: OpKind) -> u64 {
        self.report.failures[op as usize].load(Ordering::Relaxed)
    }
}

/// Begins to open the engines, the default one first in the list, and waits until
/// each is open or has failed once, or for a while.
pub(crate) fn start(
    config: &Config,
    default: &str,
    mut opener: impl FnMut(&EngineConfig) -> Opener,
) -> std::io::Result<(Vec<NamedEngine>, Supervisors)> {
    let mut engines = Vec::new();
    let mut supervisors = Supervisors::default();
    for (name, engine_config) in &config.engines {
        let supervised = Supervised::new(name, engine_config);
        let volumes = config.volumes.iter().filter(|volume| {
            let wanted = volume.engine.as_deref().unwrap_or(default);
            wanted == name
        });
        supervisors.start(
            name,
            Arc::clone(&supervised),
            opener(engine_config),
            volumes.cloned().collect(),
        )?;
        engines.push(NamedEngine {
            name: name.clone(),
            engine: Arc::clone(&supervised.stand_in) as Arc<dyn Engine>,
            supervised,
        });
    }
    engines.sort_by_key(|engine| engine.name != default);
    let deadline = Instant::now() + START_PATIENCE;
    for engine in &engines {
        if !engine.supervised.report.wait_until_tried(deadline) {
            tracing::warn!(engine = %engine.name, "the engine is not ready yet: the node begins without it");
        }
    }
    if engines
        .iter()
        .all(|e| e.supervised.stand_in.opened().is_none())
    {
        tracing::error!("no engine can be used: the node serves nothing until one can");
    }
    Ok((engines, supervisors))
}
