// SPDX-License-Identifier: GPL-2.0

//! Attaching and detaching.

use crate::{
    clock::now,
    control,
    device::{Device, Lifecycle},
    left, limits,
    params::{AttachParams, DeviceError, DEFAULT_QUEUE_DEPTH, MAX_POLL_QUEUES, MAX_QUEUE_DEPTH},
    queue::Queue,
    recovery, registry, uapi,
};
use kernel::{
    fmt,
    prelude::*,
    str::CString,
    sync::{atomic::Relaxed, Arc},
    time::msecs_to_jiffies,
    types::ScopeGuard, //
};
use neonsan_kernel::{
    block::mq::{Flags, GenDisk, GenDiskBuilder, TagSet},
    errno,
};
use neonsan_proto::{Capabilities, VolumeName};
use neonsan_session::{client::SessionState, CloseCause, Instant, Timeouts};

/// How long the node may take to acknowledge the end of a session.
const RELEASE_MS: u32 = 1000;

impl Device {
    /// Attaches a volume. Returns when the disk can be used. Sleeps; a signal interrupts it, and
    /// nothing is left behind.
    // The partition table is read in here, through all of the block layer: what is large is done in
    // functions that are not inlined, and so is off the stack by then.
    pub(crate) fn attach(params: KBox<AttachParams>) -> Result<Arc<Device>, DeviceError> {
        let device = Self::enlist(params)?;
        let undo = ScopeGuard::new_with_data(device.clone(), |device| device.take_down());
        device.wake();
        device.wait_usable()?;
        device.check_alone()?;
        device.add_disk()?;
        {
            let mut lifecycle = device.lifecycle().lock();
            if device.is_closing() {
                drop(lifecycle);
                return Err(detached_meanwhile());
            }
            *lifecycle = Lifecycle::Attached;
        }
        undo.dismiss();
        control::event_attached(&device);
        Ok(device)
    }

    /// Makes a device that has an index of its own.
    #[inline(never)]
    fn enlist(params: KBox<AttachParams>) -> Result<Arc<Device>, DeviceError> {
        check(&params)?;
        registry::add(params, |index, params| {
            let left = left::take(&params);
            let device = Device::new(index, params, left.as_deref(), now());
            if let (Err(_), Some(left)) = (&device, left) {
                left::remember(left);
            }
            Ok(device?)
        })
    }

    /// Waits until the session can serve requests.
    #[inline(never)]
    fn wait_usable(self: &Arc<Self>) -> Result<(), DeviceError> {
        let deadline = now().after_ms(self.patience_ms());
        let (progress, changed) = self.progress();
        let mut progress = progress.lock();
        loop {
            match recovery::outcome(self) {
                Some(Ok(())) => return Ok(()),
                Some(Err(_)) if self.is_closing() => return Err(detached_meanwhile()),
                Some(Err(cause)) => return Err(progress.why(cause)),
                None => {}
            }
            let late = deadline.since_ms(now()) == 0;
            // The operator may name others meanwhile.
            let nodes = self.nodes().lock().named().len() as u32;
            let tried_all = progress.failures >= nodes && progress.permanent;
            if late || (tried_all && progress.error.is_some()) {
                return Err(progress.why(CloseCause::ConnectTimeout));
            }
            let left = u32::try_from(deadline.since_ms(now())).unwrap_or(u32::MAX);
            let jiffies = msecs_to_jiffies(left) + 1;
            match changed.wait_interruptible_timeout(&mut progress, jiffies) {
                kernel::sync::CondVarTimeoutResult::Signal { .. } => {
                    return Err(DeviceError::new(EINTR, format_args!("interrupted")));
                }
                kernel::sync::CondVarTimeoutResult::Woken { .. }
                | kernel::sync::CondVarTimeoutResult::Timeout => {}
            }
        }
    }

    /// Refuses a volume that the host has already by another name, or by nodes that were named
    /// otherwise: now it is known by its identity. One that was taken by force is the device's own.
    #[inline(never)]
    fn check_alone(self: &Arc<Self>) -> Result<(), DeviceError> {
        if self.forcing().load(Relaxed) {
            return Ok(());
        }
        let other = registry::find(|d| d.index() != self.index() && d.has_volume_of(self));
        let Some(other) = other else {
            return Ok(());
        };
        // Nobody needs to wait for what was not wanted.
        self.release();
        Err(DeviceError::new(
            EBUSY,
            format_args!(
                "the volume {} is the same as {}, which is attached already as /dev/neonsan{}: \
                 use that, or detach it first",
                self.params().volume,
                other.params().volume,
                other.index(),
            ),
        ))
    }

    /// Makes the disk and shows it.
    #[inline(never)]
    fn add_disk(self: &Arc<Self>) -> Result<(), DeviceError> {
        let mut disk = self.make_disk()?;
        self.add_in_time(&mut disk)?;
        *self.disk().lock() = Some(disk);
        // What the node has told since the limits were taken.
        self.look_for_changes();
        Ok(())
    }

