// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Reading the configuration again, on SIGHUP.
//!
//! Limits, the filter of the log, the users of the data port and the names of the control API take
//! effect; what else was changed is named, since it needs a restart. A configuration that is wrong
//! changes nothing.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use toml::{Table, Value};

use crate::config::{read_regular, Config};
use crate::shared::{Live, Shared};

/// Sets the filter of the log.
pub type SetFilter = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// What takes effect on a reload: whole sections end with a dot.
const RELOADED: [&str; 4] = ["limits.", "log.filter", "data.local_users", "control.hosts"];

/// Where the configuration is, and as what it was read first.
pub struct Reloader {
    path: PathBuf,
    /// The settings of the start, by their keys.
    settings: BTreeMap<String, String>,
    /// `None`: the environment says which filter is used.
    set_filter: Option<SetFilter>,
}

/// Every setting of a configuration by its whole key.
fn flatten(table: &Table, prefix: &str, settings: &mut BTreeMap<String, String>) {
    for (key, value) in table {
        let key = format!("{prefix}{key}");
        match value {
            Value::Table(table) => flatten(table, &format!("{key}."), settings),
            other => {
                settings.insert(key, other.to_string());
            }
        }
    }
}

fn settings_of(text: &str) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    // Whoever asks has read the same text as a configuration.
    if let Ok(table) = text.parse::<Table>() {
        flatten(&table, "", &mut settings);
    }
    settings
}

/// The settings that differ and are not reloaded.
fn not_reloaded(
    before: &BTreeMap<String, String>,
    after: &BTreeMap<String, String>,
) -> Vec<String> {
    let mut keys: Vec<&String> = before.keys().chain(after.keys()).collect();
    keys.sort();
    keys.dedup();
    keys.into_iter()
        .filter(|key| before.get(*key) != after.get(*key))
        .filter(|key| {
            !RELOADED.iter().any(|reloaded| {
                key.as_str() == *reloaded || (reloaded.ends_with('.') && key.starts_with(reloaded))
            })
        })
        .cloned()
        .collect()
}

impl Reloader {
    /// For the configuration at `path`, which was just read. `set_filter` is `None` if the log's filter
    /// is not that of the configuration.
    pub fn new(path: PathBuf, set_filter: Option<SetFilter>) -> Self {
        let text = read_regular(&path).unwrap_or_default();
        Self {
            settings: settings_of(&text),
            path,
            set_filter,
        }
    }

    /// Reads the configuration again. Gives what to tell people of it.
    pub fn reload(&self, shared: &Shared) -> String {
        let (new, text) = match Config::load_with_text(&self.path) {
            Ok(read) => read,
            Err(error) => {
                tracing::error!("not reloaded, and nothing is changed: {error}");
                // One line: what the service manager is told has its own.
                let error = error.to_string();
                let lines: Vec<&str> = error.lines().collect();
                return format!("serving; not reloaded: {}", lines.join("; "));
            }
        };
        match &self.set_filter {
            Some(set) => {
                if let Err(error) = set(&new.log.filter) {
                    tracing::error!("log.filter is not reloaded: {error}");
                }
            }
            None => tracing::info!("log.filter is not reloaded: NEONSAN_LOG overrides it"),
        }
        let mut config = shared.config.clone();
        config.limits = new.limits;
        config.data.local_users = new.data.local_users;
        config.control.hosts = new.control.hosts;
        shared.in_flight.set_max(config.limits.max_in_flight_bytes);
        crate::node::raise_file_limit(&config);
        *shared.live.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Live::new(config));
        let needs_restart = not_reloaded(&self.settings, &settings_of(&text));
        if needs_restart.is_empty() {
            tracing::info!("configuration reloaded");
            "serving; the configuration was reloaded".to_owned()
        } else {
            let keys = needs_restart.join(", ");
            tracing::warn!(
                "configuration reloaded, but these take effect only when the node is started \
                 again: {keys}"
            );
            format!("serving; reloaded, but for what needs a restart: {keys}")
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_a_restart_is_named_with_its_key() {
        let before = settings_of(
            "[engine.main]\nkind = \"mem\"\ncapacity_bytes = 1\n[log]\nfilter = \"info\"\n",
        );
        let after = settings_of(
            "default_engine = \"main\"\n[engine.main]\nkind = \"mem\"\ncapacity_bytes = 2\n\
             [log]\nfilter = \"debug\"\nformat = \"json\"\n[limits]\nmax_sessions = 3\n\
             [data]\nlocal_users = [\"*\"]\nworkers = 2\n",
        );
        assert_eq!(
            not_reloaded(&before, &after),
            [
                "data.workers",
                "default_engine",
                "engine.main.capacity_bytes",
                "log.format"
            ]
        );
        assert!(not_reloaded(&after, &after).is_empty());
    }
}
