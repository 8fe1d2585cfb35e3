// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What a host can open, by name.

use std::fmt;

use neonsan_api::{NameError, SnapshotName, VolumeName};

/// A volume, or a snapshot of one. Each has a gate of its own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum OpenName {
    /// `pool/volume`.
    Volume(VolumeName),
    /// `pool/volume@snapshot`; it is opened read-only.
    Snapshot(SnapshotName),
}

impl OpenName {
    /// The name that a client sent, which is a good one by the protocol.
    pub(super) fn asked(name: &neonsan_proto::VolumeName<'_>) -> Result<Self, NameError> {
        match name.snapshot() {
            Some(_) => name.as_str().parse().map(Self::Snapshot),
            None => name.as_str().parse().map(Self::Volume),
        }
    }

    /// The volume that is opened, or whose snapshot is.
    pub fn volume(&self) -> &VolumeName {
        match self {
            Self::Volume(name) => name,
            Self::Snapshot(name) => name.volume(),
        }
    }

    /// The snapshot, if one is opened.
    pub fn snapshot(&self) -> Option<&SnapshotName> {
        match self {
            Self::Volume(_) => None,
            Self::Snapshot(name) => Some(name),
        }
    }
}

impl From<VolumeName> for OpenName {
    fn from(name: VolumeName) -> Self {
        Self::Volume(name)
    }
}

impl From<SnapshotName> for OpenName {
    fn from(name: SnapshotName) -> Self {
        Self::Snapshot(name)
    }
}

impl fmt::Display for OpenName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume(name) => name.fmt(f),
            Self::Snapshot(name) => name.fmt(f),
        }
    }
}
