// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Where the system's files are looked for: below `/`, or below a directory that a test has made.

use std::path::{Path, PathBuf};

/// The root of the files that describe the machine.
#[derive(Clone, Debug)]
pub struct Root(PathBuf);

impl Root {
    /// This machine's.
    pub fn system() -> Self {
        Root("/".into())
    }

    /// Another one's.
    pub fn at(directory: &Path) -> Self {
        Root(directory.to_owned())
    }

    /// The path of a file that is named absolutely.
    pub fn path(&self, absolute: &str) -> PathBuf {
        self.0.join(absolute.trim_start_matches('/'))
    }

    /// The text of a file without the space around it, if it can be read.
    pub fn text(&self, absolute: &str) -> Option<String> {
        let text = std::fs::read(self.path(absolute)).ok()?;
        Some(String::from_utf8_lossy(&text).trim().to_owned())
    }

    /// The names in a directory, in order; none where there is no such directory.
    pub fn names(&self, absolute: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.path(absolute)) else {
            return Vec::new();
        };
        let mut names: Vec<_> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }
}
