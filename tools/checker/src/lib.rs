// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Checks the integrity of a disk under faults.
//!
//! Writers give every block that they write a version, and note in a [`log`] outside the disk what
//! was issued and what was acknowledged. Each block says itself what it is ([`block`]). Readers run
//! beside the writers; at the end, every block is read. What a block may hold at any moment is
//! decided by one pure [`model`], which knows nothing of disks and threads: at least the last
//! version that was acknowledged before the read began, at most the last one issued before it
//! ended. A disk with a volatile cache may lose what was not flushed, if it says so by a failed
//! flush.
//!
//! What does I/O is small and apart: [`disk`] is the disk, [`load`] the threads, [`service`]
//! measures how long nothing was answered, [`report`] says it all.

#![forbid(unsafe_code)]

pub mod block;
pub mod disk;
pub mod load;
pub mod log;
pub mod model;
pub mod report;
pub mod service;
pub mod verify;
