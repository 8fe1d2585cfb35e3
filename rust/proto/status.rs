// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Statuses describe the fault. Each end maps them to its own error numbers in one place.

use crate::open_enum::open_enum;
use core::fmt;

open_enum! {
    /// How a request ended.
    pub enum Status(u16) {
        /// Done.
        Ok = 0,
        /// Hello: no protocol version in common.
        VersionUnsupported = 1,
        /// Hello: a feature that the client requires is not offered.
        FeatureUnsupported = 2,
        /// Open: there is no such volume.
        NoSuchVolume = 16,
        /// Open: the volume has no such snapshot.
        NoSuchSnapshot = 17,
        /// Open: the name breaks the rules for names.
        BadName = 18,
        /// Open: another host holds the volume; the refusal names it.
        HeldByOther = 19,
        /// Open: write access to something that can only be read.
        OpenedReadOnly = 20,
        /// Open: the node does not let this client open the volume.
        NotPermitted = 21,
        /// Open or join: a newer generation of the session exists.
        StaleGeneration = 22,
        /// Join: the node does not know the session (it restarted, or released it). Open again.
        UnknownSession = 23,
        /// Open or join: requests of an older connection are still in the engine. Try again.
        Draining = 24,
        /// Open: the node has as many sessions as it may have.
        TooManySessions = 25,
        /// Join: the session has as many connections as it may have.
        TooManyConnections = 26,
        /// Open: the stored volume is damaged; the refusal says how.
        VolumeDamaged = 27,
        /// Open or join: the node is about to stop. Use another.
        GoingAway = 28,
        /// Open or join: a field has a value that makes no sense.
        BadOpen = 29,
        /// The range leaves the volume.
        OutOfRange = 32,
        /// The range is not a multiple of the logical block size.
        Misaligned = 33,
        /// The request is longer than the volume's limit for its kind.
        TooLarge = 34,
        /// The volume does not have this ability.
        Unsupported = 35,
        /// The payload arrived damaged.
        ChecksumMismatch = 36,
        /// The engine could not read or write its storage.
        MediaError = 37,
        /// The engine has no space left.
        NoSpace = 38,
        /// The volume is read-only.
        ReadOnly = 39,
        /// An atomic write breaks the atomic limits.
        AtomicLimit = 40,
        /// A field of the request has a value that makes no sense.
        BadRequest = 41,
        /// This session no longer owns the volume: another host took it.
        Fenced = 42,
        /// This node no longer owns the volume: use another node. Nothing was done.
        NotOwner = 43,
        /// The node is out of a resource. Nothing was done; try again.
        Busy = 44,
        /// The node has a fault of its own.
        Internal = 45,
    }
}

impl Status {
    /// Whether the request may be sent again, to this or another node, with hope of a better
    /// answer and without asking a person.
    pub const fn is_retryable(self) -> bool {
        matches!(
            self,
            Status::Draining
                | Status::GoingAway
                | Status::NotOwner
                | Status::Busy
                | Status::UnknownSession
                | Status::ChecksumMismatch
        )
    }
}

/// For people. Programs use the number or [`Status::name`].
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Status::Ok => "done",
            Status::VersionUnsupported => {
                "the node and the client have no protocol version in common"
            }
            Status::FeatureUnsupported => {
                "the node lacks something that the volume was attached with, such as checksums: \
                 give it back in the node's configuration, or detach and attach anew"
            }
            Status::NoSuchVolume => "there is no such volume",
            Status::NoSuchSnapshot => "there is no such snapshot",
            Status::BadName => "the name breaks the rules for names",
            Status::HeldByOther => "another host holds the volume",
            Status::OpenedReadOnly => "this can only be opened for reading",
            Status::NotPermitted => "the node does not let this host open the volume",
            Status::StaleGeneration => "a newer generation of the session exists",
            Status::UnknownSession => "the node does not know the session",
            Status::Draining => "requests of an older connection are still being worked on",
            Status::TooManySessions => "the node has as many sessions as it may have",
            Status::TooManyConnections => "the session has as many connections as it may have",
            Status::VolumeDamaged => "the stored volume is damaged",
            Status::GoingAway => "the node is about to stop",
            Status::BadOpen => "the request to open makes no sense",
            Status::OutOfRange => "the range leaves the volume",
            Status::Misaligned => "the range is not a multiple of the logical block size",
            Status::TooLarge => "the request is longer than the volume's limit",
            Status::Unsupported => "the volume does not have this ability",
            Status::ChecksumMismatch => "the payload arrived damaged",
            Status::MediaError => "the node's storage could not be read or written",
            Status::NoSpace => "the node's storage has no space left",
            Status::ReadOnly => "the volume is read-only",
            Status::AtomicLimit => "the write breaks the limits for atomic writes",
            Status::BadRequest => "the request makes no sense",
            Status::Fenced => "another host took the volume",
            Status::NotOwner => "the node does not own the volume any more",
            Status::Busy => "the node is out of a resource",
            Status::Internal => "the node has a fault of its own",
            Status::Unknown(code) => return write!(f, "status {code}, unknown to this version"),
        })
    }
}
