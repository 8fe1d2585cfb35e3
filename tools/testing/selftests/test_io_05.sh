#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# a flush and a write with FUA reach the node as such, and a plain write asks for neither
. "$TEST_LIB"

node_start
volume test/f 64M
attach test/f
flushes() { info .statistics.flushes; }
before=$(flushes)
dd if=/dev/zero of="$DEVICE" bs=4096 count=8 oflag=direct status=none
equal "flushes after plain writes" "$(flushes)" "$before"
dd if=/dev/zero of="$DEVICE" bs=4096 count=8 oflag=direct conv=fsync status=none
[ "$(flushes)" -gt "$before" ] || fail "fsync made no flush"
equal "sysfs fua" "$(queue fua)" 1
# O_DIRECT and O_DSYNC: the kernel asks for FUA (and for a flush after it).
fua() { node_metric neonsan_node_fua_total; }
before=$(fua)
dd if=/dev/zero of="$DEVICE" bs=4096 count=8 oflag=direct status=none
equal "FUA writes that the node counted after plain ones" "$(fua)" "$before"
dd if=/dev/zero of="$DEVICE" bs=4096 count=8 oflag=direct,dsync status=none
[ "$(fua)" -ge $((before + 8)) ] || fail "the node counted $(($(fua) - before)) FUA writes of 8"
detach
# Without a volatile cache neither flush nor FUA is needed, and none is sent.
node_start durable mem-durable 9700
volume test/d 64M
attach test/d
equal "write_cache" "$(queue write_cache)" "write through"
dd if=/dev/zero of="$DEVICE" bs=4096 count=8 oflag=direct conv=fsync status=none
equal "flushes on a durable volume" "$(flushes)" 0
detach
