// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Images that a node left that died while it made a volume, and clearing them
//! away when an engine is opened.

use std::sync::Arc;
use std::time::Duration;

use neonsan_api::VolumeName;

use super::sys::{Access, Cluster, Image, Pool};
use super::CREATE_PREFIX;
use crate::identity::unix_seconds;
use crate::{ErrorKind, Result};

/// Another node may be making a younger one just now; it takes seconds. Clocks need
/// not agree better than that.
const OLD: Duration = Duration::from_secs(3600);

/// Whether an image has a name that only this engine gives, and only until it is a
/// volume.
fn is_half_made(name: &str) -> bool {
    name.strip_prefix(CREATE_PREFIX)
        .is_some_and(|id| id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()))
}

/// Removes those of one namespace.
fn clear_namespace(pool: &Arc<Pool>, problems: &mut Vec<String>) -> Result<()> {
    for name in pool.images()?.iter().filter(|name| is_half_made(name)) {
        let remove = || -> Result<()> {
            let image = Image::open(pool, name, Access::Read)?;
            let age_s = unix_seconds().saturating_sub(image.created_unix_s()?);
            drop(image);
            if age_s < OLD.as_secs() {
                return Ok(());
            }
            tracing::info!(image = %name, age_s, "removing what a node left half made");
            pool.remove_image(name)
        };
        match remove() {
            // By another node.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(image = %name, %error, "cannot remove what a node left half made");
                problems.push(format!("a node left the image {name} half made: {error}"));
            }
            Ok(()) => {}
        }
    }
    Ok(())
}

/// Clears a pool. Gives what could not be cleared, one sentence each.
///
/// # Errors
///
/// The pool cannot be read at all.
pub(super) fn clear(cluster: &Arc<Cluster>, pool: &str) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for namespace in cluster.pool(pool, "")?.namespaces()? {
        if VolumeName::new(&namespace, "x").is_err() {
            continue;
        }
        let cleared = cluster
            .pool(pool, &namespace)
            .and_then(|pool| clear_namespace(&Arc::new(pool), &mut problems));
        match cleared {
            // Removed meanwhile.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => problems.push(format!("the namespace {namespace}: {error}")),
            Ok(()) => {}
        }
    }
    Ok(problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_images_that_are_being_made_are_leftovers() {
        assert!(is_half_made(
            ".neonsan-create-0123456789abcdef0123456789abcdef"
        ));
        for other in [
            "v",
            ".neonsan-create-",
            ".neonsan-create-mine",
            ".neonsan-create-0123456789abcdef0123456789abcdef0",
        ] {
            assert!(!is_half_made(other), "{other}");
        }
    }
}
