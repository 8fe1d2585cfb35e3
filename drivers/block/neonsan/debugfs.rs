// SPDX-License-Identifier: GPL-2.0

//! `/sys/kernel/debug/neonsan/state`: everything that a stuck request can be explained with, as
//! text. The form is described in `Documentation/ABI/debugfs-neonsan` and may change; programs
//! read the netlink family instead.

use crate::{
    device::Device,
    info::{ConnectionInfo, RequestInfo},
    registry,
};
use core::fmt::Write as _;
use kernel::{fmt, prelude::*, sync::Arc};
use neonsan_kernel::{
    debugfs::{Dir, File, Show},
    module::THIS_MODULE,
};

/// The files, until this is dropped.
pub(crate) struct Files {
    _state: File<State>,
}

/// Makes the files.
pub(crate) fn create() -> Result<Files> {
    let dir = Dir::new(c"neonsan", None)?;
    let state = Arc::new(State, GFP_KERNEL)?;
    Ok(Files {
        _state: File::new(c"state", &dir, state),
    })
}

/// Shows every device.
struct State;

impl Show for State {
    const MODULE: &'static ThisModule = &THIS_MODULE;

    fn show(&self, f: &mut fmt::Formatter<'_>) -> core::fmt::Result {
        let mut next = Some(0);
        while let Some(device) = next.and_then(registry::first_from) {
            show_device(f, &device)?;
            next = device.index().checked_add(1);
        }
        Ok(())
    }
}

#[inline(never)]
fn show_device(f: &mut fmt::Formatter<'_>, device: &Device) -> core::fmt::Result {
    let Ok(info) = device.info() else {
        return writeln!(f, "neonsan{} (no memory to tell more)", device.index());
    };
    let params = device.params();
    writeln!(
        f,
        "neonsan{} volume={} mode={} state={} lost_ms={} generation={} open={} disk={} depth={} poll_queues={}",
        device.index(),
        params.volume.as_str(),
        params.mode.name(),
        info.state.name(),
        info.lost_for_ms,
        info.generation,
        info.openers,
        u8::from(info.has_disk),
        info.queue_depth,
        info.poll_queues,
    )?;
    if let Some(mode) = info.suspend {
        writeln!(f, "  suspended={}", mode.name())?;
    }
    if let Some(ms) = info.loss_deadline_ms {
        writeln!(f, "  fails_in_ms={ms}")?;
    }
    if info.at_risk_bytes != 0 {
        writeln!(f, "  at_risk_bytes={}", info.at_risk_bytes)?;
    }
    if let Some(bytes) = info.shrunk_bytes {
        writeln!(f, "  shrunk_bytes={bytes}")?;
    }
    if let Some(failure) = &info.failure {
        writeln!(f, "  failure=\"{failure}\"")?;
    }
    if let Some(fenced) = &info.fenced {
        writeln!(f, "  fenced=\"{fenced}\"")?;
    }
    let Ok(connections) = device.connection_infos() else {
        return writeln!(f, "  (no memory to tell of the connections)");
    };
    for (index, connection) in &connections {
        show_connection(f, *index, connection)?;
        let mut result = Ok(());
        device.for_each_request(*index, &mut |request| {
            if result.is_ok() {
                result = show_request(f, &request);
            }
        });
        result?;
    }
    Ok(())
}

fn show_connection(
    f: &mut fmt::Formatter<'_>,
    index: u16,
    info: &ConnectionInfo,
) -> core::fmt::Result {
    write!(
        f,
        "  connection {index} state={} since_ms={} silent_ms={} epoch={} losses={} in_flight={} parked={}",
        info.state.name(),
        info.since_ms,
        info.silent_for_ms,
        info.epoch,
        info.losses,
        info.in_flight,
        info.parked,
    )?;
    if let Some(node) = &info.node {
        write!(f, " node={node}")?;
    }
    if let Some(ms) = info.retry_in_ms {
        write!(f, " retry_ms={ms}")?;
    }
    if let Some(ms) = info.deadline_in_ms {
        write!(f, " deadline_ms={ms}")?;
    }
    if let Some(cause) = &info.last_cause {
        write!(f, " last_cause=\"{cause}\"")?;
    }
    f.write_char('\n')
}

fn show_request(f: &mut fmt::Formatter<'_>, request: &RequestInfo) -> core::fmt::Result {
    writeln!(
        f,
        "    tag={} cookie={:#x} op={} state={} offset={} length={} age_ms={}",
        request.tag,
        request.cookie,
        request.op.name(),
        request.state.name(),
        request.offset,
        request.length,
        request.age_ms,
    )
}
