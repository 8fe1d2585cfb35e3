#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# a volume that was shrunk while its host was away does not shrink the mounted device: it waits until a person decides
# timeout: 600
. "$TEST_LIB"

node_config node file 9666
sed -i 's/^\[timeouts\]/&\nsession_linger_ms = 500\nheartbeat_interval_ms = 1000\nheartbeat_timeout_ms = 3000/' node.toml
node_start
volume test/shrunk 128M
attach test/shrunk
# On the first part of it, which stays.
mkfs.ext4 -q -E lazy_itable_init=0 "$DEVICE" 48M
mkdir -p mnt
mount "$DEVICE" mnt
at_exit umount -l mnt
fill mnt/file 8388608 shrunk
sync
sum=$(sha256sum <mnt/file)
watch_start events

resize() { neonsan volume resize "neonsan://$NODE_DATA/test/shrunk" --size "$1" --allow-shrink --api "$NODE_API"; }
size() { blockdev --getsize64 "$DEVICE"; }
# shrinks SIZE: the host is cut off until the node has forgotten its session, and meanwhile the volume is shrunk.
shrinks() {
	net_drop 9666
	wait_for 60 "the node to let the volume go and shrink it" resize "$1"
	net_heal
}
waits() { [ "$(info .shrunk_bytes)" = "$1" ]; }
live() { [ "$(info .state)" = live ]; }

expect_error 'held|session|use|attached' resize 64M
expect_error 'was not shrunk' neonsan set --accept-size "$DEVICE"
shrinks 64M
wait_for 60 "the device to find its volume shrunk" waits 67108864
equal "the device's size" "$(size)" 134217728
equal "the state" "$(info .state)" recovering
[ "$(info .lost_ms)" -gt 0 ] || fail "it has service"
neonsan info "$DEVICE" | grep -q 'waits for you.*neonsan set --accept-size' || fail "info does not say what it waits for: $(neonsan info "$DEVICE")"
dmesg | grep -q "$DISK: the volume was shrunk to 67108864 bytes, the device has 134217728" || fail "the kernel's log does not say it"
# Its requests wait, and none fails.
dd if="$DEVICE" of=/dev/null bs=4096 count=1 iflag=direct status=none &
reader=$!
sleep 12
kill -0 "$reader" || fail "a read ended while the device waits"
equal "errors" "$(info .statistics.errors)" 0
equal "events" "$(jq -r 'select(.event == "shrunk") | .size_bytes' events)" 67108864

# Grown again: all goes on, and nobody was told of another size.
neonsan volume resize "neonsan://$NODE_DATA/test/shrunk" --size 128M --api "$NODE_API"
wait_for 30 "the device to go on" live
wait "$reader" || fail "the read failed"
equal "shrunk_bytes" "$(neonsan info --json "$DEVICE" | jq .shrunk_bytes)" null
equal "the content" "$(sha256sum <mnt/file)" "$sum"
umount mnt
equal "errors" "$(info .statistics.errors)" 0
equal "resized" "$(jq -r 'select(.event == "resized") | .size_bytes' events)" ''

# A person accepts it.
shrinks 64M
wait_for 60 "the device to find its volume shrunk again" waits 67108864
equal "the device's size" "$(size)" 134217728
expect_error 'cannot be used with' neonsan set --all --accept-size
neonsan set --accept-size "$DEVICE"
wait_for 30 "the device to go on" live
shorter() { [ "$(size)" = 67108864 ]; }
wait_for 10 "the device to be shorter" shorter
equal "shrunk_bytes" "$(neonsan info --json "$DEVICE" | jq .shrunk_bytes)" null
fill "$DEVICE" 1048576 again || fail "it does not take writes"
equal "resized" "$(jq -r 'select(.event == "resized") | .size_bytes' events)" 67108864

# What was accepted is over with that.
shrinks 32M
wait_for 60 "the device to wait once more" waits 33554432
equal "the device's size" "$(size)" 67108864
detach
expect_error 'no device' neonsan set --accept-size "$DEVICE"