    /// Makes the disk, and shows it to nobody.
    #[inline(never)]
    fn make_disk(self: &Arc<Self>) -> Result<GenDisk<Queue>> {
        let volume = self.volume().ok_or(errno!(ENOTCONN))?;
        let queues = self.session().lock().connection_count();
        let wish = self.params().queue_depth.unwrap_or(DEFAULT_QUEUE_DEPTH);
        let depth = wish.min(volume.max_depth.into());
        let read_only = self.params().mode == uapi::Mode::ReadOnly
            || volume
                .geometry
                .capabilities()
                .contains(Capabilities::READ_ONLY);
        let tag_set = Arc::pin_init(
            TagSet::new(
                queues.into(),
                depth,
                self.timeouts().request_ms,
                // Requests may wait for a node for long, and a CPU that goes offline must not
                // wait for them. None of them depends on a CPU: workers go on elsewhere.
                Flags::BLOCKING | Flags::STACKING | Flags::NO_SCHED_BY_DEFAULT,
                self.clone(),
            ),
            GFP_KERNEL,
        )?;
        let sectors = limits::capacity_sectors(volume.geometry.size_bytes.get());
        let serial = CString::try_from_fmt(fmt!("{}", Hex(&volume.volume_id)))?;
        let name = CString::try_from_fmt(fmt!("{}", self.params().volume))?;
        let limits = Device::queue_limits(&volume);
        GenDiskBuilder::new(limits, sectors, serial, name)
            .read_only(read_only)
            .build(self.name(), tag_set, ())
    }

    /// Shows the disk, which reads the partition table. Should the volume be lost meanwhile, that does
    /// not wait for longer than attaching may take, whatever the loss timeout will be.
    #[inline(never)]
    fn add_in_time(self: &Arc<Self>, disk: &mut GenDisk<Queue>) -> Result<(), DeviceError> {
        let timeouts = self.timeouts();
        let patience_ms = u32::try_from(self.patience_ms()).unwrap_or(u32::MAX);
        let loss_ms = match timeouts.loss_ms {
            0 => patience_ms,
            own => own.min(patience_ms),
        };
        self.session().lock().set_timeouts(Timeouts {
            loss_ms,
            ..timeouts
        });
        self.wake();
        let added = disk.add();
        let is_failing = self.session().lock().is_failing();
        self.session().lock().set_timeouts(self.timeouts());
        self.wake();
        added?;
        if is_failing && !self.is_closing() {
            return Err(DeviceError::new(
                ETIMEDOUT,
                format_args!(
                    "the volume was lost while its partition table was read: is the node well?"
                ),
            ));
        }
        Ok(())
    }

    /// How long attaching may take: each node may be tried once, and one of them twice.
    fn patience_ms(&self) -> u64 {
        let nodes = self.params().nodes.len() as u64;
        u64::from(self.params().timeouts.connect_ms) * (nodes + 1)
    }

    /// Detaches a device. Without `force` it must not be open, and what it has is given to the
    /// node first. With `force` nothing is waited for: what is in flight fails, and no network is
    /// needed. When it returns the device is gone; a signal ends only the wait for another one who
    /// is taking it away. Sleeps.
    pub(crate) fn detach(this: &Arc<Device>, force: bool) -> Result<(), DeviceError> {
        let index = this.index();
        {
            let mut lifecycle = this.lifecycle().lock();
            match *lifecycle {
                Lifecycle::Attached => {}
                Lifecycle::Attaching if force => {
                    // The attaching process sees it, at the latest when it has this lock, and cleans
                    // up.
                    this.set_closing();
                    drop(lifecycle);
                    this.give_up();
                    return this.wait_gone();
                }
                Lifecycle::Attaching => {
                    return Err(DeviceError::new(
                        EBUSY,
                        format_args!("neonsan{index} is being attached: wait, or use force"),
                    ));
                }
                Lifecycle::Detaching if force => {
                    drop(lifecycle);
                    // Lets the one who is waiting for the network go on.
                    this.give_up();
                    return this.wait_gone();
                }
                Lifecycle::Detaching => {
                    return Err(DeviceError::new(
                        errno!(EALREADY),
                        format_args!("neonsan{index} is being detached already"),
                    ));
                }
            }
            // Nobody can open it any more once this has succeeded.
            let unused = match this.disk().try_lock() {
                _ if force => Ok(()),
                Some(disk) => disk.as_ref().map_or(Ok(()), |disk| disk.close_if_unused()),
                None => {
                    return Err(DeviceError::new(
                        EBUSY,
                        format_args!(
                            "the limits of neonsan{index} are being changed, which waits for \
                             requests: wait, or use force"
                        ),
                    ));
                }
            };
            if let Err(openers) = unused {
                return Err(DeviceError::new(
                    EBUSY,
                    format_args!(
                        "neonsan{index} is open ({openers} times): unmount it or stop what uses \
                         it, or use force and lose what is not written"
                    ),
                ));
            }
            *lifecycle = Lifecycle::Detaching;
        }
        if !force {
            let disk = this.disk().lock().take();
            if let Some(disk) = disk {
                // What is held must be written.
                this.end_suspend(&disk);
                drop(disk);
            }
            this.release();
        }
        this.take_down();
        control::event_detached(this);
        Ok(())
    }

