#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# ext4 and xfs: make, use, unmount, check, and again after a new attach
# timeout: 600
. "$TEST_LIB"

modprobe xfs
node_start
volume test/fs 512M
mkdir -p mnt
for fs in ext4 xfs; do
	attach test/fs
	case $fs in
	ext4) mkfs.ext4 -q -F "$DEVICE" ;;
	xfs) mkfs.xfs -q -f "$DEVICE" ;;
	esac
	mount "$DEVICE" mnt || fail "mount $fs"
	at_exit umount -l mnt
	mkdir mnt/tree
	cp -r /usr/lib/python3 mnt/tree/ 2>/dev/null || cp -r /usr/share/zoneinfo mnt/tree/
	(cd mnt/tree && find . -type f -print0 | sort -z | xargs -0 sha256sum) >"sums-$fs"
	[ -s "sums-$fs" ] || fail "nothing was copied"
	fio --name=files --directory=mnt --rw=randwrite --bs=4k --size=8M --numjobs=2 --fsync=32 --verify=crc32c \
		--group_reporting --output=fio-files || { cat fio-files; fail "fio on $fs"; }
	fstrim mnt || note "fstrim: not possible"
	umount mnt
	detach
	attach test/fs
	case $fs in
	ext4) e2fsck -fn "$DEVICE" >check 2>&1 ;;
	xfs) xfs_repair -n "$DEVICE" >check 2>&1 ;;
	esac || { cat check; fail "$fs is damaged"; }
	mount "$DEVICE" mnt || fail "mount $fs again"
	(cd mnt/tree && sha256sum --quiet -c "$TEST_DIR/sums-$fs") || fail "files differ on $fs"
	umount mnt
	detach
done
