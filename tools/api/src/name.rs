// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Names of volumes: the one place which says what a good name is.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name, counted over `pool/volume` with its slash, in bytes.
///
/// The wire carries names up to this length and file engines make path
/// components of the parts, which may not be longer than this either.
pub const MAX_NAME_BYTES: usize = 255;

/// The name of a volume: its pool and its name within the pool.
///
/// # Invariants
///
/// Both parts consist of one or more ASCII letters, digits, `.`, `_` or `-`,
/// begin with a letter or a digit, and are together with the slash between
/// them not longer than [`MAX_NAME_BYTES`]. So a part is always a safe path
/// component: never empty, `.`, `..`, hidden, or mistaken for an option.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName {
    full: Box<str>,
    /// Index of the slash in `full`.
    slash: usize,
}

/// Why a string is not the name of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// There is no slash.
    #[error("a volume is named pool/volume, and this has no '/'")]
    NoPool,
    /// There are several slashes.
    #[error("a volume is named pool/volume, and this has more than one '/'")]
    TooManyParts,
    /// The part before or after the slash has no characters.
    #[error("the {0} name is empty")]
    Empty(&'static str),
    /// `pool/volume` is longer than [`MAX_NAME_BYTES`].
    #[error("the name has {0} bytes, and at most 255 are allowed for pool/volume")]
    TooLong(usize),
    /// A part has a character outside letters, digits, `.`, `_`, `-`.
    #[error("the {part} name has the character {found:?}; letters, digits, '.', '_' and '-' are allowed")]
    BadCharacter {
        /// `pool` or `volume`.
        part: &'static str,
        /// The first character that is not allowed.
        found: char,
    },
    /// A part begins with `.`, `_` or `-`.
    #[error("the {part} name begins with {found:?}; it must begin with a letter or a digit")]
    BadStart {
        /// `pool` or `volume`.
        part: &'static str,
        /// Its first character.
        found: char,
    },
}

fn check_part(part: &'static str, text: &str) -> Result<(), NameError> {
    let first = text.chars().next().ok_or(NameError::Empty(part))?;
    if let Some(found) = text
        .chars()
        .find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '.' | '_' | '-'))
    {
        return Err(NameError::BadCharacter { part, found });
    }
    if !first.is_ascii_alphanumeric() {
        return Err(NameError::BadStart { part, found: first });
    }
    Ok(())
}

impl VolumeName {
    /// Checks `pool` and `volume` and makes a name of them.
    pub fn new(pool: &str, volume: &str) -> Result<Self, NameError> {
        check_part("pool", pool)?;
        check_part("volume", volume)?;
        let full = format!("{pool}/{volume}");
        if full.len() > MAX_NAME_BYTES {
            return Err(NameError::TooLong(full.len()));
        }
        Ok(Self {
            full: full.into_boxed_str(),
            slash: pool.len(),
        })
    }

    /// The pool's name.
    pub fn pool(&self) -> &str {
        &self.full[..self.slash]
    }

    /// The volume's name within its pool.
    pub fn volume(&self) -> &str {
        &self.full[self.slash + 1..]
    }

    /// `pool/volume`.
    pub fn as_str(&self) -> &str {
        &self.full
    }
}

impl FromStr for VolumeName {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, NameError> {
        let (pool, volume) = s.split_once('/').ok_or(if s.is_empty() {
            NameError::Empty("volume")
        } else {
            NameError::NoPool
        })?;
        if volume.contains('/') {
            return Err(NameError::TooManyParts);
        }
        Self::new(pool, volume)
    }
}

impl TryFrom<String> for VolumeName {
    type Error = NameError;

    fn try_from(s: String) -> Result<Self, NameError> {
        s.parse()
    }
}

impl From<VolumeName> for String {
    fn from(name: VolumeName) -> String {
        name.full.into_string()
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn good_names_keep_their_parts() {
        let name: VolumeName = "rbd-1/vm_07.disk0".parse().unwrap();
        assert_eq!(name.pool(), "rbd-1");
        assert_eq!(name.volume(), "vm_07.disk0");
        assert_eq!(name.to_string(), "rbd-1/vm_07.disk0");
    }

    #[test]
    fn bad_names_are_refused_with_their_reason() {
        let parse = |s: &str| s.parse::<VolumeName>().unwrap_err();
        assert_eq!(parse(""), NameError::Empty("volume"));
        assert_eq!(parse("volume"), NameError::NoPool);
        assert_eq!(parse("/v"), NameError::Empty("pool"));
        assert_eq!(parse("p/"), NameError::Empty("volume"));
        assert_eq!(parse("a/b/c"), NameError::TooManyParts);
        assert_eq!(
            parse("p/.."),
            NameError::BadStart {
                part: "volume",
                found: '.'
            }
        );
        assert_eq!(
            parse("p/a b"),
            NameError::BadCharacter {
                part: "volume",
                found: ' '
            }
        );
        assert_eq!(
            parse("pö/a"),
            NameError::BadCharacter {
                part: "pool",
                found: 'ö'
            }
        );
    }

    #[test]
    fn the_longest_name_has_255_bytes() {
        let fits = format!("p/{}", "v".repeat(253));
        assert!(fits.parse::<VolumeName>().is_ok());
        let long = format!("p/{}", "v".repeat(254));
        assert_eq!(
            long.parse::<VolumeName>().unwrap_err(),
            NameError::TooLong(256)
        );
    }
}
