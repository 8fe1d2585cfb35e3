// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The config file. It holds defaults only: the command line wins over it.

use crate::error::{Error, Kind, Result};
use crate::units::{parse_api_timeout_ms, parse_duration_ms};
use serde::{Deserialize, Deserializer};
use std::path::Path;

/// Where the config file is when none is named.
pub const DEFAULT_PATH: &str = "/etc/neonsan/neonsan.toml";

/// The config file. An unknown key is refused: a misspelt timeout must not be a default silently.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Config {
    /// Nodes for targets that name none, the preferred one first.
    pub nodes: Vec<String>,
    /// The control API for volume commands whose target names no node.
    pub api: Option<String>,
    /// How long a node may give no sign of life when its control API is asked, in milliseconds.
    #[serde(deserialize_with = "api_timeout")]
    pub api_timeout: Option<u32>,
    /// Identity of this host, as a UUID. Made from /etc/machine-id and the firmware's UUID when absent.
    pub host_id: Option<String>,
    /// Name of this host for people. The system's when absent.
    pub host_name: Option<String>,
    /// Defaults for `attach`.
    pub attach: Attach,
    /// Defaults for the timeouts of `attach`.
    pub timeouts: Timeouts,
}

/// Defaults for `attach`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Attach {
    /// `exclusive`, `shared` or `read-only`.
    pub mode: Option<crate::cli::Mode>,
    /// Number of connections.
    pub connections: Option<u32>,
    /// Connections for polled requests, on top of those.
    pub poll_queues: Option<u32>,
    /// Requests in flight on each.
    pub queue_depth: Option<u32>,
    /// CRC32C of headers.
    pub header_crc: Option<bool>,
    /// CRC32C of payloads.
    pub payload_crc: Option<bool>,
}

/// Every time the module waits, in milliseconds; `None` is the module's own default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Timeouts {
    /// One request.
    #[serde(deserialize_with = "duration")]
    pub request: Option<u32>,
    /// One try to connect.
    #[serde(deserialize_with = "duration")]
    pub connect: Option<u32>,
    /// Between heartbeats.
    #[serde(deserialize_with = "duration")]
    pub heartbeat_interval: Option<u32>,
    /// Silence after which a connection is given up.
    #[serde(deserialize_with = "duration")]
    pub heartbeat_timeout: Option<u32>,
    /// First pause between tries to reconnect.
    #[serde(deserialize_with = "duration")]
    pub reconnect_delay_min: Option<u32>,
    /// Longest pause between tries to reconnect.
    #[serde(deserialize_with = "duration")]
    pub reconnect_delay_max: Option<u32>,
    /// How long a volume may stay lost before its I/O fails; 0 for ever.
    #[serde(deserialize_with = "duration")]
    pub loss: Option<u32>,
}

impl Timeouts {
    /// These, and those of `other` where these are absent.
    pub fn or(self, other: &Timeouts) -> Timeouts {
        Timeouts {
            request: self.request.or(other.request),
            connect: self.connect.or(other.connect),
            heartbeat_interval: self.heartbeat_interval.or(other.heartbeat_interval),
            heartbeat_timeout: self.heartbeat_timeout.or(other.heartbeat_timeout),
            reconnect_delay_min: self.reconnect_delay_min.or(other.reconnect_delay_min),
            reconnect_delay_max: self.reconnect_delay_max.or(other.reconnect_delay_max),
            loss: self.loss.or(other.loss),
        }
    }

    /// The values, in the order of `neonsan_session::Timeouts::BOUNDS`.
    pub fn values(&self) -> [Option<u32>; 7] {
        [
            self.request,
            self.connect,
            self.heartbeat_interval,
            self.heartbeat_timeout,
            self.reconnect_delay_min,
            self.reconnect_delay_max,
            self.loss,
        ]
    }
}

fn duration<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<u32>, D::Error> {
    read(deserializer, parse_duration_ms)
}

fn api_timeout<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Option<u32>, D::Error> {
    read(deserializer, parse_api_timeout_ms)
}

fn read<'de, D: Deserializer<'de>>(
    deserializer: D,
    parse: impl Fn(&str) -> std::result::Result<u32, String>,
) -> std::result::Result<Option<u32>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Number(u64),
        Text(String),
    }
    let text = match Written::deserialize(deserializer)? {
        Written::Number(number) => number.to_string(),
        Written::Text(text) => text,
    };
    parse(&text).map(Some).map_err(serde::de::Error::custom)
}

impl Config {
    /// The same with this time for nodes that give no sign of life, if there is one.
    pub fn with_api_timeout(&self, milliseconds: Option<u32>) -> Self {
        Config {
            api_timeout: milliseconds.or(self.api_timeout),
            ..self.clone()
        }
    }

