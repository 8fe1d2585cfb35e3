// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Who may change a volume: the control API asks the hub first.

use std::collections::HashSet;
use std::sync::{Arc, MutexGuard, PoisonError};

use neonsan_api::{ApiError, ErrorCode, VolumeName};
use neonsan_engine::Volume;
use tokio::sync::oneshot;

use super::volumes::{from_engine, stopping};
use crate::hub::{absent_holder, Absent, OpenName, ToHub};
use crate::shared::Shared;

type Result<T> = std::result::Result<T, ApiError>;

/// Keeps a volume or snapshot that nobody holds for one caller, until it is dropped.
pub(super) struct Claim {
    shared: Arc<Shared>,
    name: OpenName,
    /// The volume is gone, or what is saved beside it is another now.
    pub(super) forget: bool,
}

impl Claim {
    /// Blocks for the hub's answer.
    pub(super) fn take(shared: &Arc<Shared>, name: impl Into<OpenName>) -> Result<Self> {
        let name = name.into();
        let (reply, answer) = oneshot::channel();
        shared.tell_hub(ToHub::Claim {
            name: name.clone(),
            reply,
        });
        answer.blocking_recv().map_err(stopping)??;
        Ok(Self {
            shared: Arc::clone(shared),
            name,
            forget: false,
        })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.shared.tell_hub(ToHub::Unclaim {
            name: self.name.clone(),
            forget: self.forget,
        });
    }
}

/// Keeps a volume from being given two sizes at a time, until it is dropped: whoever compares sizes
/// must be the only one who changes them. A claim does not do for a volume that sessions hold.
pub(super) struct Resizing<'a> {
    shared: &'a Shared,
    name: VolumeName,
}

impl<'a> Resizing<'a> {
    /// Refuses if the volume is being given another size.
    pub(super) fn begin(shared: &'a Shared, name: &VolumeName) -> Result<Self> {
        if !resizing(shared).insert(name.clone()) {
            let message = format!("the volume {name} is being given another size right now");
            return Err(ApiError::new(ErrorCode::Busy, message).with_hint("try again in a moment"));
        }
        Ok(Self {
            shared,
            name: name.clone(),
        })
    }
}

impl Drop for Resizing<'_> {
    fn drop(&mut self) {
        resizing(self.shared).remove(&self.name);
    }
}

fn resizing(shared: &Shared) -> MutexGuard<'_, HashSet<VolumeName>> {
    let names = &shared.resizing;
    names.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The volume if sessions hold it. Blocks for the hub's answer.
pub(super) fn held_volume(shared: &Shared, name: &VolumeName) -> Result<Option<Arc<dyn Volume>>> {
    let (reply, answer) = oneshot::channel();
    shared.tell_hub(ToHub::OpenVolume {
        name: name.clone().into(),
        reply,
    });
    answer.blocking_recv().map_err(stopping)
}

/// Refuses to change a volume under a host that is on its way back to it, after
/// its node was restarted or has died. Blocks.
pub(super) fn check_absent_holder(shared: &Shared, engine: usize, name: &VolumeName) -> Result<()> {
    let absent = absent_holder(shared, engine, name).map_err(|e| from_engine(&e))?;
    match absent {
        None => Ok(()),
        Some(Absent::Elsewhere) => Err(ApiError::new(
            ErrorCode::Busy,
            format!(
                "the volume {name} is open on another node, or was until its node died less than \
                 half a minute ago"
            ),
        )
        .with_hint("`neonsan node list` shows the nodes: ask the one that has the volume")),
        Some(Absent::Expected { host, left_ms }) => Err(ApiError::new(
            ErrorCode::Busy,
            format!(
                "the volume {name} was held by host {host} when its node ended, and that host may \
                 come back to it"
            ),
        )
        .with_hint(format!(
            "detach it there, or try again in {} s: then that host has had its time",
            left_ms.div_ceil(1000)
        ))),
    }
}

/// The same for what harms only where several nodes have the volume: opening it
/// takes it from a node that may just be cut off.
pub(super) fn check_unclear_owner(shared: &Shared, engine: usize, name: &VolumeName) -> Result<()> {
    if !shared.engines[engine].engine.is_shared() {
        return Ok(());
    }
    check_absent_holder(shared, engine, name)
}
