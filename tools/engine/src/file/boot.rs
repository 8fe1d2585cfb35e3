// SPDX-License-Identifier: GPL-2.0 OR MIT
//! What an engine remembers of its boot id from one node process to the next: the
//! file `.boot` below the root.
//!
//! The boot id is the identity of what is answered and not yet on stable storage. It
//! is kept only if nothing of that can be gone:
//!
//! * the machine was not booted since, and
//! * no loss was noted (see [`super::durability`]), and
//! * the file system below is the same superblock (see [`super::witness`]), so that its
//!   caches are the same, or the node before stopped in order, when everything that it
//!   had answered was synced.
//!
//! In all other cases, and whatever is wrong with the file, there is a new id, which is
//! always safe: a host that had written without flushing is told by a failing flush.
//!
//! The file is text, replaced as a whole and durably, one `key value` a line:
//!
//! ```text
//! neonsan-boot 1
//! machine 2b0c…            the kernel's identity of this boot of the machine
//! id 91d4…                 ours
//! state in-use             in-use | stopped: everything answered is synced
//! witness ext4 sda1 1234 errors 0
//! crc32c 0a1b2c3d          of all before this line
//! ```
//!
//! Keys that this program does not know are passed over; a form that cannot be read
//! without knowing more has another number in its first line. The form of 36 bytes that
//! earlier programs wrote is read too: it says neither how the node stopped nor what
//! file system there was, so it keeps no id.
//!
//! Before anybody is served the file says durably that the engine is in use. So what a
//! file system has that went away and came back is never the note of an earlier stop.
//! And a file system that takes no note does not serve: one that was shut down, or made
//! read-only by an error, stays so until it is mounted anew, which is another superblock.

use std::fs;
use std::io::ErrorKind as IoKind;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::layout::write_file;
use super::witness::{self, Seen};
use crate::identity::random_id;
use crate::{Error, ErrorKind, Result};

const NAME: &str = ".boot";
const FIRST_LINE: &str = "neonsan-boot 1";
/// Bytes of the file that earlier programs wrote.
const OLD_BYTES: usize = 36;

/// The kernel's own identity of this boot of the machine.
fn machine_boot_id() -> Option<[u8; 16]> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    from_hex(&text.trim().replace('-', ""))
}

fn from_hex(digits: &str) -> Option<[u8; 16]> {
    let is_hex = digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let value = u128::from_str_radix(digits, 16).ok()?;
    is_hex.then_some(value.to_be_bytes())
}

/// An identity as people and logs see it.
pub(super) fn hex(id: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(id))
}

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct State {
    machine: [u8; 16],
    id: [u8; 16],
    /// Everything that was answered is synced.
    stopped: bool,
    /// The superblock that the engine was on, if that can be told.
    witness: Option<String>,
}

impl State {
    fn encode(&self) -> String {
        let state = match self.stopped {
            true => "stopped",
            false => "in-use",
        };
        let mut text = format!(
            "{FIRST_LINE}\nmachine {}\nid {}\nstate {state}\n",
            hex(self.machine),
            hex(self.id)
        );
        if let Some(witness) = &self.witness {
            text.push_str(&format!("witness {witness}\n"));
        }
        let crc = crc32c::crc32c(text.as_bytes());
        text.push_str(&format!("crc32c {crc:08x}\n"));
        text
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() == OLD_BYTES && !bytes.starts_with(FIRST_LINE.as_bytes()) {
            return Self::decode_old(bytes);
        }
        let text = std::str::from_utf8(bytes).ok()?;
        let (body, crc) = text.strip_suffix('\n')?.rsplit_once("\ncrc32c ")?;
        let body = text.get(..=body.len())?;
        if u32::from_str_radix(crc, 16).ok()? != crc32c::crc32c(body.as_bytes()) {
            return None;
        }
        let mut lines = body.lines();
        if lines.next() != Some(FIRST_LINE) {
            return None;
        }
        let (mut machine, mut id, mut state, mut witness) = (None, None, None, None);
        for line in lines {
            let (key, value) = line.split_once(' ')?;
            match key {
                "machine" => machine = Some(from_hex(value)?),
                "id" => id = Some(from_hex(value)?),
                "state" => state = Some(value),
                "witness" => witness = Some(value.to_owned()),
                _ => {}
            }
        }
        Some(Self {
            machine: machine?,
            id: id?,
            stopped: state? == "stopped",
            witness,
        })
    }

    /// The machine's boot, the id, and the CRC-32C of both.
    fn decode_old(bytes: &[u8]) -> Option<Self> {
        let crc = u32::from_le_bytes(bytes.get(32..)?.try_into().ok()?);
        let is_whole = crc == crc32c::crc32c(bytes.get(..32)?);
        is_whole.then_some(Self {
            machine: bytes.get(..16)?.try_into().ok()?,
            id: bytes.get(16..32)?.try_into().ok()?,
            stopped: false,
            witness: None,
        })
    }

