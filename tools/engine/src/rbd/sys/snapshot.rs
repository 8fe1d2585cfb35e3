// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Snapshots and clones of images.

use std::ffi::{c_int, c_void, CString};
use std::ptr;

use super::cluster::text;
use super::image::no_progress;
use super::{
    c_string, check, failure, growing, Image, LinkedImage, Pool, SnapInfo, SnapSpec, Timespec,
    CLONE_FORMAT, IMAGE_FEATURES, IMAGE_OPTION_CLONE_FORMAT, IMAGE_OPTION_FEATURES,
    SNAP_NAMESPACE_USER,
};
use crate::Result;

/// A snapshot of an image, as Ceph knows it.
#[derive(Clone, Debug)]
pub(crate) struct ImageSnapshot {
    /// Its number, which no other snapshot of the image ever has.
    pub(crate) id: u64,
    pub(crate) name: String,
    pub(crate) size_bytes: u64,
    pub(crate) created_unix_s: u64,
}

/// An image that another one was cloned from, or that was cloned from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Relative {
    pub(crate) pool: String,
    pub(crate) namespace: String,
    pub(crate) image: String,
}

impl Relative {
    /// A copy of what librbd has filled in.
    fn copy(spec: &LinkedImage) -> Self {
        Self {
            pool: text(spec.pool_name),
            namespace: text(spec.pool_namespace),
            image: text(spec.image_name),
        }
    }
}

impl Image {
    /// The image's snapshots that people made, in no order.
    pub(crate) fn snapshots(&self) -> Result<Vec<ImageSnapshot>> {
        let functions = self.functions();
        let empty = SnapInfo {
            id: 0,
            size: 0,
            name: ptr::null(),
        };
        let (mut infos, _) = growing(32, "the snapshots of an image", |capacity, len| {
            let mut infos = vec![empty; capacity];
            let mut max = c_int::try_from(capacity).unwrap_or(c_int::MAX);
            // SAFETY: By the invariants; `infos` has `max` elements.
            let code =
                unsafe { (functions.rbd_snap_list)(self.handle, infos.as_mut_ptr(), &mut max) };
            let filled = if code < 0 { max } else { code };
            *len = usize::try_from(filled).unwrap_or(0);
            (code, infos)
        })?;
        let filled: Vec<(u64, u64, String)> = infos
            .iter()
            .take_while(|info| !info.name.is_null())
            .map(|info| (info.id, info.size, text(info.name)))
            .collect();
        // SAFETY: `rbd_snap_list` has filled the elements, with an empty one at
        // the end, since it wants room for that one too.
        unsafe { (functions.rbd_snap_list_end)(infos.as_mut_ptr()) };
        let mut snapshots = Vec::new();
        for (id, size_bytes, name) in filled {
            let mut kind = SNAP_NAMESPACE_USER;
            let mut time = Timespec { sec: 0, nsec: 0 };
            // SAFETY: By the invariants; `kind` is ours to fill.
            let code =
                unsafe { (functions.rbd_snap_get_namespace_type)(self.handle, id, &mut kind) };
            // Deleted since it was listed.
            if code == -libc::ENOENT {
                continue;
            }
            check(code, || format!("cannot get the kind of snapshot {name}"))?;
            if kind != SNAP_NAMESPACE_USER {
                continue;
            }
            // SAFETY: By the invariants; `time` is ours to fill.
            let code = unsafe { (functions.rbd_snap_get_timestamp)(self.handle, id, &mut time) };
            if code == -libc::ENOENT {
                continue;
            }
            check(code, || format!("cannot get the time of snapshot {name}"))?;
            snapshots.push(ImageSnapshot {
                id,
                name,
                size_bytes,
                created_unix_s: u64::try_from(time.sec).unwrap_or(0),
            });
        }
        Ok(snapshots)
    }

    /// Makes a snapshot. librbd holds writes back meanwhile. Blocks.
    ///
    /// # Errors
    ///
    /// [`AlreadyExists`](crate::ErrorKind::AlreadyExists).
    pub(crate) fn create_snapshot(&self, name: &str) -> Result<()> {
        let c_name = c_string(name)?;
        let create = self.functions().rbd_snap_create2;
        // SAFETY: By the invariants; the callback needs no argument.
        let code = unsafe {
            create(
                self.handle,
                c_name.as_ptr(),
                0,
                no_progress,
                ptr::null_mut(),
            )
        };
        check(code, || format!("cannot make the snapshot {name}")).map(drop)
    }

    /// Removes a snapshot. Blocks.
    pub(crate) fn remove_snapshot(&self, name: &str) -> Result<()> {
        let c_name = c_string(name)?;
        // SAFETY: By the invariants.
        let code = unsafe { (self.functions().rbd_snap_remove)(self.handle, c_name.as_ptr()) };
        check(code, || format!("cannot delete the snapshot {name}")).map(drop)
    }