    /// Reads the file at `path`; without one the default file, which need not exist.
    pub fn load(path: Option<&Path>) -> Result<Self> {
        let (path, required) = match path {
            Some(path) => (path, true),
            None => (Path::new(DEFAULT_PATH), false),
        };
        let text = match crate::root::configuration(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => {
                return Ok(Config::default());
            }
            Err(error) => {
                let message = format!("the config file {} cannot be read: {error}", path.display());
                return Err(Error::new(Kind::Config, message));
            }
        };
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self> {
        toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| {
                1 + text[..span.start.min(text.len())].matches('\n').count()
            });
            // toml's message lists the keys that it knows.
            let message = error.message().replace("unknown field", "unknown key");
            Error::new(
                Kind::Config,
                format!("{}, line {line}: {message}", path.display()),
            )
            .with_hint("neonsan(8) describes every key; correct or remove the line")
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config> {
        Config::parse(text, Path::new("neonsan.toml"))
    }

    #[test]
    fn a_pipe_as_config_file_is_refused_and_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe.toml");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        for path in [pipe.as_path(), directory.path()] {
            let error = Config::load(Some(path)).unwrap_err();
            assert_eq!(error.kind(), Kind::Config);
            assert!(error.to_string().contains("no regular file"), "{error}");
        }
        assert!(Config::load(Some(Path::new("/dev/null"))).is_ok());
    }

    #[test]
    fn every_key_is_read() {
        let config = parse(
            r#"
            nodes = ["node1", "[::1]:9666"]
            api = "unix:/run/neonsan/node.sock"
            api-timeout = "20s"
            host-id = "00112233-4455-6677-8899-aabbccddeeff"
            host-name = "host1"
            [attach]
            mode = "read-only"
            connections = 4
            poll-queues = 1
            queue-depth = 64
            header-crc = true
            payload-crc = false
            [timeouts]
            request = "30s"
            connect = "5s"
            heartbeat-interval = "2s"
            heartbeat-timeout = "10s"
            reconnect-delay-min = "100ms"
            reconnect-delay-max = "5s"
            loss = 0
            "#,
        )
        .unwrap();
        assert_eq!(config.nodes.len(), 2);
        assert_eq!(config.api_timeout, Some(20_000));
        assert_eq!(config.attach.poll_queues, Some(1));
        assert_eq!(config.attach.queue_depth, Some(64));
        assert_eq!(config.timeouts.request, Some(30_000));
        assert_eq!(config.timeouts.loss, Some(0));
    }

    #[test]
    fn a_file_that_was_written_on_windows_is_read() {
        let text = "\u{feff}nodes = ['node1', \"node2\"]\r\n[timeouts]\r\nloss = '1m'\r\n";
        let config = parse(text).unwrap();
        assert_eq!(config.nodes, ["node1", "node2"]);
        assert_eq!(config.timeouts.loss, Some(60_000));
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_those_known() {
        for text in [
            "nodes = []\nhostid = \"x\"\n",
            "[attach]\nhostid = 4\n",
            "[timeouts]\nhostid = \"1s\"\n",
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.kind(), Kind::Config);
            let message = error.to_string();
            assert!(message.contains("unknown key `hostid`"), "{message}");
            assert!(message.contains("line 2"), "{message}");
            assert!(message.contains("expected"), "{message}");
        }
    }

    #[test]
    fn bad_values_are_refused() {
        for text in [
            "[timeouts]\nrequest = 5\n",
            "[timeouts]\nrequest = \"5 parsecs\"\n",
            "[attach]\nmode = \"mine\"\n",
            "nodes = \"one\"\n",
            "nodes =\n",
        ] {
            assert_eq!(parse(text).unwrap_err().kind(), Kind::Config, "{text}");
        }
    }

    #[test]
    fn the_example_has_every_key_with_its_default() {
        let example = include_str!("../../packaging/neonsan.toml");
        parse(example).unwrap();
        let config = parse(&example.replace("#= ", "")).unwrap();
        assert_eq!(config.attach.mode, Some(crate::cli::Mode::Exclusive));
        let default = neonsan_session::Timeouts::DEFAULT;
        let times = config.timeouts;
        assert_eq!(times.request, Some(default.request_ms));
        assert_eq!(times.connect, Some(default.connect_ms));
        assert_eq!(
            times.heartbeat_interval,
            Some(default.heartbeat_interval_ms)
        );
        assert_eq!(times.heartbeat_timeout, Some(default.heartbeat_timeout_ms));
        assert_eq!(
            times.reconnect_delay_min,
            Some(default.reconnect_delay_min_ms)
        );
        assert_eq!(
            times.reconnect_delay_max,
            Some(default.reconnect_delay_max_ms)
        );
        assert_eq!(times.loss, Some(default.loss_ms));
        assert!(config.api.is_some() && config.host_id.is_some() && config.host_name.is_some());
        assert!(!config.nodes.is_empty() && config.attach.queue_depth.is_some());
    }

    #[test]
    fn the_command_line_wins() {
        let line = Timeouts {
            request: Some(1),
            ..Timeouts::default()
        };
        let file = Timeouts {
            request: Some(2),
            loss: Some(3),
            ..Timeouts::default()
        };
        let both = line.or(&file);
        assert_eq!(
            (both.request, both.loss, both.connect),
            (Some(1), Some(3), None)
        );
    }
}
