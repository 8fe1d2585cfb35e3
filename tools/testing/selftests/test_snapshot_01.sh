#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# a snapshot of a mounted file system is attached read-only beside it, cloned, and rolled back to
. "$TEST_LIB"

# The volumes are on an XFS, whose files can share blocks.
modprobe loop
modprobe xfs
truncate -s 1G /var/tmp/xfs-image
at_exit rm -f /var/tmp/xfs-image
mkfs.xfs -q -f /var/tmp/xfs-image
mkdir -p /var/tmp/node-volumes
mount -o loop /var/tmp/xfs-image /var/tmp/node-volumes
at_exit umount /var/tmp/node-volumes
node_start node file
volume test/data 128M
api() { neonsan volume "$@" --api "$NODE_API"; }
target=neonsan://$NODE_DATA/test/data
attach test/data
live=$DEVICE
mkfs.ext4 -q "$live"
mkdir -p mnt old
mount "$live" mnt
at_exit umount -l mnt
fill mnt/file 16777216 before
before=$(sha256sum <mnt/file)
# As a backup does it.
fsfreeze -f mnt
at_exit fsfreeze -u mnt
within 5000 "a snapshot of a device in use" api snapshot create "$target@monday"
fsfreeze -u mnt
fill mnt/file 16777216 after
after=$(sha256sum <mnt/file)

# The default for a snapshot is read-only, and nothing else is possible.
expect_error 'read-only|only be read' neonsan-attach "$target@monday" --mode exclusive
attach test/data@monday
equal "read-only in sysfs" "$(cat "/sys/block/$DISK/ro")" 1
equal "the name of the volume" "$(info .volume)" test/data@monday
[ "$(info .volume_id)" != "$(info .volume_id "$live")" ] || fail "the snapshot has the identity of its volume"
expect_error 'read-only|not permitted' dd if=/dev/zero of="$DEVICE" bs=4096 count=1 oflag=direct
mount -o ro,noload "$DEVICE" old
at_exit umount -l old
equal "the file in the snapshot" "$(sha256sum <old/file)" "$before"
equal "the file in the volume" "$(sha256sum <mnt/file)" "$after"
equal "who reads it" "$(api snapshot info "$target@monday" --json | jq '.sessions | length')" 1
expect_error 'held by host' api snapshot delete --yes "$target@monday"
umount old
detach

# A clone is a disk like any other.
api clone "$target@monday" test/copy
attach test/copy
mount "$DEVICE" old
equal "the file in the clone" "$(sha256sum <old/file)" "$before"
fill old/more 8388608 more
umount old
e2fsck -fn "$DEVICE" >check 2>&1 || { cat check; fail "the clone's ext4 is damaged"; }
detach

expect_error 'held by host' api snapshot rollback --yes "$target@monday"
umount mnt
detach "$live"
api snapshot rollback --yes "$target@monday"
attach test/data
mount "$DEVICE" mnt
equal "the file after the rollback" "$(sha256sum <mnt/file)" "$before"
umount mnt
detach
expect_error 'has snapshots.*monday' api delete --yes "$target"
api snapshot delete --yes "$target@monday"
api delete --yes "$target"
