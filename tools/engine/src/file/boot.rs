// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The boot id of a file engine: identity of what a loss of power would take.
//!
//! A completed write which is not flushed yet lives in the caches of the
//! kernel and the disk. A node process that ends, even by a crash, takes
//! nothing of it along; the machine does. So the id stays the same from one
//! node process to the next until the machine is booted again, and a client
//! which reconnects to a restarted node knows that nothing is lost.
//!
//! The file `.boot` below the root says which id goes with which boot of the
//! machine: 16 bytes each of the kernel's boot id and of ours, then their
//! CRC-32C. Whatever is wrong with it, a new id is made, which is always safe.
//! When a flush fails, on whatever volume of the engine, the id is forgotten: the
//! kernel tells of lost data once, and whoever opens a volume after that must not
//! hear that nothing happened. This process has another id from then on, and the
//! file is removed for the next one. A file system that has shut itself down does
//! not let go of the file; then that is left to people (see the admin guide).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::identity::random_id;
use crate::{Error, Result};

/// Bytes of the file.
const STATE_BYTES: usize = 36;

/// The kernel's own identity of this boot of the machine.
fn machine_boot_id() -> Option<[u8; 16]> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let digits = text.trim().replace('-', "");
    Some(u128::from_str_radix(&digits, 16).ok()?.to_be_bytes())
}

fn encode(machine: [u8; 16], id: [u8; 16]) -> [u8; STATE_BYTES] {
    let mut bytes = [0; STATE_BYTES];
    bytes[..16].copy_from_slice(&machine);
    bytes[16..32].copy_from_slice(&id);
    let crc = crc32c::crc32c(&bytes[..32]);
    bytes[32..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// The id that was stored during this boot of the machine.
fn stored(path: &Path, machine: [u8; 16]) -> Option<[u8; 16]> {
    let bytes = fs::read(path).ok()?;
    let id: [u8; 16] = bytes.get(16..32)?.try_into().ok()?;
    (bytes == encode(machine, id)).then_some(id)
}

/// The id with which an engine at `root` begins.
fn boot_id(root: &Path) -> Result<[u8; 16]> {
    let path = root.join(".boot");
    // Without the kernel's id every start is a new one.
    let Some(machine) = machine_boot_id() else {
        return random_id();
    };
    if let Some(id) = stored(&path, machine) {
        return Ok(id);
    }
    let id = random_id()?;
    let temporary = root.join(".boot.new");
    // Not synced: it is only good until the machine is booted again.
    super::layout::write_file(&temporary, &encode(machine, id))
        .and_then(|_| fs::rename(&temporary, &path))
        .map_err(|e| Error::os(e, format!("cannot write {}", path.display())))?;
    Ok(id)
}

/// The boot id of an engine. Shared by the engine, which tells it, and its
/// volumes, which make it forget.
#[derive(Debug)]
pub(super) struct BootId {
    path: PathBuf,
    /// Held for a look or a change.
    id: Mutex<[u8; 16]>,
}

impl BootId {
    /// That of the engine at `root`, which is locked.
    pub(super) fn load(root: &Path) -> Result<Self> {
        Ok(Self {
            path: root.join(".boot"),
            id: Mutex::new(boot_id(root)?),
        })
    }

    fn id(&self) -> MutexGuard<'_, [u8; 16]> {
        self.id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The id in force.
    pub(super) fn get(&self) -> [u8; 16] {
        *self.id()
    }

    /// Written data may be lost: another id from now on, and for the next
    /// process.
    pub(super) fn forget(&self) {
        {
            let mut id = self.id();
            // Without random numbers, whatever is another one.
            *id = random_id().unwrap_or_else(|_| id.map(|byte| byte.wrapping_add(1)));
        }
        let path = self.path.clone();
        // The disk may be failing: not on a thread that serves clients.
        let spawned = std::thread::Builder::new()
            .name("forget-boot-id".to_owned())
            .spawn(move || match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    tracing::error!(
                        path = %path.display(), %error,
                        "cannot remove: before a node uses the directory again, remove this file \
                         or boot the machine, or hosts will not learn that writes may be lost"
                    );
                }
                _ => {}
            });
        if let Err(error) = spawned {
            tracing::error!(%error, "cannot start a thread");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_id_stays_until_it_is_forgotten_or_the_machine_boots() {
        let dir = tempfile::tempdir().unwrap();
        let first = boot_id(dir.path()).unwrap();
        assert_eq!(boot_id(dir.path()).unwrap(), first);
        let path = dir.path().join(".boot");
        // As another boot of the machine would have left it.
        fs::write(&path, encode([1; 16], first)).unwrap();
        let second = boot_id(dir.path()).unwrap();
        assert_ne!(second, first);
        fs::write(&path, b"damaged").unwrap();
        let third = boot_id(dir.path()).unwrap();
        assert_ne!(third, second);
        let held = BootId::load(dir.path()).unwrap();
        assert_eq!(held.get(), third);
        held.forget();
        let fourth = held.get();
        assert_ne!(fourth, third, "at once, for this process too");
        while path.exists() {
            std::thread::yield_now();
        }
        assert!(![third, fourth].contains(&boot_id(dir.path()).unwrap()));
    }
}
