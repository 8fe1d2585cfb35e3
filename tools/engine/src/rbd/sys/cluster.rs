// SPDX-License-Identifier: GPL-2.0 OR MIT
//! A client of a Ceph cluster, and a pool of it.

use std::ffi::{c_char, CStr};
use std::path::PathBuf;
use std::ptr;
use std::sync::Arc;

use super::{
    c_string, check, functions, growing, Functions, Handle, ImageSpec, IMAGE_FEATURES,
    IMAGE_OPTION_FEATURES, IMAGE_OPTION_ORDER,
};
use crate::{Error, ErrorKind, Result};

/// How to become a client of a cluster.
#[derive(Clone, Debug)]
pub(crate) struct ClusterOptions {
    /// Ceph's configuration file.
    pub(crate) conf: PathBuf,
    /// The user's keyring; `None`: what the configuration says.
    pub(crate) keyring: Option<PathBuf>,
    /// The user, without `client.`.
    pub(crate) user: String,
    /// How long connecting may take, in seconds.
    pub(crate) connect_timeout_s: u32,
    /// What the cluster has not done after so many seconds is given up: not sent
    /// any more, though it may still be carried out if it was sent. 0: never.
    pub(crate) operation_timeout_s: u32,
    /// Breaking a lock also puts its owner on the cluster's blocklist. Always,
    /// but in tests which prove that they notice when it does not.
    pub(crate) blocklist: bool,
}

/// A client of a cluster. Breaking a lock of one of its images fences all of
/// it, so each term of each volume has its own.
///
/// # Invariants
///
/// `handle` came from `rados_create2`, was connected, and is not shut down.
pub(crate) struct Cluster {
    handle: Handle,
    pub(super) functions: &'static Functions,
    /// See [`ClusterOptions::blocklist`].
    blocklist: bool,
}

/// What the engine relies on. Metadata of the pool and of the image is stronger
/// than what a client says: see [`Image::check_settings`](super::Image::check_settings).
pub(super) fn relied_on(blocklist: bool) -> [(&'static str, &'static str); 5] {
    [
        // An acknowledged write is stored on the replicas.
        ("rbd_cache", "false"),
        ("rbd_persistent_cache_mode", "disabled"),
        (
            "rbd_blocklist_on_break_lock",
            if blocklist { "true" } else { "false" },
        ),
        // Any other value makes breaking a lock fail; the monitors' own
        // default holds then.
        ("rbd_blocklist_expire_seconds", "0"),
        // With "false" librbd writes from our buffers, and a write that a
        // fenced client has sent never completes: its queue would never be
        // drained.
        ("rbd_disable_zero_copy_writes", "true"),
    ]
}

// SAFETY: librados says that a `rados_t` may be used by several threads.
unsafe impl Send for Cluster {}

// SAFETY: As above.
unsafe impl Sync for Cluster {}

impl Cluster {
    /// Connects. Blocks for as long as the options say.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`] without the libraries;
    /// [`ErrorKind::NotPermitted`] for a user or key that the cluster does not
    /// know; what the libraries say else.
    pub(crate) fn connect(options: &ClusterOptions) -> Result<Self> {
        let functions = functions()?;
        let user = format!("client.{}", options.user);
        let (c_user, c_cluster) = (c_string(&user)?, c_string("ceph")?);
        let mut handle = ptr::null_mut();
        // SAFETY: The strings end with a zero byte, and `handle` is ours to fill.
        let code = unsafe {
            (functions.rados_create2)(&mut handle, c_cluster.as_ptr(), c_user.as_ptr(), 0)
        };
        check(code, || "cannot make a client of a Ceph cluster".to_owned())?;
        // INVARIANT: Made just now. A client which is not connected may be
        // shut down too, and nothing else is done with it until it is.
        let cluster = Self {
            handle,
            functions,
            blocklist: options.blocklist,
        };
        cluster.configure(options)?;
        // SAFETY: By the invariants.
        let code = unsafe { (functions.rados_connect)(cluster.handle) };
        check(code, || {
            format!(
                "cannot connect to the Ceph cluster of {} as {user}",
                options.conf.display()
            )
        })?;
        Ok(cluster)
    }

