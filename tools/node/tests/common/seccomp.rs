// SPDX-License-Identifier: GPL-2.0 OR MIT
//! A node that may not make every system call.

use std::fs;
use std::path::Path;
use std::process::Command;

/// The number of a call, and its first argument, in what a filter looks at.
pub const CALL: u32 = 0;
pub const FIRST_ARGUMENT: u32 = 16;

/// One step of a filter (`struct sock_filter`): code, jumps if true and false, operand.
pub type Step = (u16, u8, u8, u32);

/// Looks at what is there.
pub const fn load(at: u32) -> Step {
    (0x20, 0, 0, at)
}

/// Skips so many steps unless what was loaded is this.
pub const fn unless(value: u32, skip: u8) -> Step {
    (0x15, 0, skip, value)
}

/// The call fails with this number.
pub const fn fail(errno: u16) -> Step {
    (0x06, 0, 0, 0x0005_0000 | errno as u32)
}

/// The call is made.
pub const ALLOW: Step = (0x06, 0, 0, 0x7fff_0000);

/// A node under a filter, which is a file in `dir`.
pub fn node_under(dir: &Path, filter: &[Step]) -> Command {
    let path = dir.join("filter");
    let mut bytes = Vec::new();
    for (code, jt, jf, k) in filter {
        bytes.extend_from_slice(&code.to_ne_bytes());
        bytes.extend_from_slice(&[*jt, *jf]);
        bytes.extend_from_slice(&k.to_ne_bytes());
    }
    fs::write(&path, bytes).unwrap();
    let mut command = Command::new("setpriv");
    command
        .args(["--no-new-privs", "--seccomp-filter"])
        .arg(&path)
        .arg(env!("CARGO_BIN_EXE_neonsan-node"));
    command
}
