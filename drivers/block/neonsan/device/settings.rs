// SPDX-License-Identifier: GPL-2.0

//! What an operator changes of a device: its timeouts and its nodes.

use super::Device;
use crate::{
    clock::now,
    nodes::Nodes,
    params::{DeviceError, Node},
};
use kernel::{prelude::*, sync::Arc};
use neonsan_session::Timeouts;

impl Device {
    /// From now on a volume may stay lost no longer than this before its I/O fails.
    pub(crate) fn bound_loss(self: &Arc<Self>, loss_ms: u32) {
        let mut timeouts = self.timeouts();
        if timeouts.loss_ms == 0 || timeouts.loss_ms > loss_ms {
            timeouts.loss_ms = loss_ms;
            *self.timeouts.lock() = timeouts;
            self.session.lock().set_timeouts(timeouts);
        }
        self.wake();
    }

    /// Changes the named timeouts.
    pub(crate) fn set_timeouts(self: &Arc<Self>, timeouts: Timeouts) -> Result<(), DeviceError> {
        timeouts
            .check()
            .map_err(|bad| DeviceError::new(EINVAL, format_args!("{bad}")))?;
        *self.timeouts.lock() = timeouts;
        self.session.lock().set_timeouts(timeouts);
        let count = self.session.lock().connection_count();
        for index in 0..count {
            if let Some(connection) = self.connection(index) {
                connection.follow_timeouts();
            }
        }
        self.wake();
        // A change of limits may have the disk for as long as a lost volume is lost, which is just what
        // the new timeouts may be meant to end. So the disk gets its own by such a change too.
        self.look_for_changes();
        Ok(())
    }

    /// The operator names other nodes. What is live stays where it is; what is lost, or not yet attached,
    /// goes to the first of them at once. May sleep, but not for the network.
    #[inline(never)]
    pub(crate) fn set_nodes(self: &Arc<Self>, named: &[Node]) -> Result<(), DeviceError> {
        let named = Nodes::new(named)?;
        let (in_vain, old) = {
            let mut progress = self.progress.lock();
            // Attaching gives each of them a try.
            progress.failures = 0;
            let mut session = self.session.lock();
            let (place, count, old) = {
                let mut nodes = self.nodes.lock();
                let (place, old) = nodes.replace(named, session.node());
                (place, nodes.len() as u16, old)
            };
            (session.replace_nodes(count, place, now()), old)
        };
        drop(old);
        pr_info!("{}: the operator has named other nodes\n", &*self.name);
        if in_vain {
            self.interrupt_connecting();
        }
        self.wake();
        Ok(())
    }

    /// The size to which the volume was shrunk, if the device waits for a person to decide on it.
    pub(crate) fn shrunk_bytes(&self) -> Option<u64> {
        self.shrinking.lock().told_bytes
    }

    /// The volume has this size, which is smaller than the device's.
    pub(crate) fn note_shrunk(&self, size_bytes: u64) {
        let before = self.shrinking.lock().told_bytes.replace(size_bytes);
        // Each try finds it again.
        if before != Some(size_bytes) {
            self.tell_of_shrinking(size_bytes);
        }
    }

    /// A person lets the device shrink to this size, which is that of the volume.
    pub(crate) fn accept_size(self: &Arc<Self>, size_bytes: u64) -> Result<(), DeviceError> {
        {
            let mut shrinking = self.shrinking.lock();
            match shrinking.told_bytes {
                Some(told) if told == size_bytes => {}
                Some(told) => {
                    return Err(DeviceError::new(
                        EINVAL,
                        format_args!(
                            "the volume of neonsan{} has {told} bytes now, and not {size_bytes}: \
                             look again, and accept that size",
                            self.index
                        ),
                    ));
                }
                None => {
                    return Err(DeviceError::new(
                        EINVAL,
                        format_args!(
                            "neonsan{} does not wait for a decision on its size: its volume was \
                             not shrunk",
                            self.index
                        ),
                    ));
                }
            }
            shrinking.accepted_bytes = Some(size_bytes);
        }
        pr_info!("{}: the operator accepts {size_bytes} bytes\n", &*self.name);
        self.session.lock().retry_now(now());
        self.wake();
        Ok(())
    }

    /// Lets every connection that is being made fail at once.
    pub(crate) fn interrupt_connecting(&self) {
        let count = self.session.lock().connection_count();
        for index in 0..count {
            if let Some(connection) = self.connection(index) {
                connection.interrupt_connecting();
            }
        }
    }
}
