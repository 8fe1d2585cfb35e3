#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# sequential reads and writes, direct and through the page cache, verified
# timeout: 600
. "$TEST_LIB"

node_start
volume test/io 256M
attach test/io
for bs in 512 4k 128k 1m; do
	size=$(less 32)M
	if [ $bs = 512 ]; then size=1M; fi
	verify "direct-$bs" --rw=write --direct=1 --ioengine=io_uring --iodepth=16 --bs=$bs --size=$size
	verify "buffered-$bs" --rw=write --direct=0 --ioengine=psync --end_fsync=1 --bs=$bs --size=$size --invalidate=1
done
verify buffered-random --rw=randrw --direct=0 --ioengine=io_uring --iodepth=32 --bsrange=512-256k --blockalign=512 --numjobs=4 \
	--size="$(less 32)M" --offset_increment=64M --end_fsync=1
detach
