// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The log: what was issued and how it ended, outside the disk under test.
//!
//! Records of 64 bytes, each with a checksum, appended with one system call before the thing that
//! they announce is done, and after the thing that they report. So the log survives the death of
//! this program at any moment: a record that is missing or incomplete at the end belongs to a write
//! that was not sent, or whose acknowledgement nobody was told. It does not survive the loss of
//! power of the machine unless the file system that it is on does.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use crate::model::{Cache, Model};

/// Size of a record.
const RECORD_BYTES: usize = 64;

const MAGIC: u32 = u32::from_le_bytes(*b"NSlg");

/// The form of the log; another one is refused.
const FORMAT: u64 = 1;

/// What the disk and the run are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Start {
    /// The run's identity.
    pub seed: u64,
    /// Logical block size.
    pub block_bytes: u32,
    /// How many blocks are used.
    pub blocks: u64,
    /// What an acknowledgement means.
    pub cache: Cache,
}

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// The first one.
    Start(Start),
    /// A write is about to be sent.
    Issue {
        /// Its version.
        version: u64,
        /// The first block.
        first: u64,
        /// How many blocks.
        count: u32,
        /// It is to be durable when it is acknowledged.
        fua: bool,
    },
    /// A write ended.
    Written {
        /// Its version.
        version: u64,
        /// It was acknowledged.
        ok: bool,
    },
    /// A flush is about to be sent.
    BeginFlush {
        /// Its number.
        number: u64,
    },
    /// A flush ended.
    Flushed {
        /// Its number.
        number: u64,
        /// It was acknowledged.
        ok: bool,
    },
}

/// Why a log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file.
    #[error("the log cannot be read or written: {0}")]
    Io(#[from] io::Error),
    /// Its content.
    #[error("the log is damaged at byte {at}: {what}")]
    Damaged {
        /// Where.
        at: u64,
        /// How.
        what: &'static str,
    },
}

impl Record {
    fn to_bytes(self) -> [u8; RECORD_BYTES] {
        let (kind, flag, words): (u16, bool, [u64; 4]) = match self {
            Record::Start(s) => {
                let volatile = s.cache == Cache::Volatile;
                let words = [s.seed, u64::from(s.block_bytes), s.blocks, FORMAT];
                (1, volatile, words)
            }
            Record::Issue {
                version,
                first,
                count,
                fua,
            } => (2, fua, [version, first, u64::from(count), 0]),
            Record::Written { version, ok } => (3, ok, [version, 0, 0, 0]),
            Record::BeginFlush { number } => (4, false, [number, 0, 0, 0]),
            Record::Flushed { number, ok } => (5, ok, [number, 0, 0, 0]),
        };
        let mut bytes = [0; RECORD_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[8..10].copy_from_slice(&kind.to_le_bytes());
        bytes[10] = u8::from(flag);
        for (place, word) in bytes[16..48].chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let crc = crc32c::crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; RECORD_BYTES]) -> Option<Self> {
        let crc = crc32c::crc32c(&bytes[8..]);
        if bytes[0..4] != MAGIC.to_le_bytes() || bytes[4..8] != crc.to_le_bytes() {
            return None;
        }
        let mut words = [0; 4];
        for (word, place) in words.iter_mut().zip(bytes[16..48].chunks_exact(8)) {
            *word = u64::from_le_bytes(place.try_into().ok()?);
        }
        let flag = bytes[10] != 0;
        Some(match u16::from_le_bytes([bytes[8], bytes[9]]) {
            1 if words[3] == FORMAT => Record::Start(Start {
                seed: words[0],
                block_bytes: u32::try_from(words[1]).ok()?,
                blocks: words[2],
                cache: if flag {
                    Cache::Volatile
                } else {
                    Cache::WriteThrough
                },
            }),
            2 => Record::Issue {
                version: words[0],
                first: words[1],
                count: u32::try_from(words[2]).ok()?,
                fua: flag,
            },
            3 => Record::Written {
                version: words[0],
                ok: flag,
            },
            4 => Record::BeginFlush { number: words[0] },
            5 => Record::Flushed {
                number: words[0],
                ok: flag,
            },
            _ => return None,
        })
    }
}

/// A log, open for appending.
#[derive(Debug)]
pub struct Log(File);

