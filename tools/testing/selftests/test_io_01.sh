#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# random reads and writes of 512 B to 1 MiB, O_DIRECT, io_uring and libaio, every depth, 4 jobs, verified
# timeout: 900
. "$TEST_LIB"

node_start
volume test/io 256M
attach test/io
for engine in io_uring libaio; do
	for depth in 1 4 32 128; do
		verify "$engine-$depth" --rw=randrw --rwmixread=40 --direct=1 --ioengine="$engine" --iodepth="$depth" \
			--bssplit=512/10:4k/40:8k/15:64k/15:256k/10:1m/10 --bs_unaligned=0 --blockalign=512 \
			--numjobs=4 --size=48M --offset_increment=64M --io_size="$(less 24)M"
	done
done
equal "requests in flight at the end" "$(info '[.connections[].in_flight] | add')" 0
equal "errors" "$(info .statistics.errors)" 0
detach
