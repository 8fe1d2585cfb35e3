// SPDX-License-Identifier: GPL-2.0

//! Who has the volume: this device, another one of the host, or a session that was left.

use super::{wire_mode, Device};
use crate::{
    left::{self, Left},
    params::AttachParams,
};
use kernel::{prelude::*, sync::atomic::Relaxed};
use neonsan_kernel::random;
use neonsan_session::{
    client::{self, SessionState, Used},
    CloseCause,
};

impl Device {
    // ---- who else has the volume ----

    /// Whether this device keeps out one that is to be attached with `params`: the same host may
    /// not have the same volume twice in modes that conflict. Sleeps.
    pub(crate) fn keeps_out(&self, params: &AttachParams) -> bool {
        let own = &self.params;
        own.volume.as_str() == params.volume.as_str()
            && own.net == params.net
            && {
                let nodes = self.nodes.lock();
                let mut named = nodes.named().iter();
                named.any(|a| params.nodes.iter().any(|b| a.addr == b.addr))
            }
            && self.is_in_the_way_of(params)
    }

    /// The same of one whose volume was opened, by whatever name and node. Sleeps.
    pub(crate) fn has_volume_of(&self, device: &Device) -> bool {
        let own = self.volume().map(|volume| volume.volume_id);
        own.is_some()
            && own == device.volume().map(|volume| volume.volume_id)
            && self.is_in_the_way_of(&device.params)
    }

    /// Another identity is another host, and one that has lost the volume for good has it no more.
    fn is_in_the_way_of(&self, params: &AttachParams) -> bool {
        let own = &self.params;
        own.host_id == params.host_id
            && wire_mode(own.mode).conflicts_with(wire_mode(params.mode))
            && !self.is_closing()
            && !matches!(self.session.lock().state(), SessionState::Failed(_))
    }

    // ---- the session that was left ----

    /// The node knows that the session is over.
    pub(crate) fn set_released(&self) {
        self.may_be_held.store(false, Relaxed);
    }

    /// A node has let the session in, or may have.
    pub(crate) fn set_held(&self) {
        self.may_be_held.store(true, Relaxed);
    }

    /// A node has let the session in.
    pub(crate) fn set_opened(&self) {
        self.resuming.store(false, Relaxed);
        self.set_held();
    }

    /// Whether the refusal is of a session that was left by another device, and is lost: then the next
    /// try is that of a new session.
    pub(crate) fn begin_anew(&self, cause: CloseCause) -> bool {
        if !self.resuming.load(Relaxed) || !client::is_resumption_refused(cause) {
            return false;
        }
        random::fill(&mut *self.session_id.lock());
        self.resuming.store(false, Relaxed);
        self.may_be_held.store(false, Relaxed);
        true
    }

    /// What is left for the next device of the volume, unless a node knows that the session is over.
    /// Every connection has come to rest. Sleeps.
    pub(crate) fn leave(&self) {
        if !self.may_be_held.load(Relaxed) {
            return;
        }
        let used = self.session.lock().used();
        if let Ok(left) = self.left(used) {
            left::remember(left);
        }
    }

    fn left(&self, used: Used) -> Result<KBox<Left>> {
        let count = self.nodes.lock().named().len();
        let mut nodes = KVec::with_capacity(count, GFP_KERNEL)?;
        for node in self.nodes.lock().named() {
            // Should it have grown meanwhile, fewer do as well.
            let _ = nodes.push_within_capacity(node.addr);
        }
        Left::new(&self.params, nodes, self.session_id(), used)
    }
}
