// SPDX-License-Identifier: GPL-2.0
/*
 * The bodies of the tracepoints, and the functions that Rust calls once its own
 * static branch has found one enabled. Nothing else belongs here.
 */
#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include "trace.h"
