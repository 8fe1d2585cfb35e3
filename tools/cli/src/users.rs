// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Who has a block device open: mounts, swap, devices that are made of it, and programs. The kernel
//! counts them and does not name them, so they are looked for where they show.

use crate::root::Root;
use rustix::fs::{major, makedev, minor, AtFlags, StatxFlags, CWD};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;

/// One of them. The field names are those of the JSON output.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum User {
    /// A file system is mounted.
    Mount {
        /// The device: the whole one or a partition.
        device: String,
        /// Where.
        at: String,
        /// A process that sees the mount, where this one does not.
        seen_by: Option<u32>,
    },
    /// It is swapped to.
    Swap {
        /// The device.
        device: String,
    },
    /// Another device is made of it: LVM, dm-crypt, RAID, multipath, a loop device.
    Device {
        /// The device.
        device: String,
        /// The other one.
        name: String,
        /// What that is called where it has a name.
        called: Option<String>,
    },
    /// A program has it open.
    Process {
        /// The device.
        device: String,
        /// The program.
        name: String,
        /// Its number.
        pid: u32,
    },
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            User::Mount {
                device,
                at,
                seen_by,
            } => {
                write!(f, "{device} is mounted at {at}")?;
                match seen_by {
                    Some(pid) => write!(f, " (in a mount namespace of its own, see process {pid})"),
                    None => Ok(()),
                }
            }
            User::Swap { device } => write!(f, "{device} is swap (swapoff)"),
            User::Device {
                device,
                name,
                called: Some(called),
            } => write!(f, "{name} ({called}) is made of {device}"),
            User::Device { device, name, .. } => write!(f, "{name} is made of {device}"),
            User::Process { device, name, pid } => {
                write!(f, "{device} is open in {name} (process {pid})")
            }
        }
    }
}

/// A device and its partitions: names and numbers.
struct Devices(Vec<(String, u64)>);

impl Devices {
    fn of(root: &Root, name: &str) -> Self {
        let directory = format!("/sys/block/{name}");
        let parts = root.names(&directory).into_iter();
        let parts = parts.filter(|part| part.starts_with(name));
        let parts = parts.map(|part| (format!("{directory}/{part}/dev"), part));
        let whole = (format!("{directory}/dev"), name.to_owned());
        let numbered = std::iter::once(whole).chain(parts);
        Devices(
            numbered
                .filter_map(|(dev, name)| Some((name, number(&root.text(&dev)?)?)))
                .collect(),
        )
    }

    /// The name of the one with this number.
    fn name(&self, number: u64) -> Option<&str> {
        let (name, _) = self.0.iter().find(|(_, found)| *found == number)?;
        Some(name)
    }

    /// The one that is at a path.
    fn at(&self, path: &Path) -> Option<&str> {
        self.name(device_number(path)?)
    }
}

/// A number as the kernel writes it: `major:minor`.
pub fn number(text: &str) -> Option<u64> {
    let (major, minor) = text.trim().split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// The same, to be read.
pub fn show_number(number: u64) -> String {
    format!("{}:{}", major(number), minor(number))
}

/// The number of the block device at a path; links are followed. Asks no server about its files, which
/// might not answer.
pub fn device_number(path: &Path) -> Option<u64> {
    let stat = rustix::fs::statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::BASIC_STATS);
    let stat = stat.ok()?;
    let kind = rustix::fs::FileType::from_raw_mode(stat.stx_mode.into());
    (kind == rustix::fs::FileType::BlockDevice)
        .then(|| makedev(stat.stx_rdev_major, stat.stx_rdev_minor))
}

/// All that can be found of those who use a device or a partition of it. A caller who is not root does
/// not see what others' programs have open.
pub fn of_device(root: &Root, name: &str) -> Vec<User> {
    let devices = Devices::of(root, name);
    let mut users = BTreeSet::new();
    mounts(root, &devices, &mut users);
    swaps(root, &devices, &mut users);
    made_of_it(root, name, &devices, &mut users);
    processes(root, &devices, &mut users);
    users.into_iter().collect()
}

/// The same of the disk that a block device is, or is a partition of.
pub fn of_path(root: &Root, path: &Path) -> Vec<User> {
    let Some(number) = device_number(path) else {
        return Vec::new();
    };
    let entry = format!("/sys/dev/block/{}", show_number(number));
    let Ok(directory) = std::fs::canonicalize(root.path(&entry)) else {
        return Vec::new();
    };
    let disk = match directory.join("partition").exists() {
        true => directory.parent(),
        false => Some(directory.as_path()),
    };
    let name = disk.and_then(Path::file_name).and_then(|n| n.to_str());
    name.map_or_else(Vec::new, |name| of_device(root, name))
}

/// The same, in one sentence; `None` if nobody is found.
pub fn sentence(users: &[User]) -> Option<String> {
    const SHOWN: usize = 8;
    let mut shown: Vec<_> = users.iter().take(SHOWN).map(ToString::to_string).collect();
    if users.len() > SHOWN {
        shown.push(format!("and {} more", users.len() - SHOWN));
    }
    (!users.is_empty()).then(|| shown.join("; "))
}

