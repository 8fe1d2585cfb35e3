// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What can follow on a command line: for the completion of shells, which run `neonsan __complete` with
//! the words up to the cursor. The scripts in tools/packaging/completions know nothing of the commands;
//! all is looked up here, in what the command line itself is read by.
//!
//! Each candidate is a line: the whole word, and behind a tab what it is. The line `:files` asks the shell
//! for names of files.

use crate::cli::{Neonsan, NeonsanAttach, NeonsanDetach};
use crate::commands::volume;
use crate::config::Config;
use crate::output::plain;
use crate::root::Root;
use crate::target::Target;
use clap::{Arg, Command, CommandFactory as _};
use neonsan_api::{Client, ClientError};
use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

/// A person waits at the keyboard: what is not known by then is left out.
const TIMEOUT: Duration = Duration::from_millis(800);

/// More volumes than these are offered by their pools first.
const MANY: usize = 200;

const SCHEME: &str = "neonsan://";

/// A word that could stand at the cursor, and what it is.
type Candidate = (String, String);

/// Prints what can follow. `words`: the program's name and the words up to the cursor, the last one
/// as far as it is written.
pub fn print(words: Vec<String>) {
    let (sender, receiver) = mpsc::channel();
    // Where a node does not answer, or a name is not resolved, nobody waits for this thread.
    let started = std::thread::Builder::new().spawn(move || {
        let _ = sender.send(candidates(&words, &Root::system()));
    });
    let mut text = String::new();
    if started.is_ok() {
        let found = receiver.recv_timeout(TIMEOUT).unwrap_or_default();
        for (word, what) in found.into_iter().filter(|(word, _)| is_harmless(word)) {
            text += &format!("{}\t{}\n", plain(&word), plain(&what));
        }
    }
    let _ = crate::output::print(&text);
}

/// Whether a shell takes a word as it stands. Some come from a node, and a node must not put `;` or `$(…)`
/// on anybody's command line.
fn is_harmless(word: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || "/._-:@=,%+[]".contains(c);
    word.chars().all(fits)
}

/// What of the line matters for what comes next.
struct Line<'a> {
    /// The words of commands, as in `volume snapshot list`.
    commands: Vec<&'a str>,
    /// Values of options.
    options: HashMap<String, Vec<String>>,
    /// Arguments without an option.
    arguments: Vec<&'a str>,
    root: &'a Root,
    config: Config,
}

fn candidates(words: &[String], root: &Root) -> Vec<Candidate> {
    let Some((program, words)) = words.split_first() else {
        return Vec::new();
    };
    let program = Path::new(program).file_name().unwrap_or_default();
    let (mut command, first) = match program.to_str() {
        Some("neonsan-attach") => (NeonsanAttach::command(), Some("attach")),
        Some("neonsan-detach") => (NeonsanDetach::command(), Some("detach")),
        _ => (Neonsan::command(), None),
    };
    command.build();
    let Some((current, before)) = words.split_last() else {
        return Vec::new();
    };
    let mut line = Line {
        commands: first.into_iter().collect(),
        options: HashMap::new(),
        arguments: Vec::new(),
        root,
        config: Config::default(),
    };
    let mut at = &command;
    let mut wants_value: Option<&Arg> = None;
    let mut only_arguments = false;
    for word in before {
        if let Some(option) = wants_value.take() {
            line.note(option, word);
        } else if only_arguments {
            line.arguments.push(word);
        } else if word == "--" {
            only_arguments = true;
        } else if let Some(option) = word.strip_prefix("--") {
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (option, None),
            };
            let found = at.get_arguments().find(|arg| arg.get_long() == Some(name));
            match (found, value) {
                (Some(option), Some(value)) => line.note(option, value),
                (Some(option), None) if takes_value(option) => wants_value = Some(option),
                (Some(option), None) => line.note(option, ""),
                (None, _) => {}
            }
        } else if let Some(letters) = word.strip_prefix('-').filter(|word| !word.is_empty()) {
            let last = letters.chars().last();
            let found = at.get_arguments().find(|arg| arg.get_short() == last);
            wants_value = found.filter(|option| takes_value(option));
        } else if let Some(next) = at
            .find_subcommand(word)
            .filter(|_| line.arguments.is_empty())
        {
            line.commands.push(word);
            at = next;
        } else {
            line.arguments.push(word);
        }
    }
    let path = line.options.get("config").and_then(|paths| paths.last());
    line.config = Config::load(path.map(Path::new)).unwrap_or_default();
    if let Some(option) = wants_value {
        return line.values(option, current, "");
    }
    if !only_arguments && current.starts_with('-') && current.len() > 1 || current == "-" {
        return match current.split_once('=') {
            Some((name, value)) => {
                let long = name.trim_start_matches('-');
                let found = at.get_arguments().find(|arg| arg.get_long() == Some(long));
                let before = format!("{name}=");
                found.map_or_else(Vec::new, |option| line.values(option, value, &before))
            }
            None => line.option_names(at, current),
        };
    }
    if at.has_subcommands() {
        let shown = at.get_subcommands().filter(|sub| !sub.is_hide_set());
        let shown = shown.map(|sub| {
            let about = sub.get_about().map(ToString::to_string);
            (sub.get_name().to_owned(), about.unwrap_or_default())
        });
        return shown
            .filter(|(name, _)| name.starts_with(current))
            .collect();
    }
    let positionals: Vec<_> = at.get_positionals().collect();
    let index = line.arguments.len();
    let last_takes_all = |arg: &&&Arg| arg.get_num_args().is_some_and(|n| n.max_values() > 1);
    let wanted = positionals
        .get(index)
        .or_else(|| positionals.last().filter(last_takes_all));
    wanted.map_or_else(Vec::new, |arg| line.values(arg, current, ""))
}

