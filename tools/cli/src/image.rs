// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The file that an export writes. Until the image is whole it has another name, so that what was
//! there before survives a node that dies, a full disk and a signal.

use crate::error::{Error, Kind, Result};
use crate::root::Root;
use crate::units::show_size;
use crate::users;
use rustix::fs::{renameat_with, FallocateFlags, RenameFlags, CWD};
use rustix::io::Errno;
use std::ffi::OsStr;
use std::fs::{File, Metadata, OpenOptions};
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, IsTerminal as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{fchown, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// What is under way. Abandoned before [`Image::finish`] it leaves nothing, unless it is written in
/// place.
pub struct Image {
    file: File,
    /// As a person named it.
    path: PathBuf,
    place: Place,
    /// Something was written.
    begun: AtomicBool,
}

/// Where an image goes.
enum Place {
    /// A file that has another name until it is whole; `None` when it has its name, or is abandoned.
    File(Mutex<Option<Temporary>>),
    /// A block device, which is written in place.
    Device,
    /// Standard output, which takes bytes in order only.
    Stream,
}

/// A file that is removed when it is dropped.
struct Temporary {
    path: PathBuf,
    /// Where it goes: `path` without symbolic links.
    to: PathBuf,
    replace: bool,
}

impl Image {
    /// Begins an image of `size` bytes at `path`: a block device, or a regular file, which may be
    /// there already only with `force`.
    pub fn create(path: &Path, size: u64, force: bool) -> Result<Self> {
        let before = what_is_there(path)?;
        if before.is_some() && !force {
            return Err(exists(path));
        }
        if before
            .as_ref()
            .is_some_and(|metadata| metadata.file_type().is_block_device())
        {
            return Self::device(path, size);
        }
        let to = match before {
            // A symbolic link stays one.
            Some(_) => std::fs::canonicalize(path).map_err(|error| file_error(path, &error))?,
            None => path.to_owned(),
        };
        let (file, temporary) = Temporary::beside(to, before.as_ref())?;
        let image = Image {
            file,
            path: path.to_owned(),
            place: Place::File(Mutex::new(Some(temporary))),
            begun: AtomicBool::new(false),
        };
        image
            .file
            .set_len(size)
            .map_err(|error| image.error(&error))?;
        Ok(image)
    }

    /// A block device that nobody uses and that is large enough: both is known before a byte is
    /// written.
    fn device(path: &Path, size: u64) -> Result<Self> {
        // Without O_CREAT it asks for a device that is neither mounted nor part of another one, and
        // keeps others from making it so.
        let exclusive = rustix::fs::OFlags::EXCL.bits() as i32;
        let mut options = OpenOptions::new();
        let file = match options.write(true).custom_flags(exclusive).open(path) {
            Ok(file) => file,
            Err(error) if Errno::from_io_error(&error) == Some(Errno::BUSY) => {
                return Err(in_use(path));
            }
            Err(error) => return Err(file_error(path, &error)),
        };
        let room = rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0));
        let room = room.map_err(|error| file_error(path, &error.into()))?;
        if room < size {
            let message = format!(
                "{} has {} and is too small for the volume, which has {}: nothing was written",
                path.display(),
                show_size(room),
                show_size(size)
            );
            return Err(
                Error::new(Kind::NoSpace, message).with_hint("name a device that is large enough")
            );
        }
        Ok(Image {
            file,
            path: path.to_owned(),
            place: Place::Device,
            begun: AtomicBool::new(false),
        })
    }

    /// Refuses a standard output that is no place for an image.
    pub fn check_standard_output() -> Result<()> {
        if std::io::stdout().is_terminal() {
            let message = "standard output is a terminal, which is no place for an image";
            return Err(Error::new(Kind::Usage, message).with_hint(
                "name a file, or a program that reads: neonsan volume export TARGET - | …",
            ));
        }
        if is_null_for_both(std::io::stdout().as_fd()) {
            let message =
                "standard output is closed, or is /dev/null: the image would be thrown away";
            return Err(Error::new(Kind::Usage, message).with_hint(
                "name a file, or a program that reads: neonsan volume export TARGET - | …; \
                 `> /dev/null` throws it away on purpose",
            ));
        }
        Ok(())
    }

    /// What writes to standard output: a program that reads an image, or a file that a shell opened.
    pub fn standard_output() -> Result<Self> {
        let path = PathBuf::from("standard output");
        // Not by the buffer of std, which looks for ends of lines.
        let file = std::io::stdout().as_fd().try_clone_to_owned();
        Ok(Image {
            file: File::from(file.map_err(|error| file_error(&path, &error))?),
            path,
            place: Place::Stream,
            begun: AtomicBool::new(false),
        })
    }

    /// Writes all of `data` at `offset`, which on standard output is where the last write ended.
    pub fn write_at(&self, data: &[u8], offset: u64) -> Result<()> {
        self.begun.store(true, Ordering::Relaxed);
        let written = match self.place {
            Place::Stream => (&self.file).write_all(data),
            Place::File(_) | Place::Device => self.file.write_all_at(data, offset),
        };
        written.map_err(|error| self.error(&error))
    }

    /// Has `zeroes`, which are that, at `offset`; without writing them where that can be: a new file has
    /// a hole, and a thin device gives the space back.
    pub fn zero_at(&self, zeroes: &[u8], offset: u64) -> Result<()> {
        self.begun.store(true, Ordering::Relaxed);
        match self.place {
            Place::File(_) => Ok(()),
            Place::Device if self.zero_device(offset, zeroes.len() as u64) => Ok(()),
            Place::Device | Place::Stream => self.write_at(zeroes, offset),
        }
    }

    /// Lets the device make zeroes, with its space given back or else without. False if it cannot, for
    /// one in blocks that are larger than the range.
    fn zero_device(&self, offset: u64, length: u64) -> bool {
        let unmap = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        [unmap, FallocateFlags::ZERO_RANGE]
            .into_iter()
            .any(|flags| rustix::fs::fallocate(&self.file, flags, offset, length).is_ok())
    }

    /// Whether it is written in place, over what is there.
    pub fn is_device(&self) -> bool {
        matches!(self.place, Place::Device)
    }

    /// Whether something that was there before is lost, as it is once a device is written to.
    pub fn is_spoiled(&self) -> bool {
        self.is_device() && self.begun.load(Ordering::Relaxed)
    }

    /// Makes what was written so far durable.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|error| self.error(&error))
    }

    /// Makes what was written durable, and gives it its name.
    pub fn finish(&self) -> Result<()> {
        let Place::File(temporary) = &self.place else {
            return match self.file.sync_all() {
                // A pipe keeps nothing.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
                result => result.map_err(|error| self.error(&error)),
            };
        };
        self.file.sync_all().map_err(|error| self.error(&error))?;
        let mut temporary = temporary.lock().unwrap_or_else(PoisonError::into_inner);
        // What is dropped here on a failure is removed.
        let Some(whole) = temporary.take() else {
            return Err(Error::new(Kind::Interrupted, "the image was given up"));
        };
        whole.rename(&self.path)?;
        sync_directory_of(&whole.keep()).map_err(|error| self.error(&error))
    }

    /// Removes what is not whole, though somebody may be writing to it at this moment.
    pub fn abandon(&self) {
        if let Place::File(temporary) = &self.place {
            let mut temporary = temporary.lock().unwrap_or_else(PoisonError::into_inner);
            *temporary = None;
        }
    }

    fn error(&self, error: &io::Error) -> Error {
        if error.kind() == io::ErrorKind::BrokenPipe {
            let message = "the program that reads standard output has ended before the image";
            return Error::new(Kind::Other, message);
        }
        file_error(&self.path, error)
    }
}

