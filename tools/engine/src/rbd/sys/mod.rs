// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Ceph's C libraries, loaded when an engine `rbd` is opened, so that a node
//! without them serves its other engines. All unsafe code of the engine is in
//! this module: the declarations here, and safe types around the handles:
//! [`Cluster`] owns [`Pool`]s, a pool owns [`Image`]s.
//!
//! The declarations follow librados.h and librbd.h of Ceph 16 to 19; nothing
//! newer is used. Every call returns zero or a count, or a negative error
//! number.

mod aio;
mod cluster;
mod image;
mod notes;
mod settings;
mod snapshot;

use std::ffi::{c_char, c_int, c_void, CString};
use std::io;
use std::ptr;
use std::sync::OnceLock;

use libloading::Library;

use crate::{Error, ErrorKind, Result};
use settings::ConfigOption;

pub(super) use aio::{Job, Sink};
pub(super) use cluster::{Cluster, ClusterOptions, Pool};
pub(super) use image::{Access, Image};
pub(super) use snapshot::{ImageSnapshot, Relative};

/// `rados_t`, `rados_ioctx_t`, `rbd_image_t`, `rbd_completion_t`,
/// `rbd_image_options_t`, `rados_write_op_t`, `rados_read_op_t`,
/// `rados_omap_iter_t`: pointers to what only the libraries look into.
type Handle = *mut c_void;

/// `librbd_progress_fn_t`.
type Progress = unsafe extern "C" fn(u64, u64, *mut c_void) -> c_int;

/// `rbd_callback_t`.
type Callback = unsafe extern "C" fn(Handle, *mut c_void);

/// What `rbd_diff_iterate2` calls for each extent: offset, length, whether it
/// has data.
type DiffCallback = unsafe extern "C" fn(u64, usize, c_int, *mut c_void) -> c_int;

/// `rbd_image_spec_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ImageSpec {
    id: *mut c_char,
    name: *mut c_char,
}

/// `rbd_image_watcher_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ImageWatcher {
    addr: *mut c_char,
    id: i64,
    cookie: u64,
}

/// `rbd_image_info_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ImageInfo {
    size: u64,
    obj_size: u64,
    num_objs: u64,
    order: c_int,
    block_name_prefix: [c_char; 24],
    parent_pool: i64,
    parent_name: [c_char; 96],
}

/// `rbd_snap_info_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct SnapInfo {
    id: u64,
    size: u64,
    name: *const c_char,
}

/// `rbd_snap_spec_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct SnapSpec {
    id: u64,
    namespace_type: c_int,
    name: *mut c_char,
}

/// `rbd_linked_image_spec_t`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LinkedImage {
    pool_id: i64,
    pool_name: *mut c_char,
    pool_namespace: *mut c_char,
    image_id: *mut c_char,
    image_name: *mut c_char,
    trash: bool,
}

impl LinkedImage {
    const EMPTY: Self = Self {
        pool_id: 0,
        pool_name: ptr::null_mut(),
        pool_namespace: ptr::null_mut(),
        image_id: ptr::null_mut(),
        image_name: ptr::null_mut(),
        trash: false,
    };
}

/// `struct timespec` of 64-bit systems.
#[repr(C)]
struct Timespec {
    sec: i64,
    nsec: i64,
}

/// `RBD_SNAP_NAMESPACE_TYPE_USER`.
const SNAP_NAMESPACE_USER: c_int = 0;

/// `RBD_IMAGE_OPTION_FEATURES`, `RBD_IMAGE_OPTION_ORDER`,
/// `RBD_IMAGE_OPTION_CLONE_FORMAT`.
const IMAGE_OPTION_FEATURES: c_int = 1;
const IMAGE_OPTION_ORDER: c_int = 2;
const IMAGE_OPTION_CLONE_FORMAT: c_int = 12;

/// See [`Pool::clone_image`].
const CLONE_FORMAT: u64 = 2;

/// layering, exclusive-lock, object-map, fast-diff and deep-flatten: Ceph's
/// own default.
const IMAGE_FEATURES: u64 = 1 | 4 | 8 | 16 | 32;

/// `RBD_LOCK_MODE_EXCLUSIVE`.
const LOCK_MODE_EXCLUSIVE: c_int = 0;

/// `RBD_WRITE_ZEROES_FLAG_THICK_PROVISION`.
const WRITE_ZEROES_THICK: c_int = 1;

