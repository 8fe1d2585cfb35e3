// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The configuration file: one TOML file, described in `neonsan-node.toml`.

mod check;

pub(crate) use check::read_filter;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use neonsan_api::VolumeName;
use nix::libc;
use serde::Deserialize;

/// The file, if no other is named.
pub(crate) const DEFAULT_CONFIG: &str = "/etc/neonsan/neonsan-node.toml";

/// Exit status when the configuration is wrong (EX_CONFIG of sysexits.h).
pub(crate) const EXIT_CONFIG: u8 = 78;

/// Everything that can be configured. What is absent has the value given by
/// `Default` of its section.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Engine of volumes that are created without naming one. Absent: the
    /// only engine there is.
    pub default_engine: Option<String>,
    /// The node's own directory: which engine it has served at which path.
    #[serde(default = "default_state_path")]
    pub state_path: PathBuf,
    /// The engines by name.
    #[serde(rename = "engine")]
    pub engines: BTreeMap<String, EngineConfig>,
    /// The data port.
    #[serde(default)]
    pub data: DataConfig,
    /// The control API.
    #[serde(default)]
    pub control: ControlConfig,
    /// Metrics on a port of their own.
    #[serde(default)]
    pub metrics: MetricsConfig,
    /// What the process does about its memory.
    #[serde(default)]
    pub memory: MemoryConfig,
    /// Bounds.
    #[serde(default)]
    pub limits: LimitsConfig,
    /// Times.
    #[serde(default)]
    pub timeouts: TimeoutsConfig,
    /// Logs.
    #[serde(default)]
    pub log: LogConfig,
    /// Volumes to create at start if they are absent; for engines whose
    /// volumes do not outlive the node.
    #[serde(default, rename = "volume")]
    pub volumes: Vec<VolumeConfig>,
    /// The node does not fence. Set by the program `neonsan-node-unfenced` of
    /// the lab, never by a file.
    #[cfg(feature = "test-faults")]
    #[serde(skip)]
    pub without_fencing: bool,
}

/// One engine.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum EngineConfig {
    /// Volumes in files.
    File {
        /// The directory.
        path: PathBuf,
        /// Use the page cache though direct I/O works.
        #[serde(default)]
        buffered: bool,
        /// Treat the storage as if its blocks had at least this many bytes.
        #[serde(default = "default_min_block_bytes")]
        min_block_bytes: u32,
        /// The lab's: keep what was not flushed in the process alone, so that
        /// it is lost with it.
        #[cfg(feature = "test-faults")]
        #[serde(default)]
        test_volatile_cache: bool,
    },
    /// Volumes in memory.
    Mem {
        /// Bytes that all volumes together may use.
        capacity_bytes: u64,
        /// Volumes say that they have a volatile write cache.
        #[serde(default = "default_true")]
        volatile_cache: bool,
    },
    /// Volumes in a Ceph cluster.
    Rbd {
        /// The Ceph pool.
        pool: String,
        /// The Ceph user, without `client.`.
        user: String,
        /// Ceph's configuration file.
        #[serde(default = "default_ceph_conf")]
        conf: PathBuf,
        /// The user's keyring; absent: what the configuration file says.
        keyring: Option<PathBuf>,
        /// Size of the objects of new volumes.
        #[serde(default = "default_object_bytes")]
        object_bytes: u64,
        /// How long connecting to the cluster may take.
        #[serde(default = "default_connect_timeout_ms")]
        connect_timeout_ms: u32,
        /// A node that stood still for longer gives up its volumes.
        #[serde(default = "default_max_pause_ms")]
        max_pause_ms: u32,
        /// What the cluster has not carried out for so long is given up, and the
        /// volume with it.
        #[serde(default = "default_max_operation_ms")]
        max_operation_ms: u32,
        /// The lab's: give nothing up, to see that its tests notice.
        #[cfg(feature = "test-faults")]
        #[serde(default)]
        test_without_operation_limit: bool,
        /// The lab's: do not fence whoever a volume is taken from, to see that
        /// its tests notice.
        #[cfg(feature = "test-faults")]
        #[serde(default)]
        test_without_blocklist: bool,
    },
}

fn default_state_path() -> PathBuf {
    PathBuf::from(crate::remembered::DEFAULT_PATH)
}

fn default_ceph_conf() -> PathBuf {
    PathBuf::from("/etc/ceph/ceph.conf")
}

fn default_object_bytes() -> u64 {
    4 << 20
}

