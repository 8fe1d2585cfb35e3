// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Errors of engines: a small kind to decide by, and context for people.

use std::fmt;
use std::io;

use rustix::io::Errno;

/// The result of an engine call.
pub type Result<T> = std::result::Result<T, Error>;

/// What kind of failure it is; code decides by this alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// There is no such volume.
    NotFound,
    /// There is no such snapshot, or no such volume that could have it.
    NoSuchSnapshot,
    /// A volume or snapshot with this name exists.
    AlreadyExists,
    /// The volume is open, here or in another process.
    Busy,
    /// The engine has no room left.
    NoSpace,
    /// A size or block size that cannot be.
    BadSize,
    /// The range leaves the volume.
    OutOfRange,
    /// The range is not a multiple of the logical block size.
    Misaligned,
    /// The request is longer than the limit for its kind.
    TooLarge,
    /// An atomic write outside the atomic limits.
    AtomicLimit,
    /// The engine does not do this.
    Unsupported,
    /// The stored volume is damaged.
    Corrupt,
    /// Something that is none of the engine's, or another volume with the same
    /// identity, is in the way; nothing was done.
    Conflict,
    /// The system refuses for lack of permission.
    NotPermitted,
    /// The process is out of memory or file descriptors.
    NoResources,
    /// Another node has taken the volume; nothing was done.
    NotOwner,
    /// The engine cannot be used at the moment; nothing was done. It is tried again.
    Unavailable,
    /// Reading or writing the storage failed.
    Io,
}

/// An error of the operating system, and which sort of call met it.
#[derive(Debug)]
pub struct SystemError {
    error: io::Error,
    /// A write, or the sync of one: what was written before may be lost too. Opening, reading
    /// and looking up say nothing of that.
    of_write: bool,
}

impl SystemError {
    /// Its kind.
    pub(crate) fn kind(&self) -> io::ErrorKind {
        self.error.kind()
    }
}

impl From<io::Error> for SystemError {
    fn from(error: io::Error) -> Self {
        Self {
            error,
            of_write: false,
        }
    }
}

impl From<Errno> for SystemError {
    fn from(error: Errno) -> Self {
        io::Error::from(error).into()
    }
}

impl From<SystemError> for io::Error {
    fn from(error: SystemError) -> Self {
        error.error
    }
}

/// Says of the result of a call that it was a write or a sync.
pub(crate) trait Written<T> {
    /// The result, which knows it.
    fn written(self) -> std::result::Result<T, SystemError>;
}

impl<T, E: Into<io::Error>> Written<T> for std::result::Result<T, E> {
    fn written(self) -> std::result::Result<T, SystemError> {
        self.map_err(|error| SystemError {
            error: error.into(),
            of_write: true,
        })
    }
}

/// Why a call or request of an engine failed.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<SystemError>,
}

impl Error {
    /// An error which the engine found itself.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Self {
        Self {
            kind,
            context: context.into(),
            source: None,
        }
    }

    /// An error of the operating system; its kind follows from the number.
    pub fn os(source: impl Into<SystemError>, context: impl Into<String>) -> Self {
        let source = source.into();
        Self {
            kind: kind_of(&source.error),
            context: context.into(),
            source: Some(source),
        }
    }

    /// An error number of a library whose numbers mean something of its own.
    pub(crate) fn with_kind(
        kind: ErrorKind,
        source: impl Into<io::Error>,
        context: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            context: context.into(),
            source: Some(source.into().into()),
        }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The system's error number, if it was a write or a sync that failed.
    pub(crate) fn errno_of_write(&self) -> Option<i32> {
        let source = self.source.as_ref()?;
        source.of_write.then(|| source.error.raw_os_error())?
    }
}

/// The one place where error numbers become kinds.
fn kind_of(error: &io::Error) -> ErrorKind {
    match Errno::from_io_error(error) {
        Some(Errno::NOENT) => ErrorKind::NotFound,
        Some(Errno::EXIST | Errno::NOTEMPTY) => ErrorKind::AlreadyExists,
        Some(Errno::NOSPC | Errno::DQUOT) => ErrorKind::NoSpace,
        Some(Errno::FBIG) => ErrorKind::BadSize,
        Some(Errno::OPNOTSUPP | Errno::NOSYS) => ErrorKind::Unsupported,
        Some(Errno::ACCESS | Errno::PERM | Errno::ROFS) => ErrorKind::NotPermitted,
        Some(Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::AGAIN) => ErrorKind::NoResources,
        _ => ErrorKind::Io,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)?;
        match &self.source {
            Some(source) => write!(f, ": {}", source.error),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| &source.error as _)
    }
}
