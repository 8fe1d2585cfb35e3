#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# a flush and a write with FUA reach the node as such, and a plain write asks for neither
. "$TEST_LIB"

node_start
volume test/f 64M
attach test/f
trace=/sys/kernel/tracing/events/neonsan/neonsan_request_sent
[ -e "$trace" ] || fail "there is no tracepoint neonsan_request_sent"
flushes() { info .statistics.flushes; }
before=$(flushes)
dd if=/dev/zero of="$DEVICE" bs=4096 count=8 oflag=direct status=none
equal "flushes after plain writes" "$(flushes)" "$before"
dd if=/dev/zero of="$DEVICE" bs=4096 count=8 oflag=direct conv=fsync status=none
[ "$(flushes)" -gt "$before" ] || fail "fsync made no flush"
equal "sysfs fua" "$(queue fua)" 1
# O_DIRECT and O_DSYNC: the block layer sends FUA and no flush.
before=$(flushes)
fua=$(node_metric neonsan_ fua)
dd if=/dev/zero of="$DEVICE" bs=4096 count=8 oflag=direct,dsync status=none
equal "flushes after FUA writes" "$(flushes)" "$before"
if curl -fsS "$NODE_API/metrics" | grep -qi fua; then
	[ "$(node_metric neonsan_ fua)" -ge $((fua + 8)) ] || fail "the node counted $(node_metric neonsan_ fua) FUA writes after $fua"
fi
detach
# Without a volatile cache neither flush nor FUA is needed, and none is sent.
node_start durable mem-durable 9700
volume test/d 64M
attach test/d
equal "write_cache" "$(queue write_cache)" "write through"
dd if=/dev/zero of="$DEVICE" bs=4096 count=8 oflag=direct conv=fsync status=none
equal "flushes on a durable volume" "$(flushes)" 0
detach
