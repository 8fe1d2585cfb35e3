#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# watch prints what happens, as it happens
. "$TEST_LIB"

node_start
volume test/w 16M
neonsan watch --json >events 2>&1 &
watcher=$!
at_exit kill $watcher
sleep 0.5
attach test/w
neonsan volume resize "neonsan://$NODE_DATA/test/w" --size 32M --api "$NODE_API"
has() { grep -q "$1" events; }
wait_for 10 "the event attached" has attached
wait_for 10 "the event resized" has resized
detach
wait_for 10 "the event detached" has detached
while read -r line; do jq -e . <<<"$line" >/dev/null || fail "no JSON: $line"; done <events
kill $watcher
wait $watcher 2>/dev/null || true
