// SPDX-License-Identifier: GPL-2.0

//! The module itself.
//!
//! C header: `include/linux/export.h`.

use kernel::prelude::*;

/// The module that this crate is part of.
///
/// Upstream has it as `ModuleMetadata::THIS_MODULE` from 7.3 on, and as a static of the driver's crate
/// before.
pub const THIS_MODULE: ThisModule = {
    // SAFETY: The kernel makes `__this_module` when it loads the module; it lives until the module is
    // unloaded.
    unsafe { ThisModule::from_ptr(&raw mut kernel::bindings::__this_module) }
};
