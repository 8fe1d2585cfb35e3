// SPDX-License-Identifier: GPL-2.0 OR MIT
//! A file system that is mounted and answers nobody.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// It is unmounted, and whoever waits for it hears an error, when this goes.
pub struct HungFileSystem {
    at: CString,
    /// Its other end, at which nobody reads.
    fuse: Option<File>,
}

/// `FUSE_INIT` is answered with version 7.31 and small numbers, in a structure of 64 bytes.
const INIT_ANSWER_BYTES: u32 = 16 + 64;

impl HungFileSystem {
    /// Mounts it over a directory. Needs root.
    pub fn over(directory: &Path) -> Self {
        let mut fuse = File::options()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .unwrap();
        let at = CString::new(directory.as_os_str().as_bytes()).unwrap();
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0",
            fuse.as_raw_fd()
        );
        let options = CString::new(options).unwrap();
        let fs = c"fuse";
        // SAFETY: all pointers are to strings that outlive the call.
        let result = unsafe {
            nix::libc::mount(
                c"hung".as_ptr(),
                at.as_ptr(),
                fs.as_ptr(),
                0,
                options.as_ptr().cast(),
            )
        };
        let error = std::io::Error::last_os_error();
        assert_eq!(result, 0, "{error}: run the tests as root");
        let mut request = vec![0; 64 << 10];
        let len = fuse.read(&mut request).unwrap();
        assert!(len >= 16, "{len} bytes are no request");
        let mut answer = Vec::new();
        answer.extend_from_slice(&INIT_ANSWER_BYTES.to_ne_bytes());
        answer.extend_from_slice(&0i32.to_ne_bytes());
        answer.extend_from_slice(&request[8..16]);
        for number in [7u32, 31, 64 << 10, 0] {
            answer.extend_from_slice(&number.to_ne_bytes());
        }
        for number in [16u16, 12] {
            answer.extend_from_slice(&number.to_ne_bytes());
        }
        for number in [4096u32, 1] {
            answer.extend_from_slice(&number.to_ne_bytes());
        }
        answer.resize(INIT_ANSWER_BYTES as usize, 0);
        fuse.write_all(&answer).unwrap();
        Self {
            at,
            fuse: Some(fuse),
        }
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(std::ffi::OsStr::from_bytes(self.at.as_bytes()))
    }
}

impl Drop for HungFileSystem {
    fn drop(&mut self) {
        // Whoever waits is told that there is no connection.
        drop(self.fuse.take());
        // SAFETY: the pointer is to a string that outlives the call.
        unsafe { nix::libc::umount2(self.at.as_ptr(), nix::libc::MNT_DETACH) };
    }
}
