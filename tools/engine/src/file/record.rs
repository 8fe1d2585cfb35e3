// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The file `record`: a note of the node beside a volume, replaced as a whole.
//!
//! Two places of equal size are written in turn and synced, each with a
//! number, its length and a CRC-32C, so a crash leaves the old note or the
//! new one. The file has its full size from the start and is written in
//! place: a note can be taken when the disk is full.
//!
//! # When writing or syncing fails
//!
//! What a failed sync was to write is in the kernel's memory, reads as if it were on the
//! disk, and is written by no later sync. So what a file shows says nothing of what
//! a loss of power leaves; only a sync that this process has seen succeed does. The
//! engine knows the number of the note that such a sync covered, of each volume:
//!
//! * A place whose note is known to be durable is never written, so one durable note
//!   is always left: after a failure the other place is written again.
//! * A note that is not known to be durable, such as one from before this process, is
//!   made so before it is relied on: before it is given to anybody, and before a place
//!   is written. Which of the two places is durable is not known then, so neither is
//!   touched: another file takes the place of this one, and only on a full disk the note
//!   is written over itself.
//!
//! | at           | bytes | what                              |
//! |--------------|-------|-----------------------------------|
//! | 0            | 8     | magic `NEONREC\n`                 |
//! | 8            | 8     | number: the higher one is in force|
//! | 16           | 4     | length of the note                |
//! | 20           |       | the note, then zeroes             |
//! | PLACE_BYTES-4| 4     | CRC-32C of all before it          |

use std::collections::HashMap;
use std::fs::File;
use std::io::ErrorKind as IoKind;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::layout::file_options;
use super::sync_dir;
use crate::error::{SystemError, Written as _};
use crate::{Error, ErrorKind, Result, MAX_RECORD_BYTES};

/// The result of a call of the system.
type SystemResult<T> = std::result::Result<T, SystemError>;

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
    let make = || -> SystemResult<File> {
        let file = file_options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&path)?;
        file.write_all_at(&[0; 2 * PLACE_BYTES], 0).written()?;
        file.sync_all().written()?;
        Ok(file)
    };
    let file = make().map_err(|e| Error::os(e, format!("cannot make {}", path.display())))?;
    sync_dir(dir)?;
    Ok(file)
}

/// What the record does with its file; the tests have another one, which fails.
trait Medium {
    /// Both places; zeroes where the file is shorter.
    fn read(&mut self) -> SystemResult<Vec<u8>>;
    fn write_at(&mut self, bytes: &[u8], at: usize) -> SystemResult<()>;
    fn sync(&mut self) -> SystemResult<()>;
    /// Durably puts another file with these bytes in the place of this one.
    fn replace(&mut self, bytes: &[u8]) -> SystemResult<()>;
}

/// The file.
struct OnDisk {
    dir: PathBuf,
    file: File,
}

impl Medium for OnDisk {
    fn read(&mut self) -> SystemResult<Vec<u8>> {
        let mut bytes = vec![0; 2 * PLACE_BYTES];
        let mut have = 0;
        while have < bytes.len() {
            // What is missing, since a crash came while the file was made, is zeroes.
            match self.file.read_at(&mut bytes[have..], have as u64)? {
                0 => break,
                len => have += len,
            }
        }
        Ok(bytes)
    }

    fn write_at(&mut self, bytes: &[u8], at: usize) -> SystemResult<()> {
        self.file.write_all_at(bytes, at as u64).written()
    }

    fn sync(&mut self) -> SystemResult<()> {
        self.file.sync_data().written()
    }

    fn replace(&mut self, bytes: &[u8]) -> SystemResult<()> {
        let new = self.dir.join("record.new");
        let file = file_options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&new)?;
        file.write_all_at(bytes, 0).written()?;
        file.sync_all().written()?;
        std::fs::rename(&new, path(&self.dir))?;
        File::open(&self.dir)?.sync_all().written()?;
        self.file = file;
        Ok(())
    }
}

/// What is known of one record.
#[derive(Debug, Default)]
struct Known {
    /// The number of the note that a sync of this process has made durable.
    durable: Option<u64>,
}

/// A note that is in force.
struct InForce {
    /// Which place has it.
    place: usize,
    number: u64,
    note: Vec<u8>,
}

