#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# rmmod takes away what is attached but not open, in order, and refuses while a device is open
. "$TEST_LIB"

node_start
volume test/unload 64M
attach test/unload
dd if=/dev/urandom of="$DEVICE" bs=1M count=4 oflag=direct status=none
before=$(dd if="$DEVICE" bs=1M count=4 iflag=direct status=none | sha256sum)
exec 7<"$DEVICE"
expect_error 'in use|Resource temporarily unavailable|busy' rmmod neonsan
exec 7<&-
watch_start events
# udev may still be looking at what was closed just now.
wait_for 20 "rmmod with an unopened device" rmmod neonsan
[ ! -e "/sys/block/$DISK" ] || fail "the disk is still there"
wait_for 10 "the event that the device is gone" grep -q '"event":"detached"' events
insmod /payload/neonsan.ko
# Its session ended in order, so the volume is free at once.
attach test/unload
equal "the content" "$(dd if="$DEVICE" bs=1M count=4 iflag=direct status=none | sha256sum)" "$before"
detach
