// SPDX-License-Identifier: GPL-2.0

//! All devices of the host.

use crate::{
    device::Device,
    params::{AttachParams, DeviceError}, //
};
use kernel::{prelude::*, sync::Arc};
use neonsan_kernel::errno;

kernel::sync::global_lock! {
    // SAFETY: `init` is called by the module before anything else can reach the list.
    unsafe(uninit) static DEVICES: Mutex<Registry> = Registry { devices: KVec::new(), closed: false };
}

/// The devices, ordered by index.
struct Registry {
    devices: KVec<Arc<Device>>,
    /// No more devices are taken.
    closed: bool,
}

/// Makes the list usable.
pub(crate) fn init() {
    // SAFETY: Called once, when the module is loaded. The one `unsafe` that upstream's global
    // locks ask of their users.
    unsafe { DEVICES.init() };
}

/// The device with this index.
pub(crate) fn lookup(index: u32) -> Option<Arc<Device>> {
    let registry = DEVICES.lock();
    registry
        .devices
        .iter()
        .find(|d| d.index() == index)
        .cloned()
}

/// The device with the lowest index that is not below `index`.
pub(crate) fn first_from(index: u32) -> Option<Arc<Device>> {
    let registry = DEVICES.lock();
    registry
        .devices
        .iter()
        .find(|d| d.index() >= index)
        .cloned()
}

/// The first device of which this is true. `is_it` may take the locks of a device.
pub(crate) fn find(is_it: impl Fn(&Device) -> bool) -> Option<Arc<Device>> {
    let registry = DEVICES.lock();
    registry.devices.iter().find(|d| is_it(d)).cloned()
}

/// Chooses an index (the wished one, or the lowest that is free), makes the device of it with
/// `make`, and puts it into the list, unless the host has the volume already.
pub(crate) fn add(
    params: KBox<AttachParams>,
    make: impl FnOnce(u32, KBox<AttachParams>) -> Result<Arc<Device>, DeviceError>,
) -> Result<Arc<Device>, DeviceError> {
    let wish = params.index;
    let mut registry = DEVICES.lock();
    if registry.closed {
        return Err(DeviceError::new(
            errno!(ESHUTDOWN),
            format_args!("the kernel module is being unloaded"),
        ));
    }
    if let Some(other) = registry.devices.iter().find(|d| d.keeps_out(&params)) {
        return Err(DeviceError::new(
            EBUSY,
            format_args!(
                "the volume {} is attached already as /dev/{}: use that, or detach it first",
                params.volume,
                other.name().to_str().unwrap_or("neonsan"),
            ),
        ));
    }
    let is_taken = |index| {
        registry
            .devices
            .iter()
            .any(|d: &Arc<Device>| d.index() == index)
    };
    let index = match wish {
        Some(index) if is_taken(index) => {
            return Err(DeviceError::new(
                EEXIST,
                format_args!("neonsan{index} exists already: choose another index or none"),
            ));
        }
        Some(index) => index,
        None => (0..).find(|&index| !is_taken(index)).ok_or(ENOSPC)?,
    };
    registry
        .devices
        .reserve(1, GFP_KERNEL)
        .map_err(Error::from)?;
    let device = make(index, params)?;
    let place = registry.devices.iter().position(|d| d.index() > index);
    let place = place.unwrap_or(registry.devices.len());
    registry
        .devices
        .insert_within_capacity(place, device.clone())
        .map_err(|_| ENOMEM)?;
    Ok(device)
}

/// Takes a device out of the list.
pub(crate) fn remove(device: &Arc<Device>) {
    let mut registry = DEVICES.lock();
    let place = registry.devices.iter().position(|d| Arc::ptr_eq(d, device));
    let removed = place.and_then(|place| registry.devices.remove(place).ok());
    drop(registry);
    drop(removed);
}

/// From now on no device is added: the module is going away.
pub(crate) fn close() {
    DEVICES.lock().closed = true;
}

/// Detaches every device, and gives the list's memory back. The module is going away, so none is
/// open.
pub(crate) fn detach_all() {
    while let Some(device) = first_from(0) {
        let detached = Device::detach(&device, false).or_else(|_| Device::detach(&device, true));
        if let Err(e) = detached {
            pr_err!("neonsan{}: {}\n", device.index(), e.message);
            remove(&device);
        }
    }
    // A static is never dropped.
    let list = core::mem::take(&mut DEVICES.lock().devices);
    drop(list);
}
