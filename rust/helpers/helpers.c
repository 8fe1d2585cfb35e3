// SPDX-License-Identifier: GPL-2.0
/*
 * The C one-liners behind rust/kernel: what in the kernel's headers is an inline
 * function, a macro or a field whose name differs between versions. No logic.
 *
 * Each file wraps one subsystem. Functions are named neonsan_helper_<C name>; the
 * Rust side sees them without the prefix. This file is read twice: compiled by
 * the C compiler into the module, and by bindgen for the declarations.
 */
#include <linux/version.h>

#include "block.c"
#include "disk.c"
#include "mm.c"
#include "net.c"
#include "netlink.c"
#include "sync.c"
#include "workqueue.c"
