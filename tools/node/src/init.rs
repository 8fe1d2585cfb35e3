// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `neonsan-node init`: makes a directory an engine's, because a person said so.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use neonsan_engine::file::{self, InitOptions, Initialized};

use crate::config::{Config, DEFAULT_CONFIG, EXIT_CONFIG};
use crate::remembered::Remembered;
use crate::say::{answer, complain};

/// The user as which the packaged unit runs the node.
const NODE_USER: &str = "neonsan";

/// What `neonsan-node init` is told.
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// The directory has volumes of a release that made no markers: keep them, and mark them.
    /// Stop the node first. Can be run again, for volumes of such a release that were copied there.
    #[arg(long)]
    adopt: bool,
    /// The user as which the node runs: the directory is given to it. Without this a directory that
    /// is there stays whose it is, and one that root makes is given to the user "neonsan" if there is
    /// one.
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// The directory: empty (but for lost+found), or absent in a directory that is there.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
}

/// What `neonsan-node forget` is told.
#[derive(Debug, Args)]
pub(crate) struct ForgetArgs {
    /// The configuration file of the node, which says where it remembers (state_path).
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// The path of the engine, as the configuration has it.
    #[arg(value_name = "PATH")]
    path: PathBuf,
}

/// A user's name, number and group, from a line of /etc/passwd.
fn parse_user(line: &str) -> Option<(&str, u32, u32)> {
    let mut fields = line.split(':');
    let name = fields.next()?;
    let _password = fields.next()?;
    Some((
        name,
        fields.next()?.parse().ok()?,
        fields.next()?.parse().ok()?,
    ))
}

/// Number and group of a user of this machine, by name or by number.
fn find_user(users: &str, wanted: &str) -> Option<(u32, u32)> {
    let number: Option<u32> = wanted.parse().ok();
    let mut known = users.lines().filter_map(parse_user);
    known
        .find(|(name, uid, _)| *name == wanted || Some(*uid) == number)
        .map(|(_, uid, gid)| (uid, gid))
}

/// Whose the directory is to be; `None`: whose it is.
fn owner(args: &InitArgs, is_root: bool) -> Result<Option<(u32, u32)>, String> {
    let users = || fs::read_to_string("/etc/passwd").unwrap_or_default();
    match &args.user {
        Some(user) => find_user(&users(), user).map(Some).ok_or_else(|| {
            format!("/etc/passwd has no user {user:?}: name the one as which the node runs")
        }),
        None if is_root && fs::symlink_metadata(&args.dir).is_err() => {
            Ok(find_user(&users(), NODE_USER))
        }
        None => Ok(None),
    }
}

/// The whole path, for messages and for the engine.
fn absolute(dir: &Path) -> Result<PathBuf, String> {
    std::path::absolute(dir).map_err(|e| format!("{}: {e}", dir.display()))
}

/// What was done, in words.
fn tell(dir: &Path, done: &Initialized, args: &InitArgs, is_root: bool) -> String {
    let mut text = format!(
        "{}: {} engine {}\n",
        dir.display(),
        if done.made { "made, with" } else { "is now of" },
        done.identity
    );
    for volume in &done.adopted {
        text += &format!("adopted the volume {volume}\n");
    }
    if args.adopt && done.adopted.is_empty() {
        text += "there was no volume to adopt: if you know of some, see whether their disk is mounted\n";
    }
    for path in &done.left_alone {
        text += &format!("left alone, since it is no volume: {}\n", path.display());
    }
    if is_root && done.owner.0 == 0 && args.user.is_none() {
        text += &format!(
            "it belongs to root: if the node runs as another user, give it to that one with \
             `chown -R USER: {}`\n",
            dir.display()
        );
    }
    text
}

/// Runs `forget`.
pub(crate) fn forget(args: &ForgetArgs) -> ExitCode {
    let config = match Config::load(&args.config) {
        Ok(config) => config,
        Err(error) => {
            complain(format_args!(" forget: {error}"));
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let shown = args.path.display();
    match Remembered::new(&config.state_path).forget(&args.path) {
        Ok(true) => answer(&format!(
            "{shown}: forgotten; the node takes what it finds there next\n"
        )),
        Ok(false) => answer(&format!("{shown}: nothing was remembered\n")),
        Err(error) => {
            complain(format_args!(" forget: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs `init`.
pub(crate) fn run(args: &InitArgs) -> ExitCode {
    let is_root = rustix::process::geteuid().is_root();
    let init = || {
        let dir = absolute(&args.dir)?;
        let options = InitOptions {
            adopt: args.adopt,
            owner: owner(args, is_root)?,
        };
        let done = file::init(&dir, &options).map_err(|e| e.to_string())?;
        Ok((dir, done))
    };
    match init() {
        Ok((dir, done)) => answer(&tell(&dir, &done, args, is_root)),
        Err(error) => {
            let error: String = error;
            complain(format_args!(" init: {error}"));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const USERS: &str = "root:x:0:0:root:/root:/bin/bash\n\
                         broken\n\
                         neonsan:!:993:991:NeonSAN:/var/lib/neonsan:/usr/sbin/nologin\n";

    #[test]
    fn a_user_is_found_by_name_and_by_number() {
        assert_eq!(find_user(USERS, "neonsan"), Some((993, 991)));
        assert_eq!(find_user(USERS, "993"), Some((993, 991)));
        assert_eq!(find_user(USERS, "root"), Some((0, 0)));
        assert_eq!(find_user(USERS, "broken"), None);
        assert_eq!(find_user(USERS, "nobody"), None);
    }
}
