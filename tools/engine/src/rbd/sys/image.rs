// SPDX-License-Identifier: GPL-2.0 OR MIT
//! An open image.

use std::ffi::{c_char, c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;
use std::time::Duration;

use super::cluster::text;
use super::{
    c_string, check, failure, growing, Functions, Handle, ImageInfo, ImageWatcher, Pool, Timespec,
    LOCK_MODE_EXCLUSIVE,
};
use crate::Result;

/// What an image is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Looking at it. The cluster does not notice.
    Read,
    /// Everything. The client watches the image from then on.
    Write,
}

/// An open image. Dropping it waits for the requests in flight, then closes
/// it, which blocks: not for threads that do I/O.
///
/// # Invariants
///
/// * `handle` came from `rbd_open` or `rbd_open_read_only` with `pool`, and is
///   not closed.
/// * `in_flight` is the number of requests that librbd has.
pub(crate) struct Image {
    pub(super) handle: Handle,
    pub(super) pool: Arc<Pool>,
    pub(super) in_flight: Arc<AtomicUsize>,
}

// SAFETY: librbd says that an `rbd_image_t` may be used by several threads.
unsafe impl Send for Image {}

// SAFETY: As above.
unsafe impl Sync for Image {}

/// Called by librbd while something takes long; it must be there.
pub(super) unsafe extern "C" fn no_progress(_offset: u64, _total: u64, _arg: *mut c_void) -> c_int {
    0
}

/// Adds up the extents that have data; `sum` is a `u64`.
unsafe extern "C" fn add_extent(_at: u64, len: usize, exists: c_int, sum: *mut c_void) -> c_int {
    if exists != 0 {
        // SAFETY: `Image::allocated_bytes` passes the address of its `u64`,
        // which lives until the iteration has ended, and nobody else uses it
        // meanwhile: librbd calls this from one thread at a time.
        let sum = unsafe { &mut *sum.cast::<u64>() };
        *sum = sum.saturating_add(len as u64);
    }
    0
}

impl Image {
    /// Opens an image. Blocks.
    pub(crate) fn open(pool: &Arc<Pool>, name: &str, access: Access) -> Result<Self> {
        Self::open_at(pool, name, None, access)
    }

    /// Opens a snapshot of an image to read it. Blocks.
    pub(crate) fn open_snapshot(pool: &Arc<Pool>, name: &str, snapshot: &str) -> Result<Self> {
        Self::open_at(pool, name, Some(snapshot), Access::Read)
    }

    fn open_at(
        pool: &Arc<Pool>,
        name: &str,
        snapshot: Option<&str>,
        access: Access,
    ) -> Result<Self> {
        let functions = pool.functions();
        let c_name = c_string(name)?;
        let mut handle = ptr::null_mut();
        let open = match access {
            Access::Read => functions.rbd_open_read_only,
            Access::Write => functions.rbd_open,
        };
        let c_snapshot = snapshot.map(c_string).transpose()?;
        let snapshot = c_snapshot.as_ref().map_or(ptr::null(), |s| s.as_ptr());
        // SAFETY: The pool is open, the strings end with a zero byte or are
        // not there, and `handle` is ours to fill.
        let code = unsafe { open(pool.handle, c_name.as_ptr(), &mut handle, snapshot) };
        check(code, || format!("cannot open the image {name}"))?;
        Ok(Self {
            handle,
            pool: Arc::clone(pool),
            in_flight: Arc::default(),
        })
    }