    /// Gives the image the content and size of a snapshot, object by object.
    /// Blocks, for long.
    pub(crate) fn roll_back(&self, name: &str) -> Result<()> {
        let c_name = c_string(name)?;
        let roll_back = self.functions().rbd_snap_rollback_with_progress;
        // SAFETY: By the invariants; the callback needs no argument.
        let code = unsafe { roll_back(self.handle, c_name.as_ptr(), no_progress, ptr::null_mut()) };
        check(code, || format!("cannot roll back to the snapshot {name}")).map(drop)
    }

    /// Copies everything that the image shares with its parent. Blocks, for
    /// long.
    pub(crate) fn flatten(&self) -> Result<()> {
        // SAFETY: By the invariants; the callback needs no argument.
        let code = unsafe {
            (self.functions().rbd_flatten_with_progress)(self.handle, no_progress, ptr::null_mut())
        };
        check(code, || "cannot flatten an image".to_owned()).map(drop)
    }

    /// Looks at a snapshot from now on. Only for images opened to look at them.
    pub(crate) fn set_snapshot(&self, name: &str) -> Result<()> {
        let c_name = c_string(name)?;
        // SAFETY: By the invariants.
        let code = unsafe { (self.functions().rbd_snap_set)(self.handle, c_name.as_ptr()) };
        check(code, || format!("cannot look at the snapshot {name}")).map(drop)
    }

    /// The images that were cloned from the snapshot that is set, and still
    /// need it.
    pub(crate) fn children(&self) -> Result<Vec<Relative>> {
        let functions = self.functions();
        let (mut specs, len) = growing(32, "the clones of a snapshot", |capacity, len| {
            let mut specs = vec![LinkedImage::EMPTY; capacity];
            // SAFETY: By the invariants; `specs` has `len` elements.
            let code =
                unsafe { (functions.rbd_list_children3)(self.handle, specs.as_mut_ptr(), len) };
            (code, specs)
        })?;
        let children = specs[..len].iter().map(Relative::copy).collect();
        // SAFETY: `rbd_list_children3` has filled `len` elements.
        unsafe { (functions.rbd_linked_image_spec_list_cleanup)(specs.as_mut_ptr(), len) };
        Ok(children)
    }

    /// The image and snapshot that this one was cloned from and needs.
    pub(crate) fn parent(&self) -> Result<Option<(Relative, String)>> {
        let functions = self.functions();
        let mut image = LinkedImage::EMPTY;
        let mut snapshot = SnapSpec {
            id: 0,
            namespace_type: SNAP_NAMESPACE_USER,
            name: ptr::null_mut(),
        };
        // SAFETY: By the invariants; both are ours to fill.
        let code = unsafe { (functions.rbd_get_parent)(self.handle, &mut image, &mut snapshot) };
        if code == -libc::ENOENT {
            return Ok(None);
        }
        check(code, || "cannot get the parent of an image".to_owned())?;
        let parent = (Relative::copy(&image), text(snapshot.name));
        // SAFETY: `rbd_get_parent` has filled both.
        unsafe {
            (functions.rbd_linked_image_spec_cleanup)(&mut image);
            (functions.rbd_snap_spec_cleanup)(&mut snapshot);
        }
        Ok(Some(parent))
    }

    /// Removes a value of the image's metadata; no error if there is none.
    pub(crate) fn remove_metadata(&self, key: &str) -> Result<()> {
        let c_key = c_string(key)?;
        // SAFETY: By the invariants.
        let code = unsafe { (self.functions().rbd_metadata_remove)(self.handle, c_key.as_ptr()) };
        match code {
            code if code == -libc::ENOENT => Ok(()),
            code => check(code, || format!("cannot remove {key} of an image")).map(drop),
        }
    }
}

impl Pool {
    /// Makes the image `to` in `target` from a snapshot of an image of this
    /// pool. The format is that in which a snapshot need not be protected, and
    /// which reaches over namespaces (Ceph 13).
    pub(crate) fn clone_image(
        &self,
        image: &str,
        snapshot: &str,
        target: &Pool,
        to: &str,
    ) -> Result<()> {
        let functions = self.functions();
        let names: [CString; 3] = [c_string(image)?, c_string(snapshot)?, c_string(to)?];
        let mut options: *mut c_void = ptr::null_mut();
        // SAFETY: `options` is ours to fill, is filled when the call returns,
        // and is destroyed once, after its last use. The pools are open.
        let code = unsafe {
            (functions.rbd_image_options_create)(&mut options);
            let set = functions.rbd_image_options_set_uint64;
            set(options, IMAGE_OPTION_FEATURES, IMAGE_FEATURES);
            set(options, IMAGE_OPTION_CLONE_FORMAT, CLONE_FORMAT);
            let code = (functions.rbd_clone3)(
                self.handle,
                names[0].as_ptr(),
                names[1].as_ptr(),
                target.handle,
                names[2].as_ptr(),
                options,
            );
            (functions.rbd_image_options_destroy)(options);
            code
        };
        if code < 0 {
            return Err(failure(code, format!("cannot clone {image}@{snapshot}")));
        }
        Ok(())
    }
}
