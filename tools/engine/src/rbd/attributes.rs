// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What makes an image a volume: one entry of its metadata, so that it is
//! there whole or not at all, in words that people can read with
//! `rbd image-meta list`.
//!
//! ```text
//! neonsan_volume = version=1 id=<32 digits> logical=512 physical=4096 created=<seconds since 1970>
//! neonsan_record = <hexadecimal>      the node's note of who holds it
//! neonsan_rollback = <snapshot>       while it is rolled back
//! ```

use crate::{Error, ErrorKind, Result};

/// The entry with the attributes.
pub(super) const VOLUME_KEY: &str = "neonsan_volume";

/// The entry with the node's record.
pub(super) const RECORD_KEY: &str = "neonsan_record";

/// The entry with the snapshot to which the volume is being rolled back.
pub(super) const ROLLBACK_KEY: &str = "neonsan_rollback";

/// What a volume is, but for its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) id: [u8; 16],
    pub(super) logical_block_size: u32,
    pub(super) physical_block_size: u32,
    pub(super) created_unix_s: u64,
}

impl Attributes {
    /// The entry's value.
    pub(super) fn encode(&self) -> String {
        format!(
            "version=1 id={:032x} logical={} physical={} created={}",
            u128::from_be_bytes(self.id),
            self.logical_block_size,
            self.physical_block_size,
            self.created_unix_s
        )
    }

    /// The attributes of an entry's value.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] when it is not as `encode` makes it.
    pub(super) fn decode(value: &str) -> Result<Self> {
        let field = |key: &str| {
            value
                .split(' ')
                .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
        };
        let parse = || {
            if field("version")? != "1" {
                return None;
            }
            let attributes = Self {
                id: u128::from_str_radix(field("id")?, 16).ok()?.to_be_bytes(),
                logical_block_size: field("logical")?.parse().ok()?,
                physical_block_size: field("physical")?.parse().ok()?,
                created_unix_s: field("created")?.parse().ok()?,
            };
            let (logical, physical) = (
                attributes.logical_block_size,
                attributes.physical_block_size,
            );
            let sound = logical.is_power_of_two()
                && (512..=4096).contains(&logical)
                && physical.is_power_of_two()
                && (logical..=65536).contains(&physical);
            sound.then_some(attributes)
        };
        parse().ok_or_else(|| {
            Error::new(
                ErrorKind::Corrupt,
                format!(
                    "the image's {VOLUME_KEY} makes no sense \
                     (was it written by a newer version?): {value:?}"
                ),
            )
        })
    }
}

/// Bytes as text.
pub(super) fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// Text as bytes.
///
/// # Errors
///
/// [`ErrorKind::Corrupt`] when it is not as `to_hex` makes it.
pub(super) fn from_hex(text: &str) -> Result<Vec<u8>> {
    let corrupt = || {
        Error::new(
            ErrorKind::Corrupt,
            format!("the image's {RECORD_KEY} is not hexadecimal"),
        )
    };
    let digit = |c: u8| {
        (c as char)
            .to_digit(16)
            // At most 15.
            .map(|d| d as u8)
            .ok_or_else(corrupt)
    };
    if text.len() % 2 != 0 {
        return Err(corrupt());
    }
    text.as_bytes()
        .chunks_exact(2)
        .map(|pair| Ok((digit(pair[0])? << 4) | digit(pair[1])?))
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_comes_back() {
        let attributes = Attributes {
            id: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 255],
            logical_block_size: 512,
            physical_block_size: 4096,
            created_unix_s: 1_790_000_000,
        };
        assert_eq!(
            Attributes::decode(&attributes.encode()).unwrap(),
            attributes
        );
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(from_hex(&to_hex(&all)).unwrap(), all);
        assert!(from_hex("").unwrap().is_empty());
    }

    #[test]
    fn nonsense_is_refused() {
        let good = "version=1 id=01 logical=512 physical=4096 created=1";
        assert!(Attributes::decode(good).is_ok());
        for (from, to) in [
            ("version=1", "version=2"),
            ("version=1 ", ""),
            ("id=01", "id=zz"),
            ("logical=512", "logical=256"),
            ("logical=512", "logical=513"),
            ("logical=512", "logical=8192"),
            ("physical=4096", "physical=256"),
            ("physical=4096", "physical=131072"),
            ("created=1", "created=-1"),
        ] {
            let bad = good.replace(from, to);
            let error = Attributes::decode(&bad).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{bad}");
        }
        for bad in ["0", "0g", "ä"] {
            assert!(from_hex(bad).is_err(), "{bad}");
        }
    }
}