    pub(super) fn functions(&self) -> &'static Functions {
        self.pool.functions()
    }

    /// The number of requests that librbd has, for who watches over that.
    pub(crate) fn in_flight(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.in_flight)
    }

    /// Size and object size in bytes.
    pub(crate) fn sizes(&self) -> Result<(u64, u64)> {
        let mut info = ImageInfo {
            size: 0,
            obj_size: 0,
            num_objs: 0,
            order: 0,
            block_name_prefix: [0; 24],
            parent_pool: 0,
            parent_name: [0; 96],
        };
        // SAFETY: By the invariants; `info` is as long as it is said to be.
        let code =
            unsafe { (self.functions().rbd_stat)(self.handle, &mut info, size_of::<ImageInfo>()) };
        check(code, || "cannot get the size of an image".to_owned())?;
        Ok((info.size, info.obj_size))
    }

    /// When it was made, in seconds since 1970, by the clock of an OSD.
    pub(crate) fn created_unix_s(&self) -> Result<u64> {
        let mut time = Timespec { sec: 0, nsec: 0 };
        // SAFETY: By the invariants; `time` is ours to fill.
        let code = unsafe { (self.functions().rbd_get_create_timestamp)(self.handle, &mut time) };
        check(code, || "cannot get the age of an image".to_owned())?;
        Ok(u64::try_from(time.sec).unwrap_or(0))
    }

    /// Bytes of the objects that there are.
    pub(crate) fn allocated_bytes(&self) -> Result<u64> {
        let (size, _) = self.sizes()?;
        let mut sum = 0u64;
        // SAFETY: By the invariants; `sum` is what `add_extent` expects. With
        // whole objects the object map is asked, not the objects.
        let code = unsafe {
            (self.functions().rbd_diff_iterate2)(
                self.handle,
                ptr::null(),
                0,
                size,
                0,
                1,
                add_extent,
                ptr::from_mut(&mut sum).cast(),
            )
        };
        check(code, || "cannot get the space an image takes".to_owned())?;
        Ok(sum)
    }

    /// Changes the size. Blocks.
    pub(crate) fn resize(&self, size_bytes: u64) -> Result<()> {
        // SAFETY: By the invariants; the callback needs no argument.
        let code = unsafe {
            (self.functions().rbd_resize2)(
                self.handle,
                size_bytes,
                true,
                no_progress,
                ptr::null_mut(),
            )
        };
        check(code, || "cannot resize an image".to_owned()).map(drop)
    }

    /// A value of the image's metadata, as it is in the cluster.
    ///
    /// # Errors
    ///
    /// [`NotFound`](crate::ErrorKind::NotFound) if it has none of that name.
    pub(crate) fn metadata(&self, key: &str) -> Result<String> {
        let c_key = c_string(key)?;
        let (value, _) = growing(4096, key, |capacity, len| {
            // One byte more, so that it ends with a zero byte in any case.
            let mut value = vec![0u8; capacity + 1];
            // SAFETY: By the invariants; `value` has more than `len` bytes.
            let code = unsafe {
                (self.functions().rbd_metadata_get)(
                    self.handle,
                    c_key.as_ptr(),
                    value.as_mut_ptr().cast(),
                    len,
                )
            };
            (code, value)
        })?;
        Ok(text(value.as_ptr().cast()))
    }

    /// Sets a value of the image's metadata, durably. Blocks.
    pub(crate) fn set_metadata(&self, key: &str, value: &str) -> Result<()> {
        let (c_key, c_value) = (c_string(key)?, c_string(value)?);
        // SAFETY: By the invariants.
        let code = unsafe {
            (self.functions().rbd_metadata_set)(self.handle, c_key.as_ptr(), c_value.as_ptr())
        };
        check(code, || format!("cannot set {key} of an image")).map(drop)
    }

    /// The addresses of the clients that watch the image, but for this one.
    pub(crate) fn watchers(&self) -> Result<Vec<String>> {
        let empty = ImageWatcher {
            addr: ptr::null_mut(),
            id: 0,
            cookie: 0,
        };
        let (mut watchers, len) = growing(64, "the watchers of an image", |capacity, len| {
            let mut watchers = vec![empty; capacity];
            // SAFETY: By the invariants; `watchers` has `len` elements.
            let code = unsafe {
                (self.functions().rbd_watchers_list)(self.handle, watchers.as_mut_ptr(), len)
            };
            (code, watchers)
        })?;
        let addresses = watchers[..len].iter().map(|w| text(w.addr)).collect();
        // SAFETY: `rbd_watchers_list` has filled `len` elements.
        unsafe { (self.functions().rbd_watchers_list_cleanup)(watchers.as_mut_ptr(), len) };
        Ok(addresses)
    }

    /// The address of the client which has the exclusive lock, as the cluster
    /// knows it.
    pub(crate) fn lock_owner(&self) -> Result<Option<String>> {
        let mut mode = LOCK_MODE_EXCLUSIVE;
        let mut owners: [*mut c_char; 8] = [ptr::null_mut(); 8];
        let mut len = owners.len();
        // SAFETY: By the invariants; `owners` has `len` elements.
        let code = unsafe {
            (self.functions().rbd_lock_get_owners)(
                self.handle,
                &mut mode,
                owners.as_mut_ptr(),
                &mut len,
            )
        };
        if code == -libc::ENOENT {
            return Ok(None);
        }
        check(code, || "cannot get the owner of an image".to_owned())?;
        let len = len.min(owners.len());
        let owner = owners[..len].first().map(|owner| text(*owner));
        // SAFETY: `rbd_lock_get_owners` has filled `len` elements.
        unsafe { (self.functions().rbd_lock_get_owners_cleanup)(owners.as_mut_ptr(), len) };
        Ok(owner)
    }

    /// Takes the exclusive lock away from `owner`, whose client can do nothing
    /// in the cluster from then on. `Ok(false)`: somebody else is the owner by
    /// now. Blocks.
    pub(crate) fn break_lock(&self, owner: &str) -> Result<bool> {
        let c_owner = c_string(owner)?;
        // SAFETY: By the invariants.
        let code = unsafe {
            (self.functions().rbd_lock_break)(self.handle, LOCK_MODE_EXCLUSIVE, c_owner.as_ptr())
        };
        match code {
            code if code == -libc::EBUSY || code == -libc::ENOENT => Ok(false),
            code if code < 0 => Err(failure(code, format!("cannot break the lock of {owner}"))),
            _ => Ok(true),
        }
    }

    /// Acquires the exclusive lock and keeps it until the image is closed.
    /// `Ok(false)`: another client has it. Blocks, for long if so.
    pub(crate) fn acquire_lock(&self) -> Result<bool> {
        // SAFETY: By the invariants.
        let code = unsafe { (self.functions().rbd_lock_acquire)(self.handle, LOCK_MODE_EXCLUSIVE) };
        match code {
            code if code == -libc::EBUSY || code == -libc::EROFS => Ok(false),
            code => check(code, || "cannot acquire the exclusive lock".to_owned()).map(|_| true),
        }
    }

    /// Whether librbd takes this client for the owner of the exclusive lock.
    pub(crate) fn is_lock_owner(&self) -> Result<bool> {
        let mut is_owner = 0;
        // SAFETY: By the invariants.
        let code =
            unsafe { (self.functions().rbd_is_exclusive_lock_owner)(self.handle, &mut is_owner) };
        check(code, || "cannot get the owner of an image".to_owned())?;
        Ok(is_owner != 0)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // Queues wait for their requests, so that this is zero at once.
        while self.in_flight.load(Ordering::Acquire) > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        // SAFETY: By the invariants, and no request is in flight.
        let code = unsafe { (self.functions().rbd_close)(self.handle) };
        if code < 0 {
            tracing::debug!(error = %failure(code, "closing"), "an image was not closed in order");
        }
    }
}
