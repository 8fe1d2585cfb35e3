#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# TCP gives a connection up when the session would, also after the heartbeat timeout was changed
. "$TEST_LIB"

# The node has patience, so that only the module's end can give up.
node_config node mem 9666
printf 'heartbeat_interval_ms = 1800000\nheartbeat_timeout_ms = 3600000\n' >>"$TEST_DIR/node.toml"
node_start
volume test/t 16M
attach test/t --connections 1 --heartbeat-interval 500ms --heartbeat-timeout 1500ms --request-timeout 1h
# From now on a silence of an hour is no reason to give up.
neonsan set "$DEVICE" --heartbeat-interval 1h --heartbeat-timeout 2h
equal "losses at first" "$(info '[.connections[].losses] | add')" 0
net_drop 9666
dd if=/dev/zero of="$DEVICE" bs=4k count=1 oflag=direct status=none &
writer=$!
# With the timeout of the attach TCP gives up after 1.5 s, at the next retransmission.
sleep 12
net_heal
wait $writer || fail "the write failed"
equal "losses" "$(info '[.connections[].losses] | add')" 0
equal "the state" "$(info .state)" live
detach
