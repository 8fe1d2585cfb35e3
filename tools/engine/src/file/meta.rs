// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The file `meta`: what a volume or a snapshot is.
//!
//! A record of entries (see [`crate::tlv`]) with the magic `NEONVOL\n` and
//! version 2:
//!
//! | type | bytes | what                               |
//! |------|-------|------------------------------------|
//! | 1    | 16    | the volume's id                    |
//! | 2    | 8     | size in bytes                      |
//! | 3    | 4     | logical block size in bytes        |
//! | 4    | 4     | physical block size in bytes       |
//! | 5    | 8     | creation time in seconds since 1970|
//!
//! All must be known but the last, which may be absent. What else a later release
//! has put there is kept when the description is written anew, or refused if that
//! release said that it must be known.
//!
//! Version 1, of releases before, is read as well, and becomes version 2 when the
//! description is written the next time. It has 512 bytes:
//!
//! | at  | bytes | what                                     |
//! |-----|-------|------------------------------------------|
//! | 0   | 8     | magic `NEONVOL\n`                        |
//! | 8   | 4     | version of this layout: 1                |
//! | 12  | 4     | logical block size in bytes              |
//! | 16  | 16    | the volume's id                          |
//! | 32  | 8     | size in bytes                            |
//! | 40  | 8     | creation time in seconds since 1970      |
//! | 48  | 4     | physical block size in bytes             |
//! | 52  | 456   | zero                                     |
//! | 508 | 4     | CRC-32C of all before it                 |

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::layout::write_file;
use super::marker::read_small;
use super::sync_dir;
use crate::error::Written as _;
use crate::tlv::{self, Entries, Kind};
use crate::{Error, ErrorKind, Result, VolumeSpec, VolumeStat};

/// How the file begins, in all versions.
pub(super) const KIND: Kind = Kind {
    magic: *b"NEONVOL\n",
    version: 2,
};

const ID: u16 = 1;
const SIZE: u16 = 2;
const LOGICAL_BLOCK: u16 = 3;
const PHYSICAL_BLOCK: u16 = 4;
const CREATED: u16 = 5;

const V1_BYTES: usize = 512;

/// What a volume is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) id: [u8; 16],
    pub(super) size_bytes: u64,
    pub(super) logical_block_size: u32,
    pub(super) physical_block_size: u32,
    pub(super) created_unix_s: u64,
    /// What a later release has put there.
    pub(super) unknown: Entries,
}

fn bytes_at<const N: usize>(bytes: &[u8; V1_BYTES], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}

impl Meta {
    fn encode(&self) -> Vec<u8> {
        let mut entries = self.unknown.clone();
        entries.put_required(ID, &self.id);
        entries.put_required(SIZE, &self.size_bytes.to_le_bytes());
        entries.put_required(LOGICAL_BLOCK, &self.logical_block_size.to_le_bytes());
        entries.put_required(PHYSICAL_BLOCK, &self.physical_block_size.to_le_bytes());
        entries.put_optional(CREATED, &self.created_unix_s.to_le_bytes());
        entries.encode(&KIND)
    }

    /// What is wrong comes as a clause to follow the file's name.
    fn decode(bytes: &[u8]) -> std::result::Result<Self, String> {
        let meta = match tlv::version(&KIND, bytes)? {
            1 => Self::decode_v1(bytes)?,
            _ => Self::decode_entries(bytes)?,
        };
        let spec = VolumeSpec {
            size_bytes: meta.size_bytes,
            logical_block_size: meta.logical_block_size,
            physical_block_size: Some(meta.physical_block_size),
        };
        spec.settle(meta.logical_block_size)
            .map_err(|e| format!("makes no sense: {e}"))?;
        Ok(meta)
    }

    fn decode_v1(bytes: &[u8]) -> std::result::Result<Self, String> {
        let bytes: &[u8; V1_BYTES] = bytes
            .try_into()
            .map_err(|_| format!("does not have {V1_BYTES} bytes, as its version 1 would"))?;
        Ok(Self {
            id: bytes_at(bytes, 16),
            size_bytes: u64::from_le_bytes(bytes_at(bytes, 32)),
            logical_block_size: u32::from_le_bytes(bytes_at(bytes, 12)),
            physical_block_size: u32::from_le_bytes(bytes_at(bytes, 48)),
            created_unix_s: u64::from_le_bytes(bytes_at(bytes, 40)),
            unknown: Entries::default(),
        })
    }

