// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The node of a new device in /dev. devtmpfs makes it, or udev, a moment after the kernel has added the
//! device; and what is there may be an older file, or another disk.

use crate::root::Root;
use crate::users::{device_number, number, show_number};
use rustix::time::{clock_gettime, ClockId};
use std::fmt;
use std::time::{Duration, Instant};

/// How long it may take until the node is there and udev has been through with the device.
pub const WAIT: Duration = Duration::from_secs(5);

const PAUSE: Duration = Duration::from_millis(10);

/// What is wrong with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// There is none.
    Missing,
    /// It is a file or whatever, but no block device.
    NoBlockDevice,
    /// It is another block device: its number, and the right one.
    Another(u64, u64),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wrong::Missing => f.write_str("does not appear"),
            Wrong::NoBlockDevice => f.write_str("is no block device"),
            Wrong::Another(found, right) => write!(
                f,
                "is another disk: the block device {}, and not {}",
                show_number(*found),
                show_number(*right)
            ),
        }
    }
}

/// A moment, as udev notes when it has seen a device for the first time: microseconds.
pub fn moment() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
}

/// Waits for the node of a device that was added after `since`, until `end`. Returns whether udev, if it
/// runs here, has been through with the device, so that its links are there too.
pub fn wait(root: &Root, name: &str, since: u64, end: Instant) -> Result<bool, Wrong> {
    loop {
        match look(root, name) {
            Ok(number) if is_settled(root, number, since) => return Ok(true),
            Ok(_) if Instant::now() >= end => return Ok(false),
            Err(wrong) if Instant::now() >= end => return Err(wrong),
            _ => std::thread::sleep(PAUSE),
        }
    }
}

/// The number of a device, if the node in /dev has the same.
pub fn look(root: &Root, name: &str) -> Result<u64, Wrong> {
    let path = root.path(&format!("/dev/{name}"));
    let Some(found) = device_number(&path) else {
        return Err(match path.symlink_metadata() {
            Ok(_) => Wrong::NoBlockDevice,
            Err(_) => Wrong::Missing,
        });
    };
    match right_number(root, name) {
        Some(right) if right != found => Err(Wrong::Another(found, right)),
        Some(_) => Ok(found),
        // The kernel has no such device any more, or nothing is known of it.
        None => Err(Wrong::Missing),
    }
}

/// The device to which the link by the name of a volume leads, where that is not this one: another volume may
/// have the name, of another cluster, and has the link if it was attached first.
pub fn other_of_name(root: &Root, name: &str, volume: &str) -> Option<String> {
    let link = root.path(&format!("/dev/neonsan/{volume}"));
    let (leads_to, own) = (device_number(&link)?, look(root, name).ok()?);
    let other = std::fs::canonicalize(link).ok()?;
    (leads_to != own).then(|| other.file_name().map(|n| n.to_string_lossy().into_owned()))?
}

/// What is said of that.
pub fn say_other_of_name(name: &str, other: &str, volume: &str) -> String {
    format!(
        "/dev/neonsan/{volume} leads to {other}, which has a volume of the same name and was attached first: \
         {name} has no link by its name"
    )
}

/// The number that the kernel gave the device: of sysfs, or where that is not mounted, of proc.
fn right_number(root: &Root, name: &str) -> Option<u64> {
    if let Some(text) = root.text(&format!("/sys/block/{name}/dev")) {
        return number(&text);
    }
    let table = root.text("/proc/partitions")?;
    table.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        match fields.as_slice() {
            [major, minor, _, found] if *found == name => number(&format!("{major}:{minor}")),
            _ => None,
        }
    })
}

/// Whether udev has noted the device, which is the last that it does with it. True where none runs.
fn is_settled(root: &Root, number: u64, since: u64) -> bool {
    if !root.path("/run/udev/control").exists() {
        return true;
    }
    let note = root.text(&format!("/run/udev/data/b{}", show_number(number)));
    let note = note.unwrap_or_default();
    let seen = note.lines().find_map(|line| line.strip_prefix("I:"));
    // What is older is of a device that had this number before.
    seen.and_then(|seen| seen.parse::<u64>().ok())
        .is_some_and(|seen| seen >= since)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::users::tests::Machine;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(50)
    }

    #[test]
    fn a_node_that_is_missing_or_no_block_device_is_not_taken() {
        let machine = Machine::new();
        let root = machine.root();
        machine.write("/sys/block/neonsan0/dev", "259:3\n");
        assert_eq!(wait(&root, "neonsan0", 0, soon()), Err(Wrong::Missing));
        machine.write("/dev/neonsan0", "an image that somebody wrote here");
        let wrong = wait(&root, "neonsan0", 0, soon()).unwrap_err();
        assert_eq!(wrong, Wrong::NoBlockDevice);
        assert!(wrong.to_string().contains("no block device"));
    }

    #[test]
    fn another_disk_under_the_name_is_not_taken() {
        let machine = Machine::new();
        if !machine.block_device("/dev/neonsan0", 7, 5) {
            return;
        }
        let root = machine.root();
        machine.write("/sys/block/neonsan0/dev", "259:3\n");
        let wrong = wait(&root, "neonsan0", 0, soon()).unwrap_err();
        assert_eq!(
            wrong.to_string(),
            "is another disk: the block device 7:5, and not 259:3"
        );
        machine.write("/sys/block/neonsan0/dev", "7:5\n");
        assert_eq!(wait(&root, "neonsan0", 0, soon()), Ok(true));
    }

    #[test]
    fn without_sysfs_proc_says_which_is_the_right_one() {
        let machine = Machine::new();
        if !machine.block_device("/dev/neonsan0", 7, 5) {
            return;
        }
        let root = machine.root();
        let head = "major minor  #blocks  name\n\n";
        machine.write(
            "/proc/partitions",
            &format!("{head}   7  5  1024 neonsan0\n"),
        );
        assert_eq!(wait(&root, "neonsan0", 0, soon()), Ok(true));
        machine.write(
            "/proc/partitions",
            &format!("{head} 259  3  1024 neonsan0\n"),
        );
        assert!(wait(&root, "neonsan0", 0, soon()).is_err());
    }

    #[test]
    fn a_node_that_comes_late_is_waited_for_and_udev_too() {
        let machine = Machine::new();
        let root = machine.root();
        machine.write("/sys/block/neonsan0/dev", "7:5\n");
        machine.write("/run/udev/control", "");
        // Of a device that was there before.
        machine.write("/run/udev/data/b7:5", "S:disk/by-id/x\nI:1000\nG:systemd\n");
        if !machine.block_device("/dev/spare", 7, 5) {
            return;
        }
        let since = moment();
        std::thread::scope(|threads| {
            threads.spawn(|| {
                std::thread::sleep(Duration::from_millis(100));
                std::fs::rename(root.path("/dev/spare"), root.path("/dev/neonsan0")).unwrap();
                std::thread::sleep(Duration::from_millis(100));
                machine.write("/run/udev/data/b7:5", &format!("I:{}\n", moment()));
            });
            let end = Instant::now() + Duration::from_secs(60);
            let begun = Instant::now();
            assert_eq!(wait(&root, "neonsan0", since, end), Ok(true));
            assert!(begun.elapsed() >= Duration::from_millis(200));
        });
        // udev that never ends keeps nobody waiting longer than that.
        assert_eq!(wait(&root, "neonsan0", u64::MAX, soon()), Ok(false));
    }
}