    fn configure(&self, options: &ClusterOptions) -> Result<()> {
        let conf = c_string(&options.conf.to_string_lossy())?;
        // SAFETY: By the invariants; the string ends with a zero byte.
        let code = unsafe { (self.functions.rados_conf_read_file)(self.handle, conf.as_ptr()) };
        check(code, || {
            format!("cannot read {} (engine.NAME.conf)", options.conf.display())
        })?;
        let timeout = options.connect_timeout_s.to_string();
        let operation = options.operation_timeout_s.to_string();
        let settings = [
            ("client_mount_timeout", timeout.as_str()),
            // A request that is given up may be carried out all the same, so its
            // term ends with it; but it is not sent again, however late the
            // cluster can be reached.
            ("rados_osd_op_timeout", operation.as_str()),
            ("rados_mon_op_timeout", operation.as_str()),
            // One for each client would be many, in a directory which the
            // node's user need not be able to write.
            ("admin_socket", ""),
        ];
        for (option, value) in settings.into_iter().chain(relied_on(options.blocklist)) {
            self.set(option, value)?;
        }
        match &options.keyring {
            Some(keyring) => self.set("keyring", &keyring.to_string_lossy()),
            None => Ok(()),
        }
    }

    fn set(&self, option: &str, value: &str) -> Result<()> {
        let (c_option, c_value) = (c_string(option)?, c_string(value)?);
        // SAFETY: By the invariants; the strings end with a zero byte.
        let code = unsafe {
            (self.functions.rados_conf_set)(self.handle, c_option.as_ptr(), c_value.as_ptr())
        };
        check(code, || format!("Ceph does not take {option} = {value}")).map(drop)
    }

    /// What the engine relies on with this client.
    pub(super) fn relied_on(&self) -> [(&'static str, &'static str); 5] {
        relied_on(self.blocklist)
    }

    /// The cluster's identity.
    pub(crate) fn fsid(&self) -> Result<[u8; 16]> {
        let mut text = [0u8; 64];
        // SAFETY: By the invariants; `text` is as long as it is said to be.
        let code = unsafe {
            (self.functions.rados_cluster_fsid)(self.handle, text.as_mut_ptr().cast(), text.len())
        };
        check(code, || {
            "cannot get the identity of the Ceph cluster".to_owned()
        })?;
        let digits: String = CStr::from_bytes_until_nul(&text)
            .map(CStr::to_string_lossy)
            .unwrap_or_default()
            .replace('-', "");
        u128::from_str_radix(&digits, 16)
            .map(u128::to_be_bytes)
            .map_err(|_| Error::new(ErrorKind::Io, "the Ceph cluster's identity is no UUID"))
    }

    /// Waits until this client has the cluster's newest map: the servers which
    /// it talks to get at least that from it, and refuse whom it forbids.
    pub(crate) fn wait_for_latest_osdmap(&self) -> Result<()> {
        // SAFETY: By the invariants.
        let code = unsafe { (self.functions.rados_wait_for_latest_osdmap)(self.handle) };
        check(code, || "cannot get the newest map of OSDs".to_owned()).map(drop)
    }

