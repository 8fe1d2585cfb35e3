// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What a storage node keeps volumes on.
//!
//! An [`Engine`] keeps volumes by name, an open [`Volume`] hands out
//! [`Queue`]s, and a queue does I/O: [`Request`]s in, [`Completion`]s out,
//! without blocking and without a lock between queues on the usual path. Each
//! data connection of the node has a queue of its own.
//!
//! * [`mem`]: volumes in memory, for tests and benchmarks.
//! * [`mod@file`]: volumes in sparse files, through io_uring.
//! * [`rbd`]: volumes in a Ceph cluster, which several nodes share.
//!
//! What every engine guarantees:
//!
//! * A completed write is seen by every read submitted after its completion,
//!   on any queue of the volume.
//! * A crash does not tear an aligned block of
//!   [`EngineStatus::untorn_bytes`]: afterwards it is as before a write or as
//!   after it. The same holds for a whole atomic write.
//! * A completed [`Op::Flush`] means that every write which was completed when
//!   it was submitted is on stable storage. So does a completed write with
//!   `fua` for itself. An engine whose [`Limits::volatile_cache`] is false
//!   completes only what is on stable storage already.
//! * Discarded and zeroed ranges read as zeroes.
//! * A snapshot has what was completed before it was asked for, and nothing
//!   that was submitted after it was made; of what was under way it has each
//!   request whole or not at all, block by block.
//! * Requests in flight together on overlapping ranges may take effect in any
//!   order, block by block. Bytes outside a write's range never change.

mod buffer;
mod error;
mod identity;
mod interface;

#[cfg(feature = "test-faults")]
pub mod fault;
pub mod file;
#[cfg(feature = "test-faults")]
mod layer;
pub mod mem;
pub mod rbd;
mod tlv;
#[cfg(feature = "test-faults")]
pub mod volatile;

pub use buffer::{Buffer, BufferPool, BUFFER_ALIGN};
pub use error::{Error, ErrorKind, Result, SystemError};
pub use interface::{
    Completion, Engine, EngineStatus, Limits, NodeNote, Op, Queue, Request, SnapshotStat, Volume,
    VolumeSpec, VolumeStat, MAX_RECORD_BYTES,
};
