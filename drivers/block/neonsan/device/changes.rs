// SPDX-License-Identifier: GPL-2.0

//! What a node tells of its volume while the device is in use, and how the disk follows.

use super::Device;
use crate::{limits, uapi::SuspendMode};
use kernel::{prelude::*, sync::Arc};
use neonsan_proto::Geometry;
use neonsan_session::{client::check_size, CloseCause};

impl Device {
    /// The volume has a new size. Any context.
    pub(crate) fn on_resized(self: &Arc<Self>, size_bytes: u64) {
        self.events.lock().size_bytes = Some(size_bytes);
        self.look_for_changes();
    }

    /// The volume has new limits. Any context.
    pub(crate) fn on_limits(self: &Arc<Self>, geometry: Geometry) {
        {
            let mut events = self.events.lock();
            events.geometry = Some(geometry);
            // A size that was told before is older than the one in here.
            events.size_bytes = None;
        }
        self.look_for_changes();
    }

    /// Gives every connection up.
    fn fault_all(&self, cause: CloseCause) {
        let count = self.session.lock().connection_count();
        for index in 0..count {
            if let Some(connection) = self.connection(index) {
                connection.fault(cause);
            }
        }
    }

    /// Makes the disk follow the volume, and the timeouts. May wait for requests in flight.
    pub(super) fn apply_changes(self: &Arc<Self>) {
        let disk = self.disk.lock();
        // Attaching comes back to it when there is one.
        let Some(disk) = disk.as_ref() else { return };
        disk.set_request_timeout(self.timeouts().request_ms);
        if *self.suspended.lock() == Some(SuspendMode::Normal) {
            // The requests that it would wait for are held; resuming comes back to it.
            return;
        }
        let (size, geometry) = {
            let mut events = self.events.lock();
            (events.size_bytes.take(), events.geometry.take())
        };
        let changed = {
            let mut guard = self.volume.lock();
            let Some(volume) = &mut *guard else { return };
            if let Some(new) = geometry {
                if let Some(field) = limits::broken_promise(&volume.geometry, &new) {
                    pr_err!("{}: the node may not change the {field}\n", &*self.name);
                    // What was made for the old limits must not be sent to it: it waits until a
                    // node keeps the promise.
                    drop(guard);
                    self.fault_all(CloseCause::BadGeometry(field));
                    return;
                }
            }
            let has_bytes = size.or(geometry.map(|new| new.size_bytes.get()));
            let had_bytes = volume.geometry.size_bytes.get();
            let checked = has_bytes.map_or(Ok(()), |has| check_size(had_bytes, has, None));
            if let (Err(cause), Some(has_bytes)) = (checked, has_bytes) {
                drop(guard);
                self.note_shrunk(has_bytes);
                // Opening it anew finds the same, and goes on when that has changed or is accepted.
                self.fault_all(cause);
                return;
            }
            if let Some(new) = geometry {
                volume.geometry = new;
            }
            if let Some(size_bytes) = size {
                volume.geometry.size_bytes = size_bytes.into();
            }
            *volume
        };
        if geometry.is_some() {
            if let Err(e) = disk.set_limits(&Device::queue_limits(&changed)) {
                pr_err!("{}: the new limits were refused: {e:?}\n", &*self.name);
            }
        }
        let size_bytes = changed.geometry.size_bytes.get();
        let sectors = limits::capacity_sectors(size_bytes);
        if sectors != disk.capacity_sectors() {
            disk.set_capacity_and_notify(sectors);
            pr_info!("{}: now {size_bytes} bytes\n", &*self.name);
            crate::control::event_resized(self, size_bytes);
        }
    }
}
