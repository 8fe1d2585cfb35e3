// SPDX-License-Identifier: GPL-2.0 OR MIT
//! How a node is.

use neonsan_api::{EngineState, Health, HealthStatus};

use crate::shared::Shared;

/// The state of the node, with what is wrong. Engines are not asked for this: their
/// supervisors do that all the time. So it never blocks.
pub fn health(shared: &Shared) -> Health {
    let engines: Vec<_> = shared
        .engines
        .iter()
        .map(|named| named.supervised.health(&named.name))
        .collect();
    let mut problems: Vec<String> = engines
        .iter()
        .flat_map(|engine| {
            let say = |problem: &String| format!("the engine {}: {problem}", engine.name);
            engine.problems.iter().map(say).collect::<Vec<_>>()
        })
        .collect();
    let serves = |state| matches!(state, EngineState::Ok | EngineState::Degraded);
    problems.extend(shared.waiting.problems());
    let status = if shared.is_going_away() {
        HealthStatus::ShuttingDown
    } else if !engines.iter().any(|engine| serves(engine.state)) {
        HealthStatus::Failed
    } else if problems.is_empty() {
        HealthStatus::Ok
    } else {
        HealthStatus::Degraded
    };
    Health {
        status,
        problems,
        engines,
    }
}