fn default_connect_timeout_ms() -> u32 {
    30_000
}

fn default_max_pause_ms() -> u32 {
    60_000
}

fn default_max_operation_ms() -> u32 {
    600_000
}

fn default_min_block_bytes() -> u32 {
    512
}

fn default_true() -> bool {
    true
}

/// The data port.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataConfig {
    /// Addresses to listen on.
    pub listen: Vec<SocketAddr>,
    /// Threads that serve connections; 0: one for each CPU.
    pub workers: usize,
    /// Where hosts reach this node; empty: where it listens. Told to the nodes
    /// that share volumes with it, and to clients.
    pub advertise: Vec<SocketAddr>,
    /// Addresses of nodes that clients are told of in any case.
    pub nodes: Vec<SocketAddr>,
    /// Users of this machine that may connect beside root and the node's own: a name, a number,
    /// `@group` for its members, or `*` for all.
    pub local_users: Vec<String>,
    /// Agree to checksums of headers and payloads when a client offers them.
    pub checksums: bool,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from((
                [127, 0, 0, 1],
                neonsan_api::DEFAULT_DATA_PORT,
            ))],
            workers: 0,
            advertise: Vec::new(),
            nodes: Vec::new(),
            local_users: Vec::new(),
            checksums: true,
        }
    }
}

/// The control API.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ControlConfig {
    /// Where to listen: `host:port` (numeric) or `unix:/path`.
    pub listen: Vec<String>,
    /// Permissions of Unix sockets, as an octal string.
    pub socket_mode: String,
    /// Names by which the control API may be called over TCP, beside addresses, `localhost` and the
    /// name of this machine.
    pub hosts: Vec<String>,
}

impl Default for ControlConfig {
    fn default() -> Self {
        Self {
            listen: vec![format!("unix:{}", neonsan_api::DEFAULT_CONTROL_SOCKET)],
            socket_mode: "0660".to_owned(),
            hosts: Vec::new(),
        }
    }
}

/// Metrics on a port of their own, which changes nothing and tells of no volume.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricsConfig {
    /// Addresses to listen on.
    pub listen: Vec<SocketAddr>,
}

/// What the process does about its memory.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemoryConfig {
    /// Hosts on this machine use the node's volumes, for swap or for file
    /// systems: the node must get on when the machine has no memory left.
    pub serves_own_host: bool,
}

/// Bounds, so that a slow or hostile client costs itself and not others.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Sessions at a time, over all volumes.
    pub max_sessions: u32,
    /// Sessions of one peer; 0: three quarters of `max_sessions`.
    pub max_peer_sessions: u32,
    /// Data connections at a time.
    pub max_connections: u32,
    /// Data connections of one peer; 0: three quarters of `max_connections`.
    pub max_peer_connections: u32,
    /// Data connections of one peer that have not introduced themselves; beyond that the oldest make
    /// room for new ones.
    pub max_peer_handshakes: u32,
    /// Connections of one session; one that began with more keeps them.
    pub max_session_connections: u16,
    /// Requests in flight on one connection.
    pub max_depth: u16,
    /// Bytes of requests in flight per session.
    pub max_session_in_flight_bytes: u64,
    /// Bytes of requests in flight in all.
    pub max_in_flight_bytes: u64,
    /// Control connections at a time.
    pub max_control_connections: u32,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            max_sessions: 1024,
            max_peer_sessions: 0,
            max_connections: 4096,
            max_peer_connections: 0,
            max_peer_handshakes: 64,
            max_session_connections: 16,
            max_depth: 128,
            max_session_in_flight_bytes: 64 << 20,
            max_in_flight_bytes: 512 << 20,
            max_control_connections: 64,
        }
    }
}

/// Times in milliseconds.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TimeoutsConfig {
    /// From accepting a connection to its OPEN or JOIN.
    pub handshake_ms: u32,
    /// Silence after which the node sends a PING.
    pub heartbeat_interval_ms: u32,
    /// Silence after which a connection is closed.
    pub heartbeat_timeout_ms: u32,
    /// How long a new connection waits for the requests of one it displaces.
    pub drain_ms: u32,
    /// How long a session without connections keeps its volume.
    pub session_linger_ms: u32,
    /// On shutdown: time for clients to move away by themselves.
    pub shutdown_grace_ms: u32,
    /// On shutdown: time for requests in the engines to end after that.
    pub shutdown_drain_ms: u32,
    /// How long to wait for the locks of a node that is ending.
    pub lock_wait_ms: u32,
}

