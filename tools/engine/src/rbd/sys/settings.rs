// SPDX-License-Identifier: GPL-2.0 OR MIT
//! Settings that are in force for an image. librbd lets metadata of the pool
//! and of the image (`conf_rbd_…`, which `rbd config` writes) overrule what a
//! client has said.

use std::ffi::{c_char, c_int};
use std::ptr;

use super::cluster::text;
use super::{growing, Image};
use crate::{Error, ErrorKind, Result};

/// `rbd_config_option_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ConfigOption {
    name: *mut c_char,
    value: *mut c_char,
    source: c_int,
}

/// `RBD_CONFIG_SOURCE_POOL`, `RBD_CONFIG_SOURCE_IMAGE`.
const SOURCE_POOL: c_int = 1;
const SOURCE_IMAGE: c_int = 2;

/// A value as it is compared: Ceph takes several words for yes and no.
fn plain(value: &str) -> String {
    let value = value.trim().to_ascii_lowercase();
    match value.as_str() {
        "false" | "no" | "off" => "0".to_owned(),
        "true" | "yes" | "on" => "1".to_owned(),
        _ => value,
    }
}

/// What is wrong with a setting, and what to do.
fn complaint(option: &str, value: &str, source: c_int, wanted: &str) -> String {
    let (of, remove) = match source {
        SOURCE_IMAGE => ("of the image", "rbd config image rm"),
        SOURCE_POOL => ("of the pool", "rbd config pool rm"),
        _ => ("", "Ceph's configuration"),
    };
    format!("{option} = {value} {of} must be {wanted} (`{remove} … {option}`)")
}

impl Image {
    /// Refuses an image for which something else is in force than what the
    /// engine relies on. Blocks.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Unsupported`], with every setting and what to do.
    pub(crate) fn check_settings(&self) -> Result<()> {
        let functions = self.functions();
        let empty = ConfigOption {
            name: ptr::null_mut(),
            value: ptr::null_mut(),
            source: 0,
        };
        let (mut options, len) = growing(256, "the settings of an image", |capacity, len| {
            let mut options = vec![empty; capacity];
            let mut max = c_int::try_from(capacity).unwrap_or(c_int::MAX);
            // SAFETY: By the invariants; `options` has `max` elements.
            let code = unsafe {
                (functions.rbd_config_image_list)(self.handle, options.as_mut_ptr(), &mut max)
            };
            *len = usize::try_from(max).unwrap_or(0);
            (code, options)
        })?;
        let relied_on = self.pool.cluster.relied_on();
        let wrong: Vec<String> = options[..len]
            .iter()
            .filter_map(|option| {
                let (name, value) = (text(option.name), text(option.value));
                let (_, wanted) = relied_on.iter().find(|(known, _)| *known == name)?;
                (plain(&value) != plain(wanted))
                    .then(|| complaint(&name, &value, option.source, wanted))
            })
            .collect();
        let filled = c_int::try_from(len).unwrap_or(0);
        // SAFETY: `rbd_config_image_list` has filled `filled` elements.
        unsafe { (functions.rbd_config_image_list_cleanup)(options.as_mut_ptr(), filled) };
        if wrong.is_empty() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "settings in the Ceph cluster would make the volume unsafe: {}",
                wrong.join("; ")
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_yes_and_no_are_alike() {
        for (one, other) in [("false", "0"), ("FALSE", "no"), ("true", "1"), (" 7", "7")] {
            assert_eq!(plain(one), plain(other));
        }
        assert_ne!(plain("false"), plain("true"));
        assert_ne!(plain("disabled"), plain("ssd"));
    }
}