fn pids(root: &Root) -> impl Iterator<Item = u32> {
    let names = root.names("/proc").into_iter();
    names.filter_map(|name| name.parse().ok())
}

/// The mounts of every namespace, each looked at once.
fn mounts(root: &Root, devices: &Devices, users: &mut BTreeSet<User>) {
    let namespace = |pid: &str| std::fs::read_link(root.path(&format!("/proc/{pid}/ns/mnt"))).ok();
    let own = namespace("self");
    let mut seen = BTreeSet::new();
    let mut look = |pid: &str, seen_by: Option<u32>| {
        let table = root.text(&format!("/proc/{pid}/mountinfo"));
        for line in table.unwrap_or_default().lines() {
            if let Some((device, at)) = mount_of(root, devices, line) {
                users.insert(User::Mount {
                    device,
                    at,
                    seen_by,
                });
            }
        }
    };
    look("self", None);
    for pid in pids(root) {
        let other = namespace(&pid.to_string());
        if other.is_some() && other != own && seen.insert(other) {
            look(&pid.to_string(), Some(pid));
        }
    }
}

/// A line of mountinfo, if it is of one of the devices: `36 35 98:0 /root /mnt opts - type source opts`.
/// btrfs has numbers of its own there, so the source counts too.
fn mount_of(root: &Root, devices: &Devices, line: &str) -> Option<(String, String)> {
    let fields: Vec<_> = line.split(' ').collect();
    let at = unescaped(fields.get(4)?);
    let by_number = number(fields.get(2)?).and_then(|number| devices.name(number));
    let by_source = || {
        let dash = fields.iter().position(|field| *field == "-")?;
        let source = unescaped(fields.get(dash + 2)?);
        devices.at(&root.path(source.starts_with('/').then_some(&source)?))
    };
    let device = by_number.or_else(by_source)?;
    Some((device.to_owned(), at))
}

/// A path as tables of the kernel have it, where spaces and such are octal.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let octal = after.get(..3).filter(|_| *byte == b'\\');
        let octal = octal.and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn swaps(root: &Root, devices: &Devices, users: &mut BTreeSet<User>) {
    let table = root.text("/proc/swaps").unwrap_or_default();
    for line in table.lines().skip(1) {
        let path = unescaped(line.split_whitespace().next().unwrap_or_default());
        if let Some(device) = devices.at(&root.path(&path)) {
            let device = device.to_owned();
            users.insert(User::Swap { device });
        }
    }
}

fn made_of_it(root: &Root, whole: &str, devices: &Devices, users: &mut BTreeSet<User>) {
    for (device, _) in &devices.0 {
        let directory = match device == whole {
            true => format!("/sys/block/{whole}"),
            false => format!("/sys/block/{whole}/{device}"),
        };
        for name in root.names(&format!("{directory}/holders")) {
            users.insert(User::Device {
                device: device.clone(),
                called: root.text(&format!("/sys/block/{name}/dm/name")),
                name,
            });
        }
    }
    for name in root.names("/sys/block") {
        let backing = root.text(&format!("/sys/block/{name}/loop/backing_file"));
        if let Some(device) = backing.and_then(|path| devices.at(&root.path(&path))) {
            users.insert(User::Device {
                device: device.to_owned(),
                name,
                called: None,
            });
        }
    }
}

