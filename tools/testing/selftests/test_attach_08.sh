#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# attach hands out no other node than the device's own; detach waits for who looks at it, and names who stays
. "$TEST_LIB"

node_start
volume test/a 64M
at() { echo "neonsan://$NODE_DATA/test/a"; }
# A file, and another disk, under the name that the device gets.
echo 'an image that was written into /dev' >/dev/neonsan9
at_exit rm -f /dev/neonsan9
expect_error '/dev/neonsan9 is no block device; it is detached again' neonsan attach --connect-timeout 60s --index 9 "$(at)"
[ ! -e /sys/block/neonsan9 ] || fail "neonsan9 is still there"
grep -q 'an image' /dev/neonsan9 || fail "the file is gone"
rm /dev/neonsan9
mknod /dev/neonsan9 b 7 99
expect_error '/dev/neonsan9 is another disk: the block device 7:99' neonsan attach --connect-timeout 60s --index 9 "$(at)"
[ ! -e /sys/block/neonsan9 ] || fail "neonsan9 is still there"
rm /dev/neonsan9

# Open for a moment, as udev has each disk open that a program has closed.
attach test/a
sleep 2 <"$DEVICE" &
looker=$!
detach
wait $looker
# Open for good: named, and at once where that is asked for.
attach test/a
sleep 100 <"$DEVICE" &
sleeper=$!
at_exit kill $sleeper
expect_error "open in sleep \(process $sleeper\)" neonsan detach --wait 0 "$DEVICE"
equal "the process in info" "$(neonsan info "$DEVICE" --json | jq -r '.used_by[].pid')" $sleeper
kill $sleeper
wait $sleeper || :
mkfs.ext4 -q "$DEVICE"
mkdir -p mnt
mount "$DEVICE" mnt
at_exit umount -l mnt
expect_error "$DISK is mounted at $PWD/mnt" neonsan detach --wait 0 "$DEVICE"
neonsan info "$DEVICE" | grep -q "used by:.*mounted at $PWD/mnt" || fail "info does not name the mount"
umount mnt
detach

# qemu-img as the admin guide has it, onto blocks of 4096, from an image of another length.
volume test/large 16M 4096
attach test/large
qemu-img create -q -f qcow2 image.qcow2 8389120
qemu-io -c 'write -P 5 0 1M' -c 'write -P 6 8388608 512' image.qcow2 >/dev/null
qemu-img convert -n -O raw image.qcow2 "$DEVICE" || fail "qemu-img onto blocks of 4096"
qemu-img convert -n -O raw -t none -T none image.qcow2 "$DEVICE" || fail "qemu-img with direct I/O"
qemu-img compare -q -f qcow2 -F raw image.qcow2 "$DEVICE" || fail "the device has something else than the image"
detach
