// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The one map from failures of engines to statuses of the wire.

use neonsan_engine::ErrorKind;
use neonsan_proto::Status;

/// The status that tells a client of a failed request.
pub(super) fn status_of(kind: ErrorKind) -> Status {
    match kind {
        ErrorKind::NoSpace => Status::NoSpace,
        ErrorKind::OutOfRange => Status::OutOfRange,
        ErrorKind::Misaligned => Status::Misaligned,
        ErrorKind::TooLarge => Status::TooLarge,
        ErrorKind::AtomicLimit => Status::AtomicLimit,
        ErrorKind::Unsupported => Status::Unsupported,
        ErrorKind::NoResources | ErrorKind::Unavailable => Status::Busy,
        ErrorKind::NotOwner => Status::NotOwner,
        ErrorKind::Corrupt | ErrorKind::Conflict | ErrorKind::Io | ErrorKind::NotPermitted => {
            Status::MediaError
        }
        ErrorKind::NotFound
        | ErrorKind::NoSuchSnapshot
        | ErrorKind::AlreadyExists
        | ErrorKind::Busy
        | ErrorKind::BadSize => Status::Internal,
    }
}