fn processes(root: &Root, devices: &Devices, users: &mut BTreeSet<User>) {
    for pid in pids(root) {
        let directory = format!("/proc/{pid}/fd");
        for fd in root.names(&directory) {
            let path = root.path(&format!("{directory}/{fd}"));
            // Only what has a path can be one.
            let target = std::fs::read_link(&path).unwrap_or_default();
            let Some(device) = devices.at(&path).filter(|_| target.is_absolute()) else {
                continue;
            };
            users.insert(User::Process {
                device: device.to_owned(),
                name: root.text(&format!("/proc/{pid}/comm")).unwrap_or_default(),
                pid,
            });
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A machine that a test makes.
    pub struct Machine(pub tempfile::TempDir);

    impl Machine {
        pub fn new() -> Self {
            Machine(tempfile::tempdir().unwrap())
        }

        pub fn root(&self) -> Root {
            Root::at(self.0.path())
        }

        pub fn write(&self, path: &str, text: &str) {
            let path = self.root().path(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }

        pub fn link(&self, path: &str, to: &Path) {
            let path = self.root().path(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(to, path).unwrap();
        }

        /// A block device that no driver is behind. False, with the reason said, where this user can
        /// make none.
        pub fn block_device(&self, path: &str, major: u32, minor: u32) -> bool {
            let path = self.root().path(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            let made = std::process::Command::new("mknod")
                .arg(path)
                .args(["b", &major.to_string(), &minor.to_string()])
                .output();
            let is_made = made.as_ref().is_ok_and(|made| made.status.success());
            if !is_made {
                eprintln!("skipped: no device node can be made here: {made:?}");
            }
            is_made
        }
    }

    #[test]
    fn everybody_who_uses_a_device_or_its_partition_is_named() {
        let machine = Machine::new();
        machine.write("/sys/block/neonsan3/dev", "259:3\n");
        machine.write("/sys/block/neonsan3/neonsan3p1/dev", "259:4\n");
        machine.write("/sys/block/neonsan3/neonsan3p1/holders/dm-0/x", "");
        machine.write("/sys/block/neonsan3/holders/md127/x", "");
        machine.write("/sys/block/dm-0/dm/name", "vg-lv\n");
        machine.write("/sys/block/loop7/loop/backing_file", "/dev/neonsan3\n");
        machine.write("/sys/block/loop8/loop/backing_file", "/srv/image\n");
        if !machine.block_device("/dev/neonsan3", 259, 3)
            || !machine.block_device("/dev/neonsan3p1", 259, 4)
        {
            return;
        }
        let root = machine.root();
        let own = "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
                   36 21 259:4 / /srv/my\\040disk rw - ext4 /dev/neonsan3p1 rw\n\
                   37 21 0:45 /@ /btrfs rw shared:1 - btrfs /dev/neonsan3 rw\n";
        machine.write("/proc/self/mountinfo", own);
        machine.link("/proc/self/ns/mnt", Path::new("mnt:[1]"));
        machine.link("/proc/100/ns/mnt", Path::new("mnt:[1]"));
        machine.write("/proc/100/mountinfo", own);
        let other = "40 1 259:3 / /data rw - xfs /dev/neonsan3 rw\n";
        for pid in ["200", "201"] {
            machine.link(&format!("/proc/{pid}/ns/mnt"), Path::new("mnt:[2]"));
            machine.write(&format!("/proc/{pid}/mountinfo"), other);
        }
        machine.write(
            "/proc/swaps",
            "Filename Type Size Used Priority\n/dev/sda2 partition 1 0 -2\n/dev/neonsan3p1 partition 1 0 -3\n",
        );
        machine.write("/proc/100/comm", "qemu-system-x86\n");
        machine.link("/proc/100/fd/3", &root.path("/dev/neonsan3"));
        machine.link("/proc/100/fd/4", &root.path("/dev/neonsan3"));
        machine.link("/proc/100/fd/5", Path::new("socket:[7]"));
        machine.link("/proc/200/fd/0", Path::new("/dev/null"));

        let users = of_device(&root, "neonsan3");
        let said: Vec<_> = users.iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "neonsan3 is mounted at /btrfs",
                "neonsan3 is mounted at /data (in a mount namespace of its own, see process 200)",
                "neonsan3p1 is mounted at /srv/my disk",
                "neonsan3p1 is swap (swapoff)",
                "loop7 is made of neonsan3",
                "md127 is made of neonsan3",
                "dm-0 (vg-lv) is made of neonsan3p1",
                "neonsan3 is open in qemu-system-x86 (process 100)",
            ]
        );
        let json = serde_json::to_value(&users[7]).unwrap();
        assert_eq!(json["kind"], "process");
        assert_eq!(json["pid"], 100);
        assert!(of_device(&root, "neonsan4").is_empty());
    }

    #[test]
    fn the_disk_of_a_partition_is_found_by_its_path() {
        let machine = Machine::new();
        machine.write("/sys/devices/pci/block/sda/dev", "8:0\n");
        machine.write("/sys/devices/pci/block/sda/sda1/dev", "8:1\n");
        machine.write("/sys/devices/pci/block/sda/sda1/partition", "1\n");
        machine.link("/sys/block/sda", Path::new("../devices/pci/block/sda"));
        machine.link(
            "/sys/dev/block/8:0",
            Path::new("../../devices/pci/block/sda"),
        );
        machine.link(
            "/sys/dev/block/8:1",
            Path::new("../../devices/pci/block/sda/sda1"),
        );
        machine.write(
            "/proc/self/mountinfo",
            "36 21 8:1 / /srv rw - ext4 /dev/sda1 rw\n",
        );
        if !machine.block_device("/dev/sda", 8, 0) || !machine.block_device("/dev/sda1", 8, 1) {
            return;
        }
        let root = machine.root();
        for path in ["/dev/sda", "/dev/sda1"] {
            let users = of_path(&root, &root.path(path));
            assert_eq!(
                sentence(&users).unwrap(),
                "sda1 is mounted at /srv",
                "{path}"
            );
        }
        machine.write("/srv/file", "");
        assert!(of_path(&root, &root.path("/srv/file")).is_empty());
    }

    #[test]
    fn many_are_not_all_named() {
        let user = |pid| User::Process {
            device: "neonsan0".into(),
            name: "x".into(),
            pid,
        };
        let users: Vec<_> = (1..=20).map(user).collect();
        let said = sentence(&users).unwrap();
        assert!(said.ends_with("(process 8); and 12 more"), "{said}");
        assert_eq!(sentence(&[]), None);
    }

    #[test]
    fn paths_in_tables_are_read() {
        assert_eq!(unescaped("/a\\040b\\134c"), "/a b\\c");
        assert_eq!(unescaped("/a\\0"), "/a\\0");
        assert_eq!(unescaped("/a\\999"), "/a\\999");
    }
}