macro_rules! functions {
    ($($library:ident { $($name:ident($($arg:ty),*) $(-> $ret:ty)?;)* })*) => {
        /// The functions of both libraries.
        pub(super) struct Functions {
            $($($name: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*)*
        }

        impl Functions {
            fn find($($library: &Library),*) -> std::result::Result<Self, String> {
                $($(
                    // SAFETY: The library's header declares this function so.
                    let $name = unsafe {
                        *$library
                            .get::<unsafe extern "C" fn($($arg),*) $(-> $ret)?>(
                                concat!(stringify!($name), "\0").as_bytes(),
                            )
                            .map_err(|e| format!(
                                "{} is too old for this node: {e}", stringify!($library)))?
                    };
                )*)*
                Ok(Self { $($($name,)*)* })
            }
        }
    };
}

functions! {
    rados {
        rados_create2(*mut Handle, *const c_char, *const c_char, u64) -> c_int;
        rados_conf_read_file(Handle, *const c_char) -> c_int;
        rados_conf_set(Handle, *const c_char, *const c_char) -> c_int;
        rados_connect(Handle) -> c_int;
        rados_shutdown(Handle);
        rados_cluster_fsid(Handle, *mut c_char, usize) -> c_int;
        rados_wait_for_latest_osdmap(Handle) -> c_int;
        rados_ioctx_create(Handle, *const c_char, *mut Handle) -> c_int;
        rados_ioctx_destroy(Handle);
        rados_ioctx_set_namespace(Handle, *const c_char);
        rados_create_write_op() -> Handle;
        rados_release_write_op(Handle);
        rados_write_op_omap_set2(
            Handle, *const *const c_char, *const *const c_char, *const usize, *const usize, usize);
        rados_write_op_omap_cmp2(
            Handle, *const c_char, u8, *const c_char, usize, usize, *mut c_int);
        rados_write_op_omap_rm_keys2(Handle, *const *const c_char, *const usize, usize);
        rados_write_op_operate(Handle, Handle, *const c_char, *mut i64, c_int) -> c_int;
        rados_create_read_op() -> Handle;
        rados_release_read_op(Handle);
        rados_read_op_omap_get_vals2(
            Handle, *const c_char, *const c_char, u64, *mut Handle, *mut u8, *mut c_int);
        rados_read_op_operate(Handle, Handle, *const c_char, c_int) -> c_int;
        rados_omap_get_next2(
            Handle, *mut *mut c_char, *mut *mut c_char, *mut usize, *mut usize) -> c_int;
        rados_omap_get_end(Handle);
    }
    rbd {
        rbd_namespace_create(Handle, *const c_char) -> c_int;
        rbd_namespace_list(Handle, *mut c_char, *mut usize) -> c_int;
        rbd_list2(Handle, *mut ImageSpec, *mut usize) -> c_int;
        rbd_image_spec_list_cleanup(*mut ImageSpec, usize);
        rbd_image_options_create(*mut Handle);
        rbd_image_options_set_uint64(Handle, c_int, u64) -> c_int;
        rbd_image_options_destroy(Handle);
        rbd_create4(Handle, *const c_char, u64, Handle) -> c_int;
        rbd_rename(Handle, *const c_char, *const c_char) -> c_int;
        rbd_remove(Handle, *const c_char) -> c_int;
        rbd_open(Handle, *const c_char, *mut Handle, *const c_char) -> c_int;
        rbd_open_read_only(Handle, *const c_char, *mut Handle, *const c_char) -> c_int;
        rbd_close(Handle) -> c_int;
        rbd_stat(Handle, *mut ImageInfo, usize) -> c_int;
        rbd_get_create_timestamp(Handle, *mut Timespec) -> c_int;
        rbd_resize2(Handle, u64, bool, Progress, *mut c_void) -> c_int;
        rbd_metadata_get(Handle, *const c_char, *mut c_char, *mut usize) -> c_int;
        rbd_metadata_set(Handle, *const c_char, *const c_char) -> c_int;
        rbd_metadata_remove(Handle, *const c_char) -> c_int;
        rbd_snap_list(Handle, *mut SnapInfo, *mut c_int) -> c_int;
        rbd_snap_list_end(*mut SnapInfo);
        rbd_snap_get_namespace_type(Handle, u64, *mut c_int) -> c_int;
        rbd_snap_get_timestamp(Handle, u64, *mut Timespec) -> c_int;
        rbd_snap_create2(Handle, *const c_char, u32, Progress, *mut c_void) -> c_int;
        rbd_snap_remove(Handle, *const c_char) -> c_int;
        rbd_snap_rollback_with_progress(
            Handle, *const c_char, Progress, *mut c_void) -> c_int;
        rbd_snap_set(Handle, *const c_char) -> c_int;
        rbd_flatten_with_progress(Handle, Progress, *mut c_void) -> c_int;
        rbd_clone3(
            Handle, *const c_char, *const c_char, Handle, *const c_char, Handle) -> c_int;
        rbd_list_children3(Handle, *mut LinkedImage, *mut usize) -> c_int;
        rbd_linked_image_spec_list_cleanup(*mut LinkedImage, usize);
        rbd_get_parent(Handle, *mut LinkedImage, *mut SnapSpec) -> c_int;
        rbd_linked_image_spec_cleanup(*mut LinkedImage);
        rbd_snap_spec_cleanup(*mut SnapSpec);
        rbd_diff_iterate2(
            Handle, *const c_char, u64, u64, u8, u8, DiffCallback, *mut c_void) -> c_int;
        rbd_config_image_list(Handle, *mut ConfigOption, *mut c_int) -> c_int;
        rbd_config_image_list_cleanup(*mut ConfigOption, c_int);
        rbd_watchers_list(Handle, *mut ImageWatcher, *mut usize) -> c_int;
        rbd_watchers_list_cleanup(*mut ImageWatcher, usize);
        rbd_lock_get_owners(Handle, *mut c_int, *mut *mut c_char, *mut usize) -> c_int;
        rbd_lock_get_owners_cleanup(*mut *mut c_char, usize);
        rbd_lock_break(Handle, c_int, *const c_char) -> c_int;
        rbd_lock_acquire(Handle, c_int) -> c_int;
        rbd_is_exclusive_lock_owner(Handle, *mut c_int) -> c_int;
        rbd_aio_create_completion(*mut c_void, Callback, *mut Handle) -> c_int;
        rbd_aio_get_return_value(Handle) -> isize;
        rbd_aio_release(Handle);
        rbd_aio_read(Handle, u64, usize, *mut c_char, Handle) -> c_int;
        rbd_aio_write(Handle, u64, usize, *const c_char, Handle) -> c_int;
        rbd_aio_write_zeroes(Handle, u64, usize, Handle, c_int, c_int) -> c_int;
        rbd_aio_flush(Handle, Handle) -> c_int;
    }
}

fn load() -> std::result::Result<Functions, String> {
    let library = |file: &str, package: &str| {
        // SAFETY: Ceph's libraries have initializers that any program may run
        // at any time, like all libraries that a distribution ships.
        unsafe { Library::new(file) }.map_err(|e| {
            format!("the library {file} cannot be loaded (Debian: apt install {package}): {e}")
        })
    };
    let rados = library("librados.so.2", "librados2")?;
    let rbd = library("librbd.so.1", "librbd1")?;
    let functions = Functions::find(&rados, &rbd)?;
    // The functions stay where they are. The libraries have threads and
    // destructors of their own: they are never unloaded.
    std::mem::forget((rados, rbd));
    Ok(functions)
}

/// The libraries, loaded once.
///
/// # Errors
///
/// [`ErrorKind::Unsupported`] where they are not installed, with what to do.
fn functions() -> Result<&'static Functions> {
    static LOADED: OnceLock<std::result::Result<Functions, String>> = OnceLock::new();
    LOADED
        .get_or_init(load)
        .as_ref()
        .map_err(|text| Error::new(ErrorKind::Unsupported, text.clone()))
}

