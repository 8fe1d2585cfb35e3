// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Names of volumes in the control API.
//!
//! What a good name is says `neonsan_proto::VolumeName::parse`, once for the
//! wire, the module and the tools; this is the same name owned, without a
//! snapshot.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use neonsan_proto::MAX_VOLUME_NAME_BYTES as MAX_NAME_BYTES;

/// The name of a volume: its pool and its name within the pool.
///
/// # Invariants
///
/// `full` is accepted by `neonsan_proto::VolumeName::parse` and names no
/// snapshot. So each part is a safe path component: ASCII, never empty, `.`,
/// `..`, hidden, or mistaken for an option, and short enough.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName {
    full: Box<str>,
    /// Index of the slash in `full`.
    slash: usize,
}

/// Why a string is not the name of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameError {
    /// It breaks the rules for names.
    Rules(neonsan_proto::NameError),
    /// It names a snapshot where a volume is meant.
    Snapshot,
    /// It names a volume where a snapshot is meant.
    NoSnapshot,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rules(error) => error.fmt(f),
            Self::Snapshot => f.write_str("a volume is meant here, and this names a snapshot"),
            Self::NoSnapshot => {
                f.write_str("a snapshot is meant here, written pool/volume@snapshot")
            }
        }
    }
}

impl std::error::Error for NameError {}

impl VolumeName {
    /// Checks `pool` and `volume` and makes a name of them.
    pub fn new(pool: &str, volume: &str) -> Result<Self, NameError> {
        format!("{pool}/{volume}").parse()
    }

    /// The pool's name.
    pub fn pool(&self) -> &str {
        &self.full[..self.slash]
    }

    /// The volume's name within its pool.
    pub fn volume(&self) -> &str {
        &self.full[self.slash + 1..]
    }

    /// `pool/volume`.
    pub fn as_str(&self) -> &str {
        &self.full
    }
}

impl FromStr for VolumeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let name = neonsan_proto::VolumeName::parse(text).map_err(NameError::Rules)?;
        if name.snapshot().is_some() {
            return Err(NameError::Snapshot);
        }
        Ok(Self {
            full: text.into(),
            slash: name.pool().len(),
        })
    }
}

impl TryFrom<String> for VolumeName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<VolumeName> for String {
    fn from(name: VolumeName) -> String {
        name.full.into_string()
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full)
    }
}

/// The name of a snapshot: its volume, and its name among the volume's
/// snapshots, `pool/volume@snapshot`.
///
/// # Invariants
///
/// The whole is accepted by `neonsan_proto::VolumeName::parse`; so `snapshot`
/// is a safe path component like the parts of the volume's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotName {
    volume: VolumeName,
    snapshot: Box<str>,
}

impl SnapshotName {
    /// Checks `snapshot` and makes a name of it.
    pub fn new(volume: &VolumeName, snapshot: &str) -> Result<Self, NameError> {
        format!("{volume}@{snapshot}").parse()
    }

    /// The volume.
    pub fn volume(&self) -> &VolumeName {
        &self.volume
    }

    /// The snapshot's name among those of its volume.
    pub fn snapshot(&self) -> &str {
        &self.snapshot
    }
}

impl FromStr for SnapshotName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let name = neonsan_proto::VolumeName::parse(text).map_err(NameError::Rules)?;
        let snapshot = name.snapshot().ok_or(NameError::NoSnapshot)?;
        Ok(Self {
            volume: VolumeName::new(name.pool(), name.volume())?,
            snapshot: snapshot.into(),
        })
    }
}

impl TryFrom<String> for SnapshotName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<SnapshotName> for String {
    fn from(name: SnapshotName) -> String {
        name.to_string()
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.volume, self.snapshot)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn good_names_keep_their_parts() {
        let name: VolumeName = "rbd-1/vm_07.disk0".parse().unwrap();
        assert_eq!(name.pool(), "rbd-1");
        assert_eq!(name.volume(), "vm_07.disk0");
        assert_eq!(name.to_string(), "rbd-1/vm_07.disk0");
    }

    #[test]
    fn parts_cannot_leave_their_directory() {
        for text in [
            "", "volume", "/v", "p/", "a/b/c", "p/..", "../v", "p/.x", "p/-f", "p/a b", "pö/a",
            "p/a\0",
        ] {
            assert!(text.parse::<VolumeName>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_snapshot_has_a_volume_and_a_name() {
        let name: SnapshotName = "p/v@s.1".parse().unwrap();
        assert_eq!((name.volume().as_str(), name.snapshot()), ("p/v", "s.1"));
        assert_eq!(name.to_string(), "p/v@s.1");
        assert_eq!(SnapshotName::new(name.volume(), "s.1").unwrap(), name);
        assert_eq!(
            "p/v".parse::<SnapshotName>().unwrap_err(),
            NameError::NoSnapshot
        );
        for bad in ["p/v@", "p/v@a@b", "p/v@.x", "p/v@a/b", "v@s"] {
            assert!(bad.parse::<SnapshotName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_snapshot_is_not_a_volume() {
        assert_eq!(
            "p/v@s".parse::<VolumeName>().unwrap_err(),
            NameError::Snapshot
        );
    }

    #[test]
    fn the_longest_name_has_255_bytes() {
        let fits = format!("p/{}", "v".repeat(253));
        assert!(fits.parse::<VolumeName>().is_ok());
        let long = format!("p/{}", "v".repeat(254));
        assert!(long.parse::<VolumeName>().is_err());
    }
}
