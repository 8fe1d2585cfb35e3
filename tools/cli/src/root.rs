// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Where the system's files are looked for: below `/`, or below a directory that a test has made.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Opens a file to read it, and waits for nobody: a pipe into which nobody writes is empty.
fn open(path: &Path) -> io::Result<File> {
    let now = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    OpenOptions::new().read(true).custom_flags(now).open(path)
}

/// The text of a configuration: of a regular file, or `/dev/null`.
pub fn configuration(path: &Path) -> io::Result<String> {
    let mut file = open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() && metadata.rdev() != rustix::fs::makedev(1, 3) {
        let message = "it is no regular file: put the configuration into one";
        return Err(io::Error::other(message));
    }
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(text)
}

/// The text of a file without the space around it.
pub fn read(path: &Path) -> io::Result<String> {
    let mut text = Vec::new();
    open(path)?.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).trim().to_owned())
}

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
        read(&self.path(absolute)).ok()
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