/// The error that a negative result stands for. The one place where Ceph's
/// numbers become kinds.
pub(super) fn failure(code: c_int, context: impl Into<String>) -> Error {
    let number = code.saturating_neg();
    let kind = match number {
        libc::ENOENT => ErrorKind::NotFound,
        libc::EEXIST => ErrorKind::AlreadyExists,
        // Fenced; and a writer without the lock.
        libc::ESHUTDOWN | libc::EROFS => ErrorKind::NotOwner,
        libc::EBUSY | libc::ENOTEMPTY => ErrorKind::Busy,
        libc::ENOSPC | libc::EDQUOT => ErrorKind::NoSpace,
        libc::EACCES | libc::EPERM => ErrorKind::NotPermitted,
        libc::EOPNOTSUPP | libc::ENOSYS => ErrorKind::Unsupported,
        // Given up after the time limit of an operation, or of connecting. It may
        // be carried out later.
        libc::ETIMEDOUT => ErrorKind::Unavailable,
        libc::ENOMEM | libc::EMFILE | libc::ENFILE => ErrorKind::NoResources,
        _ => ErrorKind::Io,
    };
    Error::with_kind(kind, io::Error::from_raw_os_error(number), context)
}

/// `Ok` for what is not negative.
fn check(code: c_int, context: impl FnOnce() -> String) -> Result<c_int> {
    if code < 0 {
        Err(failure(code, context()))
    } else {
        Ok(code)
    }
}

/// Text for C.
fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| {
        Error::new(
            ErrorKind::NotFound,
            format!("{text:?} has a zero byte, so there is nothing of that name"),
        )
    })
}

/// Calls `get` with a growing capacity until what it fills fits: it returns
/// -ERANGE (and the length it wants) when it does not.
fn growing<T>(
    mut capacity: usize,
    what: &str,
    mut get: impl FnMut(usize, &mut usize) -> (c_int, T),
) -> Result<(T, usize)> {
    loop {
        let mut len = capacity;
        let (code, value) = get(capacity, &mut len);
        if code == -libc::ERANGE && capacity < (1 << 24) {
            capacity = len.max(capacity * 2);
            continue;
        }
        check(code, || format!("cannot get {what}"))?;
        return Ok((value, len.min(capacity)));
    }
}
