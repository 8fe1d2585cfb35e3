// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Refusals of the control API.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What kind of refusal it is; a program may decide by it.
///
/// New codes may appear within version 1: a reader which does not know one
/// sees [`ErrorCode::Other`] and falls back to the HTTP status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// The request is not what the API describes (syntax, unknown field).
    BadRequest,
    /// The name of a pool or volume breaks the rules of [`crate::VolumeName`].
    BadName,
    /// A size or block size is not possible.
    BadSize,
    /// There is no such path, volume or engine.
    NotFound,
    /// A volume with this name exists.
    AlreadyExists,
    /// The volume is held by a session, which the message names.
    Busy,
    /// The engine has no room for it.
    NoSpace,
    /// The volume's stored form is damaged.
    Corrupt,
    /// Something that is none of the node's, or another volume with the same identity, is in the
    /// way.
    Conflict,
    /// The engine or the system refuses for lack of permission.
    NotPermitted,
    /// The engine does not do this.
    Unsupported,
    /// The node is shutting down.
    ShuttingDown,
    /// An engine cannot be used at the moment; the message says which and why.
    Unavailable,
    /// Reading or writing the engine's storage failed.
    Io,
    /// A fault of the node itself.
    Internal,
    /// A code this reader does not know.
    #[serde(other)]
    Other,
}

impl ErrorCode {
    /// The HTTP status that goes with the code.
    pub fn http_status(self) -> u16 {
        match self {
            Self::BadRequest | Self::BadName | Self::BadSize => 400,
            Self::NotPermitted => 403,
            Self::NotFound => 404,
            Self::AlreadyExists | Self::Busy | Self::Conflict => 409,
            Self::Unsupported => 422,
            Self::Corrupt | Self::Io | Self::Internal | Self::Other => 500,
            Self::ShuttingDown | Self::Unavailable => 503,
            Self::NoSpace => 507,
        }
    }

    /// The code as it stands in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad-request",
            Self::BadName => "bad-name",
            Self::BadSize => "bad-size",
            Self::NotFound => "not-found",
            Self::AlreadyExists => "already-exists",
            Self::Busy => "busy",
            Self::NoSpace => "no-space",
            Self::Corrupt => "corrupt",
            Self::Conflict => "conflict",
            Self::NotPermitted => "not-permitted",
            Self::Unsupported => "unsupported",
            Self::ShuttingDown => "shutting-down",
            Self::Unavailable => "unavailable",
            Self::Io => "io",
            Self::Internal => "internal",
            Self::Other => "other",
        }
    }
}

/// Body of every answer with a status of 400 or above.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub struct ApiError {
    /// The kind of refusal.
    pub code: ErrorCode,
    /// What happened, naming the things concerned; one sentence for a person.
    pub message: String,
    /// What the person can do about it; absent where the message says all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl ApiError {
    /// A refusal without a hint.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: None,
        }
    }

    /// The same refusal with advice.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn unknown_codes_are_read_as_other() {
        let error: ApiError =
            serde_json::from_str(r#"{"code":"from-the-future","message":"m","more":1}"#).unwrap();
        assert_eq!(error.code, ErrorCode::Other);
    }

    #[test]
    fn as_str_is_the_json_form() {
        for code in [
            ErrorCode::BadRequest,
            ErrorCode::BadName,
            ErrorCode::BadSize,
            ErrorCode::NotFound,
            ErrorCode::AlreadyExists,
            ErrorCode::Busy,
            ErrorCode::NoSpace,
            ErrorCode::Corrupt,
            ErrorCode::Conflict,
            ErrorCode::NotPermitted,
            ErrorCode::Unsupported,
            ErrorCode::ShuttingDown,
            ErrorCode::Io,
            ErrorCode::Internal,
            ErrorCode::Other,
        ] {
            let json = serde_json::to_string(&code).unwrap();
            assert_eq!(json, format!("\"{}\"", code.as_str()));
        }
    }
}