    /// A pool, and a namespace in it (empty: the default one).
    pub(crate) fn pool(self: &Arc<Self>, pool: &str, namespace: &str) -> Result<Pool> {
        let c_pool = c_string(pool)?;
        let c_namespace = c_string(namespace)?;
        let mut handle = ptr::null_mut();
        // SAFETY: By the invariants; `handle` is ours to fill.
        let code = unsafe {
            (self.functions.rados_ioctx_create)(self.handle, c_pool.as_ptr(), &mut handle)
        };
        check(code, || format!("cannot open the Ceph pool {pool}"))?;
        // SAFETY: `handle` was made just now.
        unsafe { (self.functions.rados_ioctx_set_namespace)(handle, c_namespace.as_ptr()) };
        Ok(Pool {
            handle,
            cluster: Arc::clone(self),
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // SAFETY: By the invariants. Pools keep the cluster alive, so there is
        // none left.
        unsafe { (self.functions.rados_shutdown)(self.handle) };
    }
}

/// A pool with a namespace.
///
/// # Invariants
///
/// `handle` came from `rados_ioctx_create` of `cluster`, and is not destroyed.
pub(crate) struct Pool {
    pub(super) handle: Handle,
    pub(super) cluster: Arc<Cluster>,
}

// SAFETY: A `rados_ioctx_t` may be used by several threads as long as nobody
// changes its namespace or locator, which nobody does once it is made.
unsafe impl Send for Pool {}

// SAFETY: As above.
unsafe impl Sync for Pool {}

impl Pool {
    pub(super) fn functions(&self) -> &'static Functions {
        self.cluster.functions
    }

    /// Makes a namespace.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::AlreadyExists`].
    pub(crate) fn create_namespace(&self, name: &str) -> Result<()> {
        let c_name = c_string(name)?;
        // SAFETY: By the invariants.
        let code = unsafe { (self.functions().rbd_namespace_create)(self.handle, c_name.as_ptr()) };
        check(code, || format!("cannot make the namespace {name}")).map(drop)
    }

    /// The names of all namespaces but the default one.
    pub(crate) fn namespaces(&self) -> Result<Vec<String>> {
        let (names, len) = growing(1024, "the namespaces", |capacity, len| {
            let mut names = vec![0u8; capacity];
            // SAFETY: By the invariants; `names` has `len` bytes.
            let code = unsafe {
                (self.functions().rbd_namespace_list)(self.handle, names.as_mut_ptr().cast(), len)
            };
            (code, names)
        })?;
        // One after the other, each with a zero byte behind it.
        Ok(names[..len]
            .split(|b| *b == 0)
            .filter(|name| !name.is_empty())
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect())
    }

    /// The names of all images.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::NotFound`] if there is no such namespace.
    pub(crate) fn images(&self) -> Result<Vec<String>> {
        let empty = ImageSpec {
            id: ptr::null_mut(),
            name: ptr::null_mut(),
        };
        let (mut specs, len) = growing(256, "the images", |capacity, len| {
            let mut specs = vec![empty; capacity];
            // SAFETY: By the invariants; `specs` has `len` elements.
            let code =
                unsafe { (self.functions().rbd_list2)(self.handle, specs.as_mut_ptr(), len) };
            (code, specs)
        })?;
        let names = specs[..len].iter().map(|spec| text(spec.name)).collect();
        // SAFETY: `rbd_list2` has filled `len` elements.
        unsafe { (self.functions().rbd_image_spec_list_cleanup)(specs.as_mut_ptr(), len) };
        Ok(names)
    }

    /// Makes an image of zeroes with objects of `1 << order` bytes.
    pub(crate) fn create_image(&self, name: &str, size_bytes: u64, order: u32) -> Result<()> {
        let functions = self.functions();
        let c_name = c_string(name)?;
        let mut options = ptr::null_mut();
        // SAFETY: `options` is ours to fill, is filled when the call returns,
        // and is destroyed once, after its last use.
        let code = unsafe {
            (functions.rbd_image_options_create)(&mut options);
            let set = functions.rbd_image_options_set_uint64;
            set(options, IMAGE_OPTION_FEATURES, IMAGE_FEATURES);
            set(options, IMAGE_OPTION_ORDER, u64::from(order));
            let code = (functions.rbd_create4)(self.handle, c_name.as_ptr(), size_bytes, options);
            (functions.rbd_image_options_destroy)(options);
            code
        };
        check(code, || format!("cannot make the image {name}")).map(drop)
    }

    /// Gives an image another name.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::AlreadyExists`] if there is an image of that name.
    pub(crate) fn rename_image(&self, from: &str, to: &str) -> Result<()> {
        let (c_from, c_to) = (c_string(from)?, c_string(to)?);
        // SAFETY: By the invariants.
        let code =
            unsafe { (self.functions().rbd_rename)(self.handle, c_from.as_ptr(), c_to.as_ptr()) };
        check(code, || format!("cannot name the image {to}")).map(drop)
    }

    /// Removes an image.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Busy`] if a client has it open, or if it has snapshots.
    pub(crate) fn remove_image(&self, name: &str) -> Result<()> {
        let c_name = c_string(name)?;
        // SAFETY: By the invariants.
        let code = unsafe { (self.functions().rbd_remove)(self.handle, c_name.as_ptr()) };
        check(code, || format!("cannot remove the image {name}")).map(drop)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: By the invariants. Images keep the pool alive, so there is
        // none left.
        unsafe { (self.functions().rados_ioctx_destroy)(self.handle) };
    }
}

/// A copy of a C string; empty for no string.
pub(super) fn text(string: *const c_char) -> String {
    if string.is_null() {
        return String::new();
    }
    // SAFETY: Callers pass what a library has filled in as a string, and has
    // not freed yet.
    unsafe { CStr::from_ptr(string) }
        .to_string_lossy()
        .into_owned()
}
