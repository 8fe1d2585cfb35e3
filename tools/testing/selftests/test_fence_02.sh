#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# a node that lost its cache: the next flush fails once, an event and counters say how much, info says it until cleared
. "$TEST_LIB"

watch_start events
node_start node file
volume test/r 64M
attach test/r
equal "bytes at risk" "$(info .at_risk_bytes)" 0
dd if=/dev/zero of="$DEVICE" bs=1M count=4 oflag=direct status=none
sync "$DEVICE" || fail "a flush failed without reason"
dd if=/dev/zero of="$DEVICE" bs=1M count=3 oflag=direct status=none
node_crash
# What the engine compares when the machine of the node was booted again.
rm /var/tmp/node-volumes/.boot
node_start
at_risk() { [ "$(info .at_risk_bytes)" -gt 0 ]; }
wait_for 30 "the loss to be noticed" at_risk
equal "bytes at risk" "$(info .at_risk_bytes)" $((3 << 20))
if sync "$DEVICE" 2>/dev/null; then fail "a flush succeeded though writes are lost"; fi
sync "$DEVICE" || fail "the second flush failed too"
equal "bytes at risk after the flush" "$(info .at_risk_bytes)" $((3 << 20))
equal "the counter" "$(info .statistics.lost_bytes)" $((3 << 20))
neonsan info "$DEVICE" | grep -q 'data at risk' || fail "people are not told"
grep '"data-at-risk"' events | jq -e ".at_risk_bytes == $((3 << 20))" >/dev/null || fail "the events are: $(cat events)"
neonsan set --clear-data-at-risk "$DEVICE"
equal "bytes at risk after clearing" "$(info .at_risk_bytes)" 0
equal "the counter after clearing" "$(info .statistics.lost_bytes)" $((3 << 20))
detach