/// Whether this is /dev/null, open for reading and writing. So it is where standard output was closed: before a
/// program begins, its runtime opens that in its place, so that no file comes to have the number. A shell's
/// `> /dev/null` is open for writing alone.
fn is_null_for_both(file: std::os::fd::BorrowedFd<'_>) -> bool {
    let Ok(stat) = rustix::fs::fstat(file) else {
        return false;
    };
    let mode = rustix::fs::fcntl_getfl(file).unwrap_or(rustix::fs::OFlags::WRONLY);
    rustix::fs::FileType::from_raw_mode(stat.st_mode).is_char_device()
        && stat.st_rdev == rustix::fs::makedev(1, 3)
        && mode & rustix::fs::OFlags::RWMODE == rustix::fs::OFlags::RDWR
}

/// A device that cannot be had alone, with whoever has it.
pub fn in_use(path: &Path) -> Error {
    let users = users::sentence(&users::of_path(&Root::system(), path));
    let message = format!(
        "{} is in use: {}",
        path.display(),
        users
            .as_deref()
            .unwrap_or("it is mounted, is swap, or is a part of another device")
    );
    Error::new(Kind::Busy, message)
        .with_hint("`lsblk` shows by what; unmount it or take it out, or name another device")
}

/// The file at the path, if there is one. What is neither a file nor a block device is refused: a
/// pipe or terminal has no place for holes, and a device such as `/dev/null` must not be replaced.
fn what_is_there(path: &Path) -> Result<Option<Metadata>> {
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if std::fs::symlink_metadata(path).is_err() {
                return Ok(None);
            }
            let message = format!("{} is a symbolic link to nothing", path.display());
            return Err(Error::new(Kind::Usage, message).with_hint("name the file itself"));
        }
        Err(error) => return Err(file_error(path, &error)),
    };
    let kind = metadata.file_type();
    let what = if kind.is_file() || kind.is_block_device() {
        return Ok(Some(metadata));
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_char_device() {
        "a character device"
    } else if kind.is_fifo() {
        "a pipe"
    } else {
        "not a file"
    };
    let message = format!("{} is {what}", path.display());
    Err(Error::new(Kind::Usage, message)
        .with_hint("an image is written into a regular file or a block device"))
}