impl Default for TimeoutsConfig {
    fn default() -> Self {
        Self {
            handshake_ms: 10_000,
            heartbeat_interval_ms: 3_000,
            heartbeat_timeout_ms: 9_000,
            drain_ms: 10_000,
            session_linger_ms: 30_000,
            shutdown_grace_ms: 2_000,
            shutdown_drain_ms: 30_000,
            lock_wait_ms: 30_000,
        }
    }
}

/// Logs.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// A level, or a filter as `tracing-subscriber` describes it.
    pub filter: String,
    /// Text or JSON.
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            filter: "info".to_owned(),
            format: LogFormat::Text,
        }
    }
}

/// Form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A volume to be created at start.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeConfig {
    /// `pool/volume`.
    pub name: VolumeName,
    /// Size.
    pub size_bytes: u64,
    /// Unit of addressing.
    #[serde(default = "default_min_block_bytes")]
    pub logical_block_size_bytes: u32,
    /// What the volume says it does not tear.
    pub physical_block_size_bytes: Option<u32>,
    /// Its engine; absent: the default one.
    pub engine: Option<String>,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}: {source}{}", read_hint(source))]
    Read {
        /// Its name.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not as described.
    #[error("the configuration {path} is wrong: {reason}")]
    Wrong {
        /// Its name.
        path: PathBuf,
        /// What is wrong, and where.
        reason: String,
    },
}

/// What to do about a file that cannot be read.
fn read_hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            ": write one (tools/packaging/neonsan-node.toml is an example), or name it with --config"
        }
        std::io::ErrorKind::PermissionDenied => ": the node's user must be able to read it",
        std::io::ErrorKind::InvalidData => ": save it as UTF-8",
        _ => "",
    }
}

/// What the reader of TOML says, with what to do where it does not say that itself.
fn explain(error: &toml::de::Error) -> String {
    let text = error.to_string();
    let hint = match error.message() {
        "missing field `engine`" => {
            "there is no engine: add a section like [engine.main] with kind and path"
        }
        "invalid socket address syntax" => {
            "write address:port, with a number as the address, such as \"127.0.0.1:9666\""
        }
        m if m.starts_with("unknown field `default_engine`")
            || m.starts_with("unknown field `state_path`") =>
        {
            "write it before the first section"
        }
        m if m.ends_with("expected a sequence") => "write a list, in square brackets",
        _ => return text,
    };
    format!("{}\n{hint}\n", text.trim_end())
}

/// Longest read or write of any engine: what in-flight limits must hold.
pub(crate) const MAX_IO_BYTES: u64 = 1 << 20;

/// Reads a file whole if it is a regular one.
pub(crate) fn read_regular(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::options()
        .read(true)
        // A pipe that nobody writes to would be waited for.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other(
            "it is no regular file: put the configuration into one",
        ));
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

impl Config {
    /// Reads and checks the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::load_with_text(path).map(|(config, _)| config)
    }

    /// The same with the text. Waits for nobody: a pipe into which nobody writes is refused as one.
    pub fn load_with_text(path: &Path) -> Result<(Self, String), ConfigError> {
        let text = read_regular(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        let config = Self::parse(&text).map_err(|reason| ConfigError::Wrong {
            path: path.to_owned(),
            reason,
        })?;
        Ok((config, text))
    }

    /// Reads and checks the text of a configuration.
    pub fn parse(text: &str) -> Result<Self, String> {
        let config: Self = toml::from_str(text).map_err(|e| explain(&e))?;
        config.check()?;
        Ok(config)
    }

    /// All TCP addresses to listen on.
    pub fn tcp_addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        let data = self.data.listen.iter().copied();
        let metrics = self.metrics.listen.iter().copied();
        data.chain(self.control.tcp()).chain(metrics)
    }

    /// The engine of volumes that are created without naming one.
    pub fn default_engine_name(&self) -> Result<&str, String> {
        match (&self.default_engine, self.engines.keys().next()) {
            (Some(name), _) => Ok(name),
            (None, Some(only)) if self.engines.len() == 1 => Ok(only),
            (None, _) => Err("there are several engines: say which is default_engine".to_owned()),
        }
    }
}

/// Bytes that the path of a Unix socket may have. The system takes one more, without the zero behind it,
/// but clients do not.
pub(crate) const MAX_SOCKET_PATH: usize = 107;

