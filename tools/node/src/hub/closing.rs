// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Volumes that nobody holds any more. close(2) may wait for the disk, as where a file system gives back
//! what it had set aside for the file; so a helper thread closes a volume, and nobody waits for a disk that
//! hangs but those who want a volume of it.
//!
//! Until it has, the volume is kept as if it were being opened: whoever wants it waits. A claim waits too,
//! as for what is being saved: a volume can be deleted at once when it was detached.

use std::thread;

use super::entry::OpenVolume;
use super::{Hub, OpenName, ToHub};

impl Hub {
    /// Closes a volume on a helper thread, which answers with [`ToHub::Closed`].
    pub(super) fn begin_closing(&self, name: &OpenName, volume: OpenVolume) {
        let shared = std::sync::Arc::clone(&self.shared);
        let for_thread = name.clone();
        let close = move || {
            drop(volume);
            shared.tell_hub(ToHub::Closed(for_thread));
        };
        if let Err(error) = thread::Builder::new()
            .name("close-volume".to_owned())
            .spawn(close)
        {
            // What the thread was to have is gone with it, so the volume is closed.
            tracing::warn!(volume = %name, %error, "cannot start a thread to close the volume");
            self.shared.tell_hub(ToHub::Closed(name.clone()));
        }
    }

    /// A helper thread has closed a volume.
    pub(super) fn closed(&mut self, name: &OpenName) {
        let Some(entry) = self.entries.get_mut(name) else {
            return;
        };
        tracing::info!(volume = %name, "volume closed");
        entry.closing = false;
        let waiting = entry.become_closed();
        let claims = std::mem::take(&mut entry.claims);
        // Nobody needs to be kept out of a snapshot.
        if name.snapshot().is_some() {
            self.entries.remove(name);
        }
        for introduction in waiting {
            self.introduce(introduction);
        }
        for reply in claims {
            self.decide_claim(name.clone(), reply);
        }
    }
}
