// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Where engines may be: none below another one, or at the same place.

use std::fs;
use std::path::Path;

use super::marker;
use crate::{Error, ErrorKind, Result};

/// Refuses a directory that lies within an engine or one of its volumes.
pub(super) fn check_free(root: &Path) -> Result<()> {
    let canonical = fs::canonicalize(root)
        .map_err(|e| Error::os(e, format!("cannot reach {}", root.display())))?;
    match marker::marked_above(&canonical) {
        Some(above) => Err(Error::new(
            ErrorKind::NotPermitted,
            format!(
                "{} lies within {}, which an engine has for itself: choose a directory outside",
                root.display(),
                above.display()
            ),
        )),
        None => Ok(()),
    }
}
