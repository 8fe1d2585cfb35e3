// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Notes of open sessions, so that one which a killed process has left can be resumed.
//!
//! A node hears nothing from a client that is killed, and keeps the volume for its session until that
//! has lingered. So a client that is told to ([`Config::session_dir`]) notes its session in a file,
//! which it holds locked for as long as it lives and removes when a node has confirmed the end of the
//! session. Whoever finds the file without a lock resumes the session.
//!
//! The directory must not outlive the boot of the host, and only its owner may read it: who knows a
//! session can join it. All of this is best effort: without a note a client waits.

use crate::Config;
use neonsan_proto::Mode;
use neonsan_session::client::Used;
use neonsan_session::Generation;
use rustix::fs::{flock, FlockOperation};
use std::fmt::Write as _;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// What a session that was left may have counted further than its note says: the note is written
/// once, and a session counts up by one each time that it is opened or a connection is made.
const UNKNOWN_STEPS: u64 = 1 << 32;

/// No note is longer than this.
const MAX_NOTE_BYTES: u64 = 4096;

/// The note of a session, locked.
pub(crate) struct Note {
    file: File,
    path: PathBuf,
}

/// A session that was left, with counters beyond all that it may have used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Left {
    pub(crate) session_id: [u8; 16],
    pub(crate) used: Used,
}

impl Note {
    /// The note for the volume of `config`, and the session that was left there if one was. `None`
    /// if no note is wanted or can be had, as while another client has the volume.
    pub(crate) fn claim(config: &Config) -> Option<(Self, Option<Left>)> {
        // Nobody waits for a session that only reads.
        if config.mode == Mode::ReadOnly {
            return None;
        }
        let dir = config.session_dir.as_deref()?;
        let _ = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        let path = dir.join(format!("{:016x}", fnv1a(key(config).as_bytes())));
        let mut file = lock(&path)?;
        let mut text = String::new();
        let read = (&mut file).take(MAX_NOTE_BYTES).read_to_string(&mut text);
        let left = read.ok().and_then(|_| parse(&text, config));
        Some((Note { file, path }, left))
    }

    /// Notes that this session is open.
    pub(crate) fn write(&mut self, config: &Config, session_id: &[u8; 16], used: Used) {
        let text = format!(
            "{}session {}\ngeneration {}\nepoch {}\n",
            key(config),
            hex(session_id),
            used.generation.0,
            used.epoch
        );
        let written = self
            .file
            .set_len(0)
            .and_then(|()| self.file.rewind())
            .and_then(|()| self.file.write_all(text.as_bytes()));
        if written.is_err() {
            // Half a note is none.
            let _ = self.file.set_len(0);
        }
    }

    /// The session has ended, as its node knows.
    pub(crate) fn remove(self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Opens and locks the file; `None` if somebody else has it locked.
fn lock(path: &Path) -> Option<File> {
    // The file may be removed between opening and locking it, but not often.
    for _ in 0..10 {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
            .open(path)
            .ok()?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).ok()?;
        let here = file.metadata().ok()?;
        match std::fs::symlink_metadata(path) {
            Ok(there) if (there.dev(), there.ino()) == (here.dev(), here.ino()) => {
                return Some(file);
            }
            Ok(_) | Err(_) => {}
        }
    }
    None
}

/// What must be the same for a session to be resumed.
fn key(config: &Config) -> String {
    format!(
        "neonsan-session 1\nvolume {}\nhost {}\nboot {:016x}\nmode {}\n",
        config.volume,
        hex(&config.host_id),
        config.host_boot,
        config.mode.to_wire()
    )
}

fn parse(text: &str, config: &Config) -> Option<Left> {
    let mut lines = text.strip_prefix(&key(config))?.lines();
    let mut value = |name| lines.next()?.strip_prefix(name)?.strip_prefix(' ');
    let session_id = parse_id(value("session")?)?;
    let mut number = |name| {
        let number: u64 = value(name)?.parse().ok()?;
        number.checked_add(UNKNOWN_STEPS)
    };
    Some(Left {
        session_id,
        used: Used {
            generation: Generation(number("generation")?),
            epoch: number("epoch")?,
        },
    })
}

fn parse_id(text: &str) -> Option<[u8; 16]> {
    let number = u128::from_str_radix(text, 16).ok()?;
    (text.len() == 32 && number != 0).then(|| number.to_be_bytes())
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string never fails.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// FNV-1a, for the names of files only: what they are about stands in them.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn config(dir: &Path) -> Config {
        let mut config = Config::new("pool/vol", vec!["127.0.0.1:9666".parse().unwrap()]);
        config.host_id = [3; 16];
        config.host_boot = 5;
        config.session_dir = Some(dir.join("notes"));
        config
    }

    const USED: Used = Used {
        generation: Generation(7),
        epoch: 9,
    };

    #[test]
    fn a_session_that_was_left_is_found_by_the_next_client() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let (mut note, left) = Note::claim(&config).unwrap();
        assert_eq!(left, None);
        note.write(&config, &[4; 16], USED);
        assert!(Note::claim(&config).is_none(), "its client lives");
        drop(note);
        let (note, left) = Note::claim(&config).unwrap();
        let left = left.unwrap();
        assert_eq!(left.session_id, [4; 16]);
        assert!(left.used.generation > USED.generation && left.used.epoch > USED.epoch);
        note.remove();
        let (_note, left) = Note::claim(&config).unwrap();
        assert_eq!(left, None, "it has ended");
    }

    #[test]
    fn another_boot_host_mode_or_volume_resumes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let noted = config(dir.path());
        let (mut note, _) = Note::claim(&noted).unwrap();
        note.write(&noted, &[4; 16], USED);
        drop(note);
        let changes: [fn(&mut Config); 4] = [
            |c| c.host_boot = 6,
            |c| c.host_id = [8; 16],
            |c| c.mode = Mode::Shared,
            |c| c.volume = "pool/other".into(),
        ];
        for change in changes {
            let mut other = noted.clone();
            change(&mut other);
            assert_eq!(Note::claim(&other).unwrap().1, None);
        }
        let mut reader = noted.clone();
        reader.mode = Mode::ReadOnly;
        assert!(Note::claim(&reader).is_none());
        assert!(Note::claim(&noted).unwrap().1.is_some());
    }

    #[test]
    fn nonsense_resumes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let (note, _) = Note::claim(&config).unwrap();
        let path = note.path.clone();
        drop(note);
        let good = format!(
            "{}session {}\ngeneration 1\nepoch 1\n",
            key(&config),
            "04".repeat(16)
        );
        assert!(parse(&good, &config).is_some());
        for bad in [
            good[..good.len() - 3].to_owned(),
            good.replace("generation 1", "generation 18446744073709551615"),
            good.replace("04040404", "é"),
            good.replace("session", "sitting"),
            good.replace("04", "00"),
            String::new(),
        ] {
            std::fs::write(&path, &bad).unwrap();
            assert_eq!(Note::claim(&config).unwrap().1, None, "{bad}");
        }
    }

    #[test]
    fn notes_are_for_their_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        let (note, _) = Note::claim(&config).unwrap();
        assert_eq!(note.file.metadata().unwrap().mode() & 0o777, 0o600);
        let notes = std::fs::metadata(dir.path().join("notes")).unwrap();
        assert_eq!(notes.mode() & 0o777, 0o700);
        // A link that somebody put there is not followed.
        let target = dir.path().join("target");
        std::fs::write(&target, "precious").unwrap();
        let path = note.path.clone();
        note.remove();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        assert!(Note::claim(&config).is_none());
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "precious");
    }
}
