// SPDX-License-Identifier: GPL-2.0

//! The one place where faults become error numbers and block statuses.

use kernel::prelude::*;
use neonsan_kernel::{block, errno};
use neonsan_proto::Status;
use neonsan_session::CloseCause;

/// The error number for the status of a refusal.
fn errno_of_status(status: Status) -> Error {
    match status {
        Status::Ok => EINVAL,
        Status::VersionUnsupported | Status::FeatureUnsupported => errno!(EPROTONOSUPPORT),
        Status::NoSuchVolume | Status::NoSuchSnapshot => ENOENT,
        Status::BadName | Status::BadOpen | Status::BadRequest => EINVAL,
        Status::HeldByOther => EBUSY,
        Status::OpenedReadOnly | Status::ReadOnly => EROFS,
        Status::NotPermitted => EACCES,
        Status::StaleGeneration | Status::Fenced => errno!(ESTALE),
        Status::UnknownSession | Status::NotOwner | Status::GoingAway => errno!(ESHUTDOWN),
        Status::TooManySessions | Status::TooManyConnections => errno!(EUSERS),
        Status::VolumeDamaged | Status::MediaError => EIO,
        Status::NoSpace => ENOSPC,
        Status::Unsupported => errno!(EOPNOTSUPP),
        // It passes by itself: nobody else has the volume, the node still works on what was.
        Status::Busy | Status::Draining => EAGAIN,
        Status::OutOfRange
        | Status::Misaligned
        | Status::TooLarge
        | Status::ChecksumMismatch
        | Status::AtomicLimit
        | Status::Internal
        | Status::Unknown(_) => errno!(EREMOTEIO),
    }
}

/// The error number for a connection that could not be made.
pub(crate) fn errno_of(cause: CloseCause) -> Error {
    match cause {
        CloseCause::ConnectFailed(errno) | CloseCause::SocketError(errno) => {
            Error::from_errno(-errno.clamp(1, 4095))
        }
        CloseCause::ConnectTimeout | CloseCause::RequestTimeout | CloseCause::HeartbeatTimeout => {
            ETIMEDOUT
        }
        CloseCause::PeerClosed => errno!(ECONNRESET),
        CloseCause::Version { .. } => errno!(EPROTONOSUPPORT),
        CloseCause::Refused(status) => errno_of_status(status),
        CloseCause::VolumeChanged(_) | CloseCause::VolumeShrunk(_) | CloseCause::Fenced => {
            errno!(ESTALE)
        }
        CloseCause::NoMemory => ENOMEM,
        CloseCause::Detached | CloseCause::Released | CloseCause::Replaced => errno!(ESHUTDOWN),
        CloseCause::GoingAway | CloseCause::WritesLost => errno!(ESHUTDOWN),
        CloseCause::NotNeonsan(_)
        | CloseCause::BadGeometry(_)
        | CloseCause::HeaderChecksum
        | CloseCause::PayloadChecksum
        | CloseCause::UnknownKind(_)
        | CloseCause::UnexpectedKind(_)
        | CloseCause::LengthLimit(_)
        | CloseCause::UnknownCookie
        | CloseCause::DuplicateReply
        | CloseCause::ReplyLength { .. }
        | CloseCause::UnknownStatus(_)
        | CloseCause::BadEvent
        | CloseCause::TooMuchInFlight => errno!(EPROTO),
    }
}

/// How a request ends for the status of its reply.
pub(crate) fn block_status_of(status: Status) -> block::Status {
    match status {
        Status::Ok => block::Status::OK,
        Status::NoSpace => block::Status::NOSPC,
        Status::Unsupported => block::Status::NOTSUPP,
        Status::MediaError | Status::VolumeDamaged => block::Status::MEDIUM,
        Status::ChecksumMismatch => block::Status::PROTECTION,
        Status::AtomicLimit => block::Status::INVAL,
        Status::Internal | Status::Busy => block::Status::TARGET,
        Status::VersionUnsupported
        | Status::FeatureUnsupported
        | Status::NoSuchVolume
        | Status::NoSuchSnapshot
        | Status::BadName
        | Status::HeldByOther
        | Status::OpenedReadOnly
        | Status::NotPermitted
        | Status::StaleGeneration
        | Status::UnknownSession
        | Status::Draining
        | Status::TooManySessions
        | Status::TooManyConnections
        | Status::GoingAway
        | Status::BadOpen
        | Status::OutOfRange
        | Status::Misaligned
        | Status::TooLarge
        | Status::ReadOnly
        | Status::BadRequest
        | Status::Fenced
        | Status::NotOwner
        | Status::Unknown(_) => block::Status::IOERR,
    }
}

/// How the requests of a device without service end.
pub(crate) fn block_status_of_loss(cause: CloseCause) -> block::Status {
    match cause {
        CloseCause::Detached | CloseCause::Released => block::Status::OFFLINE,
        CloseCause::ConnectTimeout | CloseCause::RequestTimeout | CloseCause::HeartbeatTimeout => {
            block::Status::TIMEOUT
        }
        _ => block::Status::TRANSPORT,
    }
}
