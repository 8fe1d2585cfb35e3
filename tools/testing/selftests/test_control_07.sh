#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# an interrupted attach leaves nothing behind, and an open debugfs file keeps the module
. "$TEST_LIB"

need_programs
# A peer that takes connections and says nothing.
python3 -c '
import socket, time
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("127.0.0.1", 9705))
server.listen()
time.sleep(300)' &
at_exit kill $!
wait_for 60 "the peer" bash -c 'exec 7<>/dev/tcp/127.0.0.1/9705'
neonsan attach neonsan://127.0.0.1:9705/test/x --connect-timeout 60s 2>message &
attach=$!
listed() { [ "$(neonsan list --json | jq '.devices | length')" = "$1" ]; }
wait_for 30 "the attaching device" listed 1
equal "its state" "$(neonsan list --json | jq -r '.devices[0].state')" opening
start=$SECONDS
# Bash lets its background jobs ignore SIGINT, so another signal stands for it.
kill -TERM $attach
wait $attach && fail "an interrupted attach succeeded"
[ $((SECONDS - start)) -le 15 ] || fail "the interrupted attach went on for $((SECONDS - start)) s"
wait_for 30 "nothing to be left" listed 0
equal "devices left" "$(ls -d /sys/block/neonsan* 2>/dev/null | wc -l)" 0
# The same by detach --force of the device that is being attached.
neonsan attach neonsan://127.0.0.1:9705/test/x --connect-timeout 60s 2>message &
attach=$!
wait_for 30 "the attaching device" listed 1
expect_error 'being attached' neonsan detach 0
neonsan detach --force 0
wait $attach && fail "an attach succeeded that was detached"
grep -q detached message || fail "the attach said: $(cat message)"
wait_for 30 "nothing to be left" listed 0

mountpoint -q /sys/kernel/debug || mount -t debugfs none /sys/kernel/debug
exec 7</sys/kernel/debug/neonsan/state
expect_error 'in use|busy' rmmod neonsan
exec 7<&-
rmmod neonsan
insmod /payload/neonsan.ko
