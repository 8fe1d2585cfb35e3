#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# info --json, the tracepoints and debugfs explain a stuck request: which connection, which state, how long
. "$TEST_LIB"

node_start
volume test/stuck 64M
attach test/stuck --request-timeout 5m --heartbeat-timeout 5m
events=/sys/kernel/tracing/events/neonsan
[ -d "$events" ] || fail "there are no tracepoints"
echo 1 >"$events/enable"
echo >/sys/kernel/tracing/trace
kill -STOP "$NODE_PID"
dd if="$DEVICE" of=/dev/null bs=8192 count=1 skip=5 iflag=direct status=none &
reader=$!
# A second old, however long dd took to begin.
waits() { [ "$(info '[.connections[].oldest_request.age_ms // 0] | max')" -ge 1000 ]; }
wait_for 60 "a request that waits" waits
request=$(info '[.connections[] | select(.oldest_request != null)][0]')
equal "its operation" "$(jq -r .oldest_request.op <<<"$request")" read
equal "its state" "$(jq -r .oldest_request.state <<<"$request")" sent
equal "its offset" "$(jq -r .oldest_request.offset_bytes <<<"$request")" 40960
equal "its length" "$(jq -r .oldest_request.length_bytes <<<"$request")" 8192
[ "$(jq -r .oldest_request.age_ms <<<"$request")" -ge 1000 ] || fail "its age is $(jq -r .oldest_request.age_ms <<<"$request") ms"
connection=$(jq -r .index <<<"$request")
grep -q neonsan_request_sent /sys/kernel/tracing/trace || fail "the trace does not show it"
files=$(find /sys/kernel/debug/neonsan -type f 2>/dev/null)
[ -n "$files" ] || fail "there is nothing in debugfs"
cat $files | tee debugfs | grep -q 40960 || { cat debugfs; fail "debugfs does not show its offset"; }
note "connection $connection: $(jq -c .oldest_request <<<"$request")"
kill -CONT "$NODE_PID"
wait $reader || fail "the read failed"
echo 0 >"$events/enable"
equal "requests in flight" "$(info '[.connections[].in_flight] | add')" 0
detach
