#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# a node restart under fio verify, as an operator does it, without an error
# timeout: 600
. "$TEST_LIB"

node_start node file
volume test/r 128M
attach test/r
verify restart --rw=randrw --direct=1 --ioengine=io_uring --iodepth=16 --bssplit=4k/60:64k/30:512k/10 --size=96M --io_size=192M &
job=$!
for round in 1 2 3; do
	sleep 2
	kill -0 $job 2>/dev/null || break
	node_stop
	sleep $((round - 1))
	node_start
done
wait $job || fail "the load saw the restarts"
[ "$(info .session.generation)" -ge 2 ] || fail "the session was never opened anew: the restarts came too late"
equal "errors" "$(info .statistics.errors)" 0
equal "the state" "$(info .state)" live
detach
