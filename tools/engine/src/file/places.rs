// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Where engines may be: none at or below the place of another one.
//!
//! A directory has many paths: through links, and through mounts of the same file
//! system at several places (bind mounts). So a place is compared by its path
//! without links, by its inode, and by its path within its file system, which
//! `/proc/self/mountinfo` tells.

use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{statx, AtFlags, StatxFlags, CWD};

use super::marker;
use crate::{Error, ErrorKind, Result};

/// A mounted file system, or a part of one: a line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
struct MountPoint {
    id: u64,
    /// `major:minor` of the file system.
    device: String,
    /// Which directory of the file system is mounted.
    root: PathBuf,
    /// Where.
    at: PathBuf,
}

/// Undoes mountinfo's way to write spaces and the like: `\040`.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| byte == b'\\');
        let code = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) => {
                bytes.push(code);
                rest = &after[3..];
            }
            None => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    PathBuf::from(std::ffi::OsString::from_vec(bytes))
}

fn parse(line: &str) -> Option<MountPoint> {
    let mut fields = line.split(' ');
    let id = fields.next()?.parse().ok()?;
    let _parent = fields.next()?;
    Some(MountPoint {
        id,
        device: fields.next()?.to_owned(),
        root: unescape(fields.next()?),
        at: unescape(fields.next()?),
    })
}

fn mount_points() -> Vec<MountPoint> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    text.lines().filter_map(parse).collect()
}

/// The mount that a path, which has no links in it, lies on.
fn mount_of<'a>(path: &Path, mounts: &'a [MountPoint]) -> Option<&'a MountPoint> {
    let stat = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).ok()?;
    if stat.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
        return None;
    }
    mounts.iter().find(|mount| mount.id == stat.stx_mnt_id)
}

/// A path without links. What is not there yet is taken as it is written.
fn resolve(path: &Path) -> PathBuf {
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    for there in path.ancestors() {
        if let Ok(resolved) = fs::canonicalize(there) {
            return match path.strip_prefix(there) {
                Ok(rest) if !rest.as_os_str().is_empty() => resolved.join(rest),
                _ => resolved,
            };
        }
    }
    path
}

/// A place for an engine, there or not.
#[derive(Clone, Debug)]
pub struct Place {
    /// Without links.
    path: PathBuf,
    /// Device and inode, if it is there.
    inode: Option<(u64, u64)>,
    /// The file system and the path within it.
    within: Option<(String, PathBuf)>,
}

fn inode(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

impl Place {
    /// The place that has this path.
    pub fn of(path: &Path) -> Self {
        Self::with(path, &mount_points())
    }

    fn with(path: &Path, mounts: &[MountPoint]) -> Self {
        let path = resolve(path);
        let there = path.ancestors().find(|there| there.exists());
        let within = there
            .and_then(|there| mount_of(there, mounts))
            .and_then(|mount| {
                let below = path.strip_prefix(&mount.at).ok()?;
                Some((mount.device.clone(), mount.root.join(below)))
            });
        Self {
            inode: inode(&path),
            path,
            within,
        }
    }

    /// Whether the other place is the same one, or lies within it.
    pub fn contains(&self, other: &Self) -> bool {
        if other.path.starts_with(&self.path) {
            return true;
        }
        if self.inode.is_some() && self.inode == other.inode {
            return true;
        }
        match (&self.within, &other.within) {
            (Some((device, path)), Some((other_device, other_path))) => {
                device == other_device && other_path.starts_with(path)
            }
            _ => false,
        }
    }
}

/// The paths by which a directory can be reached, the one without links first.
fn paths(root: &Path) -> Vec<PathBuf> {
    let mounts = mount_points();
    let place = Place::with(root, &mounts);
    let mut paths = vec![place.path.clone()];
    let Some((device, within)) = &place.within else {
        return paths;
    };
    for mount in mounts.iter().filter(|mount| mount.device == *device) {
        let Ok(below) = within.strip_prefix(&mount.root) else {
            continue;
        };
        let path = match below.as_os_str().is_empty() {
            true => mount.at.clone(),
            false => mount.at.join(below),
        };
        // What is mounted over it has another inode.
        if !paths.contains(&path) && place.inode.is_some() && inode(&path) == place.inode {
            paths.push(path);
        }
    }
    paths
}

/// Refuses a directory that lies within an engine or one of its volumes.
pub(super) fn check_free(root: &Path) -> Result<()> {
    match paths(root)
        .iter()
        .find_map(|path| marker::marked_above(path))
    {
        Some(above) => Err(Error::new(
            ErrorKind::Conflict,
            format!(
                "{} lies within {}, which an engine has for itself: choose a directory outside",
                root.display(),
                above.display()
            ),
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_understood() {
        let line = "36 35 98:0 /mnt\\0401 /mnt/a\\134b rw,noatime master:1 - ext3 /dev/root rw";
        let mount = parse(line).unwrap();
        assert_eq!(mount.id, 36);
        assert_eq!(mount.device, "98:0");
        assert_eq!(mount.root, Path::new("/mnt 1"));
        assert_eq!(mount.at, Path::new("/mnt/a\\b"));
        assert_eq!(unescape("\\04"), Path::new("\\04"));
        assert_eq!(unescape("\\"), Path::new("\\"));
        assert!(parse("x").is_none());
        assert!(!mount_points().is_empty());
    }

    fn contains(a: &Path, b: &Path) -> bool {
        Place::of(a).contains(&Place::of(b))
    }

    #[test]
    fn a_place_contains_itself_and_what_is_below_by_whatever_path() {
        let dir = tempfile::tempdir().unwrap();
        let (a, link) = (dir.path().join("a"), dir.path().join("link"));
        fs::create_dir(&a).unwrap();
        std::os::unix::fs::symlink(&a, &link).unwrap();
        for (outer, inner) in [
            (a.clone(), a.clone()),
            (a.clone(), a.join("p/v")),
            (a.clone(), link.join("p")),
            (link.clone(), a.join("p")),
            (dir.path().to_owned(), link.clone()),
        ] {
            assert!(contains(&outer, &inner), "{outer:?} {inner:?}");
        }
        assert!(!contains(&a, dir.path()));
        assert!(!contains(&a, &dir.path().join("ab")));
        assert!(!contains(&a, &dir.path().join("b/p")));
    }
}
