// SPDX-License-Identifier: GPL-2.0

//! Generic netlink: families with operations, dumps, policies, extended acks and events.
//!
//! Upstream's `kernel::net::netlink` can only send events; what it has carries its names here
//! ([`Family`], [`MulticastGroup`], [`Registration`], [`NetlinkSkBuff`], [`GenlMsg`]). The rest
//! follows the C names without their prefixes.
//!
//! A family is a static of the driver, made in const context:
//!
//! ```ignore
//! static OPS: [SplitOps; 2] = [
//!     SplitOps::doit::<Attach>(cmd::ATTACH, &ATTACH_POLICY),
//!     SplitOps::dumpit::<DeviceGet>(cmd::DEVICE_GET),
//! ];
//! static GROUPS: [MulticastGroup; 1] = [MulticastGroup::const_new_admin(c"events")];
//! static FAMILY: Family = Family::const_new(&THIS_MODULE, c"name", 1, &OPS, &GROUPS);
//! ```
//!
//! The family is visible in the initial network namespace only, and its operations run in
//! parallel: they must do their own locking.
//!
//! C header: `include/net/genetlink.h`

mod attr;
mod message;
mod policy;
mod request;

pub use attr::{Attribute, Attributes};
pub use message::{GenlMsg, NetlinkSkBuff};
pub use policy::{Check, Policy};
pub use request::{Doit, Dump, Dumpit, Refusal, Reply, Request};

use core::cell::UnsafeCell;
use kernel::error::to_result;
use kernel::prelude::*;
use kernel::sync::atomic::{Acquire, AtomicFlag, Full, Release};
use neonsan_bindings as bindings;

/// One operation of a family: a command with either its do or its dump.
#[repr(transparent)]
pub struct SplitOps(bindings::genl_split_ops);

// SAFETY: Never changed, and what it points to is static.
unsafe impl Sync for SplitOps {}

impl SplitOps {
    /// The operation that answers one request with `T`. The core refuses attributes that `policy`
    /// does not allow before `T` is called.
    pub const fn doit<T: Doit>(cmd: u8, policy: &'static Policy) -> Self {
        let mut ops: bindings::genl_split_ops = pin_init::zeroed();
        ops.__bindgen_anon_1.__bindgen_anon_1 =
            bindings::genl_split_ops__bindgen_ty_1__bindgen_ty_1 {
                pre_doit: None,
                doit: Some(request::doit_callback::<T>),
                post_doit: None,
            };
        ops.policy = policy.as_ptr();
        ops.maxattr = policy.maxattr();
        ops.cmd = cmd;
        ops.flags = bindings::GENL_CMD_CAP_DO as u8;
        SplitOps(ops)
    }

    /// The operation that lists all objects with `T`. It takes no attributes.
    pub const fn dumpit<T: Dumpit>(cmd: u8) -> Self {
        let mut ops: bindings::genl_split_ops = pin_init::zeroed();
        ops.__bindgen_anon_1.__bindgen_anon_2 =
            bindings::genl_split_ops__bindgen_ty_1__bindgen_ty_2 {
                start: None,
                dumpit: Some(request::dumpit_callback::<T>),
                done: None,
            };
        ops.cmd = cmd;
        ops.flags = bindings::GENL_CMD_CAP_DUMP as u8;
        SplitOps(ops)
    }
}

/// A group of sockets that hear a family's events.
#[repr(transparent)]
pub struct MulticastGroup(bindings::genl_multicast_group);

// SAFETY: Pure data that is never changed.
unsafe impl Sync for MulticastGroup {}

impl MulticastGroup {
    /// A group that only a process with CAP_SYS_ADMIN in the initial user namespace can join: what a
    /// family says there is not for every user. For const context: panics if the name is too long.
    pub const fn const_new_admin(name: &CStr) -> Self {
        let mut group: bindings::genl_multicast_group = pin_init::zeroed();
        group.flags = bindings::GENL_MCAST_CAP_SYS_ADMIN as u8;
        let name = name.to_bytes_with_nul();
        assert!(
            name.len() <= group.name.len(),
            "the group's name is too long"
        );
        let mut at = 0;
        while at < name.len() {
            group.name[at] = name[at];
            at += 1;
        }
        MulticastGroup(group)
    }
}

/// A generic netlink family.
pub struct Family {
    /// Changed by the core only: at registration, under its own lock.
    inner: UnsafeCell<bindings::genl_family>,
    /// Whether the core knows the family. Owned by [`Registration`]; events that are sent before
    /// or after go nowhere.
    registered: AtomicFlag,
}

