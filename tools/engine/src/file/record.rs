// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The file `record`: a note of the node beside a volume, replaced as a whole.
//!
//! Two places of equal size are written in turn and synced, each with a
//! number, its length and a CRC-32C, so a crash leaves the old note or the
//! new one. The file has its full size from the start and is written in
//! place: a note can be taken when the disk is full.
//!
//! | at           | bytes | what                              |
//! |--------------|-------|-----------------------------------|
//! | 0            | 8     | magic `NEONREC\n`                 |
//! | 8            | 8     | number: the higher one is in force|
//! | 16           | 4     | length of the note                |
//! | 20           |       | the note, then zeroes             |
//! | PLACE_BYTES-4| 4     | CRC-32C of all before it          |

use std::fs::File;
use std::io::ErrorKind as IoKind;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use super::sync_dir;
use crate::{Error, ErrorKind, Result, MAX_RECORD_BYTES};

const MAGIC: [u8; 8] = *b"NEONREC\n";
const PLACE_BYTES: usize = 16 * 1024;
const NOTE_AT: usize = 20;
const CRC_AT: usize = PLACE_BYTES - 4;

const _: () = assert!(NOTE_AT + MAX_RECORD_BYTES <= CRC_AT);

/// A place as it was found.
enum Place {
    /// Never written.
    Empty,
    /// Written, and whole.
    Note { number: u64, note: Vec<u8> },
    /// Anything else.
    Damaged,
}

fn encode(number: u64, note: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; PLACE_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    // Checked by `store` to be a small number.
    bytes[16..20].copy_from_slice(&(note.len() as u32).to_le_bytes());
    bytes[NOTE_AT..NOTE_AT + note.len()].copy_from_slice(note);
    let crc = crc32c::crc32c(&bytes[..CRC_AT]);
    bytes[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Place {
    if bytes.iter().all(|&b| b == 0) {
        return Place::Empty;
    }
    let number = |at: usize| -> u64 {
        let mut value = [0; 8];
        value.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(value)
    };
    let len = (number(16) & u64::from(u32::MAX)) as usize;
    match bytes.get(NOTE_AT..NOTE_AT + len) {
        Some(note) if encode(number(8), note) == bytes => Place::Note {
            number: number(8),
            note: note.to_owned(),
        },
        _ => Place::Damaged,
    }
}

fn path(dir: &Path) -> PathBuf {
    dir.join("record")
}

/// Makes the file for a new volume in `dir`.
pub(super) fn create(dir: &Path) -> Result<File> {
    let path = path(dir);
    let context = |e| Error::os(e, format!("cannot make {}", path.display()));
    let file = super::layout::file_options()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(&path)
        .map_err(context)?;
    file.write_all_at(&[0; 2 * PLACE_BYTES], 0)
        .map_err(context)?;
    file.sync_all().map_err(context)?;
    sync_dir(dir)?;
    Ok(file)
}

/// Reads both places of an open file.
fn places(file: &File) -> std::io::Result<[Place; 2]> {
    let mut bytes = vec![0; 2 * PLACE_BYTES];
    // What is missing, since a crash came while the file was made, is zeroes.
    let mut have = 0;
    while have < bytes.len() {
        match file.read_at(&mut bytes[have..], have as u64)? {
            0 => break,
            len => have += len,
        }
    }
    let (first, second) = bytes.split_at(PLACE_BYTES);
    Ok([decode(first), decode(second)])
}

/// The note in force and its number; and which place has it.
fn in_force(places: [Place; 2]) -> Option<(usize, u64, Vec<u8>)> {
    let notes = places.into_iter().enumerate();
    notes
        .filter_map(|(index, place)| match place {
            Place::Note { number, note } => Some((index, number, note)),
            Place::Empty | Place::Damaged => None,
        })
        .max_by_key(|(_, number, _)| *number)
}

/// The note beside the volume in `dir`; `None` if there never was one.
///
/// # Errors
///
/// [`ErrorKind::Corrupt`] when there is something, and none of it is whole.
pub(super) fn load(dir: &Path) -> Result<Option<Vec<u8>>> {
    let path = path(dir);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == IoKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::os(error, format!("cannot open {}", path.display()))),
    };
    let places =
        places(&file).map_err(|e| Error::os(e, format!("cannot read {}", path.display())))?;
    // One place can be half written; then the other one is whole or empty.
    let lost = matches!(places, [Place::Damaged, Place::Damaged]);
    match in_force(places) {
        Some((_, _, note)) => Ok(Some(note)),
        None if lost => Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "{} is damaged: it says which hosts must not write to the volume any more; \
                 remove it if no host has the volume attached",
                path.display()
            ),
        )),
        None => Ok(None),
    }
}

/// Replaces the note beside the volume in `dir`, durably.
pub(super) fn store(dir: &Path, note: &[u8]) -> Result<()> {
    if note.len() > MAX_RECORD_BYTES {
        return Err(Error::new(
            ErrorKind::TooLarge,
            format!("a record of {} bytes is too long", note.len()),
        ));
    }
    let path = path(dir);
    let context = |e| Error::os(e, format!("cannot write {}", path.display()));
    let file = match File::options().read(true).write(true).open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == IoKind::NotFound => create(dir)?,
        Err(error) => return Err(context(error)),
    };
    let (place, number) = match in_force(places(&file).map_err(context)?) {
        Some((index, number, _)) => (1 - index, number + 1),
        None => (0, 1),
    };
    file.write_all_at(&encode(number, note), (place * PLACE_BYTES) as u64)
        .map_err(context)?;
    file.sync_data().map_err(context)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_last_note_counts_and_a_half_written_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load(dir.path()).unwrap(), None);
        for i in 0..5u8 {
            store(dir.path(), &[i; 100]).unwrap();
            assert_eq!(load(dir.path()).unwrap().unwrap(), [i; 100]);
        }
        // The fifth note is in the first place: a crash while the sixth was
        // written damages the second.
        let file = File::options().write(true).open(path(dir.path())).unwrap();
        file.write_all_at(&[0xaa; 700], PLACE_BYTES as u64).unwrap();
        assert_eq!(load(dir.path()).unwrap().unwrap(), [4; 100]);
        store(dir.path(), &[5; 10]).unwrap();
        assert_eq!(load(dir.path()).unwrap().unwrap(), [5; 10]);
        file.write_all_at(&[0xaa; 700], 0).unwrap();
        file.write_all_at(&[0xaa; 700], PLACE_BYTES as u64).unwrap();
        assert_eq!(load(dir.path()).unwrap_err().kind(), ErrorKind::Corrupt);
    }

    #[test]
    fn an_empty_or_missing_file_is_no_note() {
        let dir = tempfile::tempdir().unwrap();
        create(dir.path()).unwrap();
        assert_eq!(load(dir.path()).unwrap(), None);
        File::create(path(dir.path())).unwrap();
        assert_eq!(load(dir.path()).unwrap(), None);
        assert!(store(dir.path(), &[0; MAX_RECORD_BYTES + 1]).is_err());
        store(dir.path(), &[1; MAX_RECORD_BYTES]).unwrap();
        assert_eq!(load(dir.path()).unwrap().unwrap().len(), MAX_RECORD_BYTES);
    }
}