/// Reads both places.
fn places(medium: &mut impl Medium) -> SystemResult<[Place; 2]> {
    let bytes = medium.read()?;
    let (first, second) = bytes.split_at(PLACE_BYTES);
    Ok([decode(first), decode(second)])
}

/// The note with the number that counts: the one that is known to be durable, else the highest.
fn in_force(places: &[Place; 2], durable: Option<u64>) -> Option<InForce> {
    let notes = places.iter().enumerate();
    notes
        .filter_map(|(index, place)| match place {
            Place::Note { number, note } => Some((index, *number, note)),
            Place::Empty | Place::Damaged => None,
        })
        .max_by_key(|(_, number, _)| (Some(*number) == durable, *number))
        .map(|(place, number, note)| InForce {
            place,
            number,
            note: note.clone(),
        })
}

impl Known {
    /// Writes a note to a place, and syncs it.
    fn put(
        &mut self,
        medium: &mut impl Medium,
        place: usize,
        number: u64,
        note: &[u8],
    ) -> SystemResult<()> {
        medium.write_at(&encode(number, note), place * PLACE_BYTES)?;
        medium.sync()?;
        self.durable = Some(number);
        Ok(())
    }

    /// Makes durable what was found, without touching what may be the only durable note.
    fn make_durable(&mut self, medium: &mut impl Medium, found: &InForce) -> SystemResult<()> {
        let mut bytes = vec![0; 2 * PLACE_BYTES];
        let at = found.place * PLACE_BYTES;
        bytes[at..at + PLACE_BYTES].copy_from_slice(&encode(found.number, &found.note));
        match medium.replace(&bytes) {
            Ok(()) => {
                self.durable = Some(found.number);
                Ok(())
            }
            Err(error) if [IoKind::StorageFull, IoKind::QuotaExceeded].contains(&error.kind()) => {
                self.put(medium, found.place, found.number, &found.note)
            }
            Err(error) => Err(error),
        }
    }

    /// Gives the note in force, which is durable then. `Err(None)`: there is something, and none of
    /// it is whole.
    fn load(
        &mut self,
        medium: &mut impl Medium,
    ) -> std::result::Result<Option<InForce>, Option<SystemError>> {
        let places = places(medium)?;
        let Some(found) = in_force(&places, self.durable) else {
            // One place can be half written; then the other one is whole or empty.
            return match places {
                [Place::Damaged, Place::Damaged] => Err(None),
                _ => Ok(None),
            };
        };
        if self.durable != Some(found.number) {
            self.make_durable(medium, &found)?;
        }
        Ok(Some(found))
    }

    /// Replaces the note, durably.
    fn store(&mut self, medium: &mut impl Medium, note: &[u8]) -> SystemResult<()> {
        let found = match self.load(medium) {
            Ok(found) => found,
            // Nothing is there that could be lost.
            Err(None) => None,
            Err(Some(error)) => return Err(error),
        };
        let Some(found) = found else {
            return self.put(medium, 0, 1, note);
        };
        let place = 1 - found.place;
        // Higher than that of a note of which the sync failed: the next process may find that.
        let tried = match &places(medium)?[place] {
            Place::Note { number, .. } => *number,
            Place::Empty | Place::Damaged => 0,
        };
        self.put(medium, place, found.number.max(tried) + 1, note)
    }
}

/// The records of an engine's volumes: what is known of each.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// By the volume's directory. A record's own mutex is held while it is read or written.
    known: Mutex<HashMap<PathBuf, Arc<Mutex<Known>>>>,
}

