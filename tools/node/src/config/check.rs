// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What a configuration must keep to beside its form.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use neonsan_api::VolumeName;
use neonsan_engine::file::{examine, Place};
use neonsan_engine::{VolumeSpec, BUFFER_ALIGN};
use tracing_subscriber::EnvFilter;

use crate::access::check_user;
use crate::patience;
use crate::remembered::Remembered;

use super::{Config, ControlAddress, EngineConfig, MAX_IO_BYTES};

/// More threads than any machine has use for: each has spare buffers of its own.
const MAX_WORKERS: usize = 1024;

impl Config {
    /// What is wrong with it, and what to write instead.
    pub(super) fn check(&self) -> Result<(), String> {
        let ensure = |ok: bool, text: &str| if ok { Ok(()) } else { Err(text.to_owned()) };
        ensure(
            !self.engines.is_empty(),
            "there is no engine: add a section like [engine.main] with kind and path",
        )?;
        for name in self.engines.keys() {
            ensure(
                VolumeName::new("x", name).is_ok(),
                &format!(
                    "the engine name {name:?} may have letters, digits, '.', '_' and '-' only"
                ),
            )?;
        }
        for (name, engine) in &self.engines {
            if let EngineConfig::Rbd {
                object_bytes,
                max_pause_ms,
                max_operation_ms,
                ..
            } = engine
            {
                ensure(
                    object_bytes.is_power_of_two()
                        && ((64 << 10)..=(32 << 20)).contains(object_bytes),
                    &format!(
                        "engine.{name}.object_bytes must be a power of two from 65536 to 33554432"
                    ),
                )?;
                ensure(
                    (5_000..=600_000).contains(max_pause_ms),
                    &format!("engine.{name}.max_pause_ms must be from 5000 to 600000"),
                )?;
                ensure(
                    (5_000..=14_400_000).contains(max_operation_ms),
                    &format!("engine.{name}.max_operation_ms must be from 5000 to 14400000"),
                )?;
            }
        }
        for (name, engine) in &self.engines {
            if let EngineConfig::File {
                min_block_bytes, ..
            } = engine
            {
                ensure(
                    min_block_bytes.is_power_of_two() && *min_block_bytes as usize <= BUFFER_ALIGN,
                    &format!(
                        "engine.{name}.min_block_bytes must be a power of two up to {BUFFER_ALIGN}"
                    ),
                )?;
            }
        }
        self.check_places()?;
        let default = self.default_engine_name()?;
        let known = |name: &str| {
            ensure(
                self.engines.contains_key(name),
                &format!("there is no engine {name:?}: add a section [engine.{name}]"),
            )
        };
        known(default)?;
        for volume in &self.volumes {
            known(volume.engine.as_deref().unwrap_or(default))?;
        }
        ensure(
            !self.data.listen.is_empty(),
            "data.listen is empty: the node would serve nobody",
        )?;
        ensure(
            self.data.nodes.len() <= neonsan_proto::MAX_NODES,
            "data.nodes has more than 16 addresses",
        )?;
        for (setting, addresses, which) in [
            ("data.advertise", &self.data.advertise, "this node"),
            ("data.nodes", &self.data.nodes, "that node"),
        ] {
            let nobody =
                |a: &&SocketAddr| a.ip().is_unspecified() || is_of_many(a.ip()) || a.port() == 0;
            if let Some(address) = addresses.iter().find(nobody) {
                return Err(format!(
                    "{setting} has {address}, an address that hosts cannot connect to: write the one \
                     by which they reach {which}, with its port"
                ));
            }
        }
        ensure(
            self.control.mode().is_some(),
            "control.socket_mode is not an octal number such as \"0660\"",
        )?;
        for address in &self.control.listen {
            ControlAddress::parse(address)
                .map_err(|reason| format!("control.listen has {address:?}: {reason}"))?;
        }
        for user in &self.data.local_users {
            check_user(user)
                .map_err(|reason| format!("data.local_users has {user:?}: {reason}"))?;
        }
        for host in &self.control.hosts {
            ensure(
                !host.is_empty()
                    && host
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')),
                &format!(
                    "control.hosts has {host:?}, which is no name of a machine: write a name alone, \
                     without a port; no character stands for others"
                ),
            )?;
        }
        self.check_addresses()?;
        ensure(
            self.data.workers <= MAX_WORKERS,
            &format!("data.workers must be at most {MAX_WORKERS}"),
        )?;
        read_filter(&self.log.filter).map_err(|error| format!("log.filter {error}"))?;
        let limits = &self.limits;
        ensure(
            limits.max_sessions > 0
                && limits.max_connections > 0
                && limits.max_control_connections > 0
                && limits.max_peer_handshakes > 0,
            "limits.max_sessions, limits.max_connections, limits.max_peer_handshakes and \
             limits.max_control_connections must be more than 0",
        )?;
        ensure(
            (1..=neonsan_proto::MAX_CONNECTIONS).contains(&limits.max_session_connections),
            "limits.max_session_connections must be from 1 to 64",
        )?;
        ensure(
            (1..=1024).contains(&limits.max_depth),
            "limits.max_depth must be from 1 to 1024",
        )?;
        ensure(
            limits.max_session_in_flight_bytes >= MAX_IO_BYTES
                && limits.max_in_flight_bytes >= limits.max_session_in_flight_bytes,
            "limits.max_session_in_flight_bytes must be at least 1048576, \
             and limits.max_in_flight_bytes at least as much as that",
        )?;
        let timeouts = &self.timeouts;
        ensure(
            timeouts.handshake_ms >= 100 && timeouts.heartbeat_interval_ms >= 100,
            "timeouts.handshake_ms and timeouts.heartbeat_interval_ms must be at least 100",
        )?;
        ensure(
            timeouts.heartbeat_timeout_ms > timeouts.heartbeat_interval_ms,
            "timeouts.heartbeat_timeout_ms must be more than timeouts.heartbeat_interval_ms",
        )
    }

