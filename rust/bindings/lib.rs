// SPDX-License-Identifier: GPL-2.0

//! Generated bindings to the kernel C that upstream's `bindings` crate lacks.
//!
//! Only `neonsan_kernel` (rust/kernel) may use this crate: the driver sees safe
//! wrappers. The list of what is generated is in `bindgen_parameters`, the
//! headers are in `bindings_helper.h`, and the functions named
//! `neonsan_helper_*` of rust/helpers appear here without that prefix.

#![allow(
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    clippy::ptr_as_ptr,
    clippy::ref_as_ptr,
    clippy::as_underscore,
    clippy::cast_lossless,
    missing_docs,
    dead_code,
    non_camel_case_types,
    non_upper_case_globals,
    non_snake_case,
    improper_ctypes,
    unreachable_pub,
    unsafe_op_in_unsafe_fn,
    unknown_lints,
    unnecessary_transmutes
)]

mod bindings_raw {
    use kernel::ffi;
    use pin_init::{MaybeZeroable, Zeroable};

    // What bindgen is told to leave out, see bindgen_parameters.
    type __kernel_size_t = usize;
    type __kernel_ssize_t = isize;
    type __kernel_ptrdiff_t = isize;
    pub use kernel::bindings::{lock_class_key, module, tracepoint};

    // SAFETY: `__BindgenBitfieldUnit<Storage>` is a newtype around `Storage`.
    unsafe impl<Storage> Zeroable for __BindgenBitfieldUnit<Storage> where Storage: Zeroable {}

    include!(env!("NEONSAN_BINDINGS"));
}

pub use bindings_raw::*;
