#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# a node killed under load: parked requests are resent and nothing is lost
# timeout: 600
. "$TEST_LIB"

node_start node file
volume test/k 128M
attach test/k
# Every write is flushed at once (O_DSYNC), so what the killed node acknowledged is on disk.
verify killed --rw=randwrite --direct=1 --sync=dsync --ioengine=io_uring --iodepth=16 --bs=4k --size=32M --io_size=48M &
job=$!
load_begins
for round in 1 2; do
	[ $round = 1 ] || sleep 2
	kill -0 $job 2>/dev/null || break
	node_crash
	sleep 1
	[ "$(info '.state')" != live ] || note "the device did not notice yet"
	node_start
done
wait $job || fail "the load saw the crashes"
[ "$(info .session.generation)" -ge 2 ] || fail "the session was never opened anew: the crashes came too late"
equal "the state" "$(info .state)" live
detach
