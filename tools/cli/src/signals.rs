// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Signals that end a long command in good order: what is half done is undone, and the session closed.

use crate::error::{Error, Kind, Result};
use std::future::{poll_fn, Future};
use std::task::Poll;
use tokio::signal::unix::{signal, Signal, SignalKind};

/// Those that are listened to, from when this is made: they do not end the process any more.
pub struct Signals {
    listeners: Vec<(&'static str, Signal)>,
}

impl Signals {
    /// Listens. A signal that the process was started to ignore, as by nohup(1), stays ignored.
    pub fn new() -> Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let ignored = ignored(&status);
        let mut listeners = Vec::new();
        for (name, kind) in [
            ("SIGINT", SignalKind::interrupt()),
            ("SIGTERM", SignalKind::terminate()),
            ("SIGHUP", SignalKind::hangup()),
        ] {
            if (ignored >> (kind.as_raw_value() - 1)) & 1 == 0 {
                let listener = signal(kind).map_err(|error| {
                    Error::new(
                        Kind::Other,
                        format!("{name} cannot be listened to: {error}"),
                    )
                })?;
                listeners.push((name, listener));
            }
        }
        Ok(Signals { listeners })
    }

    /// The result of the work, or an error when a signal comes first.
    pub async fn or<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            result = work => result,
            name = self.next() => {
                Err(Error::new(Kind::Interrupted, format!("interrupted by {name}")))
            }
        }
    }

    async fn next(&mut self) -> &'static str {
        poll_fn(|context| {
            for (name, listener) in &mut self.listeners {
                if let Poll::Ready(Some(())) = listener.poll_recv(context) {
                    return Poll::Ready(*name);
                }
            }
            Poll::Pending
        })
        .await
    }
}

/// The set of ignored signals in the text of /proc/PID/status.
fn ignored(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read() {
        let status = "Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000002\n";
        assert_eq!(ignored(status), 0x1001);
        assert_eq!(ignored(""), 0);
    }
}
