// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What a gate must not forget, as it is saved beside the volume.
//!
//! One byte with the version of this layout, 2; then for each session its id,
//! its host's id (16 bytes each), its mode as on the wire, where it stands (0
//! holds the volume, 1 departed, 2 fenced), and how many connections it may have.
//! Version 1 lacks the last, which is 0 then: as many as the node allows.

use neonsan_engine::{Error, ErrorKind, Result, MAX_RECORD_BYTES};
use neonsan_proto::Mode;
use neonsan_session::server::{prune, Remembered, Standing};

const VERSION: u8 = 2;
const SESSION_BYTES: usize = 35;
const SESSION_BYTES_V1: usize = 34;

/// Most sessions that a record has room for.
pub(super) const MAX_SESSIONS: usize = (MAX_RECORD_BYTES - 1) / SESSION_BYTES;

/// The record of these sessions. A gate remembers no more than there is room
/// for; of an older record's, those go that may be forgotten.
pub(super) fn encode(sessions: &[Remembered]) -> Vec<u8> {
    let mut sessions = sessions.to_vec();
    prune(&mut sessions, MAX_SESSIONS);
    let mut record = vec![VERSION];
    for session in &sessions {
        record.extend_from_slice(&session.session_id);
        record.extend_from_slice(&session.host_id);
        record.push(session.mode.to_wire());
        record.push(match session.standing {
            Standing::Holds => 0,
            Standing::Departed => 1,
            Standing::Fenced => 2,
        });
        record.push(u8::try_from(session.max_connections).unwrap_or(u8::MAX));
    }
    record
}

/// The sessions of a record; `None` is the record of a volume that never had
/// one.
///
/// # Errors
///
/// [`ErrorKind::Corrupt`] when it is not as `encode` makes it.
pub(super) fn decode(record: Option<&[u8]>) -> Result<Vec<Remembered>> {
    let Some(record) = record else {
        return Ok(Vec::new());
    };
    let corrupt = || {
        Error::new(
            ErrorKind::Corrupt,
            "the record of who holds the volume makes no sense (was it written by a newer version?)",
        )
    };
    let (session_bytes, sessions) = match record.split_first() {
        Some((&VERSION, sessions)) => (SESSION_BYTES, sessions),
        Some((1, sessions)) => (SESSION_BYTES_V1, sessions),
        Some(_) | None => return Err(corrupt()),
    };
    if sessions.len() % session_bytes != 0 {
        return Err(corrupt());
    }
    sessions
        .chunks_exact(session_bytes)
        .map(|session| {
            let id = |at: usize| std::array::from_fn(|i| session[at + i]);
            Ok(Remembered {
                session_id: id(0),
                host_id: id(16),
                mode: Mode::from_wire(session[32]),
                standing: match session[33] {
                    0 => Standing::Holds,
                    1 => Standing::Departed,
                    2 => Standing::Fenced,
                    _ => return Err(corrupt()),
                },
                max_connections: session.get(34).copied().unwrap_or(0).into(),
            })
        })
        .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn session(n: u8, standing: Standing) -> Remembered {
        Remembered {
            session_id: [n; 16],
            host_id: [n + 1; 16],
            mode: Mode::Shared,
            max_connections: 16,
            standing,
        }
    }

    #[test]
    fn what_was_saved_comes_back() {
        let sessions = [
            session(1, Standing::Departed),
            session(2, Standing::Fenced),
            session(3, Standing::Holds),
        ];
        assert_eq!(decode(Some(&encode(&sessions))).unwrap(), sessions);
        assert_eq!(decode(Some(&encode(&[]))).unwrap(), []);
        assert_eq!(decode(None).unwrap(), []);
    }

    #[test]
    fn a_record_of_version_1_lacks_the_connections() {
        let mut old = vec![1];
        for session in encode(&[session(1, Standing::Holds), session(5, Standing::Fenced)])[1..]
            .chunks_exact(SESSION_BYTES)
        {
            old.extend_from_slice(&session[..SESSION_BYTES_V1]);
        }
        let sessions = decode(Some(&old)).unwrap();
        assert_eq!(sessions.len(), 2);
        assert_eq!(sessions[1].session_id, [5; 16]);
        assert_eq!(sessions[1].standing, Standing::Fenced);
        assert!(sessions.iter().all(|s| s.max_connections == 0));
    }

    #[test]
    fn of_too_many_sessions_those_go_that_may_be_forgotten() {
        let reader = Remembered {
            mode: Mode::ReadOnly,
            ..session(7, Standing::Departed)
        };
        let mut sessions = vec![session(1, Standing::Fenced); MAX_SESSIONS];
        sessions[0] = session(2, Standing::Fenced);
        sessions.push(session(3, Standing::Holds));
        sessions.push(reader);
        let record = encode(&sessions);
        assert!(record.len() <= MAX_RECORD_BYTES);
        assert_eq!(
            decode(Some(&record)).unwrap(),
            sessions[1..=MAX_SESSIONS],
            "the reader, then the oldest that was fenced"
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for record in [&[][..], &[3], &[1, 0], &[2, 0], &[7; 36]] {
            assert!(decode(Some(record)).is_err(), "{record:?}");
        }
        let mut bad = encode(&[session(1, Standing::Holds)]);
        bad[34] = 3;
        assert!(decode(Some(&bad)).is_err());
    }
}
