// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What can go wrong: a small kind that programs match (exit code, JSON), and for people one
//! message and what to do about it.

use crate::output::plain;
use serde::Serialize;
use std::fmt;

/// The kind of an error. Each has its exit code, which is part of the interface: they are listed
/// in neonsan(8) and in Documentation/cli-json.rst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// None of the others.
    Other,
    /// An argument that makes no sense.
    Usage,
    /// The config file cannot be read or has something unknown in it.
    Config,
    /// The caller may not do this.
    Permission,
    /// The kernel module is not loaded, or its family is not visible from here.
    Module,
    /// There is no such device, volume or snapshot.
    NotFound,
    /// Held by somebody else, in use, or there already.
    Busy,
    /// No node answers at the address.
    Unreachable,
    /// Something answers there that is not a NeonSAN node, or none that fits.
    Protocol,
    /// The node or the kernel refuses the request as such: sizes, limits, abilities.
    Refused,
    /// There is no space.
    NoSpace,
    /// Stored data is damaged, or cannot be read or written.
    Data,
    /// For now only: the node or the kernel has too much to do, or something else is under way.
    Temporary,
    /// Stopped by a signal.
    Interrupted,
}

impl Kind {
    /// The exit code.
    pub const fn exit_code(self) -> u8 {
        match self {
            Kind::Other => 1,
            Kind::Usage => 2,
            Kind::Config => 3,
            Kind::Permission => 4,
            Kind::Module => 5,
            Kind::NotFound => 6,
            Kind::Busy => 7,
            Kind::Unreachable => 8,
            Kind::Protocol => 9,
            Kind::Refused => 10,
            Kind::NoSpace => 11,
            Kind::Data => 12,
            Kind::Temporary => 13,
            Kind::Interrupted => 130,
        }
    }
}

/// An error with its message and advice.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    hint: Option<String>,
}

/// What a command returns.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error with its message: what is wrong, naming the thing it is about.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error {
            kind,
            message: message.into(),
            hint: None,
        }
    }

    /// The same error with what to do about it.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same error with more to know about it, behind what there is already.
    pub fn with_more(mut self, more: impl fmt::Display) -> Self {
        self.hint = Some(match self.hint {
            Some(hint) => format!("{hint}; {more}"),
            None => more.to_string(),
        });
        self
    }

    /// What is wrong.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The error as the JSON object that Documentation/cli-json.rst describes, with what the command
    /// had to say before it.
    pub fn to_json(&self, warnings: &[String]) -> serde_json::Value {
        serde_json::json!({
            "error": {
                "kind": self.kind,
                "message": self.message,
                "hint": self.hint,
                "exit_code": self.kind.exit_code(),
                "warnings": warnings,
            }
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Both may be a node's words.
        f.write_str(&plain(&self.message))?;
        if let Some(hint) = &self.hint {
            write!(f, "\n  {}", plain(hint))?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_stay_what_they_are() {
        // Units and scripts tell by them what may pass by itself (neonsan(8)).
        for (kind, code) in [
            (Kind::Other, 1),
            (Kind::Usage, 2),
            (Kind::Config, 3),
            (Kind::Permission, 4),
            (Kind::Module, 5),
            (Kind::NotFound, 6),
            (Kind::Busy, 7),
            (Kind::Unreachable, 8),
            (Kind::Protocol, 9),
            (Kind::Refused, 10),
            (Kind::NoSpace, 11),
            (Kind::Data, 12),
            (Kind::Temporary, 13),
            (Kind::Interrupted, 130),
        ] {
            assert_eq!(kind.exit_code(), code, "{kind:?}");
        }
    }
}
