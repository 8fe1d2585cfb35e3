// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What a new volume gets on its way: an identity and a time.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::rand::{getrandom, GetRandomFlags};

use crate::{Error, ErrorKind, Result};

/// 16 bytes that no other volume has.
pub(crate) fn random_id() -> Result<[u8; 16]> {
    let mut id = [0; 16];
    // Up to 256 bytes the system gives all that is asked, once it is seeded.
    let len = getrandom(&mut id, GetRandomFlags::empty())
        .map_err(|e| Error::os(e, "cannot get random bytes"))?;
    if len != id.len() {
        return Err(Error::new(ErrorKind::Io, "cannot get enough random bytes"));
    }
    Ok(id)
}

/// Now, in seconds since 1970; 0 if the clock is before that.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs())
}