impl Records {
    fn known(&self, dir: &Path) -> Arc<Mutex<Known>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(known.entry(dir.to_owned()).or_default())
    }

    /// The volume in `dir`, or what its record was, is gone: nothing is known of what comes there.
    pub(super) fn forget(&self, dir: &Path) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.remove(dir);
    }

    /// The note beside the volume in `dir`, which is durable then; `None` if there never was one.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Corrupt`] when there is something, and none of it is whole.
    pub(super) fn load(&self, dir: &Path) -> Result<Option<Vec<u8>>> {
        let path = path(dir);
        let file = match File::options().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == IoKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(Error::os(error, format!("cannot open {}", path.display())));
            }
        };
        let known = self.known(dir);
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut medium = OnDisk {
            dir: dir.to_owned(),
            file,
        };
        match known.load(&mut medium) {
            Ok(found) => Ok(found.map(|found| found.note)),
            Err(Some(error)) => Err(Error::os(
                error,
                format!("cannot read {}, and make sure of it", path.display()),
            )),
            Err(None) => Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "{} is damaged: it says which hosts must not write to the volume any more; \
                     remove it if no host has the volume attached",
                    path.display()
                ),
            )),
        }
    }

    /// Replaces the note beside the volume in `dir`, durably. After a failure the note before is
    /// in force for this process, and either of them for the next.
    pub(super) fn store(&self, dir: &Path, note: &[u8]) -> Result<()> {
        if note.len() > MAX_RECORD_BYTES {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!("a record of {} bytes is too long", note.len()),
            ));
        }
        let path = path(dir);
        let context = |e: SystemError| Error::os(e, format!("cannot write {}", path.display()));
        let known = self.known(dir);
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        let file = match File::options().read(true).write(true).open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == IoKind::NotFound => {
                // It was removed, which is the operator's way out of damage.
                *known = Known::default();
                create(dir)?
            }
            Err(error) => return Err(context(error.into())),
        };
        let mut medium = OnDisk {
            dir: dir.to_owned(),
            file,
        };
        known.store(&mut medium, note).map_err(context)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn the_last_note_counts_and_a_half_written_one_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        // Each time as another process would.
        let load = || Records::default().load(dir);
        assert_eq!(load().unwrap(), None);
        let records = Records::default();
        for i in 0..5u8 {
            records.store(dir, &[i; 100]).unwrap();
            assert_eq!(records.load(dir).unwrap().unwrap(), [i; 100]);
            assert_eq!(load().unwrap().unwrap(), [i; 100]);
        }
        let damage = |place: usize| {
            let file = File::options().write(true).open(path(dir)).unwrap();
            file.write_all_at(&[0xaa; 700], (place * PLACE_BYTES) as u64)
                .unwrap();
        };
        // The fifth note is in the first place: a crash while the sixth was
        // written damages the second.
        damage(1);
        assert_eq!(load().unwrap().unwrap(), [4; 100]);
        Records::default().store(dir, &[5; 10]).unwrap();
        assert_eq!(load().unwrap().unwrap(), [5; 10]);
        damage(0);
        damage(1);
        assert_eq!(load().unwrap_err().kind(), ErrorKind::Corrupt);
        // Whoever removes it says that no host has the volume.
        std::fs::remove_file(path(dir)).unwrap();
        assert_eq!(records.load(dir).unwrap(), None);
        records.store(dir, &[6; 10]).unwrap();
        assert_eq!(load().unwrap().unwrap(), [6; 10]);
    }

    #[test]
    fn an_empty_or_missing_file_is_no_note() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::default();
        create(dir.path()).unwrap();
        assert_eq!(records.load(dir.path()).unwrap(), None);
        File::create(path(dir.path())).unwrap();
        assert_eq!(records.load(dir.path()).unwrap(), None);
        assert!(records
            .store(dir.path(), &[0; MAX_RECORD_BYTES + 1])
            .is_err());
        records.store(dir.path(), &[1; MAX_RECORD_BYTES]).unwrap();
        assert_eq!(
            records.load(dir.path()).unwrap().unwrap().len(),
            MAX_RECORD_BYTES
        );
    }

    /// Sectors, of which a loss of power leaves the old or the new content each.
    const SECTOR: usize = 4096;

    /// A file as the kernel has it, and as the disk does. Of what was written, a sync puts all
    /// on the disk; one that fails puts nothing there, and what it was to put is written by no
    /// later sync.
    #[derive(Clone, Default)]
    struct Model {
        cache: Vec<u8>,
        disk: Vec<u8>,
        /// Sectors to be written by the next sync.
        dirty: Vec<usize>,
        /// Written since the last sync that went well, so that some of it may be on the disk.
        in_doubt: Vec<usize>,
        /// Calls that change anything, and which of them fails, from 0.
        calls: usize,
        fails: Option<usize>,
        is_full: bool,
    }

    impl Model {
        fn new() -> Self {
            Self {
                cache: vec![0; 2 * PLACE_BYTES],
                disk: vec![0; 2 * PLACE_BYTES],
                ..Self::default()
            }
        }

        fn fails(&mut self) -> SystemResult<()> {
            self.calls += 1;
            match self.fails == Some(self.calls - 1) {
                true => Err(io::Error::from_raw_os_error(libc::EIO).into()),
                false => Ok(()),
            }
        }

        /// What a loss of power leaves: of the sectors in doubt, those on the disk that `leaves` says.
        fn after_power_loss(&self, leaves: impl Fn(usize) -> bool) -> Self {
            let mut disk = self.disk.clone();
            for sector in self.in_doubt.iter().copied().filter(|s| leaves(*s)) {
                let range = sector * SECTOR..(sector + 1) * SECTOR;
                disk[range.clone()].copy_from_slice(&self.cache[range]);
            }
            Self {
                cache: disk.clone(),
                disk,
                is_full: self.is_full,
                ..Self::default()
            }
        }
    }

    impl Medium for Model {
        fn read(&mut self) -> SystemResult<Vec<u8>> {
            Ok(self.cache.clone())
        }

        fn write_at(&mut self, bytes: &[u8], at: usize) -> SystemResult<()> {
            self.cache[at..at + bytes.len()].copy_from_slice(bytes);
            for sector in at / SECTOR..(at + bytes.len()) / SECTOR {
                self.dirty.push(sector);
                self.in_doubt.push(sector);
            }
            // The kernel took it all, or a part and then an error.
            self.fails()
        }

        fn sync(&mut self) -> SystemResult<()> {
            let dirty = std::mem::take(&mut self.dirty);
            self.fails()?;
            for sector in dirty {
                let range = sector * SECTOR..(sector + 1) * SECTOR;
                self.disk[range.clone()].copy_from_slice(&self.cache[range]);
                self.in_doubt.retain(|s| *s != sector);
            }
            Ok(())
        }

        fn replace(&mut self, bytes: &[u8]) -> SystemResult<()> {
            if self.is_full {
                return Err(io::Error::from_raw_os_error(libc::ENOSPC).into());
            }
            self.fails()?;
            self.cache = bytes.to_vec();
            self.disk = bytes.to_vec();
            self.dirty.clear();
            self.in_doubt.clear();
            Ok(())
        }
    }

    fn note(number: u8) -> Vec<u8> {
        vec![number; 3 * SECTOR]
    }

    fn loaded(known: &mut Known, medium: &mut Model) -> u8 {
        let found = known.load(medium).map_err(|e| format!("{e:?}")).unwrap();
        found.map_or(0, |found| found.note[0])
    }

    /// Six notes are saved, one call fails, and then the power goes or the process is killed, at any
    /// moment: the last note that was saved is there, or a later one that was tried, and what was
    /// once loaded is not undone by the next loss of power.
    #[test]
    fn no_failed_call_and_no_loss_of_power_takes_a_note_that_was_saved() {
        let mut cases = 0;
        for is_full in [false, true] {
            for fails in 0..14 {
                for killed_after in 0..6u8 {
                    let mut medium = Model {
                        fails: Some(fails),
                        is_full,
                        ..Model::new()
                    };
                    let mut known = Known::default();
                    let mut saved = 0;
                    for number in 1..=6u8 {
                        let tried = number;
                        if known.store(&mut medium, &note(number)).is_ok() {
                            saved = number;
                            assert_eq!(loaded(&mut known, &mut medium), number);
                        }
                        if number == killed_after {
                            known = Known::default();
                        }
                        for pattern in [0usize, 1, 5, 8, 15] {
                            let leaves = |sector: usize| (pattern >> (sector % 4)) & 1 == 1;
                            let mut left = medium.after_power_loss(leaves);
                            let found = loaded(&mut Known::default(), &mut left);
                            assert!(
                                (saved..=tried).contains(&found),
                                "call {fails}, killed after {killed_after}, note {number}: {found} \
                                 of {saved}..={tried}"
                            );
                            let mut again = left.after_power_loss(leaves);
                            assert_eq!(loaded(&mut Known::default(), &mut again), found);
                            cases += 1;
                        }
                        // A killed process's successor relies on what it loads.
                        let mut living = medium.clone();
                        living.fails = None;
                        let found = loaded(&mut Known::default(), &mut living);
                        assert!((saved..=tried).contains(&found));
                        let mut left = living.after_power_loss(|_| false);
                        assert_eq!(loaded(&mut Known::default(), &mut left), found);
                    }
                    assert!(saved >= 5, "one failure costs one note");
                }
            }
        }
        assert_eq!(cases, 2 * 14 * 6 * 6 * 5);
    }
}
