// SPDX-License-Identifier: GPL-2.0

//! Generic netlink: the way in, and the events for who listens.
//!
//! `Documentation/netlink/specs/neonsan.yaml` says what passes here; [`uapi`] has its numbers.
//! Nothing here keeps state: devices are in the [`registry`].
//!
//! Attach sleeps for as long as connecting takes, in the caller's own system call, so a signal
//! stops it. Meanwhile the core holds its lock of families for reading, so operations run beside
//! each other, but families come and go only afterwards (long operations of devlink do the same).

mod reply;
mod request;

use crate::{
    device::Device,
    params::{DeviceError, MAX_POLL_QUEUES, MAX_QUEUE_DEPTH},
    registry, uapi,
};
use kernel::{prelude::*, sync::Arc};
use neonsan_kernel::{
    genetlink::{
        self, Attributes, Check, Doit, Dump, Dumpit, Family, GenlMsg, MulticastGroup, Policy,
        Refusal, Request, SplitOps,
    },
    module::THIS_MODULE,
};
use uapi::{attr, cmd};

static NODE_POLICY: Policy = Policy::new(&[
    (attr::node::IPV4, Check::be32()),
    (attr::node::IPV6, Check::exact(16)),
    (attr::node::PORT, Check::u16_min(1)),
    (attr::node::SCOPE_ID, Check::u32()),
    (
        attr::node::NAME,
        Check::string(uapi::HOST_NAME_MAX_LEN as u16),
    ),
]);

/// Their bounds are those of [`neonsan_session::Timeouts::BOUNDS`], checked there: its messages name
/// them, the core's would not.
static TIMEOUTS_POLICY: Policy = Policy::new(&[
    (attr::timeouts::REQUEST, Check::u32()),
    (attr::timeouts::CONNECT, Check::u32()),
    (attr::timeouts::HEARTBEAT_INTERVAL, Check::u32()),
    (attr::timeouts::HEARTBEAT_TIMEOUT, Check::u32()),
    (attr::timeouts::RECONNECT_DELAY_MIN, Check::u32()),
    (attr::timeouts::RECONNECT_DELAY_MAX, Check::u32()),
    (attr::timeouts::LOSS, Check::u32()),
]);

/// Texts are checked by their own rules in [`request`], whose messages say more than the core's;
/// the bound here keeps absurd ones out.
const ANY_TEXT: Check = Check::string(4096);

static ATTACH_POLICY: Policy = Policy::new(&[
    (attr::device::VOLUME, ANY_TEXT),
    (attr::device::NODE, Check::nested(&NODE_POLICY)),
    (attr::device::MODE, Check::u32_range(0, 2)),
    (attr::device::HOST_ID, Check::exact(16)),
    (attr::device::HOST_NAME, ANY_TEXT),
    (attr::device::INDEX, Check::u32()),
    (attr::device::CONNECTIONS, Check::u32_range(0, 256)),
    (
        attr::device::QUEUE_DEPTH,
        Check::u32_range(0, MAX_QUEUE_DEPTH as i16),
    ),
    (attr::device::TIMEOUTS, Check::nested(&TIMEOUTS_POLICY)),
    (attr::device::CHECKSUMS, Check::u32_range(0, 3)),
    (attr::device::FORCE, Check::flag()),
    (
        attr::device::POLL_QUEUES,
        Check::u32_range(0, MAX_POLL_QUEUES as i16),
    ),
    (
        attr::device::HOST_BOOT,
        Check::exact(uapi::HOST_BOOT_LEN as i16),
    ),
]);

static DETACH_POLICY: Policy = Policy::new(&[
    (attr::device::INDEX, Check::u32()),
    (attr::device::FORCE, Check::flag()),
]);

static GET_POLICY: Policy = Policy::new(&[(attr::device::INDEX, Check::u32())]);