    /// Engines do not lie within each other, and what the node remembers of them lies
    /// in none of them.
    fn check_places(&self) -> Result<(), String> {
        check_written_out("state_path", &self.state_path)?;
        // All at once: a file system that hangs is waited for, and no two of them in turn.
        let state = patience::begin(&self.state_path, Place::of);
        let mut looks = Vec::new();
        for (name, engine) in &self.engines {
            if let EngineConfig::File { path, .. } = engine {
                check_written_out(&format!("engine.{name}.path"), path)?;
                looks.push((name, path, patience::begin(path, Place::of)));
            }
        }
        let state = Located::new(&self.state_path, state);
        let places: Vec<_> = looks
            .into_iter()
            .map(|(name, path, look)| (name, path, Located::new(path, look)))
            .collect();
        for (index, (name, path, place)) in places.iter().enumerate() {
            let others = places
                .iter()
                .enumerate()
                .filter(|(other, _)| *other != index);
            for (_, (other_name, other_path, other)) in others {
                if place.contains(other) {
                    return Err(format!(
                        "engine.{other_name}.path ({}) is that of engine.{name} ({}), or lies \
                         within it: give each engine a directory of its own",
                        other_path.display(),
                        path.display()
                    ));
                }
            }
            if place.contains(&state) {
                return Err(format!(
                    "state_path ({}) lies within engine.{name}.path ({}): what the node \
                     remembers of the engine must not go away with it",
                    self.state_path.display(),
                    path.display()
                ));
            }
        }
        Ok(())
    }

    /// Which engines a node would not serve as they are now, and what to do.
    pub fn unready_engines(&self) -> Vec<String> {
        let remembered = Remembered::new(&self.state_path);
        let mut notes = Vec::new();
        for (name, engine) in &self.engines {
            if let EngineConfig::File { path, .. } = engine {
                let unready = match remembered.identity(path) {
                    Err(why) => Some(why),
                    Ok(identity) => {
                        let look = patience::begin(path, move |path| examine(path, identity));
                        match look.wait() {
                            Some(examined) => examined.err().map(|e| e.to_string()),
                            None => Some(format!(
                                "{} does not answer: see the kernel's log for its file system",
                                path.display()
                            )),
                        }
                    }
                };
                notes.extend(unready.map(|why| format!("the engine {name}: {why}")));
            }
        }
        notes
    }

