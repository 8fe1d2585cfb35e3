#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# 64 attach and detach rounds under I/O leave nothing behind
# timeout: 600
. "$TEST_LIB"

node_start
volume test/rounds 32M

# What the kernel holds, in KiB, after everything that can be given back was.
held() {
	sync
	echo 3 >/proc/sys/vm/drop_caches
	sleep 0.5
	awk '/^(SUnreclaim|Percpu|KernelStack|VmallocUsed):/ {sum += $2} END {print sum}' /proc/meminfo
}
round() {
	attach test/rounds >/dev/null
	dd if=/dev/zero of="$DEVICE" bs=64k count=512 oflag=direct status=none &
	local writer=$!
	dd if="$DEVICE" of=/dev/null bs=64k count=64 iflag=direct status=none
	if [ $(($1 % 4)) = 0 ]; then
		# By force, with the writer at work: its I/O fails, and nothing else.
		neonsan-detach --force "$DEVICE" || fail "forced detach in round $1"
		wait $writer || true
	else
		wait $writer || fail "the writer failed in round $1"
		detach
	fi
	cleanups=(${node_cleanups[@]+"${node_cleanups[@]}"})
}
node_cleanups=("${cleanups[@]}")
for i in $(seq 1 "$(less 8)"); do round "$i"; done
before=$(held)
for i in $(seq 1 "$(less 64)"); do round "$i"; done
after=$(held)
note "held before $before KiB, after $after KiB"
# A leak of one connection's buffers per round would be some megabytes. On the debug
# kernel KASAN keeps what was freed for a while; there the runner asks kmemleak.
if [ "${LAB_DEBUG_KERNEL:-0}" != 1 ]; then
	[ $((after - before)) -lt 2048 ] || fail "64 rounds left $((after - before)) KiB"
fi
equal "the number of devices" "$(ls -d /sys/block/neonsan* 2>/dev/null | wc -l)" 0
equal "the module's users" "$(cat /sys/module/neonsan/refcnt)" 0