static SET_POLICY: Policy = Policy::new(&[
    (attr::device::INDEX, Check::u32()),
    (attr::device::NODE, Check::nested(&NODE_POLICY)),
    (attr::device::TIMEOUTS, Check::nested(&TIMEOUTS_POLICY)),
    (attr::device::CLEAR_AT_RISK, Check::flag()),
    (attr::device::ACCEPT_SIZE, Check::exact(8)),
]);

static SUSPEND_POLICY: Policy = Policy::new(&[
    (attr::device::INDEX, Check::u32()),
    (attr::device::SUSPEND, Check::u32_range(0, 1)),
]);

static OPS: [SplitOps; 7] = [
    SplitOps::doit::<Attach>(cmd::ATTACH, &ATTACH_POLICY),
    SplitOps::doit::<Detach>(cmd::DETACH, &DETACH_POLICY),
    SplitOps::doit::<Get>(cmd::DEVICE_GET, &GET_POLICY),
    SplitOps::dumpit::<Get>(cmd::DEVICE_GET),
    SplitOps::doit::<Set>(cmd::DEVICE_SET, &SET_POLICY),
    SplitOps::doit::<Suspend>(cmd::SUSPEND, &SUSPEND_POLICY),
    SplitOps::doit::<Resume>(cmd::RESUME, &GET_POLICY),
];

/// Room for the reply to attach: a number and two short texts.
const ATTACH_REPLY_BYTES: usize = 1024;

/// The index of the one group. Events name volumes and nodes, so it has the same door as attach.
const EVENTS: u32 = 0;

static GROUPS: [MulticastGroup; 1] = [MulticastGroup::const_new_admin(c"events")];

static FAMILY: Family = Family::const_new(
    &THIS_MODULE,
    c"neonsan",
    uapi::FAMILY_VERSION as u32,
    &OPS,
    &GROUPS,
);

/// Opens the way in, until what it returns is dropped.
pub(crate) fn register() -> Result<genetlink::Registration> {
    FAMILY.register()
}

impl From<DeviceError> for Refusal {
    #[inline(never)]
    fn from(error: DeviceError) -> Self {
        Refusal::new(error.error, format_args!("{}", error.message))
    }
}

/// Refuses a caller that may not change anything.
fn admin_only(request: &Request<'_>) -> Result<(), Refusal> {
    if request.is_admin() {
        Ok(())
    } else {
        Err(Refusal::new(
            EPERM,
            format_args!(
                "attaching, detaching and changing devices needs CAP_SYS_ADMIN: run it as root"
            ),
        ))
    }
}

/// The device that a request names by its index.
fn named_device(request: &Request<'_>) -> Result<Arc<Device>, Refusal> {
    let index = request.attributes().get(attr::device::INDEX);
    let Some(index) = index.and_then(|index| index.u32()) else {
        return Err(Refusal::new(
            EINVAL,
            format_args!("name the device by its index"),
        ));
    };
    registry::lookup(index).ok_or_else(|| {
        Refusal::new(
            ENODEV,
            format_args!("there is no device neonsan{index}: `neonsan list` shows the devices"),
        )
    })
}

/// Attaches what a request asks for. Not inline: nothing of its caller's that is large may lie below
/// it on the stack.
#[inline(never)]
fn attach(request: &Request<'_>) -> Result<Arc<Device>, Refusal> {
    Ok(Device::attach(request::attach_params(request)?)?)
}

struct Attach;

impl Doit for Attach {
    fn doit(request: &Request<'_>) -> Result<(), Refusal> {
        admin_only(request)?;
        // Before: a device that is attached must not be reported as an error for want of memory.
        let reply = request.prepare_reply(ATTACH_REPLY_BYTES)?;
        let device = attach(request)?;
        let sent = reply.send(cmd::ATTACH, |msg| {
            put_name(msg, &device)?;
            put_fenced(msg, &device)
        });
        if let Err(error) = sent {
            // The caller has gone, or does not read: nobody is left to whom an error would say more.
            // The device stays, as the event has told.
            pr_warn!(
                "{}: attached, but its caller was not told: {error:?}\n",
                device.name()
            );
        }
        Ok(())
    }
}

struct Detach;

