// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Names of volumes: `pool/volume` or `pool/volume@snapshot`.

use core::fmt;

/// The most bytes in a whole name.
pub const MAX_VOLUME_NAME_BYTES: usize = 255;

/// What is wrong with a name. `Display` says what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameError {
    /// There is no `/` between pool and volume.
    NoPool,
    /// Pool, volume or snapshot is empty.
    EmptyPart,
    /// The name has more than [`MAX_VOLUME_NAME_BYTES`] bytes.
    TooLong,
    /// A character that names may not have, and where (in bytes from the start).
    BadCharacter {
        /// The byte that is not allowed.
        byte: u8,
        /// Its place in the name.
        at: usize,
    },
    /// A part starts with `.` or `-`, which shells and file systems treat in their own way.
    BadStart,
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NameError::NoPool => f.write_str("a volume is named pool/volume: the pool is missing"),
            NameError::EmptyPart => {
                f.write_str("a volume is named pool/volume or pool/volume@snapshot: a part is empty")
            }
            NameError::TooLong => {
                write!(f, "the name is longer than {MAX_VOLUME_NAME_BYTES} bytes: choose a shorter one")
            }
            NameError::BadCharacter { byte, at } => write!(
                f,
                "the character '{}' at position {at} is not allowed: use letters, digits, '.', '_' and '-'",
                char::from(*byte).escape_default()
            ),
            NameError::BadStart => {
                f.write_str("pool, volume and snapshot must start with a letter, a digit or '_'")
            }
        }
    }
}

/// A name which follows the rules.
///
/// # Invariants
///
/// `full` is at most [`MAX_VOLUME_NAME_BYTES`] long, has one `/` with a valid part on each side
/// and at most one `@` with a valid part behind it; all of it is ASCII.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeName<'a> {
    full: &'a str,
    pool: &'a str,
    volume: &'a str,
    snapshot: Option<&'a str>,
}

impl<'a> VolumeName<'a> {
    /// Checks a name.
    pub fn parse(full: &'a str) -> Result<Self, NameError> {
        if full.len() > MAX_VOLUME_NAME_BYTES {
            return Err(NameError::TooLong);
        }
        for (at, byte) in full.bytes().enumerate() {
            if !(byte.is_ascii_alphanumeric() || b"._-/@".contains(&byte)) {
                return Err(NameError::BadCharacter { byte, at });
            }
        }
        let (pool, rest) = full.split_once('/').ok_or(NameError::NoPool)?;
        let (volume, snapshot) = match rest.split_once('@') {
            Some((volume, snapshot)) => (volume, Some(snapshot)),
            None => (rest, None),
        };
        for part in [Some(pool), Some(volume), snapshot].into_iter().flatten() {
            if let Some(index) = part.find(['/', '@']) {
                let start = part.as_ptr() as usize - full.as_ptr() as usize;
                let byte = part.as_bytes().get(index).copied().unwrap_or(b'/');
                return Err(NameError::BadCharacter {
                    byte,
                    at: start + index,
                });
            }
            match part.bytes().next() {
                None => return Err(NameError::EmptyPart),
                Some(b'.' | b'-') => return Err(NameError::BadStart),
                Some(_) => {}
            }
        }
        // INVARIANT: length, characters and parts were checked above.
        Ok(VolumeName {
            full,
            pool,
            volume,
            snapshot,
        })
    }

    /// The whole name.
    pub fn as_str(&self) -> &'a str {
        self.full
    }

    /// The pool.
    pub fn pool(&self) -> &'a str {
        self.pool
    }

    /// The volume within its pool.
    pub fn volume(&self) -> &'a str {
        self.volume
    }

    /// The snapshot of the volume, if one is named.
    pub fn snapshot(&self) -> Option<&'a str> {
        self.snapshot
    }
}
