// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Whether the file system below a directory is the one that it was: the same
//! superblock in the kernel, since its last mount.
//!
//! What a process has written and not synced is in the caches of the kernel and the
//! disk. It outlives the process as long as that superblock lives; a file system that
//! went away and was mounted again comes back without it. Nothing that `stat` or
//! `mountinfo` tells says which of the two happened: a device number comes back, and
//! a mount id is another one in each mount namespace, and is used again. So the
//! witness is a name and a number that the kernel gives to the superblock itself:
//!
//! ext4, XFS, btrfs
//!   The directory of sysfs that is made for each mounted superblock, with its inode
//!   number, which sysfs never gives twice during a boot of the machine. A remount
//!   that changes options, a bind mount, a mount namespace and the name space of a
//!   container do not change it; nor do suspend, or another table of a device mapper
//!   device below: what those lose is told by an error of a write or flush. ext4 also
//!   counts the errors that it has met, which tells of one that nobody was told.
//!
//! tmpfs
//!   The directory itself, with the moment of its making: what is in a tmpfs goes only
//!   with all of it.
//!
//! Other file systems, and containers without sysfs, have none. A pool may be the mount
//! point of another file system: then the witness names both. A superblock that had a
//! witness and does not answer any more, as that of a shut-down XFS, is as good as gone.

use std::fs;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{statfs, statx, AtFlags, StatxFlags, CWD};

/// `f_type` of `linux/magic.h`.
const EXT4: u64 = 0xef53;
const XFS: u64 = 0x5846_5342;
const BTRFS: u64 = 0x9123_683e;
const TMPFS: u64 = 0x0102_1994;
const SYSFS: u64 = 0x6265_6572;

/// `BTRFS_IOC_FS_INFO` of `linux/btrfs.h`: an answer of 1024 bytes, with the
/// identity of the file system at byte 16.
const BTRFS_IOC_FS_INFO: u64 = 0x8400_941f;

/// Between the superblocks of one witness.
const BETWEEN: &str = "; ";

/// Why a superblock has no witness.
#[derive(Debug)]
enum Missing {
    /// The process lacks what it needs to look: another time there may be one.
    Later(String),
    /// A clause.
    None(String),
}

impl Missing {
    /// What `path` says when it is looked at.
    fn of(path: &Path, error: impl Into<std::io::Error>) -> Self {
        let error = error.into();
        let later = [
            libc::EMFILE,
            libc::ENFILE,
            libc::ENOMEM,
            libc::EAGAIN,
            libc::EINTR,
        ];
        let is_later = error.raw_os_error().is_some_and(|e| later.contains(&e));
        let text = format!("{} cannot be looked at: {error}", path.display());
        match is_later {
            true => Self::Later(text),
            false => Self::None(text),
        }
    }
}

/// A witness, or why there is none.
type Found<T> = std::result::Result<T, Missing>;

/// The superblocks below an engine's root: its own, and those of pools that are on others, in an
/// order that does not change. What in the root cannot be looked at is left out: it is as good as gone.
fn all(root: &Path) -> Found<Vec<Found<String>>> {
    let look = |e: std::io::Error| Missing::of(root, e);
    let device = fs::metadata(root).map_err(look)?.dev();
    let mut pools: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(root).map_err(look)? {
        let path = entry.map_err(look)?.path();
        // A link is no pool, wherever it leads.
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_dir() && metadata.dev() != device => pools.push(path),
            Ok(_) => {}
            Err(error) => {
                if let later @ Missing::Later(_) = Missing::of(&path, error) {
                    return Err(later);
                }
            }
        }
    }
    pools.sort();
    let mut all = vec![of_one(root)];
    for pool in pools {
        let name = pool.file_name().unwrap_or_default().to_string_lossy();
        // The text is one line.
        let name = name.escape_default();
        all.push(of_one(&pool).map(|witness| format!("{name}: {witness}")));
    }
    Ok(all)
}

/// The witnesses of the superblocks below an engine's root.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Of those that have one. See [`is_there`].
    pub(super) known: String,
    /// Why another one has none, as a clause; `None`: all have one.
    pub(super) missing: Option<String>,
}

impl Seen {
    /// What tells all the superblocks from all others during this boot of the machine; else why
    /// nothing does.
    pub(super) fn whole(self) -> Result<String, String> {
        self.missing.map_or(Ok(self.known), Err)
    }
}

/// Looks at the superblocks below an engine's root. One that had a witness and has none any more is
/// as good as gone.
///
/// # Errors
///
/// When nothing can be told at the moment, as a clause.
pub(super) fn see(root: &Path) -> Result<Seen, String> {
    let mut known = Vec::new();
    let mut missing = None;
    let all = all(root).or_else(|why| match why {
        Missing::Later(why) => Err(why),
        // The root itself is gone.
        none @ Missing::None(_) => Ok(vec![Err(none)]),
    })?;
    for found in all {
        match found {
            Ok(witness) => known.push(witness),
            Err(Missing::Later(why)) => return Err(why),
            Err(Missing::None(why)) => missing = missing.or(Some(why)),
        }
    }
    Ok(Seen {
        known: known.join(BETWEEN),
        missing,
    })
}

/// Whether every superblock of `then` is there `now`. One that has come, with a pool of
/// its own, takes nothing away.
pub(super) fn is_there(then: &str, now: &str) -> bool {
    then.split(BETWEEN)
        .filter(|then| !then.is_empty())
        .all(|then| now.split(BETWEEN).any(|now| now == then))
}

/// The pools that had a file system of their own in the witness `then`, and are directories of the
/// engine's own file system now: theirs is not mounted. Pools that are gone altogether are none.
///
/// # Errors
///
/// When the directory cannot be looked at.
pub(super) fn not_mounted(root: &Path, then: &str) -> std::io::Result<Vec<PathBuf>> {
    let device = fs::metadata(root)?.dev();
    let mut pools = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let begins = format!("{}: ", name.escape_default());
        // The first one is that of the root.
        let had_its_own = then.split(BETWEEN).skip(1).any(|w| w.starts_with(&begins));
        if had_its_own && entry.file_type()?.is_dir() && entry.metadata()?.dev() == device {
            pools.push(entry.path());
        }
    }
    pools.sort();
    Ok(pools)
}

/// Whether a file of the pool is on another superblock than its pool, which no witness tells of.
/// Where the pool's file system has no witness, nothing is promised, so it does not matter.
pub(super) fn is_elsewhere(file: &Path, pool: &Path) -> bool {
    let device = |path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    if device(file) == device(pool) {
        return false;
    }
    // A subvolume of btrfs has another device, and the same superblock.
    of_one(pool).is_ok_and(|pools| of_one(file).ok() != Some(pools))
}

/// Which btrfs a directory is on; `None`: on none.
pub(super) fn btrfs_superblock(dir: &Path) -> Option<String> {
    let is_btrfs = statfs(dir).is_ok_and(|s| s.f_type as u64 == BTRFS);
    is_btrfs.then(|| btrfs_name(dir).ok()).flatten()
}

/// The same of one directory, or of one file.
fn of_one(dir: &Path) -> Found<String> {
    let kind = statfs(dir).map_err(|e| Missing::of(dir, e))?.f_type as u64;
    match kind {
        EXT4 => {
            let (name, inode) = in_sysfs("ext4", &device_name(dir)?)?;
            let errors = Path::new("/sys/fs/ext4").join(&name).join("errors_count");
            let errors = fs::read_to_string(errors).unwrap_or_default();
            Ok(format!("ext4 {name} {inode} errors {}", errors.trim()))
        }
        XFS => {
            let (name, inode) = in_sysfs("xfs", &device_name(dir)?)?;
            Ok(format!("xfs {name} {inode}"))
        }
        BTRFS => {
            let (name, inode) =
                in_sysfs("btrfs", &btrfs_name(dir).map_err(|e| Missing::of(dir, e))?)?;
            Ok(format!("btrfs {name} {inode}"))
        }
        TMPFS => {
            let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
            let stat =
                statx(CWD, dir, AtFlags::empty(), wanted).map_err(|e| Missing::of(dir, e))?;
            if stat.stx_mask & StatxFlags::BTIME.bits() == 0 {
                let why = "its tmpfs does not say when a directory was made";
                return Err(Missing::None(why.to_owned()));
            }
            Ok(format!(
                "tmpfs {}:{} {} {}.{:09}",
                stat.stx_dev_major,
                stat.stx_dev_minor,
                stat.stx_ino,
                stat.stx_btime.tv_sec,
                stat.stx_btime.tv_nsec
            ))
        }
        other => Err(Missing::None(format!(
            "a file system of the type {other:#x} does not show whether it was mounted anew"
        ))),
    }
}

/// The kernel's name of the block device below a directory, as sysfs has it.
fn device_name(dir: &Path) -> Found<String> {
    let device = fs::metadata(dir).map_err(|e| Missing::of(dir, e))?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let link = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let target = fs::read_link(&link).map_err(|e| Missing::of(&link, e))?;
    let name = target.file_name().and_then(|name| name.to_str());
    name.map(str::to_owned)
        .ok_or_else(|| Missing::None(format!("{} names no device", link.display())))
}

/// The name by which sysfs has a btrfs: its identity, as a UUID.
fn btrfs_name(dir: &Path) -> std::io::Result<String> {
    let dir = fs::File::open(dir)?;
    let mut info = [0u64; 128];
    // SAFETY: The file is open, and the call writes at most the 1024 bytes that its
    // number says, which `info` has.
    let result = unsafe {
        libc::ioctl(
            dir.as_raw_fd(),
            BTRFS_IOC_FS_INFO as libc::Ioctl,
            info.as_mut_ptr(),
        )
    };
    if result != 0 {
        return Err(std::io::Error::last_os_error());
    }
    let mut id = [0; 16];
    id[..8].copy_from_slice(&info[2].to_ne_bytes());
    id[8..].copy_from_slice(&info[3].to_ne_bytes());
    let hex = format!("{:032x}", u128::from_be_bytes(id));
    let parts = [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ];
    Ok(parts.join("-"))
}

/// The directory of a superblock in sysfs: its name and inode number.
fn in_sysfs(kind: &str, name: &str) -> Found<(String, u64)> {
    let path = Path::new("/sys/fs").join(kind).join(name);
    // Whatever is mounted over it, or stands in for it, numbers its files otherwise.
    if statfs(&path).map_err(|e| Missing::of(&path, e))?.f_type as u64 != SYSFS {
        return Err(Missing::None(format!("{} is not of sysfs", path.display())));
    }
    let inode = fs::metadata(&path)
        .map_err(|e| Missing::of(&path, e))?
        .ino();
    Ok((name.to_owned(), inode))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn of(root: &Path) -> Result<String, String> {
        see(root)?.whole()
    }

    #[test]
    fn a_directory_has_one_witness_and_those_without_say_why() {
        let dir = tempfile::tempdir().unwrap();
        match of(dir.path()) {
            Ok(witness) => assert_eq!(of(dir.path()).unwrap(), witness),
            Err(why) => assert!(!why.is_empty()),
        }
        let proc = of(Path::new("/proc")).unwrap_err();
        assert!(proc.contains("0x9fa0"), "{proc}");
    }

    #[test]
    fn what_cannot_be_looked_at_is_as_good_as_gone_unless_the_process_is_at_its_limits() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        let known = |root| see(root).unwrap().known;
        assert_eq!(known(&gone), "");
        assert!(of(&gone).unwrap_err().contains("/gone cannot be looked at"));
        let with_link = known(dir.path());
        std::os::unix::fs::symlink("nowhere", dir.path().join("link")).unwrap();
        assert_eq!(known(dir.path()), with_link);
        for (errno, is_later) in [
            (libc::EIO, false),
            (libc::ENOENT, false),
            (libc::EMFILE, true),
        ] {
            let error = std::io::Error::from_raw_os_error(errno);
            let missing = Missing::of(dir.path(), error);
            assert_eq!(
                matches!(missing, Missing::Later(_)),
                is_later,
                "{missing:?}"
            );
        }
    }

    #[test]
    fn a_pool_may_come_and_none_may_go() {
        let one = "ext4 sda1 12 errors 0";
        let two = "ext4 sda1 12 errors 0; q: xfs sdb 77";
        assert!(is_there(one, one) && is_there(two, two) && is_there(one, two));
        assert!(!is_there(two, one));
        assert!(is_there("", one) && !is_there(one, ""));
        assert!(!is_there(two, "ext4 sda1 12 errors 0; q: xfs sdb 78"));
        assert!(!is_there(one, "ext4 sda1 12 errors 1; q: xfs sdb 77"));
    }

    #[test]
    fn a_tmpfs_is_known_by_when_it_was_made() {
        let shm = Path::new("/dev/shm");
        if statfs(shm).map_or(true, |s| s.f_type as u64 != TMPFS) {
            eprintln!("SKIP a_tmpfs_is_known_by_when_it_was_made: /dev/shm is no tmpfs");
            return;
        }
        let witness = |path: &Path| of(path).unwrap();
        let one = tempfile::tempdir_in(shm).unwrap();
        let first = witness(one.path());
        assert_eq!(witness(one.path()), first);
        let path = one.path().to_owned();
        drop(one);
        fs::create_dir(&path).unwrap();
        assert_ne!(witness(&path), first);
        fs::remove_dir(&path).unwrap();
    }
}