    /// Replaces the file, durably.
    fn store(&self, root: &Path) -> Result<()> {
        let path = root.join(NAME);
        self.replace(root)
            .or_else(|error| match error.kind() {
                IoKind::StorageFull | IoKind::QuotaExceeded => self.overwrite(&path),
                _ => Err(error),
            })
            .map_err(|e| Error::os(e, format!("cannot write {}", path.display())))
    }

    fn replace(&self, root: &Path) -> std::io::Result<()> {
        let temporary = root.join(".boot.new");
        write_file(&temporary, self.encode().as_bytes())?.sync_all()?;
        fs::rename(&temporary, root.join(NAME))?;
        fs::File::open(root)?.sync_all()
    }

    /// The same in the room that the file has. A crash meanwhile leaves what cannot be read, so a
    /// new id.
    fn overwrite(&self, path: &Path) -> std::io::Result<()> {
        let file = fs::File::options().write(true).open(path)?;
        let text = self.encode();
        file.write_all_at(text.as_bytes(), 0)?;
        file.set_len(text.len() as u64)?;
        file.sync_all()
    }
}

/// Why an id is not kept; `None`: it is.
fn why_new(
    stored: &State,
    machine: Option<[u8; 16]>,
    witness: &std::result::Result<String, String>,
) -> Option<String> {
    if machine != Some(stored.machine) {
        return Some("the machine was booted".to_owned());
    }
    if stored.stopped {
        return None;
    }
    match (witness, &stored.witness) {
        (Ok(now), Some(then)) if witness::is_there(then, now) => None,
        (Ok(now), Some(then)) => Some(format!(
            "the node did not stop in order, and the file system was mounted anew or has met an \
             error since (it was `{then}`, and is `{now}`)"
        )),
        (Ok(_), None) => Some(
            "the node did not stop in order, and did not note on which file system it was"
                .to_owned(),
        ),
        (Err(why), _) => Some(format!("the node did not stop in order, and {why}")),
    }
}

/// What the process that uses the engine knows of its boot id at the start.
#[derive(Debug)]
pub(super) struct Beginning {
    pub(super) id: [u8; 16],
    /// It is that of the process before.
    pub(super) kept: bool,
    /// What that one had answered may not be synced: it did not stop in order.
    pub(super) unsynced: bool,
    /// The superblocks that the engine is on.
    pub(super) seen: Seen,
}

/// The id with which the engine at `root`, which is locked, begins; durably noted as one in use.
///
/// # Errors
///
/// When it cannot be noted: then nobody may be served. [`ErrorKind::Conflict`] when a pool had a file
/// system of its own that is not mounted.
pub(super) fn begin(root: &Path) -> Result<Beginning> {
    let machine = machine_boot_id();
    let seen = witness::see(root).unwrap_or_else(|why| Seen {
        known: String::new(),
        missing: Some(why),
    });
    let witness = seen.clone().whole();
    let stored = fs::read(root.join(NAME)).ok();
    let stored = stored.map(|bytes| State::decode(&bytes));
    if let Some(Some(then)) = stored
        .as_ref()
        .map(|s| s.as_ref().and_then(|s| s.witness.as_ref()))
    {
        check_pools(root, then)?;
    }
    let why = match &stored {
        None => Some("the directory has had none".to_owned()),
        Some(None) => Some(format!("{NAME} cannot be read")),
        Some(Some(stored)) => why_new(stored, machine, &witness),
    };
    let id = match (&why, &stored) {
        (None, Some(Some(stored))) => stored.id,
        _ => random_id()?,
    };
    let root_path = root.display();
    let kept = why.is_none();
    match why {
        None => tracing::info!(root = %root_path, boot_id = hex(id), "the boot id is kept"),
        Some(why) => {
            tracing::info!(root = %root_path, boot_id = hex(id), %why, "the engine has a new boot id");
        }
    }
    note(root, id, witness.as_deref().ok(), false)?;
    let stopped = matches!(&stored, Some(Some(stored)) if stored.stopped);
    Ok(Beginning {
        id,
        kept,
        unsynced: kept && !stopped,
        seen,
    })
}

/// Refuses when a pool lacks the file system that it had in the witness `then`: its volumes would seem
/// to be gone, and new ones would be made below its mount point.
fn check_pools(root: &Path, then: &str) -> Result<()> {
    let pools = witness::not_mounted(root, then).map_err(|e| {
        let text = format!("cannot look at the pools in {}", root.display());
        Error::os(e, text)
    })?;
    let Some(pool) = pools.first() else {
        return Ok(());
    };
    Err(Error::new(
        ErrorKind::Conflict,
        format!(
            "{} was the mount point of a file system of its own, which is not mounted: mount it; if \
             the pool is to be without, stop the node and remove {}",
            pool.display(),
            root.join(NAME).display()
        ),
    ))
}

