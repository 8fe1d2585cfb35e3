// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Which volumes this engine has open, so that each is open once. Closing
//! takes a while and happens elsewhere; whoever opens waits for it.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use neonsan_api::VolumeName;

use super::term::Term;
use crate::{Error, ErrorKind, Result};

/// An open volume.
#[derive(Default)]
struct Entry {
    /// Its term, once it has begun.
    term: Weak<Term>,
    closing: bool,
}

/// The open volumes. Its lock is held for look-ups only.
#[derive(Default)]
pub(super) struct Registry {
    entries: Mutex<HashMap<VolumeName, Entry>>,
    changed: Condvar,
}

/// The right to have a volume open. Given back when it is dropped.
pub(super) struct Claim {
    registry: Arc<Registry>,
    name: VolumeName,
}

impl Claim {
    pub(super) fn name(&self) -> &VolumeName {
        &self.name
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.registry.entries().remove(&self.name);
        self.registry.changed.notify_all();
    }
}

impl Registry {
    fn entries(&self) -> MutexGuard<'_, HashMap<VolumeName, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Claims a volume, after waiting for up to `wait` for it to be closed.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Busy`] if it is open.
    pub(super) fn claim(self: &Arc<Self>, name: &VolumeName, wait: Duration) -> Result<Claim> {
        let deadline = Instant::now() + wait;
        let mut entries = self.entries();
        while let Some(entry) = entries.get(name) {
            let left = deadline.saturating_duration_since(Instant::now());
            if !entry.closing || left.is_zero() {
                return Err(Error::new(
                    ErrorKind::Busy,
                    format!("the volume {name} is open in this process"),
                ));
            }
            entries = self
                .changed
                .wait_timeout(entries, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        entries.insert(name.clone(), Entry::default());
        Ok(Claim {
            registry: Arc::clone(self),
            name: name.clone(),
        })
    }

    /// The claimed volume's term has begun.
    pub(super) fn begun(&self, name: &VolumeName, term: &Arc<Term>) {
        if let Some(entry) = self.entries().get_mut(name) {
            entry.term = Arc::downgrade(term);
        }
    }

    /// The volume is being closed.
    pub(super) fn closing(&self, name: &VolumeName) {
        if let Some(entry) = self.entries().get_mut(name) {
            entry.closing = true;
        }
    }

    /// The term in which the volume is open.
    pub(super) fn term(&self, name: &VolumeName) -> Option<Arc<Term>> {
        self.entries().get(name)?.term.upgrade()
    }

    /// Waits until nothing is open; `false` if that takes longer than `wait`.
    pub(super) fn wait_until_empty(&self, wait: Duration) -> bool {
        let entries = self.entries();
        let (_entries, timeout) = self
            .changed
            .wait_timeout_while(entries, wait, |entries| !entries.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        !timeout.timed_out()
    }
}
