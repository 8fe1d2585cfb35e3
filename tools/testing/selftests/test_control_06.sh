#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# a node's restart is told by events, in order, and timeouts change on a device in use
. "$TEST_LIB"

node_start node mem-durable
volume test/e 16M
watch_start events
attach test/e --connections 1
equal "the loss timeout at first" "$(info .timeouts.loss_ms)" 0
neonsan set "$DEVICE" --loss-timeout 1h --reconnect-delay-max 500ms
equal "the loss timeout" "$(info .timeouts.loss_ms)" 3600000
equal "the reconnect delay" "$(info .timeouts.reconnect_delay_max_ms)" 500
expect_error 'heartbeat timeout' neonsan set "$DEVICE" --heartbeat-interval 60s
expect_error 'reconnect delay' neonsan set "$DEVICE" --reconnect-delay-min 10s
equal "the heartbeat interval after a refusal" "$(info .timeouts.heartbeat_interval_ms)" 3000
has() { grep -q "\"$1\"" events; }
node_stop
wait_for 30 "the event connection-lost" has connection-lost
state_is() { [ "$(info .state)" = "$1" ]; }
wait_for 30 "the state recovering" state_is recovering
[ "$(info .lost_ms)" -gt 0 ] || fail "a lost volume says it is not lost"
# A mem node forgets its volumes, so this one cannot come back: it is detached while lost.
detach
wait_for 30 "the event detached" has detached
kill "$WATCHER"
wait "$WATCHER" 2>/dev/null || true
order=$(jq -r .event events | grep -xE 'attached|connection-lost|detached' | uniq | tr '\n' ' ')
equal "the order of events" "$order" "attached connection-lost detached "