fn exists(path: &Path) -> Error {
    let message = format!("{} exists already", path.display());
    Error::new(Kind::Busy, message).with_hint("--force overwrites it")
}

impl Temporary {
    /// A new file in the directory of `to`, with the owner and permissions of what it replaces.
    fn beside(to: PathBuf, before: Option<&Metadata>) -> Result<(File, Self)> {
        let mut options = OpenOptions::new();
        // What a volume holds is for its owner alone, unless the file says otherwise.
        options.write(true).create_new(true).mode(0o600);
        if let Some(before) = before {
            options.mode(before.mode() & 0o777);
        }
        let mut cut = false;
        loop {
            let number = RandomState::new().hash_one(std::process::id()) as u16;
            let path = name_beside(&to, &format!(".neonsan-{number:04x}"), cut);
            let file = match options.open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) if Errno::from_io_error(&error) == Some(Errno::NAMETOOLONG) && !cut => {
                    cut = true;
                    continue;
                }
                Err(error) => return Err(file_error(&path, &error)),
            };
            let replace = before.is_some();
            let temporary = Temporary { path, to, replace };
            if let Some(before) = before {
                // Root can give a file away, others need not.
                let _ = fchown(&file, Some(before.uid()), Some(before.gid()));
                let permissions = std::fs::Permissions::from_mode(before.mode() & 0o777);
                file.set_permissions(permissions)
                    .map_err(|error| file_error(&temporary.path, &error))?;
            }
            return Ok((file, temporary));
        }
    }

    /// Gives it its name. Without `replace`, what has come to be there meanwhile stays.
    fn rename(&self, shown: &Path) -> Result<()> {
        let renamed = if self.replace {
            std::fs::rename(&self.path, &self.to)
        } else {
            match renameat_with(CWD, &self.path, CWD, &self.to, RenameFlags::NOREPLACE) {
                Ok(()) => Ok(()),
                Err(Errno::EXIST) => return Err(exists(shown)),
                // Not every file system can do both in one step.
                Err(Errno::INVAL | Errno::NOSYS) => {
                    if std::fs::symlink_metadata(&self.to).is_ok() {
                        return Err(exists(shown));
                    }
                    std::fs::rename(&self.path, &self.to)
                }
                Err(error) => Err(error.into()),
            }
        };
        renamed.map_err(|error| file_error(shown, &error))
    }

    /// Nothing is to be removed any more. Returns where it is.
    fn keep(mut self) -> PathBuf {
        self.path = PathBuf::new();
        std::mem::take(&mut self.to)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.path.as_os_str().is_empty() {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The path with something behind the name. `cut`: the name is shorter by at least that, so that the whole is
/// no longer than it was; characters stay whole.
fn name_beside(path: &Path, suffix: &str, cut: bool) -> PathBuf {
    let name = path.file_name().unwrap_or_default();
    let mut beside = name.to_owned();
    if cut {
        let bytes = name.as_bytes();
        let mut length = bytes.len().saturating_sub(suffix.len());
        // A byte of UTF-8 that is not the first of its character.
        while length > 0 && bytes.get(length).is_some_and(|byte| byte & 0xc0 == 0x80) {
            length -= 1;
        }
        beside = OsStr::from_bytes(&bytes[..length]).to_owned();
    }
    beside.push(suffix);
    path.with_file_name(beside)
}

/// Makes the name of a file durable.
fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match File::open(directory).and_then(|directory| directory.sync_all()) {
        // Some file systems cannot, and may then keep it anyway.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        // A directory that may be written but not read cannot be opened.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        result => result,
    }
}

/// What went wrong with a file.
pub fn file_error(path: &Path, error: &io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::NotFound => Kind::NotFound,
        io::ErrorKind::PermissionDenied => Kind::Permission,
        io::ErrorKind::StorageFull => Kind::NoSpace,
        _ => Kind::Other,
    };
    Error::new(kind, format!("{}: {error}", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn an_image_has_its_name_only_when_it_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let image = Image::create(&path, 8192, false).unwrap();
        image.write_at(b"new", 4096).unwrap();
        assert!(!path.exists());
        image.finish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap()[4096..4099], *b"new");
        // For its owner alone: what a volume holds was not for everybody either.
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(names(directory.path()), ["image"]);
    }

    #[test]
    fn a_name_may_be_as_long_as_the_file_system_has_them() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["n".repeat(243), "n".repeat(255), "ä".repeat(127)] {
            let path = directory.path().join(&name);
            for content in [b"new", b"two"] {
                let image = Image::create(&path, 3, true).unwrap();
                image.write_at(content, 0).unwrap();
                assert!(names(directory.path())
                    .iter()
                    .any(|n| n.contains(".neonsan-")));
                image.finish().unwrap();
                assert_eq!(std::fs::read(&path).unwrap(), content);
            }
            assert_eq!(names(directory.path()), [name]);
            std::fs::remove_file(&path).unwrap();
        }
        let path = directory.path().join("n".repeat(256));
        let error = Image::create(&path, 3, true).err().unwrap().to_string();
        assert!(error.contains("name too long"), "{error}");
        assert!(names(directory.path()).is_empty());
    }

    #[test]
    fn what_was_there_stays_until_the_new_one_is_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        std::fs::write(&path, "old").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(
            Image::create(&path, 1, false).err().unwrap().kind(),
            Kind::Busy
        );
        let image = Image::create(&path, 3, true).unwrap();
        image.write_at(b"ne", 0).unwrap();
        drop(image);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(names(directory.path()), ["image"]);
        let image = Image::create(&path, 3, true).unwrap();
        image.write_at(b"new", 0).unwrap();
        image.finish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(names(directory.path()), ["image"]);
    }

    #[test]
    fn a_file_that_came_meanwhile_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let image = Image::create(&path, 3, false).unwrap();
        std::fs::write(&path, "theirs").unwrap();
        assert_eq!(image.finish().unwrap_err().kind(), Kind::Busy);
        assert_eq!(std::fs::read(&path).unwrap(), b"theirs");
        assert_eq!(names(directory.path()), ["image"]);
    }

    #[test]
    fn a_symbolic_link_stays_one() {
        let directory = tempfile::tempdir().unwrap();
        let (file, link) = (directory.path().join("file"), directory.path().join("link"));
        std::os::unix::fs::symlink("file", &link).unwrap();
        let error = Image::create(&link, 3, true).err().unwrap();
        assert!(error.to_string().contains("symbolic link to nothing"));
        std::fs::write(&file, "old").unwrap();
        let image = Image::create(&link, 3, true).unwrap();
        image.write_at(b"new", 0).unwrap();
        image.finish().unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(std::fs::read(&file).unwrap(), b"new");
    }

    #[test]
    fn what_is_no_file_is_refused_and_stays() {
        let directory = tempfile::tempdir().unwrap();
        // A device of this test would need root: the link stands for it.
        let null = directory.path().join("null");
        std::os::unix::fs::symlink("/dev/null", &null).unwrap();
        for (path, what) in [
            (directory.path(), "a directory"),
            (null.as_path(), "a character device"),
        ] {
            let error = Image::create(path, 3, true).err().unwrap();
            assert_eq!(error.kind(), Kind::Usage);
            assert!(error.to_string().contains(what), "{error}");
        }
        assert!(null.exists());
        assert_eq!(names(directory.path()), ["null"]);
    }
}
