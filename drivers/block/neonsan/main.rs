// SPDX-License-Identifier: GPL-2.0

//! The NeonSAN client: block devices for volumes on remote storage nodes.

use kernel::prelude::*;

module! {
    type: NeonSan,
    name: "neonsan",
    authors: ["NeonSAN developers"],
    description: "NeonSAN remote block device",
    license: "GPL",
}

struct NeonSan {}

impl kernel::Module for NeonSan {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        pr_info!("loaded\n");
        Ok(NeonSan {})
    }
}
