#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# requests of an earlier session that the node still works on are no other holder: attach ends with 13, and a unit tries again
# timeout: 300
. "$TEST_LIB"

# A disk that hangs as long as it is told to.
need_programs
modprobe loop
modprobe dm-mod
mkdir -p backing disk
mount -t tmpfs -o size=300m tmpfs backing
at_exit umount -l backing
truncate -s 256M backing/image
loop=$(losetup --find --show backing/image)
at_exit losetup -d "$loop"
dmsetup create --noudevsync hanging --table "0 $(blockdev --getsz "$loop") linear $loop 0" || fail "dmsetup create"
at_exit dmsetup remove --force --noudevsync hanging
disk=/dev/$(dmsetup info --columns --noheadings -o blkdevname hanging)
mkfs.ext4 -q "$disk"
mount "$disk" disk
at_exit umount -l disk
at_exit dmsetup resume --noudevsync hanging
root_init "$TEST_DIR/disk"
node_config node file 9666
sed -i -e "s|^path = .*|path = \"$TEST_DIR/disk\"|" -e 's/^\[timeouts\]/&\ndrain_ms = 500/' node.toml
node_start
volume test/drain 16M
attach test/drain
fill "$DEVICE" 16777216 old

dmsetup suspend --noflush --nolockfs --noudevsync hanging || fail "dmsetup suspend"
dd if=/dev/zero of="$DEVICE" bs=4096 count=1 oflag=direct conv=notrunc status=none 2>/dev/null &
writer=$!
sent() { [ "$(info '[.connections[].oldest_request | select(.op == "write" and .state == "sent")] | length')" = 1 ]; }
wait_for 30 "a write to hang in the node's disk" sent
neonsan detach --force "$DEVICE"
wait "$writer" || true
code=0
said=$(neonsan attach "neonsan://$NODE_DATA/test/drain" 2>&1) || code=$?
note "attach said: $said"
equal "the exit code while the node works on the old write" "$code" 13
grep -q 'older connection are still being worked on: try again' <<<"$said" || fail "attach does not say what to do: $said"

dmsetup resume --noudevsync hanging || fail "dmsetup resume"
attach test/drain
dd if="$DEVICE" of=/dev/null bs=1M count=16 iflag=direct status=none || fail "the volume is not what it was"
# One that is held by somebody stays what it was: only a person can change it.
code=0
said=$(neonsan attach "neonsan://$NODE_DATA/test/drain" --host-id 00112233-4455-6677-8899-aabbccddeeff 2>&1) || code=$?
equal "the exit code where another host holds it ($said)" "$code" 7
detach
node_stop
