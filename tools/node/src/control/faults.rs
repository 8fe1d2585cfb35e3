// SPDX-License-Identifier: GPL-2.0 OR MIT
//! `PUT /v1/test-faults`: the lab's control over faults of the engines.
//!
//! Only built with the feature `test-faults`, so not in the API's description.

use std::time::Duration;

use neonsan_api::{ApiError, ErrorCode};
use neonsan_engine::fault::Faults;
use neonsan_engine::ErrorKind;
use serde::Deserialize;

/// What goes wrong from now on; an empty object ends all faults.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct FaultsBody {
    /// Completions are held back for this long.
    delay_ms: u64,
    /// Completions are held back until this is taken away.
    hang: bool,
    /// Volumes are not closed until this is taken away.
    hang_close: bool,
    /// `io` or `no-space`: requests fail so.
    fail: Option<String>,
    /// Reads are spared.
    writes_only: bool,
    /// So many of the next changing requests stall until the faults are changed.
    stall_next: u32,
}

impl FaultsBody {
    pub(super) fn into_faults(self) -> Result<Faults, ApiError> {
        let fail = match self.fail.as_deref() {
            None => None,
            Some("io") => Some(ErrorKind::Io),
            Some("no-space") => Some(ErrorKind::NoSpace),
            Some(other) => {
                return Err(ApiError::new(
                    ErrorCode::BadRequest,
                    format!("requests can fail with \"io\" or \"no-space\", not {other:?}"),
                ))
            }
        };
        Ok(Faults {
            delay: Duration::from_millis(self.delay_ms),
            hang: self.hang,
            hang_close: self.hang_close,
            fail,
            writes_only: self.writes_only,
            stall_next: self.stall_next,
        })
    }
}
