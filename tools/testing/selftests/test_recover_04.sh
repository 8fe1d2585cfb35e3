#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# detach --force ends at once in every state, without any network
# timeout: 600
. "$TEST_LIB"
. "${TEST_LIB%/*}/hostile.lib"

# The times that could be waited for by mistake are thirty times the limit.
patient=(--connect-timeout 5m --request-timeout 5m --heartbeat-timeout 5m)
limit=10000
listed() { [ "$(neonsan list --json | jq '.devices | length')" = "$1" ]; }
force() { neonsan-detach --force "$1"; }
gone() { [ ! -e /sys/block/neonsan0 ] && listed 0; }

node_start node mem
volume test/f 64M

# While a TCP connection is being made, at many moments of it.
net_drop 9666
for delay in 0 0.05 0.3; do
	neonsan attach "neonsan://$NODE_DATA/test/f" "${patient[@]}" --connections 1 2>message &
	attach=$!
	wait_for 30 "the attaching device" listed 1
	sleep $delay
	within $limit "connecting for $delay s" force 0
	gone || fail "the device is still there"
	if wait $attach; then fail "an attach succeeded that was detached"; fi
	grep -q detached message || fail "the attach said: $(cat message)"
done
net_heal

# While the handshake waits for an answer.
hostile_start --misbehave open-silence --after 0 --times 1000
neonsan attach neonsan://127.0.0.1:9710/test/volume "${patient[@]}" 2>message &
attach=$!
wait_for 30 "the attaching device" listed 1
sleep 0.3
within $limit "shaking hands" force 0
gone || fail "the device is still there"
wait $attach && fail "an attach succeeded that was detached"
hostile_stop

# While the partitions are read, and no read is answered.
hostile_start --misbehave no-reply --after 0 --times 100000
neonsan attach neonsan://127.0.0.1:9710/test/volume "${patient[@]}" --connections 1 2>message &
attach=$!
reading() { [ "$(neonsan info 0 --json | jq '.connections[0].in_flight')" -ge 1 ]; }
wait_for 30 "the read of the partition table" reading
within $limit "reading partitions" force 0
gone || fail "the device is still there"
wait $attach && fail "an attach succeeded that was detached"
hostile_stop

# Under load, into a black hole: before it was noticed, and after.
for noticed in no yes; do
	heartbeat=("${patient[@]}")
	if [ $noticed = yes ]; then heartbeat=(--heartbeat-interval 300ms --heartbeat-timeout 1s --connect-timeout 5m); fi
	# By force: of a device that went without a network the node was not told.
	attach test/f --force "${heartbeat[@]}"
	fio --name=load --filename="$DEVICE" --allow_file_create=0 --rw=randrw --bs=16k --direct=1 --ioengine=io_uring --iodepth=32 \
		--time_based --runtime=60 --size=64M --eta=never --output=fio.log &
	load=$!
	loaded() { [ "$(info .statistics.writes)" -gt 200 ]; }
	wait_for 60 "the load" loaded
	net_drop 9666
	sleep 0.5
	if [ $noticed = yes ]; then
		lost() { [ "$(info .state)" = recovering ]; }
		wait_for 60 "the loss to be noticed" lost
	fi
	within $limit "under load, noticed: $noticed" force "$DEVICE"
	gone || fail "the device is still there"
	if wait $load; then fail "the load did not notice"; fi
	net_heal
done

# With a mounted file system and much that is not written yet.
attach test/f --force "${patient[@]}"
mkfs.ext4 -q "$DEVICE"
mkdir -p mnt
mount "$DEVICE" mnt
at_exit umount -l mnt
dd if=/dev/zero of=mnt/file bs=1M count=16 status=none
net_drop 9666
sync mnt/file &
syncer=$!
sleep 0.5
within $limit "mounted and dirty" force "$DEVICE"
umount mnt || fail "the file system cannot be unmounted"
net_heal
if wait $syncer; then fail "what could not be written was reported as written"; fi
rmmod neonsan || fail "the module does not unload"
insmod /payload/neonsan.ko
