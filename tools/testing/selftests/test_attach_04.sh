#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# two volumes at once, from two nodes, do not touch each other
. "$TEST_LIB"

node_start one mem 9700
volume test/v 64M
attach test/v
first=$DEVICE
node_start two mem-durable 9710
volume test/v 64M 4096
attach test/v
second=$DEVICE
[ "$first" != "$second" ] || fail "both are $first"
for DEVICE in "$first" "$second"; do
	verify "$(basename "$DEVICE")" --rw=randwrite --bs=4k --size="$(less 32)M" --direct=1 --ioengine=io_uring --iodepth=16 &
	jobs="${jobs:-} $!"
done
for job in $jobs; do wait "$job" || fail "a job failed"; done
equal "the first one's block size" "$(blockdev --getss "$first")" 512
equal "the second one's block size" "$(blockdev --getss "$second")" 4096
detach "$first"
dd if="$second" of=/dev/null bs=1M count=8 iflag=direct status=none || fail "the second suffers from the first one's detach"
detach "$second"
