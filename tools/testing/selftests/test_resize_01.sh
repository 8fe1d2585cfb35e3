#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# an online grow is seen by the device and by a mounted ext4 (resize2fs)
. "$TEST_LIB"

node_start node file
volume test/grow 128M
attach test/grow
mkfs.ext4 -q "$DEVICE"
mkdir -p mnt
mount "$DEVICE" mnt
at_exit umount -l mnt
fill mnt/file 8388608 grow
neonsan volume resize "neonsan://$NODE_DATA/test/grow" --size 256M --api "$NODE_API"
grown() { [ "$(blockdev --getsize64 "$DEVICE")" = 268435456 ]; }
wait_for 10 "the device to grow" grown
resize2fs "$DEVICE" >resize.log 2>&1 || { cat resize.log; fail "resize2fs"; }
[ "$(df --output=size -m mnt | tail -n 1)" -gt 200 ] || fail "ext4 did not grow"
fill mnt/more 104857600 more
umount mnt
e2fsck -fn "$DEVICE" >check 2>&1 || { cat check; fail "ext4 is damaged"; }
# Shrinking is refused without a word of consent.
expect_error 'shrink|smaller' neonsan volume resize "neonsan://$NODE_DATA/test/grow" --size 64M --api "$NODE_API"
detach