impl Doit for Detach {
    fn doit(request: &Request<'_>) -> Result<(), Refusal> {
        admin_only(request)?;
        let device = named_device(request)?;
        let force = request.attributes().has(attr::device::FORCE);
        Ok(Device::detach(&device, force)?)
    }
}

struct Get;

impl Doit for Get {
    fn doit(request: &Request<'_>) -> Result<(), Refusal> {
        let device = named_device(request)?;
        let shown = reply::Shown::new(&device, request.is_admin())?;
        request.reply(cmd::DEVICE_GET, |msg| shown.put(msg, true))?;
        Ok(())
    }
}

impl Dumpit for Get {
    fn dumpit(dump: &mut Dump<'_>) -> Result {
        // The position is the index to go on from.
        while let Ok(from) = u32::try_from(dump.position()) {
            let Some(device) = registry::first_from(from) else {
                break;
            };
            let shown = reply::Shown::new(&device, dump.is_admin())?;
            if !dump.put(cmd::DEVICE_GET, |msg| shown.put(msg, true))? {
                // No room left, or never room enough.
                if !dump.is_empty() || !dump.put(cmd::DEVICE_GET, |msg| shown.put(msg, false))? {
                    break;
                }
            }
            dump.set_position(device.index() as usize + 1);
        }
        Ok(())
    }
}

struct Set;

impl Doit for Set {
    fn doit(request: &Request<'_>) -> Result<(), Refusal> {
        admin_only(request)?;
        let device = named_device(request)?;
        let attributes = request.attributes();
        let clear = attributes.has(attr::device::CLEAR_AT_RISK);
        let timeouts = attributes.get(attr::device::TIMEOUTS);
        let names_nodes = attributes.has(attr::device::NODE);
        let size = attributes.get(attr::device::ACCEPT_SIZE);
        let size = size.and_then(|size| size.array()).map(u64::from_ne_bytes);
        if !clear && timeouts.is_none() && !names_nodes && size.is_none() {
            return Err(Refusal::new(
                EINVAL,
                format_args!("nothing is to be changed: name a timeout or nodes"),
            ));
        }
        // What is wrong with it comes before anything is changed.
        let nodes = match names_nodes {
            true => request::nodes(attributes)?,
            false => KVec::new(),
        };
        if let Some(size_bytes) = size {
            device.accept_size(size_bytes)?;
        }
        if let Some(wished) = timeouts {
            set_timeouts(&device, wished.nested())?;
        }
        if names_nodes {
            device.set_nodes(&nodes)?;
        }
        if clear {
            device.at_risk().clear();
        }
        Ok(())
    }
}

#[inline(never)]
fn set_timeouts(device: &Arc<Device>, wished: Attributes<'_>) -> Result<(), Refusal> {
    let timeouts = request::timeouts(wished, device.timeouts());
    Ok(device.set_timeouts(timeouts)?)
}

struct Suspend;

impl Doit for Suspend {
    fn doit(request: &Request<'_>) -> Result<(), Refusal> {
        admin_only(request)?;
        let device = named_device(request)?;
        let mode = request.attributes().get(attr::device::SUSPEND);
        let mode = mode.and_then(|mode| mode.u32()).unwrap_or(0);
        let Some(mode) = uapi::SuspendMode::from_raw(mode) else {
            return Err(Refusal::new(
                EINVAL,
                format_args!("the mode is unknown to this version"),
            ));
        };
        Ok(device.suspend(mode)?)
    }
}

struct Resume;

impl Doit for Resume {
    fn doit(request: &Request<'_>) -> Result<(), Refusal> {
        admin_only(request)?;
        Ok(named_device(request)?.resume()?)
    }
}

/// Index and name, which begin every message about a device.
fn put_name(msg: &mut GenlMsg<'_>, device: &Device) -> Result {
    msg.put_u32(attr::device::INDEX, device.index())?;
    msg.put_str(attr::device::NAME, device.name().to_str().unwrap_or(""))
}

