// SPDX-License-Identifier: GPL-2.0

//! Errors that upstream's `kernel::error::code` does not have in every kernel.
//!
//! C header: `include/uapi/asm-generic/errno.h`.

use kernel::prelude::*;

/// The error of the kernel with this C name, such as `errno!(ESTALE)`.
///
/// For those that upstream has as constants from 7.3 on only: the errors above `ERANGE`, but for a few.
/// There is no way to make a constant of one outside upstream's crate.
#[macro_export]
macro_rules! errno {
    ($name:ident) => {
        $crate::error::of_number(::kernel::bindings::$name)
    };
}

/// What [`errno!`] is made of. Not inlined: upstream's function has a message about numbers out of range
/// in it.
#[doc(hidden)]
#[inline(never)]
pub fn of_number(number: u32) -> Error {
    Error::from_errno(-(number as c_int))
}
