// SPDX-License-Identifier: GPL-2.0 OR MIT
//! How a node is.

use neonsan_api::{Health, HealthStatus};

use crate::shared::Shared;

/// Below this share of its space an engine is a problem: one in 20.
const LOW_SPACE_SHARE: u64 = 20;

/// The state of the node, with what is wrong. Asks the engines, so it is for
/// threads that may block.
pub fn health(shared: &Shared) -> Health {
    let mut problems = Vec::new();
    for named in &shared.engines {
        match named.status() {
            Ok(status) => {
                if let (Some(capacity), Some(available)) =
                    (status.capacity_bytes, status.available_bytes)
                {
                    if available < capacity / LOW_SPACE_SHARE {
                        problems.push(format!(
                            "the engine {} has {available} of {capacity} bytes left",
                            named.name
                        ));
                    }
                }
            }
            Err(error) => problems.push(format!("the engine {}: {error}", named.name)),
        }
    }
    let status = if shared.is_going_away() {
        HealthStatus::ShuttingDown
    } else if problems.is_empty() {
        HealthStatus::Ok
    } else {
        HealthStatus::Degraded
    };
    Health { status, problems }
}
