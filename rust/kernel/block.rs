// SPDX-License-Identifier: GPL-2.0

//! Block layer.
//!
//! C headers: `include/linux/blkdev.h`, `include/linux/blk_types.h`.

use neonsan_bindings as bindings;

pub mod bio;
pub mod mq;

/// Bytes of a sector: the unit of capacities and positions in the block layer.
pub const SECTOR_SIZE: u32 = 512;

/// How a request ended: a `blk_status_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status(bindings::blk_status_t);

impl Status {
    /// The request was carried out.
    pub const OK: Status = Status(bindings::BLK_STS_OK);
    /// Any failure without a better name: EIO.
    pub const IOERR: Status = Status(bindings::BLK_STS_IOERR);
    /// The device cannot do this: EOPNOTSUPP.
    pub const NOTSUPP: Status = Status(bindings::BLK_STS_NOTSUPP);
    /// The device did not answer in time: ETIMEDOUT.
    pub const TIMEOUT: Status = Status(bindings::BLK_STS_TIMEOUT);
    /// The device has no room: ENOSPC.
    pub const NOSPC: Status = Status(bindings::BLK_STS_NOSPC);
    /// The way to the device is broken: ENOLINK.
    pub const TRANSPORT: Status = Status(bindings::BLK_STS_TRANSPORT);
    /// The far side has failed in a way that is not about this request: EREMOTEIO.
    pub const TARGET: Status = Status(bindings::BLK_STS_TARGET);
    /// The medium has lost the data: ENODATA.
    pub const MEDIUM: Status = Status(bindings::BLK_STS_MEDIUM);
    /// The content failed its check: EILSEQ.
    pub const PROTECTION: Status = Status(bindings::BLK_STS_PROTECTION);
    /// The device is gone: ENODEV.
    pub const OFFLINE: Status = Status(bindings::BLK_STS_OFFLINE);
    /// The request makes no sense for the device: EINVAL.
    pub const INVAL: Status = Status(bindings::BLK_STS_INVAL);

    /// The C value.
    pub(crate) fn as_raw(self) -> bindings::blk_status_t {
        self.0
    }

    /// A status from its C value.
    pub(crate) fn from_raw(raw: bindings::blk_status_t) -> Self {
        Status(raw)
    }

    /// Whether the request was carried out.
    pub fn is_ok(self) -> bool {
        self == Status::OK
    }
}
