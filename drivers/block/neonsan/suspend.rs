// SPDX-License-Identifier: GPL-2.0

//! Suspending a device and resuming it, as an operator asks for it.
//!
//! ```text
//!                 suspend normal                     suspend error
//!  1 Running ───────────────────► 2 Normal ◄──────────────────────► 3 Error
//!     ▲  │                            │          suspend normal        │ ▲
//!     │  └────────────────────────────┼── suspend error ───────────────┼─┘
//!     └────────── resume, detach ─────┴────────────────────────────────┘
//! ```
//!
//! Normal: blk-mq keeps new requests (the queue is quiesced). Error: [`Queue`] ends them with EIO
//! as they come. What the driver has already is not touched in either: it is sent, sent again after
//! a loss, and ends as it would have, so no request that failed here can still change the volume.
//! The session goes on too.

use crate::{
    control,
    device::{Device, Lifecycle},
    params::DeviceError,
    queue::Queue,
    uapi::SuspendMode,
};
use kernel::{
    prelude::*,
    sync::{atomic::Relaxed, Arc},
};
use neonsan_kernel::block::mq::GenDisk;

impl Device {
    /// From now on new requests wait or fail. Returns when none of them is on its way to the node;
    /// those from before are. Sleeps, but not for the network.
    pub(crate) fn suspend(self: &Arc<Self>, mode: SuspendMode) -> Result<(), DeviceError> {
        let index = self.index();
        let lifecycle = self.lifecycle().lock();
        if *lifecycle != Lifecycle::Attached {
            return Err(DeviceError::new(
                EBUSY,
                format_args!("neonsan{index} is being attached or detached"),
            ));
        }
        // A change of limits holds it while it waits for requests, which then must not be held.
        let disk = self.disk().try_lock();
        let Some(disk) = disk.as_ref().map(|disk| disk.as_ref()) else {
            return Err(DeviceError::new(
                EBUSY,
                format_args!(
                    "the limits of neonsan{index} are being changed, which waits for requests: \
                     try again"
                ),
            ));
        };
        let disk = disk.ok_or(ENODEV)?;
        let mut suspended = self.suspend_mode().lock();
        match (*suspended, mode) {
            (Some(old), new) if old == new => return Ok(()),
            (Some(SuspendMode::Normal), SuspendMode::Error) => {
                self.refuse_requests(true);
                disk.unquiesce();
            }
            (_, SuspendMode::Error) => {
                // Waits until no thread is handing a request over to the driver: one that has looked
                // before the change would else send its request after we have returned.
                disk.quiesce();
                self.refuse_requests(true);
                disk.unquiesce();
            }
            (_, SuspendMode::Normal) => {
                disk.quiesce();
                self.refuse_requests(false);
            }
        }
        *suspended = Some(mode);
        drop(suspended);
        pr_info!("{}: suspended ({})\n", self.name(), mode.name());
        control::event_suspended(self, mode);
        Ok(())
    }

    /// Requests reach the node again, those that wait first. Nothing happens if the device is not
    /// suspended. Sleeps, but not for the network.
    pub(crate) fn resume(self: &Arc<Self>) -> Result<(), DeviceError> {
        {
            // Who takes the disk away resumes it himself; else the mode changes under this lock only.
            let lifecycle = self.lifecycle().lock();
            if *lifecycle != Lifecycle::Attached {
                return Ok(());
            }
            match self.suspended() {
                None => return Ok(()),
                // Nobody waits for requests with the lock of the disk while they are held.
                Some(SuspendMode::Normal) => {
                    if let Some(disk) = self.disk().lock().as_ref() {
                        self.end_suspend(disk);
                    }
                }
                // Here somebody may, so it is not taken.
                Some(SuspendMode::Error) => {
                    *self.suspend_mode().lock() = None;
                    self.refuse_requests(false);
                }
            }
        }
        pr_info!("{}: resumed\n", self.name());
        control::event_resumed(self);
        self.look_for_changes();
        Ok(())
    }

    /// Ends the suspension, if there is one, of a disk that may be on its way out. Sleeps.
    pub(crate) fn end_suspend(&self, disk: &GenDisk<Queue>) {
        let mode = self.suspend_mode().lock().take();
        match mode {
            None => {}
            Some(SuspendMode::Normal) => disk.unquiesce(),
            Some(SuspendMode::Error) => self.refuse_requests(false),
        }
    }

    /// What happens to new requests; `None` unless the device is suspended.
    pub(crate) fn suspended(&self) -> Option<SuspendMode> {
        *self.suspend_mode().lock()
    }

    fn refuse_requests(&self, refuse: bool) {
        let count = self.session().lock().connection_count();
        for index in 0..count {
            if let Some(connection) = self.connection(index) {
                connection.refuses.store(u32::from(refuse), Relaxed);
            }
        }
    }
}
