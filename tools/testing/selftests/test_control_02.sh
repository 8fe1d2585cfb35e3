#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# watch prints what happens, as it happens
. "$TEST_LIB"

node_start
volume test/w 16M
watch_start events
attach test/w
neonsan volume resize "neonsan://$NODE_DATA/test/w" --size 32M --api "$NODE_API"
has() { grep -q "$1" events; }
wait_for 10 "the event attached" has attached
wait_for 10 "the event resized" has resized
detach
wait_for 10 "the event detached" has detached
while read -r line; do jq -e . <<<"$line" >/dev/null || fail "no JSON: $line"; done <events
kill "$WATCHER"
wait "$WATCHER" 2>/dev/null || true
