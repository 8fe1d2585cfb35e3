#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# a node that comes back, connections that are reset, a network that heals: service within the configured delay
# timeout: 600
. "$TEST_LIB"

# After the end of a fault the longest delay between tries (0.5 s) may pass. This machine is emulated
# and may be starved, so much more is allowed; the times are printed, and the kernel's own with them.
margin=10000

node_start node file
volume test/q 64M
attach test/q
live() { [ "$(info .state)" = live ]; }
wait_live() { until live; do sleep 0.1; done; }
read_on() { while dd if="$DEVICE" of=/dev/null bs=4k count=1 iflag=direct status=none; do sleep 0.02; done; touch failed; }
read_on &
reader=$!
at_exit kill $reader

for pause in 2 8; do
	node_crash
	sleep $pause
	neonsan-node --config "$TEST_DIR/node.toml" >>node.log 2>&1 &
	NODE_PID=$!
	at_exit node_end node "$NODE_PID"
	listens() { ss -Hltn 'sport = :9666' | grep -q .; }
	until listens; do sleep 0.05; done
	within $margin "the node was killed and is back after $pause s" wait_live
done

before=$(info '[.connections[].losses] | add')
net_reset 9666
reset() { [ "$(info '[.connections[].losses] | add')" -gt "$before" ]; }
wait_for 20 "the reset to be noticed" reset
net_heal
within $margin "connections were reset" wait_live

neonsan set "$DEVICE" --heartbeat-interval 500ms --heartbeat-timeout 2s
net_drop 9666
lost() { [ "$(info .state)" = recovering ]; }
wait_for 20 "the loss to be noticed" lost
sleep 10
net_heal
within $margin "the network was away for more than 10 s" wait_live

[ ! -e failed ] || fail "a read failed"
equal "errors" "$(info .statistics.errors)" 0
# Of the first two the pauses of 2 and 8 s are a part, of the last one those of the test.
dmesg | grep -o 'neonsan0: back after.*' | tail -n 4 | sed 's/^/# /'
kill $reader
wait $reader || true
detach