/// Notes, durably, that the engine at `root` has this id, and this witness; `stopped`: that
/// everything that was answered under it is synced.
pub(super) fn note(root: &Path, id: [u8; 16], witness: Option<&str>, stopped: bool) -> Result<()> {
    let state = State {
        // Without the kernel's id every start is a new one.
        machine: machine_boot_id().map_or_else(random_id, Ok)?,
        id,
        stopped,
        witness: witness.map(str::to_owned),
    };
    state.store(root)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn state() -> State {
        State {
            machine: [1; 16],
            id: [2; 16],
            stopped: false,
            witness: Some("ext4 sda1 1234 errors 0".to_owned()),
        }
    }

    fn ok(text: &str) -> std::result::Result<String, String> {
        Ok(text.to_owned())
    }

    #[test]
    fn the_file_is_read_as_it_was_written_and_no_changed_byte_passes() {
        for stopped in [false, true] {
            for witness in [None, Some("xfs dm-3 99".to_owned())] {
                let state = State {
                    stopped,
                    witness,
                    ..state()
                };
                let text = state.encode();
                assert_eq!(State::decode(text.as_bytes()), Some(state));
                for at in 0..text.len() {
                    let mut damaged = text.clone().into_bytes();
                    damaged[at] ^= 1;
                    // The last digit of a checksum may only change its case.
                    assert_eq!(State::decode(&damaged), None, "byte {at}");
                    assert_eq!(State::decode(&text.as_bytes()[..at]), None);
                }
            }
        }
    }

    #[test]
    fn unknown_keys_are_passed_over_and_an_unknown_version_is_not() {
        let with_crc =
            |body: &str| format!("{body}crc32c {:08x}\n", crc32c::crc32c(body.as_bytes()));
        let text = state().encode();
        let body = text.split_inclusive('\n').take(5).collect::<String>();
        let more = with_crc(&format!("{body}colour blue\n"));
        assert_eq!(State::decode(more.as_bytes()), Some(state()));
        let newer = with_crc(&body.replace("neonsan-boot 1", "neonsan-boot 2"));
        assert_eq!(State::decode(newer.as_bytes()), None);
        let less = with_crc(&body.replace("state in-use\n", ""));
        assert_eq!(State::decode(less.as_bytes()), None);
    }

    #[test]
    fn the_form_of_earlier_programs_is_read_and_keeps_no_id() {
        let mut bytes = [[1; 16], [2; 16]].concat();
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        let old = State::decode(&bytes).unwrap();
        assert_eq!((old.machine, old.id), ([1; 16], [2; 16]));
        assert!(why_new(&old, Some([1; 16]), &ok("xfs sda 5")).is_some());
        bytes[20] ^= 1;
        assert_eq!(State::decode(&bytes), None);
    }

    #[test]
    fn an_id_is_kept_only_if_nothing_can_be_lost() {
        let state = state();
        let same = ok("ext4 sda1 1234 errors 0");
        let none = Err("there is none".to_owned());
        let boot = Some([1; 16]);
        let kept = |state: &State, boot, witness: &std::result::Result<String, String>| {
            why_new(state, boot, witness).is_none()
        };
        assert!(kept(&state, boot, &same), "the node was only killed");
        assert!(
            !kept(&state, Some([3; 16]), &same),
            "the machine was booted"
        );
        assert!(
            !kept(&state, None, &same),
            "the machine may have been booted"
        );
        for other in [
            "ext4 sda1 1235 errors 0",
            "ext4 sda1 1234 errors 1",
            "xfs sda1 1234",
        ] {
            assert!(!kept(&state, boot, &ok(other)), "{other}");
        }
        assert!(!kept(&state, boot, &none), "killed, without a witness");
        let stopped = State {
            stopped: true,
            ..state
        };
        assert!(
            kept(&stopped, boot, &ok("ext4 sda1 7 errors 0")),
            "mounted anew"
        );
        assert!(kept(&stopped, boot, &none));
        assert!(!kept(&stopped, Some([3; 16]), &same));
    }

    #[test]
    fn a_full_disk_takes_the_note_in_the_room_that_there_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(NAME);
        let stored = || State::decode(&fs::read(&path).unwrap());
        assert!(state().overwrite(&path).is_err(), "there is no room");
        state().replace(dir.path()).unwrap();
        for witness in [None, Some("x".repeat(300)), state().witness] {
            let state = State {
                stopped: witness.is_none(),
                witness,
                ..state()
            };
            state.overwrite(&path).unwrap();
            assert_eq!(stored(), Some(state));
        }
    }

    #[test]
    fn a_start_after_a_stop_says_that_the_engine_is_in_use_again() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let stored = || State::decode(&fs::read(root.join(NAME)).unwrap()).unwrap();
        let first = begin(root).unwrap().id;
        assert!(!stored().stopped);
        note(root, first, None, true).unwrap();
        assert!(stored().stopped);
        assert_eq!(begin(root).unwrap().id, first);
        assert!(
            !stored().stopped,
            "a second start must not find the stop of the first"
        );
        note(root, [9; 16], None, false).unwrap();
        assert_eq!((stored().id, stored().stopped), ([9; 16], false));
        fs::write(root.join(NAME), b"damaged").unwrap();
        assert!(![first, [9; 16]].contains(&begin(root).unwrap().id));
    }
}
