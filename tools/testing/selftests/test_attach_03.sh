#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# a device in use: detach refuses and says so, rmmod refuses, force works
. "$TEST_LIB"

node_start
volume test/busy 64M
attach test/busy
mkfs.ext4 -q "$DEVICE"
mkdir -p mnt
mount "$DEVICE" mnt
at_exit umount -l mnt
expect_error 'in use|busy|open' neonsan-detach "$DEVICE"
equal "the state after the refusal" "$(info .state)" live
expect_error 'in use|Resource temporarily unavailable|busy' rmmod neonsan
echo still here >mnt/file
sync
umount mnt
detach
attach test/busy
exec 7<"$DEVICE"
neonsan-detach --force "$DEVICE" || fail "forced detach of an open device"
[ ! -e "/sys/block/$DISK" ] || fail "the disk is still there"
# The kernel answers with an error, or with the end of a disk that has no size.
equal "bytes read after a forced detach" "$(dd bs=4096 count=1 <&7 2>/dev/null | wc -c)" 0
exec 7<&-
