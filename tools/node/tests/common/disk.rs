// SPDX-License-Identifier: GPL-2.0 OR MIT
//! A file system of a test's own, in a file, that can go away.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::ioctl::Setter;

/// `EXT4_IOC_SHUTDOWN` and `XFS_IOC_GOINGDOWN`: the same number, and the same argument.
const SHUTDOWN: rustix::ioctl::Opcode = 0x8004_587d;
/// `FIFREEZE` and `FITHAW`, which take no argument.
const FREEZE: rustix::ioctl::Opcode = 0xc004_5877;
const THAW: rustix::ioctl::Opcode = 0xc004_5878;
/// Without a last word to the log: what is not on the disk is lost.
const WITHOUT_LOG: u32 = 2;

/// A file system in a file; unmounted and removed when it goes out of scope.
pub struct Disk {
    kind: &'static str,
    dir: tempfile::TempDir,
    is_mounted: bool,
}

fn run(command: &mut Command) -> Result<(), String> {
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!(
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Err(format!("{command:?}: {error} (is it installed?)")),
    }
}

impl Disk {
    /// A new file system, `ext4` or `xfs`, mounted; or why there is none.
    pub fn new(kind: &'static str) -> Result<Self, String> {
        let dir = super::directory();
        let image = dir.path().join("image");
        // As small as mkfs.xfs makes one; it is sparse.
        File::create(&image).unwrap().set_len(320 << 20).unwrap();
        run(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image))?;
        std::fs::create_dir(dir.path().join("mount")).unwrap();
        let mut disk = Self {
            kind,
            dir,
            is_mounted: false,
        };
        disk.mount()
            .map_err(|e| format!("mounting needs root and loop devices: {e}"))?;
        Ok(disk)
    }

    /// Both kinds; each one that cannot be had is named.
    pub fn each(test: &str) -> Vec<Self> {
        let have = |kind| match Self::new(kind) {
            Ok(disk) => Some(disk),
            Err(reason) => {
                eprintln!("SKIP {test} on {kind}: {reason}");
                None
            }
        };
        ["ext4", "xfs"].into_iter().filter_map(have).collect()
    }

    pub fn kind(&self) -> &'static str {
        self.kind
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("mount")
    }

    pub fn mount(&mut self) -> Result<(), String> {
        run(Command::new("mount")
            .args(["-t", self.kind, "-o", "loop"])
            .args([&self.dir.path().join("image"), &self.path()]))?;
        self.is_mounted = true;
        Ok(())
    }

    /// What a killed process had under way holds it for a moment.
    pub fn unmount(&mut self) {
        let deadline = Instant::now() + super::PATIENCE;
        while let Err(error) = run(Command::new("umount").arg(self.path())) {
            assert!(Instant::now() < deadline, "{error}");
            std::thread::sleep(Duration::from_millis(20));
        }
        self.is_mounted = false;
    }

    /// Unmounted, and mounted again: another superblock.
    pub fn mount_anew(&mut self) {
        self.unmount();
        self.mount().unwrap();
    }

    /// What is written to it by now is on the disk.
    pub fn sync(&self) {
        let root = File::open(self.path()).unwrap();
        rustix::fs::syncfs(&root).unwrap();
    }

    /// Whatever would change it waits, until what this gives goes.
    pub fn freeze(&self) -> Frozen {
        let root = File::open(self.path()).unwrap();
        // SAFETY: The call of this number takes an argument that it does not look at.
        unsafe { rustix::ioctl::ioctl(&root, Setter::<FREEZE, u32>::new(0)).unwrap() };
        Frozen(root)
    }

    /// The device is gone, as far as the file system can tell: nothing is written any more.
    pub fn go_away(&self) {
        let root = File::open(self.path()).unwrap();
        // SAFETY: The call of this number reads one `u32`.
        unsafe {
            rustix::ioctl::ioctl(&root, Setter::<SHUTDOWN, u32>::new(WITHOUT_LOG)).unwrap();
        }
    }
}

/// A file system that changes nothing.
pub struct Frozen(File);

impl Drop for Frozen {
    fn drop(&mut self) {
        // SAFETY: As in `freeze`.
        let result = unsafe { rustix::ioctl::ioctl(&self.0, Setter::<THAW, u32>::new(0)) };
        if let Err(error) = result {
            eprintln!("it stays frozen: {error}");
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.is_mounted {
            if let Err(error) = run(Command::new("umount").arg(self.path())) {
                eprintln!("{error}");
            }
        }
    }
}
