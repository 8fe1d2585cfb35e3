#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# a full disk on the node and a damaged volume file: the error is named, the rest goes on
. "$TEST_LIB"

need_programs
mkdir -p disk
mount -t tmpfs -o size=48m tmpfs disk
at_exit umount -l disk
root_init "$TEST_DIR/disk"
node_config node file 9666
sed -i "s|^path = .*|path = \"$TEST_DIR/disk\"|" "$TEST_DIR/node.toml"
node_start
volume test/full 256M
attach test/full
if dd if=/dev/urandom of="$DEVICE" bs=1M count=100 oflag=direct status=none 2>dd.log; then fail "100 MiB fit on a disk of 48"; fi
grep -qiE 'space|error' dd.log || fail "dd said: $(cat dd.log)"
# What was there before can still be read, and the device lives.
dd if="$DEVICE" of=/dev/null bs=1M count=4 iflag=direct status=none || fail "reads fail on a full disk"
equal "the state" "$(info .state)" live
detach
node_stop
damaged=$(find disk -type f -size +64k | sed -n 1p)
[ -n "$damaged" ] || damaged=$(find disk -type f | sed -n 1p)
truncate -s 1000 "$damaged"
node_start
expect_error 'damaged|truncated|corrupt|shorter|size' neonsan-attach "neonsan://$NODE_DATA/test/full"