    fn decode_entries(bytes: &[u8]) -> std::result::Result<Self, String> {
        let mut entries = Entries::decode(&KIND, bytes)?;
        Ok(Self {
            id: entries.need(ID)?,
            size_bytes: u64::from_le_bytes(entries.need(SIZE)?),
            logical_block_size: u32::from_le_bytes(entries.need(LOGICAL_BLOCK)?),
            physical_block_size: u32::from_le_bytes(entries.need(PHYSICAL_BLOCK)?),
            created_unix_s: u64::from_le_bytes(entries.take(CREATED)?.unwrap_or_default()),
            unknown: entries.unknown()?,
        })
    }

    /// Reads the description of the volume in `dir`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] when it is missing, cut short or changed.
    pub(super) fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("meta");
        let corrupt = |why: String| {
            Error::new(
                ErrorKind::Corrupt,
                format!("the volume is damaged: {} {why}", path.display()),
            )
        };
        let bytes = read_small(&path)?.ok_or_else(|| corrupt("is missing".into()))?;
        Self::decode(&bytes).map_err(corrupt)
    }

    /// Writes the description into `dir`, durably, in one step.
    pub(super) fn store(&self, dir: &Path) -> Result<()> {
        let temporary = dir.join("meta.new");
        self.write(&temporary)?;
        Self::put(&temporary, dir)
    }

    /// Writes the description to a file of this path, durably.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let write = || write_file(path, &self.encode())?.sync_all().written();
        write().map_err(|e| Error::os(e, format!("cannot write {}", path.display())))
    }

    /// Makes a file that was written the description in `dir`, in one step.
    pub(super) fn put(from: &Path, dir: &Path) -> Result<()> {
        let path = dir.join("meta");
        fs::rename(from, &path)
            .map_err(|e| Error::os(e, format!("cannot write {}", path.display())))?;
        sync_dir(dir)
    }

    /// What is known of the volume, with the state of its data file.
    pub(super) fn stat(&self, data: &fs::Metadata) -> VolumeStat {
        VolumeStat {
            id: self.id,
            size_bytes: self.size_bytes,
            logical_block_size: self.logical_block_size,
            physical_block_size: self.physical_block_size,
            created_unix_s: self.created_unix_s,
            // `st_blocks` counts 512 bytes whatever the file system.
            allocated_bytes: data.blocks().saturating_mul(512),
            parent: None,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn meta() -> Meta {
        Meta {
            id: [7; 16],
            size_bytes: 1 << 30,
            logical_block_size: 512,
            physical_block_size: 4096,
            created_unix_s: 1_700_000_000,
            unknown: Entries::default(),
        }
    }

    #[test]
    fn what_was_stored_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        meta().store(dir.path()).unwrap();
        assert_eq!(Meta::load(dir.path()).unwrap(), meta());
    }

    #[test]
    fn any_changed_bit_is_noticed() {
        let good = meta().encode();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Meta::decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_description_cut_short_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meta");
        fs::write(&path, &meta().encode()[..500]).unwrap();
        let error = Meta::load(dir.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        fs::remove_file(&path).unwrap();
        let error = Meta::load(dir.path()).unwrap_err();
        assert!(error.to_string().contains("is missing"), "{error}");
    }

    #[test]
    fn a_version_from_the_future_is_named() {
        let newer = Kind { version: 3, ..KIND };
        let why = Meta::decode(&Entries::default().encode(&newer)).unwrap_err();
        assert!(
            why.contains("version 3") && why.contains("newer release"),
            "{why}"
        );
    }

    #[test]
    fn what_a_later_release_has_added_is_kept_or_refused() {
        let mut later = meta();
        later.unknown.put_optional(77, b"later");
        let mut read = Meta::decode(&later.encode()).unwrap();
        assert_eq!(read, later);
        read.size_bytes = 1 << 20;
        let mut kept = Entries::decode(&KIND, &read.encode()).unwrap();
        assert_eq!(kept.take(77).unwrap(), Some(*b"later"));
        later.unknown.put_required(78, b"must");
        let why = Meta::decode(&later.encode()).unwrap_err();
        assert!(
            why.contains("type 78") && why.contains("newer release"),
            "{why}"
        );
    }

    #[test]
    fn a_description_that_lacks_something_is_damage() {
        let why = Meta::decode(&Entries::default().encode(&KIND)).unwrap_err();
        assert!(why.contains("lacks"), "{why}");
    }
}
