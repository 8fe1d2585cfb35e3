#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# the node's disk drops its cache and fails one flush of one volume: the hosts of all its volumes are told
# timeout: 300
. "$TEST_LIB"

# A disk that takes writes and has lost them (a cache without power), fails a flush, and is well
# again. The file system on it has no journal, which would notice too and give up.
need_programs
modprobe loop
modprobe dm-mod
modprobe dm-flakey
mkdir -p backing disk
mount -t tmpfs -o size=300m tmpfs backing
at_exit umount -l backing
truncate -s 256M backing/image
loop=$(losetup --find --show backing/image)
at_exit losetup -d "$loop"
sectors=$(blockdev --getsz "$loop")
well="0 $sectors linear $loop 0"
dmsetup create --noudevsync lossy --table "$well" || fail "dmsetup create"
at_exit dmsetup remove --force --noudevsync lossy
lossy=/dev/$(dmsetup info --columns --noheadings -o blkdevname lossy)
[ -b "$lossy" ] || fail "there is no device $lossy"
# becomes TABLE: nothing of the file system is written for that.
becomes() {
	dmsetup suspend --noflush --nolockfs --noudevsync lossy &&
		dmsetup reload --table "$1" lossy && dmsetup resume --noudevsync lossy ||
		fail "the disk does not become: $1"
}
mkfs.ext4 -q -O ^has_journal -E lazy_itable_init=0 "$lossy"
mount -o noatime,lazytime "$lossy" disk
at_exit umount -l disk
root_init "$TEST_DIR/disk"
{
	printf '[engine.main]\nkind = "file"\npath = "%s"\n' "$TEST_DIR/disk"
	printf '[data]\nlisten = ["127.0.0.1:9666"]\n[control]\nlisten = ["127.0.0.1:9667"]\n[timeouts]\nshutdown_grace_ms = 200\n'
} >node.toml
node_start
for name in a b; do
	volume test/$name 16M
	attach test/$name
	# Allocated and written once, so that later writes change nothing but data.
	fill "$DEVICE" 16777216 old-$name
	declare "device_$name=$DEVICE"
done
a=$device_a b=$device_b
boot=$(info .session.boot_id "$a")
equal "the boot id of both, which are on one engine," "$(info .session.boot_id "$b")" "$boot"
dd if="$b" of=before bs=1M count=1 iflag=direct status=none

becomes "0 $sectors flakey $loop 0 0 3600 1 drop_writes"
for device in "$a" "$b"; do
	dd if=/dev/zero of="$device" bs=1M count=1 oflag=direct conv=notrunc status=none || fail "a write to the cache failed"
done
becomes "0 $sectors error"
if sync "$a" 2>sync.log; then fail "a flush succeeded on a disk that fails"; fi
note "as it should: $(cat sync.log)"
becomes "$well"

# The disk says from here on that all is well.
told() { [ "$(info .session.boot_id "$1")" != "$boot" ] && [ "$(info .state "$1")" = live ]; }
wait_for 30 "the host of the volume that did not flush to be told of another boot id" told "$b"
dd if="$b" of=after bs=1M count=1 iflag=direct status=none
cmp -s before after || fail "the fault was none: what was written to the cache is there"
if sync "$b" 2>/dev/null; then fail "a flush succeeded though the disk has lost what was answered before"; fi
# Told once, and both go on.
wait_for 30 "the other host to be told too" told "$a"
sync "$a" 2>/dev/null || true
for device in "$a" "$b"; do
	fill "$device" 1048576 new || fail "the volume does not take durable writes after the loss"
	dd if="$device" bs=1M count=1 iflag=direct status=none | sha256sum
done | sort -u >sums
equal "the number of different contents" "$(wc -l <sums)" 1
# The node's look at its storage may have met the error too, after the hosts were back.
[ "$(node_metric neonsan_node_engine_losses_total)" -ge 1 ] || fail "the engine counts no loss"
equal "the boot id of both" "$(info .session.boot_id "$a")" "$(info .session.boot_id "$b")"
# It was noted when the disk was well again: a node that is killed begins with it. With it goes what ext4
# has counted of errors, of which the node hears by its look at the storage every five seconds: a count that
# was not known when the node was killed would tell of a loss.
noted() {
	boot=$(info .session.boot_id "$a")
	# One reading: between two of them it may have been written anew.
	cp disk/.boot noted
	grep -qx "id ${boot//-/}" noted &&
		grep -qx "witness ext4 .* errors $(cat "/sys/fs/ext4/${lossy#/dev/}/errors_count")" noted
}
wait_for 30 "the new boot id to be noted" noted
node_crash
node_start
wait_for 30 "the device to be live" eval '[ "$(info .state "$a")" = live ]'
equal "the boot id after the node was killed" "$(info .session.boot_id "$a")" "$boot"
sync "$a" || fail "a flush failed though nothing was lost"
detach "$a"
detach "$b"
node_stop
