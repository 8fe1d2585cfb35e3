#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# poll queues: polled I/O under fio verify and a node restart, and I/O that nobody polls for
# timeout: 1500
. "$TEST_LIB"

node_start node file
volume test/p 128M

# Without poll queues polled I/O is refused, as by any disk that has none.
attach test/p
equal "io_poll without poll queues" "$(queue io_poll)" 0
equal "poll queues" "$(info .poll_queues)" 0
detach

attach test/p --connections 2 --poll-queues 1
equal "poll queues" "$(info .poll_queues)" 1
equal "connections in all" "$(info '.connections | length')" 3
equal "io_poll" "$(queue io_poll)" 1
equal "the type of the last queue" "$(cat "/sys/kernel/debug/block/$DISK/hctx2/type")" poll
equal "the type of the first queue" "$(cat "/sys/kernel/debug/block/$DISK/hctx0/type")" default

polled=(--ioengine=io_uring --hipri=1 --fixedbufs=1 --registerfiles=1 --direct=1)
on_queue() { info ".connections[2].statistics.$1"; }
on_others() { info "[.connections[0, 1].statistics | .reads + .writes] | add"; }

note "every byte is checked, through the poll queue alone"
others=$(on_others)
verify polled "${polled[@]}" --rw=randrw --iodepth=16 --bssplit=4k/60:64k/30:512k/10 --size="$(less 32)M"
[ "$(on_queue reads)" -gt 0 ] && [ "$(on_queue writes)" -gt 0 ] || fail "polled requests did not take the poll queue"
[ $(($(on_others) - others)) -lt 64 ] || fail "polled requests took the other queues"

note "two threads on one poll queue, and a load that is not polled"
verify unpolled --ioengine=io_uring --direct=1 --rw=randrw --iodepth=8 --bs=16k --size=8M --offset=64M &
other=$!
verify two "${polled[@]}" --rw=randrw --iodepth=4 --bs=4k --numjobs=2 --size="$(less 8)M" --offset_increment=16M
wait $other || fail "the load beside the polled one failed"

note "a node restart in the midst"
verify restart "${polled[@]}" --rw=randrw --iodepth=16 --bssplit=4k/60:64k/30:512k/10 --size=48M --io_size=96M &
restarts $! 2

note "nobody polls: requests end all the same, and the connection lives on"
fio --name=stopped --filename="$DEVICE" "${polled[@]}" --rw=randread --iodepth=32 --bs=64k --size=64M --time_based --runtime=600 \
	--output=fio-stopped --eta=never --thread &
job=$!
at_exit kill -KILL $job
begun=$(on_queue reads)
has_begun() { [ "$(on_queue reads)" -gt $((begun + 100)) ]; }
wait_for 60 "the load to begin" has_begun
epoch=$(info '.connections[2].epoch')
kill -STOP $job
nothing_in_flight() { [ "$(info '.connections[2].in_flight')" = 0 ]; }
wait_for 20 "what is in flight to end while nobody polls" nothing_in_flight
# Longer than a connection may be silent.
sleep 12
equal "how often the connection was made" "$(info '.connections[2].epoch')" "$epoch"
note "a loss and a recovery while nobody polls"
node_crash
node_start
is_live() { [ "$(info .state)" = live ] && [ "$(info '[.connections[].state] | unique | join(",")')" = live ]; }
wait_for 30 "all connections to be made again" is_live
begun=$(on_queue reads)
kill -CONT $job
wait_for 60 "the load to go on" has_begun

note "detach by force ends who polls"
node_crash
within 5000 "detach --force while requests are polled for" neonsan-detach --force "$DEVICE"
wait_for 30 "the load to end" eval "! kill -0 $job"
