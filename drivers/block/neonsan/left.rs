// SPDX-License-Identifier: GPL-2.0

//! Sessions that devices have left without a node knowing: by a forced detach, or since the node was
//! away.
//!
//! The node keeps the volume for such a session until it has lingered. So the next attach of the
//! volume resumes it, as its next generation, and is let in at once. The list is in memory only: it
//! is lost with the module, as sessions are with the kernel, and the next attach waits then.

use crate::{
    device::wire_mode,
    params::{AttachParams, Text},
    uapi,
};
use kernel::prelude::*;
use neonsan_kernel::net::SocketAddr;
use neonsan_proto::MAX_VOLUME_NAME_BYTES;
use neonsan_session::client::Used;

/// So many are remembered; then the one that was left first is forgotten.
const MAX_LEFT: usize = 64;

kernel::sync::global_lock! {
    // SAFETY: `init` is called by the module before anything else can reach the list.
    unsafe(uninit) static LEFT: Mutex<KVec<KBox<Left>>> = KVec::new();
}

/// A session that was left.
pub(crate) struct Left {
    /// Its identity.
    pub(crate) session_id: [u8; 16],
    /// How far it has counted.
    pub(crate) used: Used,
    volume: Text<MAX_VOLUME_NAME_BYTES>,
    host_id: [u8; 16],
    host_boot: u64,
    mode: uapi::Mode,
    /// The nodes that were named: another cluster may have a volume of the same name.
    nodes: KVec<SocketAddr>,
}

impl Left {
    /// What a device that was attached with `params` leaves, of which the operator has named these nodes
    /// last. May sleep.
    pub(crate) fn new(
        params: &AttachParams,
        nodes: KVec<SocketAddr>,
        session_id: [u8; 16],
        used: Used,
    ) -> Result<KBox<Self>> {
        let left = Left {
            session_id,
            used,
            volume: params.volume,
            host_id: params.host_id,
            host_boot: params.host_boot,
            mode: params.mode,
            nodes,
        };
        Ok(KBox::new(left, GFP_KERNEL)?)
    }

    /// Whether a device that is attached with `params` may go on with the session.
    fn serves(&self, params: &AttachParams) -> bool {
        self.volume.as_str() == params.volume.as_str()
            && self.host_id == params.host_id
            && self.host_boot == params.host_boot
            && wire_mode(self.mode) == wire_mode(params.mode)
            && params
                .nodes
                .iter()
                .any(|node| self.nodes.contains(&node.addr))
    }
}

/// Makes the list usable.
pub(crate) fn init() {
    // SAFETY: Called once, when the module is loaded.
    unsafe { LEFT.init() };
}

/// A session was left. Without memory it is forgotten: the next attach waits. Sleeps.
pub(crate) fn remember(left: KBox<Left>) {
    let mut list = LEFT.lock();
    let oldest = match list.len() >= MAX_LEFT {
        true => list.remove(0).ok(),
        false => None,
    };
    let is_remembered = list.push(left, GFP_KERNEL).is_ok();
    drop(list);
    drop(oldest);
    if !is_remembered {
        pr_debug!("no memory to remember a session that was left\n");
    }
}

/// Takes the session out of the list that a device attached with `params` goes on with; the one that
/// was left last, if there are several. Sleeps.
pub(crate) fn take(params: &AttachParams) -> Option<KBox<Left>> {
    let mut list = LEFT.lock();
    let place = list.iter().rposition(|left| left.serves(params))?;
    list.remove(place).ok()
}

/// Gives the memory back: the module is going away.
pub(crate) fn forget_all() {
    // A static is never dropped.
    let list = core::mem::take(&mut *LEFT.lock());
    drop(list);
}
