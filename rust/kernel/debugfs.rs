// SPDX-License-Identifier: GPL-2.0

//! State dumps in debugfs.
//!
//! Upstream's `kernel::debugfs` would do but for one thing: its files have no owner, so a file
//! that is still open when the module goes away calls into freed memory when it is closed. Here a
//! file names its module, which cannot go away while one is open.
//!
//! Without debugfs, or when it refuses, there are no files and nothing fails.
//!
//! C header: `include/linux/debugfs.h`

use kernel::bindings;
use kernel::fmt;
use kernel::prelude::*;
use kernel::seq_file::SeqFile;
use kernel::seq_print;
use kernel::sync::Arc;

/// An entry of debugfs, taken away with all below it when dropped.
///
/// # Invariants
///
/// Null, an error pointer, or an entry that only this removes.
struct Entry(*mut bindings::dentry);

// SAFETY: debugfs does its own locking.
unsafe impl Send for Entry {}
// SAFETY: As above.
unsafe impl Sync for Entry {}

impl Drop for Entry {
    fn drop(&mut self) {
        // SAFETY: By the invariant; null and errors are allowed. Waits for calls into the files.
        unsafe { bindings::debugfs_remove(self.0) };
    }
}

/// A directory. What is in it keeps it.
#[derive(Clone)]
pub struct Dir(Arc<Entry>);

impl Dir {
    /// A directory at the top of debugfs, or in `parent`.
    ///
    /// # Errors
    ///
    /// `ENOMEM` only.
    pub fn new(name: &CStr, parent: Option<&Dir>) -> Result<Self> {
        let parent = parent.map_or(core::ptr::null_mut(), |dir| dir.0 .0);
        // SAFETY: The name is a C string; the parent is null, an error (which makes another error)
        // or a directory that the caller holds.
        let entry = unsafe { bindings::debugfs_create_dir(name.as_char_ptr(), parent) };
        // INVARIANT: It was just made, or is an error.
        Ok(Dir(Arc::new(Entry(entry), GFP_KERNEL)?))
    }
}

/// What a file shows.
pub trait Show: Send + Sync + 'static {
    /// The module of the implementation.
    const MODULE: &'static ThisModule;

    /// Writes the text. May sleep; may be called several times for one read, when the text is
    /// longer than the buffer was.
    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;
}

/// A file that root can read, taken away when dropped.
pub struct File<T: Show> {
    // Fields are dropped in order: the entry, then what its file shows.
    _entry: Entry,
    _dir: Dir,
    _shown: Arc<T>,
}

impl<T: Show> File<T> {
    const OPERATIONS: bindings::file_operations = bindings::file_operations {
        owner: T::MODULE.as_ptr(),
        open: Some(open::<T>),
        read: Some(bindings::seq_read),
        llseek: Some(bindings::seq_lseek),
        release: Some(bindings::single_release),
        ..pin_init::zeroed()
    };

    /// A file in `dir` that shows `shown`.
    pub fn new(name: &CStr, dir: &Dir, shown: Arc<T>) -> Self {
        // SAFETY: The name is a C string, and `dir` is held by the file. The file's data is what
        // `open` expects, and lives until after the entry is gone. The operations are static.
        let entry = unsafe {
            bindings::debugfs_create_file_full(
                name.as_char_ptr(),
                0o400,
                dir.0 .0,
                core::ptr::from_ref::<T>(&shown).cast_mut().cast(),
                core::ptr::null(),
                &Self::OPERATIONS,
            )
        };
        // INVARIANT: It was just made, or is an error.
        File {
            _entry: Entry(entry),
            _dir: dir.clone(),
            _shown: shown,
        }
    }
}

/// # Safety
///
/// For debugfs alone, as `open` of a file whose data is a `T`.
unsafe extern "C" fn open<T: Show>(
    inode: *mut bindings::inode,
    file: *mut bindings::file,
) -> c_int {
    // SAFETY: debugfs passes an inode and a file of ours, and keeps the entry while this runs;
    // `show` is called with the data that is set here.
    unsafe { bindings::single_open(file, Some(show::<T>), (*inode).i_private) }
}

/// Lets `T` write into the formatter.
struct Shown<'a, T>(&'a T);

impl<T: Show> fmt::Display for Shown<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.show(f)
    }
}

/// # Safety
///
/// For `seq_file` alone, with private data set by [`open`].
unsafe extern "C" fn show<T: Show>(seq: *mut bindings::seq_file, _: *mut c_void) -> c_int {
    // SAFETY: `open` set the private data to a `T` that lives until the entry is gone, which waits
    // for this call; only this call uses `seq` meanwhile.
    let (seq, shown) = unsafe { (SeqFile::from_raw(seq), &*(*seq).private.cast::<T>()) };
    seq_print!(seq, "{}", Shown(shown));
    0
}