    /// Fails everything in flight and all that comes, without the network.
    pub(crate) fn give_up(self: &Arc<Self>) {
        self.set_closing();
        self.rest();
        recovery::fail_requests(self, CloseCause::Detached);
    }

    /// Tells the node that the session is over, if that can be sent at once.
    pub(crate) fn send_release(self: &Arc<Self>) {
        self.set_closing();
        if let Some(connection) = self.connection(0) {
            connection.send_release();
        }
    }

    /// Whether the node has closed the session, or cannot be asked to.
    pub(crate) fn is_released(&self) -> bool {
        self.connection(0).is_none_or(|c| c.is_lost())
    }

    /// Tells the node that the session is over, and waits a little until it closes.
    fn release(self: &Arc<Self>) {
        let is_connected = !self.is_released();
        self.send_release();
        let deadline = now().after_ms(RELEASE_MS.into());
        let (progress, changed) = self.progress();
        let mut progress = progress.lock();
        while !self.is_released() {
            let left = left_ms(deadline);
            if left == 0 {
                break;
            }
            let jiffies = msecs_to_jiffies(left) + 1;
            // A signal only makes this shorter.
            if let kernel::sync::CondVarTimeoutResult::Signal { .. } =
                changed.wait_interruptible_timeout(&mut progress, jiffies)
            {
                break;
            }
        }
        if is_connected && self.is_released() {
            self.set_released();
        }
    }

    /// Stops every connection and waits until all have come to rest. Does not wait for the
    /// network.
    fn rest(self: &Arc<Self>) {
        self.session().lock().close(now());
        self.wake();
        self.interrupt_connecting();
        let (progress, changed) = self.progress();
        let mut progress = progress.lock();
        while !self.session().lock().is_at_rest() {
            changed.wait(&mut progress);
        }
    }

    /// Takes the device away, in whatever state it is.
    fn take_down(self: &Arc<Self>) {
        if let SessionState::Failed(_) = self.session().lock().state() {
            // It is another's for good.
            self.set_released();
        }
        self.give_up();
        let disk = self.disk().lock().take();
        if let Some(disk) = disk {
            // What is held must end, like all else.
            self.end_suspend(&disk);
            disk.mark_dead();
            drop(disk);
        }
        self.finish_work();
        self.drop_connections();
        self.leave();
        registry::remove(self);
        let (progress, changed) = self.progress();
        progress.lock().gone = true;
        changed.notify_all();
    }

    /// Waits until the device is gone, which someone else sees to.
    fn wait_gone(&self) -> Result<(), DeviceError> {
        let (progress, changed) = self.progress();
        let mut progress = progress.lock();
        while !progress.gone {
            if changed.wait_interruptible(&mut progress) {
                return Err(DeviceError::new(EINTR, format_args!("interrupted")));
            }
        }
        Ok(())
    }
}

/// Bytes as hexadecimal digits.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

fn left_ms(deadline: Instant) -> u32 {
    u32::try_from(deadline.since_ms(now())).unwrap_or(u32::MAX)
}

#[inline(never)]
fn detached_meanwhile() -> DeviceError {
    DeviceError::new(
        errno!(ESHUTDOWN),
        format_args!("the device was detached meanwhile"),
    )
}

/// Checks what can be checked without a node.
#[inline(never)]
fn check(params: &AttachParams) -> Result<(), DeviceError> {
    let refuse = |args| Err(DeviceError::new(EINVAL, args));
    if let Err(e) = VolumeName::parse(params.volume.as_str()) {
        return refuse(format_args!("{e}"));
    }
    if params.nodes.is_empty() {
        return refuse(format_args!("no node is named: say at least one address"));
    }
    if params.nodes.len() > crate::params::MAX_DEVICE_NODES {
        return refuse(format_args!(
            "too many nodes: name at most {}",
            crate::params::MAX_DEVICE_NODES
        ));
    }
    if params.host_id == [0; 16] {
        return refuse(format_args!(
            "the host's identity is all zero: it must be unique"
        ));
    }
    if let Err(bad) = params.timeouts.check() {
        return refuse(format_args!("{bad}"));
    }
    if params.connections == Some(0) {
        return refuse(format_args!("a device needs at least one connection"));
    }
    if params.poll_queues > MAX_POLL_QUEUES {
        return refuse(format_args!(
            "too many poll queues: name at most {MAX_POLL_QUEUES}"
        ));
    }
    if !(1..=MAX_QUEUE_DEPTH).contains(&params.queue_depth.unwrap_or(DEFAULT_QUEUE_DEPTH)) {
        return refuse(format_args!(
            "the queue depth must be 1 to {MAX_QUEUE_DEPTH}"
        ));
    }
    Ok(())
}
