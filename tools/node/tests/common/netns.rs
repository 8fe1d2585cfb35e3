// SPDX-License-Identifier: GPL-2.0 OR MIT
//! A network of a test's own.

use std::process::Command;

/// Moves the calling thread, and what it starts from now on, into a network namespace of its own with
/// a loopback interface that is up.
pub fn enter() {
    // SAFETY: the call takes no pointers; it changes the network of this thread alone, which is a
    // test's.
    let result = unsafe { nix::libc::unshare(nix::libc::CLONE_NEWNET) };
    let error = std::io::Error::last_os_error();
    assert_eq!(result, 0, "{error}: run the tests as root");
    ip(&["link", "set", "lo", "up"]);
}

/// Runs `ip` in the network of the calling thread.
pub fn ip(args: &[&str]) {
    let status = Command::new("ip").args(args).status().unwrap();
    assert!(status.success(), "ip {args:?}");
}
