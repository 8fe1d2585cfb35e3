#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# no worker that waits for the network has the right to the memory reserves meanwhile
. "$TEST_LIB"

need_programs
# A peer that takes connections and says nothing.
python3 -c '
import socket, time
server = socket.socket()
server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
server.bind(("127.0.0.1", 9706))
server.listen()
time.sleep(3600)' &
at_exit kill $!
wait_for 60 "the peer" bash -c 'exec 7<>/dev/tcp/127.0.0.1/9706'
neonsan attach neonsan://127.0.0.1:9706/test/x --connections 1 --connect-timeout 20m 2>message &
attach=$!
# Workers of the kernel that wait in a call of ours: their flags are the ninth field of their state.
waiting() {
	local task
	for task in /proc/[0-9]*; do
		if grep -q '^kworker' "$task/comm" 2>/dev/null && grep -q '\[neonsan\]' "$task/stack" 2>/dev/null; then
			echo "$task"
		fi
	done | grep .
}
wait_for 300 "a worker that waits for the peer" waiting
for task in $(waiting); do
	flags=$(sed 's/.*) //' "$task/stat" | cut -d' ' -f7)
	note "$(cat "$task/comm") has the flags $(printf %#x "$flags") in: $(grep -m1 neonsan "$task/stack")"
	[ $((flags & 0x800)) = 0 ] || fail "a worker waits for the network with the right to the reserves"
done
kill -TERM $attach
wait $attach && fail "an interrupted attach succeeded"
:
