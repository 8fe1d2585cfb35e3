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
//! point of another file system: then the witness names both.

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

/// What tells the superblocks below an engine's root from all others during this boot of the
/// machine: that of the root, and those of pools that are on others. See [`is_there`]. Else
/// why there is none, as a clause.
pub(super) fn of(root: &Path) -> Result<String, String> {
    let system = |e: std::io::Error| format!("{} cannot be looked at: {e}", root.display());
    let device = fs::metadata(root).map_err(system)?.dev();
    let mut witness = of_one(root)?;
    let mut pools: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(root).map_err(system)? {
        let path = entry.map_err(system)?.path();
        let metadata = fs::metadata(&path).map_err(system)?;
        if metadata.is_dir() && metadata.dev() != device {
            pools.push(path);
        }
    }
    pools.sort();
    for pool in pools {
        let name = pool.file_name().unwrap_or_default().to_string_lossy();
        // The text is one line.
        let name = name.escape_default();
        witness.push_str(&format!("{BETWEEN}{name}: {}", of_one(&pool)?));
    }
    Ok(witness)
}

/// Whether every superblock of `then` is there `now`. One that has come, with a pool of
/// its own, takes nothing away.
pub(super) fn is_there(then: &str, now: &str) -> bool {
    then.split(BETWEEN)
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
    of_one(pool).is_ok_and(|pools| of_one(file) != Ok(pools))
}

/// The same of one directory, or of one file.
fn of_one(dir: &Path) -> Result<String, String> {
    let system = |e: std::io::Error| format!("{} cannot be looked at: {e}", dir.display());
    let kind = statfs(dir).map_err(|e| system(e.into()))?.f_type as u64;
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
            let (name, inode) = in_sysfs("btrfs", &btrfs_name(dir).map_err(system)?)?;
            Ok(format!("btrfs {name} {inode}"))
        }
        TMPFS => {
            let wanted = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
            let stat = statx(CWD, dir, AtFlags::empty(), wanted).map_err(|e| system(e.into()))?;
            if stat.stx_mask & StatxFlags::BTIME.bits() == 0 {
                return Err("its tmpfs does not say when a directory was made".to_owned());
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
        other => Err(format!(
            "a file system of the type {other:#x} does not show whether it was mounted anew"
        )),
    }
}

/// The kernel's name of the block device below a directory, as sysfs has it.
fn device_name(dir: &Path) -> Result<String, String> {
    let device = fs::metadata(dir)
        .map_err(|e| format!("{} cannot be looked at: {e}", dir.display()))?
        .dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let link = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let target =
        fs::read_link(&link).map_err(|e| format!("{} cannot be read: {e}", link.display()))?;
    let name = target.file_name().and_then(|name| name.to_str());
    name.map(str::to_owned)
        .ok_or_else(|| format!("{} names no device", link.display()))
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
fn in_sysfs(kind: &str, name: &str) -> Result<(String, u64), String> {
    let path = Path::new("/sys/fs").join(kind).join(name);
    let missing = |e: std::io::Error| format!("{} cannot be looked at: {e}", path.display());
    // Whatever is mounted over it, or stands in for it, numbers its files otherwise.
    if statfs(&path).map_err(|e| missing(e.into()))?.f_type as u64 != SYSFS {
        return Err(format!("{} is not of sysfs", path.display()));
    }
    let inode = fs::metadata(&path).map_err(missing)?.ino();
    Ok((name.to_owned(), inode))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

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
    fn a_pool_may_come_and_none_may_go() {
        let one = "ext4 sda1 12 errors 0";
        let two = "ext4 sda1 12 errors 0; q: xfs sdb 77";
        assert!(is_there(one, one) && is_there(two, two) && is_there(one, two));
        assert!(!is_there(two, one));
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