fn takes_value(arg: &Arg) -> bool {
    arg.get_action().takes_values()
}

/// The first sentence of an argument's help.
fn help_of(arg: &Arg) -> String {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    help.split('\n').next().unwrap_or_default().to_owned()
}

impl Line<'_> {
    fn note(&mut self, option: &Arg, value: &str) {
        let values = self.options.entry(option.get_id().to_string());
        values.or_default().push(value.to_owned());
    }

    fn option(&self, id: &str) -> Option<&str> {
        self.options.get(id)?.last().map(String::as_str)
    }

    /// The options that begin so, without those that are given already and make sense once.
    fn option_names(&self, at: &Command, current: &str) -> Vec<Candidate> {
        let more = |arg: &Arg| matches!(arg.get_action(), clap::ArgAction::Append);
        let options = at.get_arguments().filter(|arg| {
            !arg.is_hide_set() && (more(arg) || !self.options.contains_key(arg.get_id().as_str()))
        });
        options
            .filter_map(|arg| Some((format!("--{}", arg.get_long()?), help_of(arg))))
            .filter(|(name, _)| name.starts_with(current))
            .collect()
    }

    /// The values of an argument that begin with `current`, each with `before` before it.
    fn values(&self, arg: &Arg, current: &str, before: &str) -> Vec<Candidate> {
        let possible = arg.get_possible_values();
        let found = if !possible.is_empty() {
            let help = |value: &clap::builder::PossibleValue| {
                let help = value.get_help().map(ToString::to_string);
                (value.get_name().to_owned(), help.unwrap_or_default())
            };
            possible.iter().map(help).collect()
        } else {
            let last = self.commands.last().copied().unwrap_or_default();
            match (arg.get_id().as_str(), last) {
                ("device" | "devices", _) => self.devices(current),
                ("target", "create") if self.is_about_snapshots() => self.snapshots(current, false),
                ("target", "list") => self.volumes(current),
                ("target", "clone") => self.snapshots(current, true),
                ("target", _) if self.is_about_snapshots() => self.snapshots(current, true),
                ("target", "attach" | "export") if current.contains('@') => {
                    self.snapshots(current, true)
                }
                ("target", _) => self.volumes(current),
                ("name", _) => self.pools("/"),
                ("pool", _) => self.pools(""),
                ("engine", _) => self.engines(),
                ("nodes", _) => self.nodes(),
                ("api", _) => self.apis(),
                ("config" | "file", _) => return vec![(":files".into(), String::new())],
                _ => Vec::new(),
            }
        };
        let fits = found
            .into_iter()
            .filter(|(word, _)| word.starts_with(current));
        fits.map(|(word, what)| (format!("{before}{word}"), what))
            .collect()
    }

    fn is_about_snapshots(&self) -> bool {
        self.commands.contains(&"snapshot")
    }

    /// Attached devices: by their names, or by their volumes, which root can read.
    fn devices(&self, current: &str) -> Vec<Candidate> {
        let names = self.root.names("/sys/block").into_iter();
        let mut found = Vec::new();
        for name in names.filter(|name| name.starts_with("neonsan")) {
            let volume = self.root.text(&format!("/sys/block/{name}/volume"));
            let volume = volume.unwrap_or_default();
            let path = format!("/dev/{name}");
            if [&name, &path, &volume]
                .iter()
                .any(|given| self.arguments.contains(&given.as_str()))
            {
                continue;
            }
            if current.starts_with("/") {
                found.push((path, volume));
            } else if current.contains('/') {
                found.push((volume, name));
            } else {
                found.push((name, volume.clone()));
                // Not both of them before there is anything to go by.
                if !current.is_empty() && !volume.is_empty() {
                    found.push((volume, path));
                }
            }
        }
        found
    }

    /// Asks the control API that the command would ask.
    fn ask<T, F: Future<Output = Result<T, ClientError>>>(
        &self,
        target: Option<&Target>,
        call: impl FnOnce(Client) -> F,
    ) -> Option<T> {
        let client = volume::client(self.option("api"), &self.config, target).ok()?;
        let client = client.with_timeout(TIMEOUT);
        volume::runtime().ok()?.block_on(call(client)).ok()
    }

    /// Volumes, with the hosts before them that are written already; or those hosts.
    fn volumes(&self, current: &str) -> Vec<Candidate> {
        let Some(rest) = current.strip_prefix(SCHEME) else {
            let mut found = self.names(None, "", current);
            if SCHEME.starts_with(current) {
                found.push((SCHEME.to_owned(), "a volume with its node".to_owned()));
            }
            return found;
        };
        match rest.split_once('/') {
            None => {
                let nodes = self.nodes().into_iter();
                let host = |(node, what)| (format!("{SCHEME}{node}/"), what);
                nodes.map(host).collect()
            }
            Some((hosts, name)) => {
                // A target whose volume is not known yet.
                let target = format!("{SCHEME}{hosts}/x/x").parse().ok();
                let before = format!("{SCHEME}{hosts}/");
                self.names(target.as_ref(), &before, name)
            }
        }
    }

    /// The names of a node's volumes that begin with `name`, with `before` before them.
    fn names(&self, target: Option<&Target>, before: &str, name: &str) -> Vec<Candidate> {
        let pool = name.split_once('/').map(|(pool, _)| pool.to_owned());
        let list = self.ask(target, |client| async move {
            client.list_volumes(pool.as_deref()).await
        });
        let volumes = list.map(|list| list.volumes).unwrap_or_default();
        let fits = volumes
            .iter()
            .filter(|volume| volume.name.as_str().starts_with(name));
        if fits.clone().count() > MANY && !name.contains('/') {
            let pools: BTreeSet<_> = fits.map(|volume| volume.name.pool()).collect();
            let pools = pools.into_iter();
            return pools
                .map(|pool| (format!("{before}{pool}/"), "a pool".to_owned()))
                .collect();
        }
        fits.map(|volume| {
            let size = crate::units::show_size(volume.size_bytes);
            (format!("{before}{}", volume.name), size)
        })
        .collect()
    }

    /// Snapshots of the volume that is written; before its `@`, volumes with that.
    fn snapshots(&self, current: &str, exist: bool) -> Vec<Candidate> {
        let Some((volume, _)) = current.rsplit_once('@') else {
            let volumes = self.volumes(current).into_iter();
            return volumes
                .map(|(name, what)| match name.ends_with('/') {
                    true => (name, what),
                    false => (format!("{name}@"), what),
                })
                .collect();
        };
        let (Ok(target), true) = (volume.parse::<Target>(), exist) else {
            return Vec::new();
        };
        let Ok(name) = target.volume.parse() else {
            return Vec::new();
        };
        let with_hosts = (!target.nodes.is_empty()).then_some(&target);
        let list = self.ask(with_hosts, |client| async move {
            client.list_snapshots(&name).await
        });
        let snapshots = list.map(|list| list.snapshots).unwrap_or_default();
        let shown = snapshots.iter().map(|snapshot| {
            let created = neonsan_api::show_time(snapshot.created_unix_s);
            (format!("{volume}@{}", snapshot.snapshot), created)
        });
        shown.collect()
    }

    fn pools(&self, behind: &str) -> Vec<Candidate> {
        let list = self.ask(
            None,
            |client| async move { client.list_volumes(None).await },
        );
        let volumes = list.map(|list| list.volumes).unwrap_or_default();
        let pools: BTreeSet<_> = volumes.iter().map(|volume| volume.name.pool()).collect();
        let pools = pools.into_iter();
        pools
            .map(|pool| (format!("{pool}{behind}"), "a pool".to_owned()))
            .collect()
    }

    fn engines(&self) -> Vec<Candidate> {
        let node = self.ask(None, |client| async move { client.node().await });
        let engines = node.map(|node| node.engines).unwrap_or_default();
        let shown = engines.into_iter();
        shown.map(|engine| (engine.name, engine.kind)).collect()
    }

    /// Where hosts reach nodes: of the config file, and what a node knows of.
    fn nodes(&self) -> Vec<Candidate> {
        let mut found: Vec<Candidate> = Vec::new();
        let of_file = self.config.nodes.iter();
        found.extend(of_file.map(|node| (node.clone(), "of the config file".to_owned())));
        let list = self.ask(None, |client| async move { client.nodes().await });
        for node in list.map(|list| list.nodes).unwrap_or_default() {
            let what = match node.is_this {
                true => "the node that was asked",
                false => "a node that has volumes in common with it",
            };
            for address in node.addresses {
                if !found.iter().any(|(known, _)| *known == address) {
                    found.push((address, what.to_owned()));
                }
            }
        }
        found
    }

    fn apis(&self) -> Vec<Candidate> {
        let socket = neonsan_api::DEFAULT_CONTROL_SOCKET;
        let mut found = Vec::new();
        if self.root.path(socket).exists() {
            found.push((
                format!("unix:{socket}"),
                "the node of this machine".to_owned(),
            ));
        }
        if let Some(api) = &self.config.api {
            found.push((api.clone(), "of the config file".to_owned()));
        }
        for node in &self.config.nodes {
            if let Ok(node) = node.parse::<crate::target::NodeAddress>() {
                let address = format!("http://{}", node.host());
                found.push((address, "of the config file".to_owned()));
            }
        }
        found
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::users::tests::Machine;

    fn words(root: &Root, line: &str) -> Vec<String> {
        // What stands behind the last space is being written.
        let words: Vec<_> = line.split(' ').map(str::to_owned).collect();
        let found = candidates(&words, root);
        found.into_iter().map(|(word, _)| word).collect()
    }

    #[test]
    fn commands_options_and_their_values_are_offered() {
        let machine = Machine::new();
        let root = machine.root();
        let has = |line: &str, word: &str| words(&root, line).iter().any(|found| found == word);
        assert!(has("neonsan ", "attach") && has("neonsan ", "volume"));
        assert!(!has("neonsan ", "__complete"), "hidden ones are not shown");
        assert_eq!(words(&root, "neonsan vol"), ["volume"]);
        assert!(has("neonsan --json volume ", "import"));
        assert!(has("neonsan volume snapshot ro", "rollback"));
        assert!(has("neonsan attach --lo", "--loss-timeout"));
        assert!(has("neonsan-attach --lo", "--loss-timeout"));
        assert!(has("neonsan-detach -", "--wait"));
        let modes = ["exclusive", "shared", "read-only"];
        assert_eq!(words(&root, "neonsan attach --mode "), modes);
        assert_eq!(words(&root, "neonsan attach --mode=sh"), ["--mode=shared"]);
        assert_eq!(words(&root, "neonsan suspend --mode e"), ["error"]);
        // An option that is there is not offered again, unless it may be.
        assert!(!has("neonsan attach --force --", "--force"));
        assert!(has("neonsan attach --node a --", "--node"));
        assert_eq!(words(&root, "neonsan volume import p/v "), [":files"]);
        assert_eq!(words(&root, "neonsan --config "), [":files"]);
        assert!(words(&root, "neonsan volume create p/v --size ").is_empty());
        // Behind -- there are no options.
        assert!(words(&root, "neonsan detach -- --f").is_empty());
        assert!(words(&root, "neonsan nonsense more ").len() < 30);
        assert!(words(&root, "neonsan").is_empty());
    }

    #[test]
    fn nothing_is_offered_that_a_shell_would_run() {
        for word in [
            "neonsan://[fe80::1%eth0]:9666/p/v@s",
            ":files",
            "--mode=shared",
        ] {
            assert!(is_harmless(word), "{word}");
        }
        for word in [
            "$(id)", "a;id", "a b", "`id`", "a\nb", "a|b", "'", "~", "\u{2028}",
        ] {
            assert!(!is_harmless(word), "{word}");
        }
    }

    #[test]
    fn attached_devices_are_offered_by_name_path_and_volume() {
        let machine = Machine::new();
        machine.write("/sys/block/neonsan0/volume", "vm/disk0\n");
        machine.write("/sys/block/neonsan12/size", "1\n");
        machine.write("/sys/block/sda/size", "1\n");
        let root = machine.root();
        assert_eq!(words(&root, "neonsan info "), ["neonsan0", "neonsan12"]);
        assert_eq!(
            words(&root, "neonsan info /dev/neonsan1"),
            ["/dev/neonsan12"]
        );
        assert_eq!(words(&root, "neonsan info v"), ["vm/disk0"]);
        assert_eq!(words(&root, "neonsan info vm/"), ["vm/disk0"]);
        // Several may be detached at once, each once.
        assert_eq!(words(&root, "neonsan-detach neonsan0 "), ["neonsan12"]);
        assert!(words(&root, "neonsan info neonsan0 ").is_empty());
    }
}