    /// Which of the volumes that are to be created cannot be, and why. The node serves all else.
    pub fn unready_volumes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for (index, volume) in self.volumes.iter().enumerate() {
            let name = &volume.name;
            let spec = VolumeSpec {
                size_bytes: volume.size_bytes,
                logical_block_size: volume.logical_block_size_bytes,
                physical_block_size: volume.physical_block_size_bytes,
            };
            if self.volumes[..index].iter().any(|v| v.name == *name) {
                notes.push(format!(
                    "there are two sections [[volume]] with the name {name}: the first is taken"
                ));
            } else if let Err(error) = spec.settle(1) {
                notes.push(format!("the volume {name} cannot be created: {error}"));
            }
        }
        notes
    }

    /// Two settings must not want one address. `0.0.0.0` and `[::]` are two.
    fn check_addresses(&self) -> Result<(), String> {
        for (index, address) in self.control.listen.iter().enumerate() {
            if address.starts_with("unix:") && self.control.listen[..index].contains(address) {
                return Err(format!("control.listen has {address} twice: take one away"));
            }
        }
        let mut wanted: Vec<(&str, SocketAddr)> = Vec::new();
        wanted.extend(self.data.listen.iter().map(|a| ("data.listen", *a)));
        wanted.extend(self.control.tcp().map(|a| ("control.listen", a)));
        wanted.extend(self.metrics.listen.iter().map(|a| ("metrics.listen", *a)));
        for (index, (setting, address)) in wanted.iter().enumerate() {
            if is_of_many(address.ip()) {
                return Err(format!(
                    "{setting} has {address}, which is an address of many machines (multicast or \
                     broadcast): write one of this machine's own"
                ));
            }
            for (other_setting, other) in &wanted[..index] {
                let same_family = address.is_ipv4() == other.is_ipv4();
                let is_same = address.ip() == other.ip()
                    || (same_family
                        && (address.ip().is_unspecified() || other.ip().is_unspecified()));
                if is_same && address.port() == other.port() && address.port() != 0 {
                    return Err(format!(
                        "{setting} has {address} and {other_setting} has {other}, which is the \
                         same: give one of them another port"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Whether no single machine has the address.
fn is_of_many(address: IpAddr) -> bool {
    address.is_multicast() || matches!(address, IpAddr::V4(address) if address.is_broadcast())
}

/// What of the program's modules a filter of the log can name.
const CRATES: &str = "neonsan";

/// Reads a filter of the log. A word alone that is no level would be taken for a module of which all is
/// logged, and nothing else would be: a level with a typing error in it would silence the log.
pub(crate) fn read_filter(text: &str) -> Result<EnvFilter, String> {
    for word in text.split(',').map(str::trim) {
        // To the library nothing at all is a level.
        let is_level = !word.is_empty()
            && word
                .parse::<tracing_subscriber::filter::LevelFilter>()
                .is_ok();
        if !is_level && !word.contains(['=', '[', ':']) && !word.starts_with(CRATES) {
            return Err(format!(
                "{text:?}: {word:?} is no level: write error, warn, info, debug or trace, or a level \
                 for a module as in \"info,neonsan_node::hub=debug\""
            ));
        }
    }
    EnvFilter::try_new(text).map_err(|error| format!("{text:?}: {error}"))
}

/// Where a setting's path leads.
struct Located {
    /// As it is written, from the root on.
    written: PathBuf,
    /// `None`: nobody answers there. What would be stored there cannot be either, and an engine
    /// that is not opened yet is looked at again when it is.
    place: Option<Place>,
}

impl Located {
    fn new(path: &Path, look: patience::Look<Place>) -> Self {
        let place = look.wait();
        if place.is_none() {
            tracing::warn!(
                "{} does not answer, so it is compared with other places as it is written only: see \
                 the kernel's log for its file system",
                path.display()
            );
        }
        let written = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Self {
            written: written.components().collect(),
            place,
        }
    }

    /// Whether the other is the same place, or lies within it, as far as can be said.
    fn contains(&self, other: &Self) -> bool {
        match (&self.place, &other.place) {
            (Some(place), Some(other)) => place.contains(other),
            _ => other.written.starts_with(&self.written),
        }
    }
}

/// Refuses a path with what only a shell expands: it would be a directory of that name.
fn check_written_out(setting: &str, path: &Path) -> Result<(), String> {
    let text = path.to_string_lossy();
    if text.is_empty() {
        return Err(format!(
            "{setting} is empty: write the whole path, as in \"/srv/neonsan\""
        ));
    }
    if text.starts_with(['~', '$']) {
        return Err(format!(
            "{setting} is {text:?}, and nothing here puts a home directory or a variable in its \
             place: write the whole path, as in \"/srv/neonsan\""
        ));
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const ENGINE: &str = "[engine.main]\nkind = \"file\"\npath = \"/x\"\n";

    #[test]
    fn what_makes_no_sense_is_refused_with_the_key() {
        for (text, key) in [
            ("default_engine = \"b\"\n", "[engine.b]"),
            ("[data]\nlisten = []\n", "data.listen"),
            ("[data]\nlisten = [\"somewhere\"]\n", "somewhere"),
            ("[data]\nadvertise = [\"0.0.0.0:1\"]\n", "data.advertise"),
            ("[limits]\nmax_depth = 0\n", "limits.max_depth"),
            ("[limits]\nmax_in_flight_bytes = 1\n", "max_in_flight_bytes"),
            (
                "[timeouts]\nheartbeat_timeout_ms = 5\n",
                "heartbeat_timeout_ms",
            ),
            ("[control]\nsocket_mode = \"9\"\n", "socket_mode"),
            ("[control]\nlisten = [\"node:9667\"]\n", "control.listen"),
            ("[control]\nlisten = [\"unix:run/x\"]\n", "control.listen"),
            (
                "[limits]\nmax_control_connections = 0\n",
                "max_control_connections",
            ),
            ("[data]\nworkers = 100000\n", "data.workers"),
            ("[data]\nlocal_users = [\"1x\"]\n", "data.local_users"),
            ("[control]\nhosts = [\"a:1\"]\n", "control.hosts"),
            (
                "[data]\nlisten = [\"0.0.0.0:9\", \"127.0.0.1:9\"]\n",
                "data.listen",
            ),
            ("[metrics]\nlisten = [\"0.0.0.0:9666\"]\n", "metrics.listen"),
            (
                "[control]\nlisten = [\"127.0.0.1:9666\"]\n",
                "control.listen",
            ),
            ("[log]\nfilter = \"x=loud\"\n", "log.filter"),
            ("[log]\nfilter = \"inof\"\n", "log.filter \"inof\""),
            ("[log]\nfilter = \"\"\n", "log.filter"),
            ("[log]\nfilter = \"info,\"\n", "log.filter"),
            ("[data]\nlisten = [\"224.0.0.1:9\"]\n", "data.listen"),
            ("[data]\nlisten = [\"255.255.255.255:9\"]\n", "data.listen"),
            ("[metrics]\nlisten = [\"[ff02::1]:9\"]\n", "metrics.listen"),
            ("[data]\nadvertise = [\"224.0.0.1:9\"]\n", "data.advertise"),
            ("[data]\nnodes = [\"0.0.0.0:9666\"]\n", "data.nodes"),
            ("[data]\nnodes = [\"192.0.2.1:0\"]\n", "data.nodes"),
            ("[control]\nhosts = [\"*\"]\n", "control.hosts"),
            ("[control]\nhosts = [\"\u{fc}\"]\n", "control.hosts"),
            ("[control]\nlisten = [\"unix:/\"]\n", "control.listen"),
            (
                "[control]\nlisten = [\"unix:/a/s\", \"unix:/a/s\"]\n",
                "control.listen has unix:/a/s twice",
            ),
            ("state_path = \"\"\n", "state_path is empty"),
        ] {
            let error = Config::parse(&format!("{text}{ENGINE}")).unwrap_err();
            assert!(error.contains(key), "{text}: {error}");
        }
        assert!(Config::parse("").is_err());
    }

    #[test]
    fn a_block_that_no_engine_can_do_is_refused() {
        for bytes in [0, 511, 1000, 8192] {
            let error = Config::parse(&format!("{ENGINE}min_block_bytes = {bytes}\n")).unwrap_err();
            assert!(error.contains("engine.main.min_block_bytes"), "{error}");
        }
        Config::parse(&format!("{ENGINE}min_block_bytes = 4096\n")).unwrap();
    }

    #[test]
    fn volumes_that_cannot_be_created_are_told_and_keep_no_node_from_starting() {
        let notes = |text: &str| {
            let config = Config::parse(&format!("{ENGINE}{text}")).unwrap();
            config.unready_volumes()
        };
        let volume = |more: &str| format!("[[volume]]\nname = \"a/b\"\n{more}\n");
        assert!(notes(&volume("size_bytes = 4096")).is_empty());
        for (text, words) in [
            (volume("size_bytes = 513"), "a/b cannot be created"),
            (
                volume("size_bytes = 4096\nlogical_block_size_bytes = 7"),
                "a/b cannot be created",
            ),
            (volume("size_bytes = 4096").repeat(2), "two sections"),
        ] {
            let notes = notes(&text);
            assert!(notes.len() == 1 && notes[0].contains(words), "{notes:?}");
        }
    }

    #[test]
    fn what_can_be_a_filter_of_the_log_is_taken() {
        for filter in [
            "info",
            "WARN",
            "off",
            "info,neonsan_node::hub=debug",
            "neonsan_node",
            "info,hyper=warn",
            "neonsan_node[span]=trace",
        ] {
            read_filter(filter).unwrap();
        }
    }

    #[test]
    fn a_socket_whose_path_is_too_long_is_refused() {
        let listen = |path: String| {
            Config::parse(&format!("[control]\nlisten = [\"unix:{path}\"]\n{ENGINE}"))
        };
        listen(format!("/{}", "s".repeat(106))).unwrap();
        let error = listen(format!("/{}", "s".repeat(107))).unwrap_err();
        assert!(
            error.contains("control.listen") && error.contains("108 bytes"),
            "{error}"
        );
    }

    #[test]
    fn a_path_that_only_a_shell_would_expand_is_refused() {
        for (setting, path) in [
            ("engine.main.path", "~/vols"),
            ("engine.main.path", "~neonsan/vols"),
            ("engine.main.path", "$HOME/vols"),
            ("state_path", "~/state"),
        ] {
            let text = match setting {
                "state_path" => format!("state_path = {path:?}\n{ENGINE}"),
                _ => ENGINE.replace("/x", path),
            };
            let error = Config::parse(&text).unwrap_err();
            assert!(error.contains(setting), "{text}: {error}");
            assert!(error.contains("write the whole path"), "{error}");
        }
        Config::parse(&ENGINE.replace("/x", "/srv/a~b")).unwrap();
    }

    fn two_engines(a: &std::path::Path, b: &std::path::Path) -> Result<Config, String> {
        Config::parse(&format!(
            "default_engine = \"a\"\n[engine.a]\nkind = \"file\"\npath = {a:?}\n\
             [engine.b]\nkind = \"file\"\npath = {b:?}\n"
        ))
    }

    #[test]
    fn engines_do_not_lie_within_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, link] = ["a", "b", "link"].map(|name| dir.path().join(name));
        std::fs::create_dir(&a).unwrap();
        std::fs::create_dir(&b).unwrap();
        std::os::unix::fs::symlink(&a, &link).unwrap();
        two_engines(&a, &b).unwrap();
        for (one, other) in [(&a, &a.join("p")), (&a.join("p/v"), &a), (&a, &link)] {
            let error = two_engines(one, other).unwrap_err();
            assert!(error.contains("directory of its own"), "{error}");
        }
        let state = format!("state_path = {:?}\n", a.join("state"));
        let error = Config::parse(&format!(
            "{state}[engine.a]\nkind = \"file\"\npath = {a:?}\n"
        ));
        assert!(error.unwrap_err().contains("state_path"));
    }

    #[test]
    fn all_addresses_of_both_families_go_together() {
        for text in [
            "[control]\nlisten = [\"0.0.0.0:9\", \"[::]:9\"]\n",
            "[data]\nlisten = [\"127.0.0.1:9\", \"127.0.0.2:9\", \"[::]:9\"]\n",
            "[data]\nlisten = [\"127.0.0.1:0\", \"127.0.0.1:0\"]\n",
        ] {
            Config::parse(&format!("{text}{ENGINE}")).unwrap();
        }
    }
}
