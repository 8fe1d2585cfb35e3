// SPDX-License-Identifier: GPL-2.0 OR MIT
//! A file system whose files can share blocks, for tests of snapshots.

use std::path::PathBuf;
use std::process::Command;

/// A mounted file system; unmounted when it goes out of scope.
pub struct Mount(pub PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.0).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("cannot unmount {}", self.0.display());
        }
    }
}

/// A new XFS, whose files can share blocks, in a file; or why there is none.
pub fn xfs() -> Result<(tempfile::TempDir, Mount), String> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let image = dir.path().join("image");
    let point = dir.path().join("mount");
    std::fs::create_dir(&point).unwrap();
    // As small as mkfs.xfs makes one; it is sparse.
    std::fs::File::create(&image)
        .unwrap()
        .set_len(320 << 20)
        .unwrap();
    let run = |command: &mut Command| match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(format!(
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Err(format!("{command:?}: {error} (is xfsprogs installed?)")),
    };
    run(Command::new("mkfs.xfs")
        .args(["-q", "-m", "reflink=1"])
        .arg(&image))?;
    run(Command::new("mount")
        .args(["-t", "xfs", "-o", "loop"])
        .args([&image, &point]))
    .map_err(|e| format!("mounting needs root and loop devices: {e}"))?;
    Ok((dir, Mount(point)))
}
