// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What a crash leaves half made in an engine's directory, and clearing it away
//! when the engine is opened.
//!
//! Only what has a name that this engine gives, at a place where it gives it, and a
//! marker if it is a directory with anything in it, is touched. What cannot be removed keeps nothing from being served: it is told,
//! and the next start tries again.

use std::fs;
use std::io::ErrorKind as IoKind;
use std::path::{Path, PathBuf};

use super::layout::{self, is_leftover};
use super::{marker, snapshots, walk};
use crate::{Error, Result};

/// A file by which an engine of an earlier release tried what the storage can do.
fn is_trial(name: &str) -> bool {
    let number = name.strip_prefix(".probe-").map(|rest| {
        let number = rest.strip_suffix("-shared");
        number.unwrap_or(rest)
    });
    number.is_some_and(layout::is_number)
}

/// What went wrong, one sentence each.
#[derive(Default)]
struct Clearing {
    problems: Vec<String>,
}

impl Clearing {
    /// Notes what failed.
    fn note<T>(&mut self, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                tracing::warn!(%error, "something that a crash left is still there");
                self.problems.push(format!(
                    "something that a crash left is still there: {error}"
                ));
                None
            }
        }
    }

    fn remove(&mut self, path: &Path) {
        let is_dir = fs::symlink_metadata(path).is_ok_and(|m| m.is_dir());
        if is_dir {
            if let Err(error) = layout::check_leftover(path) {
                tracing::warn!(%error, "a directory is left alone");
                self.problems.push(error.to_string());
                return;
            }
        }
        tracing::info!(path = %path.display(), "removing what a crash left half made");
        let removed = match is_dir {
            true => layout::remove(path),
            false => match fs::remove_file(path) {
                Err(e) if e.kind() != IoKind::NotFound => {
                    Err(Error::os(e, format!("cannot remove {}", path.display())))
                }
                _ => Ok(()),
            },
        };
        self.note(removed);
    }

    fn trials(&mut self, root: &Path) {
        let context = |e| Error::os(e, format!("cannot list the directory {}", root.display()));
        let Some(entries) = self.note(fs::read_dir(root).map_err(context)) else {
            return;
        };
        let trials: Vec<PathBuf> = entries
            .filter_map(std::result::Result::ok)
            .filter(|entry| {
                let is_file = entry.file_type().is_ok_and(|t| t.is_file());
                is_file && entry.file_name().to_str().is_some_and(is_trial)
            })
            .map(|entry| entry.path())
            .collect();
        for path in trials {
            self.remove(&path);
        }
    }

    fn pool(&mut self, pool: &Path) {
        // One that cannot be read is none of a crash's: `health` names it.
        let Ok(entries) = walk::entries(pool) else {
            return;
        };
        for (name, path) in entries {
            if is_leftover(&name) {
                self.remove(&path);
            // One whose marker cannot be read is left alone.
            } else if marker::is_ours(&path).unwrap_or(false) {
                self.volume(&path);
            }
        }
    }

    fn volume(&mut self, dir: &Path) {
        for path in snapshots::unused(dir) {
            self.remove(&path);
        }
        let half_made = self.note(snapshots::leftovers(dir)).unwrap_or_default();
        for path in half_made {
            self.remove(&path);
        }
    }
}

/// Clears the directory of an engine, which nobody else uses. Gives what could
/// not be cleared, one sentence each.
pub(super) fn clear(root: &Path) -> Vec<String> {
    let mut clearing = Clearing::default();
    clearing.trials(root);
    for (_, pool) in clearing.note(walk::pools(root)).unwrap_or_default() {
        clearing.pool(&pool);
    }
    clearing.problems
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_the_engine_gives_are_trials() {
        let id = "0123456789abcdef0123456789abcdef";
        assert!(is_trial(&format!(".probe-{id}")));
        assert!(is_trial(&format!(".probe-{id}-shared")));
        for foreign in [
            ".probe-",
            ".probe-results",
            &format!(".probe-{id}0"),
            &format!(".probe-{id}-old"),
            &format!(".create-{id}"),
        ] {
            assert!(!is_trial(foreign), "{foreign}");
        }
    }
}
