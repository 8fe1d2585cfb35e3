// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What a gate must not forget, as it is saved beside the volume.
//!
//! One byte with the version of this layout, 3; then entries: a type of one byte, the length of the
//! value in two (little-endian), the value. There is one type:
//!
//! ======  ==================================================================================
//! 0x81    A session: its id, its host's id (16 bytes each), its mode as on the wire, where it
//!         stands (0 holds the volume, 1 departed, 2 fenced, 3 released), how many connections it
//!         may have (2 bytes), the boot of its host (8 bytes); then fields: a type of one byte,
//!         the length of the value in one, the value. There is one type: 0x81, of a session
//!         that was released, its generation (8 bytes).
//! ======  ==================================================================================
//!
//! So a later version can add entries and fields without a version of its own. One whose type has
//! the highest bit must be understood: a node that does not know it does not open the volume. All
//! others may be ignored, and are lost when this version writes the record.
//!
//! Versions 1 and 2 were rows of 34 and 35 bytes: ids, mode and standing, and in version 2 one byte
//! with the number of connections. What they lack is 0: as many connections as the node allows, and
//! a boot that is not known.

use neonsan_engine::{Error, ErrorKind, Result, MAX_RECORD_BYTES};
use neonsan_proto::Mode;
use neonsan_session::server::{prune, Remembered, Standing};

const VERSION: u8 = 3;
/// What has this bit in its type must be understood.
const REQUIRED: u8 = 0x80;
const SESSION: u8 = REQUIRED | 1;
const GENERATION: u8 = REQUIRED | 1;
const ENTRY_HEADER_BYTES: usize = 3;
const SESSION_BYTES: usize = 44;
/// A gate remembers no more than 16 released ones, of which each has this field.
const GENERATION_BYTES: usize = 10;
const SESSION_BYTES_V1: usize = 34;
const SESSION_BYTES_V2: usize = 35;

/// Most sessions that a record has room for.
pub(super) const MAX_SESSIONS: usize =
    (MAX_RECORD_BYTES - 1 - 16 * GENERATION_BYTES) / (ENTRY_HEADER_BYTES + SESSION_BYTES);

/// The record of these sessions. A gate remembers no more than there is room
/// for; of an older record's, those go that may be forgotten.
pub(super) fn encode(sessions: &[Remembered]) -> Vec<u8> {
    let mut sessions = sessions.to_vec();
    prune(&mut sessions, MAX_SESSIONS);
    let mut record = vec![VERSION];
    for session in &sessions {
        record.push(SESSION);
        let is_released = session.standing == Standing::Released;
        let fields_bytes = if is_released { GENERATION_BYTES } else { 0 };
        record.extend_from_slice(&((SESSION_BYTES + fields_bytes) as u16).to_le_bytes());
        record.extend_from_slice(&session.session_id);
        record.extend_from_slice(&session.host_id);
        record.push(session.mode.to_wire());
        record.push(match session.standing {
            Standing::Holds => 0,
            Standing::Departed => 1,
            Standing::Fenced => 2,
            Standing::Released => 3,
        });
        record.extend_from_slice(&session.max_connections.to_le_bytes());
        record.extend_from_slice(&session.host_boot.to_le_bytes());
        if is_released {
            record.extend_from_slice(&[GENERATION, 8]);
            record.extend_from_slice(&session.generation.to_le_bytes());
        }
    }
    record
}

/// The sessions of a record; `None` is the record of a volume that never had
/// one.
///
/// # Errors
///
/// [`ErrorKind::Corrupt`] when it is not as `encode` makes it, or a later
/// version wrote something into it that must be understood.
pub(super) fn decode(record: Option<&[u8]>) -> Result<Vec<Remembered>> {
    let Some(record) = record else {
        return Ok(Vec::new());
    };
    let sessions = match record.split_first() {
        Some((&VERSION, entries)) => decode_entries(entries),
        Some((2, rows)) => decode_rows(rows, SESSION_BYTES_V2),
        Some((1, rows)) => decode_rows(rows, SESSION_BYTES_V1),
        Some(_) | None => None,
    };
    sessions.ok_or_else(|| {
        Error::new(
            ErrorKind::Corrupt,
            "the record of who holds the volume makes no sense (was it written by a newer version?)",
        )
    })
}

fn decode_entries(mut entries: &[u8]) -> Option<Vec<Remembered>> {
    let mut sessions = Vec::new();
    while !entries.is_empty() {
        let (&[kind, low, high], rest) = entries.split_first_chunk::<ENTRY_HEADER_BYTES>()?;
        let (value, rest) = rest.split_at_checked(u16::from_le_bytes([low, high]).into())?;
        entries = rest;
        match kind {
            SESSION => sessions.push(decode_session(value)?),
            kind if kind & REQUIRED != 0 => return None,
            _ => {}
        }
    }
    Some(sessions)
}

fn decode_session(value: &[u8]) -> Option<Remembered> {
    let (fixed, mut fields) = value.split_at_checked(SESSION_BYTES)?;
    let mut generation = 0;
    while !fields.is_empty() {
        let (&[kind, len], rest) = fields.split_first_chunk::<2>()?;
        let (value, rest) = rest.split_at_checked(len.into())?;
        fields = rest;
        match kind {
            GENERATION => generation = u64::from_le_bytes(value.try_into().ok()?),
            kind if kind & REQUIRED != 0 => return None,
            _ => {}
        }
    }
    let (ids, rest) = fixed.split_at_checked(SESSION_BYTES_V1)?;
    let (&[low, high], boot) = rest.split_first_chunk::<2>()?;
    Some(Remembered {
        max_connections: u16::from_le_bytes([low, high]),
        host_boot: u64::from_le_bytes(*boot.first_chunk()?),
        generation,
        ..decode_ids(ids)?
    })
}

