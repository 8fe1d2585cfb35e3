// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The file `meta`: what a volume is.
//!
//! 512 bytes, little-endian:
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

use std::fs::{self, File};
use std::io::{ErrorKind as IoKind, Read as _, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::sync_dir;
use crate::{Error, ErrorKind, Result, VolumeSpec, VolumeStat};

const MAGIC: [u8; 8] = *b"NEONVOL\n";
const VERSION: u32 = 1;
const META_BYTES: usize = 512;
const CRC_AT: usize = META_BYTES - 4;

/// What a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) id: [u8; 16],
    pub(super) size_bytes: u64,
    pub(super) logical_block_size: u32,
    pub(super) physical_block_size: u32,
    pub(super) created_unix_s: u64,
}

fn bytes_at<const N: usize>(bytes: &[u8; META_BYTES], at: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes[at + i])
}

impl Meta {
    fn encode(&self) -> [u8; META_BYTES] {
        let mut bytes = [0; META_BYTES];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &self.logical_block_size.to_le_bytes());
        put(16, &self.id);
        put(32, &self.size_bytes.to_le_bytes());
        put(40, &self.created_unix_s.to_le_bytes());
        put(48, &self.physical_block_size.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// What is wrong comes as a clause to follow the file's name.
    fn decode(bytes: &[u8; META_BYTES]) -> std::result::Result<Self, String> {
        if bytes_at(bytes, 0) != MAGIC {
            return Err("does not begin as the description of a volume does".into());
        }
        let stored = u32::from_le_bytes(bytes_at(bytes, CRC_AT));
        let computed = crc32c::crc32c(&bytes[..CRC_AT]);
        if stored != computed {
            return Err(format!(
                "has the checksum {stored:08x} where {computed:08x} would be right"
            ));
        }
        let version = u32::from_le_bytes(bytes_at(bytes, 8));
        if version != VERSION {
            return Err(format!(
                "has version {version}, and this program knows version {VERSION} only"
            ));
        }
        let meta = Self {
            id: bytes_at(bytes, 16),
            size_bytes: u64::from_le_bytes(bytes_at(bytes, 32)),
            logical_block_size: u32::from_le_bytes(bytes_at(bytes, 12)),
            physical_block_size: u32::from_le_bytes(bytes_at(bytes, 48)),
            created_unix_s: u64::from_le_bytes(bytes_at(bytes, 40)),
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
        let mut bytes = Vec::with_capacity(META_BYTES + 1);
        let file = File::open(&path).map_err(|e| match e.kind() {
            IoKind::NotFound => corrupt("is missing".into()),
            _ => Error::os(e, format!("cannot open {}", path.display())),
        })?;
        file.take(META_BYTES as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|e| Error::os(e, format!("cannot read {}", path.display())))?;
        let bytes: &[u8; META_BYTES] = bytes
            .as_slice()
            .try_into()
            .map_err(|_| corrupt(format!("does not have {META_BYTES} bytes")))?;
        Self::decode(bytes).map_err(corrupt)
    }

    /// Writes the description into `dir`, durably, in one step.
    pub(super) fn store(&self, dir: &Path) -> Result<()> {
        let temporary = dir.join("meta.new");
        self.write(&temporary)?;
        Self::put(&temporary, dir)
    }

    /// Writes the description to a file of this path, durably.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let write = || {
            let mut file = File::create(path)?;
            file.write_all(&self.encode())?;
            file.sync_all()
        };
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

    const META: Meta = Meta {
        id: [7; 16],
        size_bytes: 1 << 30,
        logical_block_size: 512,
        physical_block_size: 4096,
        created_unix_s: 1_700_000_000,
    };

    #[test]
    fn what_was_stored_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        META.store(dir.path()).unwrap();
        assert_eq!(Meta::load(dir.path()).unwrap(), META);
    }

    #[test]
    fn any_changed_bit_is_noticed() {
        let good = META.encode();
        for bit in 0..META_BYTES * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Meta::decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_description_cut_short_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("meta");
        fs::write(&path, &META.encode()[..500]).unwrap();
        let error = Meta::load(dir.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        fs::remove_file(&path).unwrap();
        let error = Meta::load(dir.path()).unwrap_err();
        assert!(error.to_string().contains("is missing"), "{error}");
    }

    #[test]
    fn a_version_from_the_future_is_named() {
        let mut bytes = META.encode();
        bytes[8] = 2;
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        let why = Meta::decode(&bytes).unwrap_err();
        assert!(why.contains("version 2"), "{why}");
    }
}
