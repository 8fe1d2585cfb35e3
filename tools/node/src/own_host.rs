// SPDX-License-Identifier: GPL-2.0 OR MIT
//! A node that serves the host it runs on.
//!
//! When that host is short of memory its kernel writes pages to our volumes to
//! get some back. So we must get on without being given any: what waits for
//! that memory must not wait for us.

use std::fs;
use std::io;

use rustix::mm::{mlockall, MlockAllFlags};
use rustix::process::configure_io_flusher_behavior;

/// Makes the process one that gets on when the host has no memory left. To be
/// called before any thread is started: threads inherit it.
///
/// - Its memory is locked as it comes into use, so none of it is swapped out
///   to a volume of ours.
/// - It is an I/O flusher (`PR_SET_IO_FLUSHER`): the kernel does not make its
///   allocations wait for writes, which may be its own to carry out.
/// - It is not the one that is killed when memory runs out.
///
/// # Errors
///
/// What the system refuses, as a text that says what is missing.
pub fn shield() -> Result<(), String> {
    let step = |what: &str, needs: &str, result: io::Result<()>| {
        result.map_err(|error| {
            format!(
                "memory.serves_own_host: cannot {what}: {error}. It needs {needs}: \
                 see \"A node on the host that uses it\" in the administrator's guide"
            )
        })
    };
    step(
        "lock memory",
        "CAP_IPC_LOCK",
        mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)
            .map_err(io::Error::from),
    )?;
    step(
        "become an I/O flusher",
        "CAP_SYS_RESOURCE",
        configure_io_flusher_behavior(true).map_err(io::Error::from),
    )?;
    step(
        "be exempt from being killed when memory runs out",
        "CAP_SYS_RESOURCE",
        fs::write("/proc/self/oom_score_adj", "-1000"),
    )
}
