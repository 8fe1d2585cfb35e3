// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Nodes on the cluster that `tools/testing/lab/ceph` starts, and hosts that
//! soon notice when one is gone.
#![allow(clippy::unwrap_used, dead_code)]

use std::fs;
use std::path::PathBuf;

use neonsan_session::Timeouts;

/// What the lab says of its cluster.
pub fn lab(name: &str) -> String {
    std::env::var(name).expect("run this with tools/testing/lab/ceph")
}

/// The configuration of node `index`, with its data at this address (port 0: any
/// that is free), `engine` at the end of the engine's section and `more` at the
/// end of all.
pub fn config_file(
    dir: &tempfile::TempDir,
    index: usize,
    data: &str,
    engine: &str,
    more: &str,
) -> PathBuf {
    let path = dir.path().join(format!("node-{index}.toml"));
    let text = format!(
        "[engine.ceph]\nkind = \"rbd\"\npool = {:?}\nuser = {:?}\nconf = {:?}\n{engine}\
         [data]\nlisten = [\"{data}\"]\n[control]\nlisten = [\"127.0.0.1:0\"]\n{more}",
        lab("NEONSAN_CEPH_POOL"),
        lab("NEONSAN_CEPH_USER"),
        lab("NEONSAN_CEPH_CONF"),
    );
    fs::write(&path, text).unwrap();
    path
}

/// A silent node is left after a second; a request may take what a cluster needs
/// to get over the loss of one of its clients.
pub const TIMEOUTS: Timeouts = Timeouts {
    request_ms: 20_000,
    connect_ms: 1_000,
    heartbeat_interval_ms: 300,
    heartbeat_timeout_ms: 1_000,
    reconnect_delay_min_ms: 20,
    reconnect_delay_max_ms: 200,
    loss_ms: 0,
};
