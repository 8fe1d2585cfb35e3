// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Which directories there are: pools in an engine's, volumes in a pool.

use std::fs;
use std::path::{Path, PathBuf};

use neonsan_api::VolumeName;

use crate::{Error, Result};

/// The pools, whatever else may be there (such as `lost+found`, which only
/// root may read): `(name, path)`.
pub(super) fn pools(root: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut pools = entries(root)?;
    pools.retain(|(name, _)| VolumeName::new(name, "x").is_ok());
    Ok(pools)
}

/// The directories in a directory: `(name, path)`.
pub(super) fn entries(path: &Path) -> Result<Vec<(String, PathBuf)>> {
    let context = |e| Error::os(e, format!("cannot list the directory {}", path.display()));
    let mut entries = Vec::new();
    for entry in fs::read_dir(path).map_err(context)? {
        let entry = entry.map_err(context)?;
        let is_dir = entry.file_type().map_err(context)?.is_dir();
        if let (true, Ok(name)) = (is_dir, entry.file_name().into_string()) {
            entries.push((name, entry.path()));
        }
    }
    Ok(entries)
}