// SAFETY: `inner` is changed by the core only, under its lock; all else is atomic.
unsafe impl Sync for Family {}

impl Family {
    /// A family. For const context: panics if the name is too long or there are too many
    /// operations.
    pub const fn const_new(
        module: &'static ThisModule,
        name: &CStr,
        version: u32,
        ops: &'static [SplitOps],
        groups: &'static [MulticastGroup],
    ) -> Self {
        assert!(ops.len() <= u8::MAX as usize && groups.len() <= u8::MAX as usize);
        let mut family: bindings::genl_family = pin_init::zeroed();
        let name = name.to_bytes_with_nul();
        assert!(
            name.len() <= family.name.len(),
            "the family's name is too long"
        );
        let mut at = 0;
        while at < name.len() {
            family.name[at] = name[at];
            at += 1;
        }
        family.version = version;
        family.split_ops = ops.as_ptr().cast();
        family.n_split_ops = ops.len() as u8;
        family.mcgrps = groups.as_ptr().cast();
        family.n_mcgrps = groups.len() as u8;
        family.module = module.as_ptr().cast();
        Family {
            inner: UnsafeCell::new(family),
            registered: AtomicFlag::new(false),
        }
    }

    /// Makes the family known. From here on its operations are called.
    ///
    /// # Errors
    ///
    /// `EEXIST` if there is a family with this name or the same static is registered twice.
    pub fn register(&'static self) -> Result<Registration> {
        if self.registered.xchg(true, Full) {
            return Err(EEXIST);
        }
        // SAFETY: The family is static, `const_new` filled it in, and the flag above keeps it from
        // being registered twice, so nobody else uses it now.
        let registered = to_result(unsafe {
            // Bit-fields: bindgen's setters cannot be called in const context.
            (*self.as_raw()).set_parallel_ops(1);
            bindings::genl_register_family(self.as_raw())
        });
        if let Err(error) = registered {
            self.registered.store(false, Release);
            return Err(error);
        }
        // INVARIANT: It was just registered.
        Ok(Registration { family: self })
    }

    /// Sends an event to all who listen to the group with index `group`. Never waits, neither for
    /// memory nor for a listener, so it may be called where writing dirty pages depends on it; it does
    /// not take from the reserves. Process context. With no listener `build` is not called.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, and what `build` returns. A listener that loses the event, for this reason or since its
    /// socket is full, is told so by its own socket (`ENOBUFS`).
    pub fn multicast(
        &'static self,
        group: u32,
        cmd: u8,
        build: impl FnOnce(&mut GenlMsg<'_>) -> Result,
    ) -> Result {
        if !self.has_listeners(group) {
            return Ok(());
        }
        let Ok(mut skb) = NetlinkSkBuff::new(message::EVENT_BYTES, bindings::GFP_NOWAIT) else {
            // SAFETY: The family is registered and has the group (`has_listeners` checked both).
            unsafe {
                let net = &raw mut bindings::init_net;
                bindings::genl_set_err(self.as_raw(), net, group, -bindings::ENOBUFS)
            };
            return Err(ENOMEM);
        };
        skb.write(0, 0, self.as_raw(), 0, cmd, build)?;
        // SAFETY: The family is registered, `group` is one of its groups (`has_listeners` checked
        // both), and the buffer is given away.
        let sent = unsafe {
            bindings::genlmsg_multicast(
                self.as_raw(),
                skb.into_raw(),
                0,
                group,
                bindings::GFP_NOWAIT,
            )
        };
        match to_result(sent) {
            // The last listener left meanwhile.
            Err(error) if error == ESRCH => Ok(()),
            result => result,
        }
    }

    /// Whether anybody listens to the group with index `group`.
    pub fn has_listeners(&self, group: u32) -> bool {
        let family = self.as_raw();
        // SAFETY: `n_mcgrps` does not change after `const_new`.
        let groups = unsafe { (*family).n_mcgrps };
        self.registered.load(Acquire)
            && group < u32::from(groups)
            // SAFETY: The family is registered and has the group; the initial network namespace
            // always exists.
            && unsafe { bindings::genl_has_listeners(family, &raw mut bindings::init_net, group) } != 0
    }

    fn as_raw(&self) -> *mut bindings::genl_family {
        self.inner.get()
    }
}

/// A family that is registered, until this is dropped. Dropping waits for operations that run.
///
/// # Invariants
///
/// `family` is registered.
pub struct Registration {
    family: &'static Family,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.family.registered.store(false, Release);
        // SAFETY: By the invariant it is registered, and only this unregisters it.
        unsafe { bindings::genl_unregister_family(self.family.as_raw()) };
    }
}
