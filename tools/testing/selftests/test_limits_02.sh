#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# a read-only attach refuses writes at the device, and reads work
. "$TEST_LIB"

node_start
volume test/ro 16M
attach test/ro
fill "$DEVICE" 1048576 ro
sum=$(head -c 1048576 "$DEVICE" | sha256sum)
detach
attach test/ro --read-only
equal "BLKROGET" "$(blockdev --getro "$DEVICE")" 1
equal "sysfs ro" "$(cat "/sys/block/$DISK/ro")" 1
if dd if=/dev/zero of="$DEVICE" bs=4096 count=1 oflag=direct status=none 2>/dev/null; then fail "a write worked"; fi
# What the kernel lets through (BLKROSET) the session still refuses.
blockdev --setrw "$DEVICE" 2>/dev/null || true
if dd if=/dev/zero of="$DEVICE" bs=4096 count=1 oflag=direct status=none 2>/dev/null; then fail "a write worked after --setrw"; fi
equal "the contents" "$(head -c 1048576 "$DEVICE" | sha256sum)" "$sum"
detach
