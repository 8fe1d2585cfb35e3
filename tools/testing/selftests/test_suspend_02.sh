#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# suspend with mode error returns when no thread hands a request over any more
. "$TEST_LIB"

tracing=/sys/kernel/tracing
mountpoint -q $tracing || mount -t tracefs none $tracing
[ -e $tracing/kprobe_events ] || skip "this kernel has no kprobe events, and the moment is too short to be met"
kprobes_off() {
	echo 0 >$tracing/events/neonsan_test/enable
	echo '-:neonsan_test/wait' >>$tracing/kprobe_events
}
# The block layer's own way to wait for them.
echo 'p:neonsan_test/wait blk_mq_quiesce_queue' >>$tracing/kprobe_events
echo 1 >$tracing/events/neonsan_test/enable
at_exit kprobes_off
hits() { awk '$1 == "wait" {print $2}' $tracing/kprobe_profile; }

node_start
volume test/s 64M
attach test/s --request-timeout 1h --heartbeat-timeout 1h
before=$(hits)
neonsan suspend "$DEVICE" --mode error
[ "$(hits)" -gt "$before" ] || fail "suspend did not wait for the threads that hand requests over"
expect_error 'Input/output error' dd if="$DEVICE" of=/dev/null bs=4k count=1 iflag=direct status=none
neonsan resume "$DEVICE"
dd if="$DEVICE" of=/dev/null bs=4k count=1 iflag=direct status=none || fail "a read after resume"

# Under load: what is in flight when suspend returns only becomes less.
fio --name=load --filename="$DEVICE" --rw=randread --bs=4k --direct=1 --ioengine=libaio --iodepth=16 --numjobs=2 \
	--time_based --runtime=200 --continue_on_error=all --eta=never >fio.log 2>&1 &
load=$!
at_exit kill $load
inflight() { info '[.connections[].in_flight] | add'; }
busy() { [ "$(inflight)" -gt 0 ]; }
for round in $(seq "$(less 16)"); do
	wait_for 60 "load" busy
	kill -STOP "$NODE_PID"
	neonsan suspend "$DEVICE" --mode error
	at_once=$(inflight)
	sleep 0.2
	later=$(inflight)
	kill -CONT "$NODE_PID"
	[ "$later" -le "$at_once" ] || fail "round $round: $at_once requests were in flight when suspend returned, and then $later"
	neonsan resume "$DEVICE"
done
kill $load
wait $load || true
detach
