# SPDX-License-Identifier: GPL-2.0 OR MIT
# Faults of the node's process.

# killed SECONDS: killed, and away for so long.
killed() {
	begin
	away sleep "$1"
	finish
	happened "connection lost" "$LOST"
}
cell node_kill_2s quick both 120 'node killed (SIGKILL), started again after 2 s'
node_kill_2s() { killed 2; }
cell node_kill_40s full both 180 'node killed, started again after 40 s'
node_kill_40s() { killed 40; }
cell node_kill_120s full both 260 'node killed, started again after 120 s'
node_kill_120s() { killed 120; }
cell node_kill_700s full both 900 'node killed, started again after 700 s'
node_kill_700s() { killed 700; }

cell node_restart full both 120 'node restarted in order (SIGTERM)'
node_restart() {
	begin
	fault
	node_stop
	fault_over
	node_back
	finish
	happened "connection lost" "$LOST"
}

# stopped SECONDS [ATTACH-OPTION…]
stopped() {
	local seconds=$1
	shift
	begin "$@"
	fault total
	kill -STOP "$NODE_PID"
	sleep "$seconds"
	kill -CONT "$NODE_PID"
	fault_over
	finish
}
cell node_stop_5s full both 120 'node stopped (SIGSTOP) for 5 s, less than any timeout, then SIGCONT'
node_stop_5s() {
	stopped 5
	equal "the requests sent again" "$RESENT" 0
	equal "the connections lost" "$LOST" 0
}
cell node_stop_long quick both 150 'node stopped for 15 s, longer than every timeout, then SIGCONT'
node_stop_long() {
	stopped 15 "${short_timeouts[@]}"
	happened "request sent again" "$RESENT"
}

# moved: the node comes back at its other address.
moved() {
	NODE_LISTEN=$OTHER_IP node_conf
	sleep 2
}
is_there() { at_end "the connections should be at $OTHER_IP" "[.connections[].node.address] | unique == [\"$OTHER_IP\"]"; }
cell node_other_address full both 150 'node killed, started again at the second address of the target'
node_other_address() {
	NODES=$NODE_IP,$OTHER_IP
	begin
	away moved
	finish
	is_there
}
cell node_told_address full both 150 'node killed, started again at an address that only the node itself has named'
node_told_address() {
	NODE_MORE="nodes = [\"$NODE_IP:9666\", \"$OTHER_IP:9666\"]"
	begin
	equal "the nodes" "$(info '[.nodes[] | "\(.address) \(.learned)"] | join(", ")')" "$NODE_IP false, $OTHER_IP true"
	away moved
	finish
	is_there
}

# configured: the node comes back with another configuration.
configured() {
	node_conf
	sleep 1
}
cell node_fewer_connections full both 150 'node restarted, and allows one connection for each session instead of 16'
node_fewer_connections() {
	begin
	NODE_LIMITS='max_session_connections = 1'
	away configured
	# Who has more keeps them: a device has a queue for each.
	finish
	at_end "both connections should be live" '[.connections[] | select(.state == "live")] | length == 2'
}

cell node_other_features full both 200 'attached with payload checksums, the node restarted without them, which cannot be used, and with them again'
node_other_features() {
	begin --payload-crc
	equal "the checksums" "$(info '.checksums | length')" 2
	away without_checksums
	finish
	at_end "checksums should be back" '.checksums | length == 2'
}
# without_checksums: the node comes back without, the device says why that is no use, and the node is
# as it was.
without_checksums() {
	NODE_MORE='checksums = false' node_conf
	node_run
	unsupported() { info '.connections[0].last_cause' | grep -q 'attached with, such as checksums'; }
	wait_for $((20 * slow)) "the device to say why it waits" unsupported
	# The kernel may keep a connection of the killed node open for seconds, until its disk has
	# answered: then only the heartbeat tells.
	waits() { [ "$(info .state)" = recovering ]; }
	wait_for $((20 * slow)) "the device to wait without the checksums that it was attached with" waits
	sleep 2
	waits || fail "the device is $(info .state) without the checksums that it was attached with"
	node_crash
	node_conf
}

cell node_cache_lost full raw 150 'node with a volatile cache killed: unflushed data gone, another boot id'
node_cache_lost() {
	PROGRAM=neonsan-node-faulty
	CHECK_OPTIONS='--cache volatile --flush-percent 1 --fua-percent 2'
	node_conf 'test_volatile_cache = true'
	begin
	away :
	# Only flushes may fail, and at least one must. To a block device a write with FUA is one too:
	# the kernel sends a flush behind it.
	finish '.failed.flushes + .failed.fua_writes >= 1 and .failed.reads == 0 and .failed.writes == .failed.fua_writes'
	[ "$ERRORS" -ge 1 ] || fail "acknowledged data was lost with the node, and no flush said so"
	NOTE="$ERRORS flushes failed, as they must"
}

# in_its_place MODE SECONDS: something else listens where the node was.
in_its_place() {
	begin "${short_timeouts[@]}"
	away impostor "$1" "$2"
	finish
	happened "connection lost" "$LOST"
}
impostor() {
	nsenter --net=/run/netns/node python3 /payload/faults/impostor "$NODE_IP" 9666 "$1" 2>"$TEST_DIR/impostor" &
	local impostor=$!
	at_exit kill_if_there $impostor
	sleep "$2"
	kill $impostor
	wait $impostor 2>/dev/null || true
	happened "connection to what is at the node's address" "$(grep -c accepted "$TEST_DIR/impostor" || true)"
}
cell node_silent full both 150 'something that accepts and says nothing is at the address for 12 s'
node_silent() { in_its_place silent 12; }
cell node_trickle full both 150 'something that says one byte a second is at the address for 12 s'
node_trickle() { in_its_place trickle 12; }
cell node_refuses full both 150 'something that closes every connection at once is at the address for 12 s'
node_refuses() { in_its_place close 12; }
