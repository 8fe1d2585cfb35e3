#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# the node is gone: I/O waits, a plain detach ends, a forced one needs no network
. "$TEST_LIB"

node_start node file
volume test/gone 64M
attach test/gone
node_crash
dd if="$DEVICE" of=/dev/null bs=4096 count=1 iflag=direct status=none 2>/dev/null &
reader=$!
not_live() { [ "$(info .state)" = recovering ]; }
wait_for 20 "the state recovering" not_live
kill -0 $reader || fail "a read failed at once though the loss timeout is for ever"
equal "the oldest request's operation" "$(info '[.connections[].oldest_request | select(. != null)][0].op')" read
start=$SECONDS
timeout 20 neonsan-detach --force "$DEVICE" || fail "forced detach took too long or failed"
[ $((SECONDS - start)) -le 10 ] || fail "forced detach took $((SECONDS - start)) s"
if wait $reader; then fail "the read succeeded without a node"; fi
# With a loss timeout I/O fails when it has run out.
node_start
attach test/gone --loss-timeout 2s
node_crash
start=$SECONDS
if timeout 60 dd if="$DEVICE" of=/dev/null bs=4096 count=1 iflag=direct status=none 2>/dev/null; then fail "a read succeeded without a node"; fi
[ $((SECONDS - start)) -le 30 ] || fail "the loss timeout of 2 s took $((SECONDS - start)) s"
equal "the state" "$(info .state)" failed
timeout 20 neonsan-detach --force "$DEVICE" || fail "detach of a failed device"
