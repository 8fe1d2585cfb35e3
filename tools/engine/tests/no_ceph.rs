// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Without Ceph the engine rbd says what is missing.
#![allow(clippy::unwrap_used)]

use neonsan_engine::rbd::{RbdEngine, RbdOptions};
use neonsan_engine::ErrorKind;

fn failure(options: RbdOptions) -> neonsan_engine::Error {
    RbdEngine::open(options).err().unwrap()
}

#[test]
fn what_is_missing_is_named() {
    let error = failure(RbdOptions::new("/nonexistent/ceph.conf", "u", "p"));
    let text = error.to_string();
    match error.kind() {
        // The libraries; else the file.
        ErrorKind::Unsupported => assert!(text.contains("apt install lib"), "{text}"),
        _ => assert!(text.contains("/nonexistent/ceph.conf"), "{text}"),
    }
}

#[test]
fn impossible_object_sizes_are_refused() {
    for object_bytes in [0, 1 << 15, (1 << 22) + 1, 1 << 26] {
        let mut options = RbdOptions::new("/nonexistent/ceph.conf", "u", "p");
        options.object_bytes = object_bytes;
        assert_eq!(failure(options).kind(), ErrorKind::BadSize);
    }
}