/// An address of the control API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlAddress {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl ControlAddress {
    /// Reads one of `control.listen`.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) if path.len() > MAX_SOCKET_PATH => Err(format!(
                "the path has {} bytes, and that of a socket at most {MAX_SOCKET_PATH}: give it a \
                 shorter one, such as {}",
                path.len(),
                neonsan_api::DEFAULT_CONTROL_SOCKET
            )),
            Some(path) if path.starts_with('/') && !path.ends_with('/') => {
                Ok(Self::Unix(path.into()))
            }
            Some(_) => Err("a Unix socket needs the whole path of a file: unix:/path".to_owned()),
            None => text.parse().map(Self::Tcp).map_err(|_| {
                "not written as address:port (with a number as the address) or unix:/path"
                    .to_owned()
            }),
        }
    }
}

impl ControlConfig {
    /// The TCP addresses among those to listen on.
    pub fn tcp(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.listen
            .iter()
            .filter_map(|address| match ControlAddress::parse(address) {
                Ok(ControlAddress::Tcp(address)) => Some(address),
                Ok(ControlAddress::Unix(_)) | Err(_) => None,
            })
    }

    /// Permissions of Unix sockets.
    pub fn mode(&self) -> Option<u32> {
        u32::from_str_radix(&self.socket_mode, 8)
            .ok()
            .filter(|mode| *mode <= 0o777)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ENGINE: &str = "[engine.main]\nkind = \"file\"\npath = \"/x\"\n";

    #[test]
    fn what_is_wrong_for_toml_comes_with_what_to_do() {
        for (text, hint) in [
            (String::new(), "[engine.main]"),
            (
                "[data]\nlisten = [\"node1:1\"]\n".to_owned(),
                "address:port",
            ),
            (
                "[data]\nlisten = \"127.0.0.1:1\"\n".to_owned(),
                "square brackets",
            ),
            (format!("{ENGINE}default_engine = \"main\"\n"), "before"),
            (format!("{ENGINE}state_path = \"/y\"\n"), "before"),
        ] {
            let error = Config::parse(&text).unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn the_smallest_configuration_is_an_engine() {
        let config = Config::parse(ENGINE).unwrap();
        assert_eq!(config.default_engine_name().unwrap(), "main");
        assert!(config.data.listen[0].ip().is_loopback());
    }

    #[test]
    fn unknown_keys_are_refused_and_named() {
        for (text, key) in [
            ("liten = 1\n", "liten"),
            ("[data]\nlissen = []\n", "lissen"),
            ("[limits]\nmax_sesions = 1\n", "max_sesions"),
            ("[control]\nport = 1\n", "port"),
        ] {
            let error = Config::parse(&format!("{text}{ENGINE}")).unwrap_err();
            assert!(error.contains(key), "{error}");
        }
        let error =
            Config::parse("[engine.a]\nkind = \"mem\"\ncapacity_bytes = 1\npath = \"/x\"\n")
                .unwrap_err();
        assert!(error.contains("path"), "{error}");
    }

    #[test]
    fn an_engine_in_a_ceph_cluster_needs_a_pool_and_a_user() {
        const RBD: &str = "[engine.ceph]\nkind = \"rbd\"\npool = \"p\"\nuser = \"u\"\n";
        Config::parse(RBD).unwrap();
        for (from, to, key) in [
            ("pool = \"p\"\n", "", "pool"),
            ("user = \"u\"\n", "", "user"),
            ("pool", "object_bytes = 5\npool", "engine.ceph.object_bytes"),
            ("pool", "max_pause_ms = 1\npool", "engine.ceph.max_pause_ms"),
            ("pool", "path = \"/x\"\npool", "path"),
        ] {
            let error = Config::parse(&RBD.replacen(from, to, 1)).unwrap_err();
            assert!(error.contains(key), "{error}");
        }
    }

    #[test]
    fn the_example_is_valid_and_shows_the_defaults() {
        let example = include_str!("../../packaging/neonsan-node.toml");
        let shown = Config::parse(example).unwrap();
        // Every commented-out setting is the default: with the comment signs
        // of settings taken away it says the same.
        let uncommented: String = example
            .lines()
            .map(|line| match line.strip_prefix("#= ") {
                Some(setting) => format!("{setting}\n"),
                None => format!("{line}\n"),
            })
            .collect();
        let all = Config::parse(&uncommented).unwrap();
        assert_eq!(format!("{shown:?}"), format!("{all:?}"));
    }
}