impl Log {
    /// Makes a new one; one that exists is not overwritten.
    pub fn create(path: &Path, start: Start) -> Result<Self, LogError> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        let mut log = Log(file);
        log.append(Record::Start(start))?;
        Ok(log)
    }

    /// Appends one record.
    pub fn append(&mut self, record: Record) -> io::Result<()> {
        self.0.write_all(&record.to_bytes())
    }

    /// Opens one that exists, says what it holds, and is ready to append.
    pub fn open(path: &Path) -> Result<(Self, Start, Model), LogError> {
        let mut file = OpenOptions::new().read(true).write(true).open(path)?;
        let (start, model, end) = replay(&mut file)?;
        // The next record goes where the incomplete one was.
        file.set_len(end)?;
        file.seek(SeekFrom::Start(end))?;
        Ok((Log(file), start, model))
    }
}

/// Reads a log from its start. Returns also where the last whole record ends.
fn replay(file: &mut File) -> Result<(Start, Model, u64), LogError> {
    let damaged = |at, what| Err(LogError::Damaged { at, what });
    let length = file.metadata()?.len();
    let mut input = io::BufReader::with_capacity(1 << 20, file);
    let mut bytes = [0; RECORD_BYTES];
    let mut state: Option<(Start, Model)> = None;
    let mut at = 0;
    while at + RECORD_BYTES as u64 <= length {
        input.read_exact(&mut bytes)?;
        let Some(record) = Record::from_bytes(&bytes) else {
            return damaged(at, "a record that nobody wrote");
        };
        match (record, &mut state) {
            (Record::Start(start), None) => {
                state = Some((start, Model::new(start.cache, start.blocks)));
            }
            (Record::Start(_), Some(_)) | (_, None) => {
                return damaged(at, "the start record is to be the first, and the only one");
            }
            (
                Record::Issue {
                    version,
                    first,
                    count,
                    fua,
                },
                Some((_, model)),
            ) => {
                if !model.issue_as(version, first, count, fua) {
                    return damaged(at, "a write that was not possible");
                }
            }
            (Record::Written { version, ok }, Some((_, model))) => {
                if !model.on_written(version, ok) {
                    return damaged(at, "the end of a write that had not begun");
                }
            }
            (Record::BeginFlush { number }, Some((_, model))) => {
                if model.begin_flush() != number {
                    return damaged(at, "a flush out of order");
                }
            }
            (Record::Flushed { number, ok }, Some((_, model))) => {
                model.on_flushed(number, ok);
            }
        }
        at += RECORD_BYTES as u64;
    }
    match state {
        Some((start, mut model)) => {
            model.abandon_writes();
            Ok((start, model, at))
        }
        None => damaged(0, "it is empty"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::block::Content;

    const START: Start = Start {
        seed: 9,
        block_bytes: 512,
        blocks: 100,
        cache: Cache::WriteThrough,
    };

    fn written() -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let mut log = Log::create(&path, START).unwrap();
        for version in 1..=3 {
            let issue = Record::Issue {
                version,
                first: 4,
                count: 2,
                fua: false,
            };
            log.append(issue).unwrap();
            if version < 3 {
                log.append(Record::Written { version, ok: true }).unwrap();
            }
        }
        (dir, path)
    }

    fn allowed(model: &mut Model, version: u64) -> bool {
        let read = model.begin_read(4, 1);
        model
            .on_read(read, &[Content::Version { version }])
            .is_empty()
    }

    #[test]
    fn a_log_says_what_a_block_may_hold() {
        let (_dir, path) = written();
        let (_, start, mut model) = Log::open(&path).unwrap();
        assert_eq!(start, START);
        let good: Vec<u64> = (0..9).filter(|v| allowed(&mut model, *v)).collect();
        assert_eq!(good, [2, 3]);
        // A write that was cut off does not keep its blocks.
        assert_eq!(model.issue(4, 2, false), Some(4));
    }

    #[test]
    fn an_incomplete_record_at_the_end_is_none() {
        let (_dir, path) = written();
        let whole = std::fs::metadata(&path).unwrap().len();
        for cut in 1..RECORD_BYTES as u64 {
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(whole - cut).unwrap();
            let (_, _, mut model) = Log::open(&path).unwrap();
            let good: Vec<u64> = (0..9).filter(|v| allowed(&mut model, *v)).collect();
            assert_eq!(good, [2]);
            let (_dir, again) = written();
            std::fs::copy(again, &path).unwrap();
        }
    }

    #[test]
    fn a_damaged_record_is_an_error_wherever_it_is() {
        let (_dir, path) = written();
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            std::fs::write(&path, &bad).unwrap();
            assert!(Log::open(&path).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_log_is_not_overwritten() {
        let (_dir, path) = written();
        assert!(Log::create(&path, START).is_err());
    }
}
