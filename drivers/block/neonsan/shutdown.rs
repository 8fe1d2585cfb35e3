// SPDX-License-Identifier: GPL-2.0

//! When the machine goes down: nothing waits for a node that is gone, and a node that is there
//! learns that its volumes are free.
//!
//! File systems were unmounted before, or nobody cared to. What is still in flight gets a bounded
//! time; then the sessions end and all I/O fails, so that whatever runs afterwards (other
//! notifiers, drivers, a kexec) cannot hang on a device.

use crate::{clock::now, device::Device, registry};
use kernel::{
    sync::Arc,
    time::{delay::fsleep, Delta},
};
use neonsan_kernel::reboot::{Notifier, Shutdown};
use neonsan_session::Instant;

/// How long a lost volume may stay lost from now on, before its I/O fails.
const LOSS_MS: u32 = 3000;

/// How long all devices together may take to answer what is in flight.
const DRAIN_MS: u64 = 5000;

/// How long all nodes together may take to acknowledge the ends of sessions.
const RELEASE_MS: u64 = 1000;

/// Between two looks.
const LOOK_MS: i64 = 10;

/// Is told when the machine goes down.
pub(crate) static NOTIFIER: Notifier<GoingDown> = Notifier::new();

/// What is done then.
pub(crate) struct GoingDown;

impl Shutdown for GoingDown {
    fn shutdown() {
        for_each(&mut |device| device.bound_loss(LOSS_MS));
        wait_until(now().after_ms(DRAIN_MS), &|device| {
            !device.has_requests_in_flight()
        });
        for_each(&mut |device| device.send_release());
        wait_until(now().after_ms(RELEASE_MS), &|device| device.is_released());
        for_each(&mut |device| {
            device.give_up();
            // What a suspended device holds must end too. Whoever has the disk takes it away, or waits
            // for requests, which are not held then.
            if let Some(disk) = device.disk().try_lock() {
                if let Some(disk) = disk.as_ref() {
                    device.end_suspend(disk);
                }
            }
        });
    }
}

fn for_each(f: &mut dyn FnMut(&Arc<Device>)) {
    let mut next = Some(0);
    while let Some(device) = next.and_then(registry::first_from) {
        f(&device);
        next = device.index().checked_add(1);
    }
}

/// Waits until `done` is true of every device, or the time has come.
fn wait_until(deadline: Instant, done: &dyn Fn(&Arc<Device>) -> bool) {
    loop {
        let mut all = true;
        for_each(&mut |device| all &= done(device));
        if all || deadline.since_ms(now()) == 0 {
            return;
        }
        fsleep(Delta::from_millis(LOOK_MS));
    }
}