/// From whom attach took the volume, if from anybody.
fn put_fenced(msg: &mut GenlMsg<'_>, device: &Device) -> Result {
    let fenced = device.notes().lock().fenced;
    match &fenced {
        Some(fenced) => msg.put_str(attr::device::FENCED, fenced.as_str()),
        None => Ok(()),
    }
}

/// Sends an event about a device. Who listens may miss one when memory is short; that is no reason
/// to do anything else here.
fn event(device: &Device, cmd: u8, build: impl FnOnce(&mut GenlMsg<'_>) -> Result) {
    let sent = FAMILY.multicast(EVENTS, cmd, |msg| {
        put_name(msg, device)?;
        msg.put_str(attr::device::VOLUME, device.params().volume.as_str())?;
        build(msg)
    });
    if let Err(error) = sent {
        pr_debug!(
            "neonsan{}: event {cmd} was not sent: {error:?}\n",
            device.index()
        );
    }
}

/// A block device was added.
pub(crate) fn event_attached(device: &Device) {
    event(device, cmd::ATTACHED, |msg| put_fenced(msg, device));
}

/// A block device is gone.
pub(crate) fn event_detached(device: &Device) {
    event(device, cmd::DETACHED, |_| Ok(()));
}

/// A connection was lost.
pub(crate) fn event_connection_lost(device: &Device, connection: u32, text: &str) {
    event(device, cmd::CONNECTION_LOST, |msg| {
        msg.put_u32(attr::device::CONNECTION_INDEX, connection)?;
        msg.put_str(attr::device::MESSAGE, text)
    });
}

/// A lost connection is back.
pub(crate) fn event_connection_recovered(device: &Device, connection: u32) {
    event(device, cmd::CONNECTION_RECOVERED, |msg| {
        msg.put_u32(attr::device::CONNECTION_INDEX, connection)
    });
}

/// The device's I/O fails from here on.
pub(crate) fn event_failed(device: &Device, text: &str) {
    event(device, cmd::FAILED, |msg| {
        msg.put_str(attr::device::MESSAGE, text)
    });
}

/// The device has been without service for so long.
pub(crate) fn event_still_lost(device: &Device, lost_for_ms: u64, text: &str) {
    event(device, cmd::STILL_LOST, |msg| {
        msg.put_uint(attr::device::LOST_MS, lost_for_ms)?;
        msg.put_str(attr::device::MESSAGE, text)
    });
}

/// The device has a new size, in bytes.
pub(crate) fn event_resized(device: &Device, size_bytes: u64) {
    event(device, cmd::RESIZED, |msg| {
        msg.put_uint(attr::device::SIZE, size_bytes)
    });
}

/// The volume is smaller than the device, which waits for a person.
pub(crate) fn event_shrunk(device: &Device, size_bytes: u64, text: &str) {
    event(device, cmd::SHRUNK, |msg| {
        msg.put_uint(attr::device::SHRUNK_SIZE, size_bytes)?;
        msg.put_str(attr::device::MESSAGE, text)
    });
}

/// The node is about to stop.
pub(crate) fn event_going_away(device: &Device, text: &str) {
    event(device, cmd::GOING_AWAY, |msg| {
        msg.put_str(attr::device::MESSAGE, text)
    });
}

/// Writes that were acknowledged but not flushed may be lost.
pub(crate) fn event_data_at_risk(device: &Device, text: &str) {
    event(device, cmd::DATA_AT_RISK, |msg| {
        msg.put_str(attr::device::MESSAGE, text)?;
        msg.put_uint(attr::device::AT_RISK_BYTES, device.at_risk().open_bytes())
    });
}

/// A device was suspended, or its mode was changed.
pub(crate) fn event_suspended(device: &Device, mode: uapi::SuspendMode) {
    event(device, cmd::SUSPENDED, |msg| {
        msg.put_u32(attr::device::SUSPEND, mode as u32)
    });
}

/// A suspended device was resumed.
pub(crate) fn event_resumed(device: &Device) {
    event(device, cmd::RESUMED, |_| Ok(()));
}
