// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Hosts that held a volume when its node ended, and may be on their way back:
//! until they have had the time for that, nobody may change the volume under
//! them.
//!
//! Where a volume has one node only, that time begins when its engine can be used. Where it
//! has several, the host can come back to any of them, and the clocks of nodes
//! need not agree. So this node counts from the moment at which it first saw
//! that nobody has the volume and what is saved says who should.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use neonsan_api::VolumeName;
use neonsan_engine::{Engine, Error, ErrorKind};
use neonsan_session::server::{Remembered, Standing};
use neonsan_session::Instant;

use super::record;
use crate::shared::{hex, Shared};

/// What was seen longer ago, beyond the linger time, counts no more: much can
/// have happened since.
const KEEP_MS: u64 = 60_000;

/// Why a volume that is not open here must not be changed.
pub enum Absent {
    /// Another node has it open, or had it until half a minute ago.
    Elsewhere,
    /// A host held it when its node ended, and may come back.
    Expected {
        /// The host's identity.
        host: String,
        /// How long it still has.
        left_ms: u64,
    },
}

/// Since when volumes that nobody has are known to be expected back.
#[derive(Debug, Default)]
pub struct Observations(Mutex<HashMap<VolumeName, (Vec<u8>, Instant)>>);

impl Observations {
    /// Since when this is so.
    fn since(&self, name: &VolumeName, record: &[u8], now: Instant, linger_ms: u64) -> Instant {
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.retain(|_, (_, since)| now.since_ms(*since) < linger_ms + KEEP_MS);
        match seen.get(name) {
            Some((known, since)) if known == record => *since,
            _ => {
                seen.insert(name.clone(), (record.to_owned(), now));
                now
            }
        }
    }
}

/// Who must be reckoned with before a volume is changed that is not open here.
/// Blocks.
///
/// Another node that seems to be alive is an answer of its own, not left to the
/// engine: between a look and the opening it may cease to be.
pub fn absent_holder(
    shared: &Shared,
    engine: usize,
    name: &VolumeName,
) -> neonsan_engine::Result<Option<Absent>> {
    let linger_ms = u64::from(shared.config.timeouts.session_linger_ms);
    let named = &shared.engines[engine];
    let engine = &*named.engine;
    let now = shared.clock.now();
    // An engine that opened late could not be come back to before.
    let usable_since = named.supervised.usable_since(&shared.clock);
    if !engine.is_shared() && now.since_ms(usable_since) >= linger_ms {
        return Ok(None);
    }
    if engine.is_shared() && engine.is_in_other_hands(name)? {
        return Ok(Some(Absent::Elsewhere));
    }
    let Some(saved) = load(engine, name)? else {
        return Ok(None);
    };
    // Whoever changes a volume with a damaged record means it.
    let sessions = record::decode(Some(&saved)).unwrap_or_default();
    let Some(holder) = sessions.iter().find(|s| s.standing == Standing::Holds) else {
        return Ok(None);
    };
    let since = if engine.is_shared() {
        shared.observations.since(name, &saved, now, linger_ms)
    } else {
        usable_since
    };
    let left_ms = linger_ms.saturating_sub(now.since_ms(since));
    Ok((left_ms > 0).then(|| Absent::Expected {
        host: hex(&holder.host_id),
        left_ms,
    }))
}

fn load(engine: &dyn Engine, name: &VolumeName) -> neonsan_engine::Result<Option<Vec<u8>>> {
    match engine.load_record(name) {
        Err(error) if error.kind() == ErrorKind::Corrupt => Ok(None),
        other => other,
    }
}

/// What is saved of a volume's gate, with every session fenced: whoever held the
/// volume once does not come back with what it had in flight. Blocks.
pub fn all_fenced(engine: &dyn Engine, name: &VolumeName) -> Result<Vec<u8>, Error> {
    let mut sessions: Vec<Remembered> = record::decode(engine.load_record(name)?.as_deref())?;
    // One that was released has nothing in flight, and is remembered for another reason.
    let left = |s: &&mut Remembered| s.standing != Standing::Released;
    for session in sessions.iter_mut().filter(left) {
        session.standing = Standing::Fenced;
    }
    Ok(record::encode(&sessions))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_counts_until_it_changes_or_is_old() {
        let observations = Observations::default();
        let name = "p/v".parse().unwrap();
        let since = |record: &[u8], now| observations.since(&name, record, Instant(now), 30_000).0;
        assert_eq!(since(b"a", 1_000), 1_000);
        assert_eq!(since(b"a", 20_000), 1_000);
        assert_eq!(since(b"b", 21_000), 21_000, "somebody else");
        assert_eq!(since(b"a", 22_000), 22_000);
        assert_eq!(since(b"a", 22_000 + 90_000), 112_000, "too long ago");
    }
}
