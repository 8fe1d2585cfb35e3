#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# how far is read ahead: 128 to 256 KiB, whatever the optimal I/O size, and what somebody has set stays
. "$TEST_LIB"
. "$(dirname "$TEST_LIB")/hostile.lib"

read_ahead() { queue read_ahead_kb; }
for engine in mem file; do
	port=$([ $engine = mem ] && echo 9720 || echo 9730)
	node_start $engine $engine "$port"
	volume test/$engine 64M
	attach test/$engine
	note "$engine: optimal_io_size $(queue optimal_io_size), read_ahead_kb $(read_ahead)"
	equal "read_ahead_kb of an engine $engine" "$(read_ahead)" 128
	detach
	node_stop
done

# A volume of a Ceph cluster is cut into objects of 4 MiB, and says so.
hostile_start --optimal-io 4194304
attach_large() {
	DEVICE=$(neonsan attach neonsan://127.0.0.1:9710/test/volume "${impatient[@]}") || fail "attach"
	DISK=${DEVICE#/dev/}
	at_exit detach_leftover "$DEVICE"
}
attach_large
equal "optimal_io_size, which stays what the volume says" "$(queue optimal_io_size)" 4194304
equal "read_ahead_kb with an optimal size of 4 MiB" "$(read_ahead)" 256

# New limits come with the next connection. They change nothing of it, nor of what a person has set.
restart() {
	hostile_stop
	hostile_start --optimal-io "$1"
	follows() { [ "$(queue optimal_io_size)" = "$1" ]; }
	wait_for 30 "the new limits" follows "$1"
	# It is put back a moment after the limits.
	sleep 1
}
restart 8388608
equal "read_ahead_kb after a change of limits" "$(read_ahead)" 256
echo 1024 >"/sys/block/$DISK/queue/read_ahead_kb"
restart 4194304
equal "read_ahead_kb that somebody has set" "$(read_ahead)" 1024
echo 16 >"/sys/block/$DISK/queue/read_ahead_kb"
restart 8388608
equal "a small read_ahead_kb that somebody has set" "$(read_ahead)" 16
detach
