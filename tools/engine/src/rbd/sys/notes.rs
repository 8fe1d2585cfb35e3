// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Keys and values of an object, by which clients of a pool tell each other
//! things. Each call is one transaction of the cluster.

use std::ffi::{c_char, c_int};
use std::ptr;

use super::{c_string, check, Functions, Handle, Pool};
use crate::Result;

/// Most keys that are read.
const MAX_KEYS: u64 = 1000;

/// `LIBRADOS_CMPXATTR_OP_EQ`.
const EQUAL: u8 = 1;

impl Pool {
    /// Sets the value of a key. Blocks.
    pub(crate) fn set_key(&self, object: &str, key: &str, value: &str) -> Result<()> {
        let keys: [*const c_char; 1] = [key.as_ptr().cast()];
        let values: [*const c_char; 1] = [value.as_ptr().cast()];
        // SAFETY: One key and one value of these lengths are valid until the
        // operation, which copies them, is released.
        let code = self.write_object(object, |functions, operation| unsafe {
            (functions.rados_write_op_omap_set2)(
                operation,
                keys.as_ptr(),
                values.as_ptr(),
                [key.len()].as_ptr(),
                [value.len()].as_ptr(),
                1,
            );
        })?;
        check(code, || format!("cannot write to the object {object}")).map(drop)
    }

    /// Removes a key if it has this value; nothing happens if not. Blocks.
    pub(crate) fn remove_key(&self, object: &str, key: &str, value: &str) -> Result<()> {
        // One with a zero byte at the end, but the length says where it ends.
        let c_key = c_string(key)?;
        let keys: [*const c_char; 1] = [c_key.as_ptr()];
        let mut compared = 0;
        // SAFETY: Key, value and `compared` are valid until the operation is
        // released.
        let code = self.write_object(object, |functions, operation| unsafe {
            (functions.rados_write_op_omap_cmp2)(
                operation,
                c_key.as_ptr(),
                EQUAL,
                value.as_ptr().cast(),
                key.len(),
                value.len(),
                &mut compared,
            );
            (functions.rados_write_op_omap_rm_keys2)(
                operation,
                keys.as_ptr(),
                [key.len()].as_ptr(),
                1,
            );
        })?;
        match -code {
            libc::ECANCELED | libc::ENOENT => Ok(()),
            _ => check(code, || format!("cannot write to the object {object}")).map(drop),
        }
    }

    /// Carries out one write operation on an object, of the steps that `add`
    /// adds to it, and returns what the cluster answers. Blocks.
    fn write_object(&self, object: &str, add: impl FnOnce(&Functions, Handle)) -> Result<c_int> {
        let functions = self.functions();
        let object = c_string(object)?;
        // SAFETY: Creating one needs nothing.
        let operation = unsafe { (functions.rados_create_write_op)() };
        add(functions, operation);
        // SAFETY: The pool is open, the operation is valid, and not used after
        // its release.
        let code = unsafe {
            let operate = functions.rados_write_op_operate;
            let code = operate(operation, self.handle, object.as_ptr(), ptr::null_mut(), 0);
            (functions.rados_release_write_op)(operation);
            code
        };
        Ok(code)
    }

    /// All keys and values of an object; none if it is not there. Blocks.
    pub(crate) fn keys(&self, object: &str) -> Result<Vec<(String, String)>> {
        let functions = self.functions();
        let c_object = c_string(object)?;
        let mut found = Vec::new();
        let (mut iterator, mut more, mut result) = (ptr::null_mut(), 0, 0);
        // SAFETY: The pool is open; `iterator`, `more` and `result` are ours to
        // fill, and are until the operation is released.
        let code = unsafe {
            let operation = (functions.rados_create_read_op)();
            (functions.rados_read_op_omap_get_vals2)(
                operation,
                c"".as_ptr(),
                c"".as_ptr(),
                MAX_KEYS,
                &mut iterator,
                &mut more,
                &mut result,
            );
            let operate = functions.rados_read_op_operate;
            let code = operate(operation, self.handle, c_object.as_ptr(), 0);
            (functions.rados_release_read_op)(operation);
            code
        };
        if code == -libc::ENOENT {
            return Ok(found);
        }
        check(code, || format!("cannot read the object {object}"))?;
        check(result, || format!("cannot read the object {object}"))?;
        loop {
            let (mut key, mut value) = (ptr::null_mut(), ptr::null_mut());
            let (mut key_len, mut value_len) = (0, 0);
            // SAFETY: The operation has succeeded, so the iterator is valid; the
            // rest is ours to fill.
            let code = unsafe {
                (functions.rados_omap_get_next2)(
                    iterator,
                    &mut key,
                    &mut value,
                    &mut key_len,
                    &mut value_len,
                )
            };
            if code < 0 || key.is_null() || value.is_null() {
                break;
            }
            // SAFETY: Key and value have these lengths, and live as long as the
            // iterator.
            let (key, value) = unsafe {
                (
                    std::slice::from_raw_parts(key.cast::<u8>(), key_len),
                    std::slice::from_raw_parts(value.cast::<u8>(), value_len),
                )
            };
            found.push((
                String::from_utf8_lossy(key).into_owned(),
                String::from_utf8_lossy(value).into_owned(),
            ));
        }
        // SAFETY: The iterator is valid, and not used after this.
        unsafe { (functions.rados_omap_get_end)(iterator) };
        Ok(found)
    }
}
