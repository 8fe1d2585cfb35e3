// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Markers: files that say what this project made.
//!
//! `.neonsan-engine` in an engine's root has the identity of the engine, random,
//! written once by `neonsan-node init`. Without it the directory is none of ours:
//! a disk that is not mounted looks like that. `.neonsan-volume` in the directory
//! of a volume or a snapshot says that it is one, also when nothing else of it can
//! be read. Releases before wrote none; there the beginning of `meta` says it.
//!
//! Both are records of entries (see [`crate::tlv`]), written durably in one step:
//!
//! | kind             | magic       | type | what                                   |
//! |------------------|-------------|------|----------------------------------------|
//! | `.neonsan-engine`| `NEONENG\n` | 1    | identity of the engine, 16 bytes       |
//! |                  |             | 2    | creation time in seconds since 1970    |
//! | `.neonsan-volume`| `NEONMRK\n` | 1    | creation time in seconds since 1970    |

use std::fs::{self, File};
use std::io::{ErrorKind as IoKind, Read as _};
use std::path::{Path, PathBuf};

use super::layout::{is_dir, write_file};
use super::{meta, sync_dir};
use crate::error::{SystemError, Written as _};
use crate::identity::{random_id, unix_seconds};
use crate::tlv::{self, Entries, Kind};
use crate::{Error, ErrorKind, Result};

/// The marker of an engine's root.
pub(super) const ENGINE_MARKER: &str = ".neonsan-engine";
pub(super) const NEW_ENGINE_MARKER: &str = ".neonsan-engine.new";
/// The marker of a volume or a snapshot.
pub(super) const VOLUME_MARKER: &str = ".neonsan-volume";
pub(super) const NEW_VOLUME_MARKER: &str = ".neonsan-volume.new";

const ENGINE: Kind = Kind {
    magic: *b"NEONENG\n",
    version: 1,
};
const ENGINE_IDENTITY: u16 = 1;
const ENGINE_CREATED: u16 = 2;

const VOLUME: Kind = Kind {
    magic: *b"NEONMRK\n",
    version: 1,
};
const VOLUME_CREATED: u16 = 1;

/// Which engine it is whose volumes a directory holds: random, for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EngineIdentity(pub [u8; 16]);

impl std::fmt::Display for EngineIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl std::str::FromStr for EngineIdentity {
    type Err = ();

    /// The inverse of `Display`.
    fn from_str(text: &str) -> std::result::Result<Self, ()> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(());
        }
        let number = u128::from_str_radix(text, 16).map_err(|_| ())?;
        Ok(Self(number.to_be_bytes()))
    }
}

impl EngineIdentity {
    /// One that no other engine has.
    pub(super) fn new() -> Result<Self> {
        random_id().map(Self)
    }
}

/// Reads a small file; `None` if there is none.
pub(super) fn read_small(path: &Path) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if matches!(e.kind(), IoKind::NotFound | IoKind::NotADirectory) => return Ok(None),
        Err(e) => return Err(Error::os(e, format!("cannot open {}", path.display()))),
    };
    let mut bytes = Vec::new();
    file.take(tlv::MAX_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::os(e, format!("cannot read {}", path.display())))?;
    Ok(Some(bytes))
}

/// Writes a file durably, in one step; `new` is its name until then.
pub(super) fn put_file(dir: &Path, new: &str, name: &str, bytes: &[u8]) -> Result<()> {
    let (new, path) = (dir.join(new), dir.join(name));
    let write = || -> std::result::Result<(), SystemError> {
        write_file(&new, bytes)?.sync_all().written()?;
        Ok(fs::rename(&new, &path)?)
    };
    write().map_err(|e| Error::os(e, format!("cannot write {}", path.display())))?;
    sync_dir(dir)
}

/// The identity of the engine whose root this is; `None` if it is none's.
///
/// # Errors
///
/// [`ErrorKind::Corrupt`] when there is a marker that is damaged.
pub(super) fn read_engine(root: &Path) -> Result<Option<EngineIdentity>> {
    let path = root.join(ENGINE_MARKER);
    let Some(bytes) = read_small(&path)? else {
        return Ok(None);
    };
    let decode = || {
        let mut entries = Entries::decode(&ENGINE, &bytes)?;
        let identity = entries.need(ENGINE_IDENTITY)?;
        entries.take::<8>(ENGINE_CREATED)?;
        entries.unknown()?;
        Ok(EngineIdentity(identity))
    };
    decode().map(Some).map_err(|why: String| {
        let text = format!("the engine's marker is damaged: {} {why}", path.display());
        Error::new(ErrorKind::Corrupt, text)
    })
}

/// Makes the directory the root of an engine with this identity, durably.
pub(super) fn write_engine(root: &Path, identity: EngineIdentity) -> Result<()> {
    let mut entries = Entries::default();
    entries.put_required(ENGINE_IDENTITY, &identity.0);
    entries.put_optional(ENGINE_CREATED, &unix_seconds().to_le_bytes());
    let bytes = entries.encode(&ENGINE);
    put_file(root, NEW_ENGINE_MARKER, ENGINE_MARKER, &bytes)
}

/// Marks the directory of a volume or a snapshot, durably.
pub(super) fn write_volume(dir: &Path) -> Result<()> {
    let mut entries = Entries::default();
    entries.put_optional(VOLUME_CREATED, &unix_seconds().to_le_bytes());
    let bytes = entries.encode(&VOLUME);
    put_file(dir, NEW_VOLUME_MARKER, VOLUME_MARKER, &bytes)
}

fn begins_as(path: &Path, kind: &Kind) -> Result<bool> {
    // A link or a directory of that name is nothing that was made here.
    let is_file = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.is_file(),
        Err(e) if matches!(e.kind(), IoKind::NotFound | IoKind::NotADirectory) => false,
        Err(e) => return Err(Error::os(e, format!("cannot look at {}", path.display()))),
    };
    Ok(is_file && read_small(path)?.is_some_and(|bytes| tlv::begins(kind, &bytes)))
}

/// Whether the directory has the marker of a volume or a snapshot, damaged or not.
pub(super) fn is_marked(dir: &Path) -> Result<bool> {
    begins_as(&dir.join(VOLUME_MARKER), &VOLUME)
}

/// Whether this directory, which is none behind a link, is one of a volume or a
/// snapshot: it is marked, or it has the description with which releases before
/// the markers began.
pub(super) fn is_ours(dir: &Path) -> Result<bool> {
    let is_dir = is_dir(dir)
        .map_err(|e| Error::os(e, format!("cannot look at the directory {}", dir.display())))?;
    Ok(is_dir && (is_marked(dir)? || begins_as(&dir.join("meta"), &meta::KIND)?))
}

/// The directory above `path` that is an engine's root or a volume.
pub(super) fn marked_above(path: &Path) -> Option<PathBuf> {
    path.ancestors()
        .skip(1)
        .find(|dir| {
            [ENGINE_MARKER, VOLUME_MARKER]
                .iter()
                .any(|marker| dir.join(marker).symlink_metadata().is_ok())
        })
        .map(Path::to_owned)
}
