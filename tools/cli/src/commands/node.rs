// SPDX-License-Identifier: GPL-2.0 OR MIT

//! `neonsan node`: the nodes that serve the same volumes, by the control API of one of them.

use super::volume::{block_on, client};
use crate::cli::{Common, Node, NodeCommand};
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::output::{print, print_json, table};
use crate::units::{show_duration_ms, show_size};
use neonsan_api::HealthStatus;
use serde::Serialize;

/// Runs one of the commands.
pub fn run(common: &Common, config: &Config, node: &Node) -> Result<()> {
    let config = &config.with_api_timeout(node.api_timeout);
    match node.command {
        NodeCommand::List => list(common, config, node.api.as_deref()),
        NodeCommand::Health => health(common, config, node.api.as_deref()),
    }
}

/// A state as it stands in JSON.
fn word(state: impl Serialize) -> String {
    let state = serde_json::to_value(state).ok();
    let state = state.as_ref().and_then(|s| s.as_str());
    state.unwrap_or("unknown").to_owned()
}

fn health(common: &Common, config: &Config, api: Option<&str>) -> Result<()> {
    let client = client(api, config, None)?;
    let health = block_on(&client, client.health())?;
    if common.json {
        print_json(&health)?;
    } else {
        let rows: Vec<_> = health
            .engines
            .iter()
            .map(|engine| {
                let problems = match engine.problems.is_empty() {
                    true => "-".to_owned(),
                    false => engine.problems.join("; "),
                };
                vec![
                    engine.name.clone(),
                    engine.kind.clone(),
                    word(engine.state),
                    problems,
                ]
            })
            .collect();
        print(&format!("node: {}\n", word(health.status)))?;
        let of_an_engine = |problem: &str| {
            let told = health.engines.iter().flat_map(|e| &e.problems);
            told.into_iter()
                .any(|of_engine| problem.ends_with(of_engine.as_str()))
        };
        for problem in health.problems.iter().filter(|p| !of_an_engine(p)) {
            print(&format!("problem: {problem}\n"))?;
        }
        print("\n")?;
        print(&table(&["ENGINE", "KIND", "STATE", "PROBLEMS"], &rows))?;
    }
    if health.status == HealthStatus::Ok {
        return Ok(());
    }
    let text = format!("the node is not well: {}", word(health.status));
    Err(Error::new(Kind::Other, text).with_hint("the problems that it tells of say what to do"))
}

fn list(common: &Common, config: &Config, api: Option<&str>) -> Result<()> {
    let client = client(api, config, None)?;
    let list = block_on(&client, client.nodes())?;
    if common.json {
        return print_json(&list);
    }
    let rows: Vec<_> = list
        .nodes
        .iter()
        .map(|node| {
            let heard = match node.is_this {
                true => "this one".to_owned(),
                false => show_duration_ms(node.heard_ms),
            };
            vec![
                match node.addresses.is_empty() {
                    true => "-".to_owned(),
                    false => node.addresses.join(", "),
                },
                word(node.state),
                node.engines.join(", "),
                node.sessions.to_string(),
                node.connections.to_string(),
                show_size(node.in_flight_bytes),
                heard,
                node.version.clone(),
            ]
        })
        .collect();
    let headings = [
        "NODE",
        "STATE",
        "ENGINES",
        "SESSIONS",
        "CONNECTIONS",
        "IN FLIGHT",
        "HEARD",
        "VERSION",
    ];
    print(&table(&headings, &rows))
}