/// The rows of versions 1 and 2.
fn decode_rows(rows: &[u8], row_bytes: usize) -> Option<Vec<Remembered>> {
    if rows.len() % row_bytes != 0 {
        return None;
    }
    rows.chunks_exact(row_bytes)
        .map(|row| {
            let (ids, rest) = row.split_at_checked(SESSION_BYTES_V1)?;
            Some(Remembered {
                max_connections: rest.first().copied().unwrap_or(0).into(),
                ..decode_ids(ids)?
            })
        })
        .collect()
}

/// What all versions begin a session with.
fn decode_ids(ids: &[u8]) -> Option<Remembered> {
    let (session_id, rest) = ids.split_first_chunk()?;
    let (host_id, rest) = rest.split_first_chunk()?;
    let &[mode, standing] = rest.first_chunk()?;
    Some(Remembered {
        session_id: *session_id,
        host_id: *host_id,
        host_boot: 0,
        mode: Mode::from_wire(mode),
        max_connections: 0,
        generation: 0,
        standing: match standing {
            0 => Standing::Holds,
            1 => Standing::Departed,
            2 => Standing::Fenced,
            3 => Standing::Released,
            _ => return None,
        },
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn session(n: u8, standing: Standing) -> Remembered {
        Remembered {
            session_id: [n; 16],
            host_id: [n + 1; 16],
            host_boot: 0x0807_0605_0403_0201,
            mode: Mode::Shared,
            max_connections: 16,
            generation: 0,
            standing,
        }
    }

    #[test]
    fn what_was_saved_comes_back() {
        let sessions = [
            session(1, Standing::Departed),
            session(2, Standing::Fenced),
            session(3, Standing::Holds),
            Remembered {
                generation: 7,
                ..session(4, Standing::Released)
            },
        ];
        assert_eq!(decode(Some(&encode(&sessions))).unwrap(), sessions);
        assert_eq!(decode(Some(&encode(&[]))).unwrap(), []);
        assert_eq!(decode(None).unwrap(), []);
    }

    /// A record as versions 1 and 2 wrote it, byte by byte.
    fn old_record(version: u8) -> Vec<u8> {
        let mut record = vec![version];
        for (n, mode, standing) in [(1, 0, 0), (5, 1, 2), (7, 2, 1)] {
            record.extend_from_slice(&[n; 16]);
            record.extend_from_slice(&[n + 1; 16]);
            record.extend_from_slice(&[mode, standing]);
            if version == 2 {
                record.push(16);
            }
        }
        record
    }

    #[test]
    fn records_of_older_versions_are_read() {
        for (version, max_connections) in [(1, 0), (2, 16)] {
            let expected = [
                (1, Mode::Exclusive, Standing::Holds),
                (5, Mode::Shared, Standing::Fenced),
                (7, Mode::ReadOnly, Standing::Departed),
            ]
            .map(|(n, mode, standing)| Remembered {
                host_boot: 0,
                mode,
                max_connections,
                ..session(n, standing)
            });
            let sessions = decode(Some(&old_record(version))).unwrap();
            assert_eq!(sessions, expected, "version {version}");
            // What this version makes of it says the same.
            assert_eq!(decode(Some(&encode(&sessions))).unwrap(), expected);
        }
    }

    #[test]
    fn the_record_of_this_version_stays_as_it_is() {
        let mut golden = vec![3, 0x81, 44, 0];
        golden.extend_from_slice(&[1; 16]);
        golden.extend_from_slice(&[2; 16]);
        golden.extend_from_slice(&[1, 0, 16, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(encode(&[session(1, Standing::Holds)]), golden);
        assert_eq!(
            decode(Some(&golden)).unwrap(),
            [session(1, Standing::Holds)]
        );
    }

    #[test]
    fn what_a_later_version_adds_is_ignored_unless_it_must_be_understood() {
        let sessions = [session(1, Standing::Holds)];
        let plain = encode(&sessions);
        let with_entry = |kind: u8| {
            let mut record = plain.clone();
            record.extend_from_slice(&[kind, 2, 0, 0xaa, 0xbb]);
            record
        };
        let with_field = |kind: u8| {
            let mut record = plain.clone();
            record.extend_from_slice(&[kind, 1, 0xaa]);
            record[2] += 3;
            record
        };
        for record in [with_entry(0x02), with_field(0x01)] {
            assert_eq!(decode(Some(&record)).unwrap(), sessions);
        }
        for record in [with_entry(0x82), with_field(0x82), with_field(0x81)] {
            assert_eq!(
                decode(Some(&record)).unwrap_err().kind(),
                ErrorKind::Corrupt
            );
        }
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
        for record in [&[][..], &[4], &[1, 0], &[2, 0], &[3, 0], &[7; 36]] {
            assert!(decode(Some(record)).is_err(), "{record:?}");
        }
        let good = encode(&[session(1, Standing::Holds)]);
        for len in 2..good.len() {
            assert!(decode(Some(&good[..len])).is_err(), "cut to {len}");
        }
        let mut bad = good;
        bad[1 + ENTRY_HEADER_BYTES + 33] = 4;
        assert!(decode(Some(&bad)).is_err());
    }
}
