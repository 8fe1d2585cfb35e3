// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What hosts and nodes share.

use crate::claims::Claims;
use crate::clock::Core;
use crate::engine::Engine;
use crate::model::Model;
use crate::net::Net;
use crate::setup::Setup;
use neonsan_proto::{Capabilities, Features, Geometry};
use zerocopy::little_endian::{U32, U64};

/// CRC-32C of `bytes`.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    ::crc32c::crc32c(bytes)
}

/// Everything but hosts and nodes themselves.
#[derive(Debug)]
pub(crate) struct Env {
    pub(crate) core: Core,
    pub(crate) net: Net,
    pub(crate) engine: Engine,
    pub(crate) model: Model,
    pub(crate) setup: Setup,
    pub(crate) counts: Counts,
    pub(crate) claims: Claims,
    /// Which nodes' machines accept connections.
    pub(crate) listening: Vec<bool>,
}

/// How much a run has tried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that ended well.
    pub requests: u64,
    /// Requests that ended with an error, for a reason.
    pub errors: u64,
    /// Connections that were let in.
    pub admissions: u64,
    /// Connections that hosts lost.
    pub losses: u64,
    /// Requests that were sent again.
    pub resends: u64,
    /// Flushes that failed since the node's write cache was gone.
    pub failed_flushes: u64,
    /// Hosts that lost the volume to another.
    pub fenced: u64,
    /// How often a volume went from one node to another.
    pub moves: u64,
}

impl Counts {
    /// Adds those of another run.
    pub fn add(&mut self, other: &Counts) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.admissions += other.admissions;
        self.losses += other.losses;
        self.resends += other.resends;
        self.failed_flushes += other.failed_flushes;
        self.fenced += other.fenced;
        self.moves += other.moves;
    }
}

impl Env {
    /// The features that both ends ask for.
    pub(crate) fn features(&self) -> Features {
        if self.setup.checksums {
            Features::HEADER_CRC.union(Features::PAYLOAD_CRC)
        } else {
            Features::NONE
        }
    }

    /// The volume as the node states it now.
    pub(crate) fn geometry(&self) -> Geometry {
        let mut capabilities = Capabilities::FUA
            .union(Capabilities::DISCARD)
            .union(Capabilities::DISCARD_ZEROES)
            .union(Capabilities::WRITE_ZEROES);
        if self.setup.engine.volatile_cache {
            capabilities = capabilities.union(Capabilities::VOLATILE_CACHE);
        }
        Geometry {
            size_bytes: U64::new(self.engine.blocks() * 512),
            logical_block_size: U32::new(512),
            physical_block_size: U32::new(512),
            max_io_bytes: U32::new(Geometry::MIN_MAX_IO_BYTES),
            discard_granularity: U32::new(512),
            max_discard_bytes: U32::new(1 << 20),
            max_write_zeroes_bytes: U32::new(1 << 20),
            capabilities: U32::new(capabilities.0),
            ..Geometry::default()
        }
    }
}
