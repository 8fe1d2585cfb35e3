#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# a poll queue over a network device that can be asked: the poller receives by itself
# timeout: 600
. "$TEST_LIB"

outside_node
volume test/p 64M
attach test/p --connections 1 --poll-queues 1
received() { awk '/^TcpExt:/ {if (!n++) split($0, name); else for (i = 2; i <= NF; i++) if (name[i] == "BusyPollRxPackets") print $i}' /proc/net/netstat; }
before=$(received)
# Whether the poller or the interrupt is first is a matter of luck, and of how slow the kernel is.
for round in {1..10}; do
	verify "polled-$round" --ioengine=io_uring --hipri=1 --direct=1 --rw=randrw --iodepth=4 \
		--bssplit=4k/60:64k/30:512k/10 --size="$(less 16)M"
	after=$(received)
	[ "$after" -eq "$before" ] || break
done
note "packets that a poller received in $round rounds: $((after - before))"
[ "$after" -gt "$before" ] || fail "no packet was received by a poller"
[ "$(info '.connections[1].statistics.reads')" -gt 0 ] || fail "polled requests did not take the poll queue"
equal "errors" "$(info .statistics.errors)" 0
detach
