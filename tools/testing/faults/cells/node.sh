# SPDX-License-Identifier: GPL-2.0 OR MIT
# Faults of the node.

# killed SECONDS: killed, and away for so long.
killed() {
	begin
	sleep 2
	fault
	kill -KILL "$NODE_PID"
	wait "$NODE_PID" 2>/dev/null || true
	sleep "$1"
	fault_over
	node_back
	finish
}
cell node_kill_2s quick 120 'node killed (SIGKILL), started again after 2 s'
node_kill_2s() { killed 2; }
cell node_kill_40s full 180 'node killed, started again after 40 s'
node_kill_40s() { killed 40; }
cell node_kill_120s full 260 'node killed, started again after 120 s'
node_kill_120s() { killed 120; }
cell node_kill_700s full 900 'node killed, started again after 700 s'
node_kill_700s() { killed 700; }

cell node_restart full 120 'node restarted in order (SIGTERM)'
node_restart() {
	begin
	sleep 2
	fault
	node_stop
	fault_over
	node_back
	finish
}

cell node_stop_5s full 120 'node stopped (SIGSTOP) for 5 s, less than any timeout, then SIGCONT'
node_stop_5s() {
	begin
	sleep 2
	fault
	kill -STOP "$NODE_PID"
	sleep 5
	kill -CONT "$NODE_PID"
	fault_over
	finish
	equal "the requests sent again" "$RESENT" 0
}

cell node_stop_long quick 150 'node stopped for 15 s, longer than every timeout, then SIGCONT'
node_stop_long() {
	begin "${short_timeouts[@]}"
	sleep 2
	fault
	kill -STOP "$NODE_PID"
	sleep 15
	kill -CONT "$NODE_PID"
	fault_over
	finish
}

cell node_other_address full 150 'node killed, started again at the second address of the target'
node_other_address() {
	NODES=$NODE_IP,$OTHER_IP
	begin
	sleep 2
	fault
	node_crash
	NODE_LISTEN=$OTHER_IP node_conf
	sleep 2
	fault_over
	node_back
	finish
	NOTE="at $OTHER_IP"
}

cell node_fewer_connections full 150 'node restarted with one connection for each session instead of 16'
node_fewer_connections() {
	begin
	sleep 2
	fault
	node_crash
	NODE_LIMITS='max_session_connections = 1' node_conf
	fault_over
	node_back
	# Fewer connections than queues: the device may stay degraded, and must serve.
	is_live() { case $(info .state) in live | degraded) ;; *) false ;; esac; }
	finish
}

cell node_other_features full 150 'attached with payload checksums, node restarted without'
node_other_features() {
	begin --payload-crc
	equal "the checksums" "$(info '.checksums | length')" 2
	sleep 2
	fault
	node_crash
	NODE_MORE='checksums = false' node_conf
	fault_over
	node_back
	finish
}

cell node_cache_lost full 150 'node with a volatile cache killed: unflushed data gone, another boot id'
node_cache_lost() {
	PROGRAM=neonsan-node-faulty
	CHECK_OPTIONS='--cache volatile --flush-percent 1 --fua-percent 2'
	node_conf 'test_volatile_cache = true'
	begin
	sleep 3
	fault
	node_crash
	fault_over
	node_back
	# Only flushes may fail, and at least one must. To a block device a write with FUA is one too:
	# the kernel sends a flush behind it.
	finish '.failed.flushes + .failed.fua_writes >= 1 and .failed.reads == 0 and .failed.writes == .failed.fua_writes'
	[ "$ERRORS" -ge 1 ] || fail "acknowledged data was lost with the node, and no flush said so"
	NOTE="$ERRORS flushes failed, as they must"
}

cell node_disk_full full 200 "the node's file system is full for 8 s"
node_disk_full() {
	truncate -s 200M /run/lab/disk/small
	at_exit rm -f /run/lab/disk/small
	mkfs.ext4 -q -F /run/lab/disk/small
	VOLUMES=$TEST_DIR/small
	mkdir -p "$VOLUMES"
	mount -o loop /run/lab/disk/small "$VOLUMES"
	at_exit umount -l "$VOLUMES"
	begin
	sleep 1
	fault
	fallocate -l 1G "$VOLUMES/ballast" 2>/dev/null || dd if=/dev/zero of="$VOLUMES/ballast" bs=1M status=none 2>/dev/null || true
	sleep 8
	rm -f "$VOLUMES/ballast"
	fault_over
	# What needs space fails, as documented; no read, and nothing else.
	finish '.failed.reads == 0 and .failed.flushes == 0 and ([.errors | keys[] | test("No space")] | all)'
	NOTE="$ERRORS writes failed for lack of space"
	node_crash
	rm -rf "${VOLUMES:?}"/*
}

cell engine_eio full 150 'the engine fails everything with EIO for 3 s'
engine_eio() {
	PROGRAM=neonsan-node-faulty
	begin
	sleep 2
	fault
	engine '{"fail":"io"}'
	sleep 3
	engine '{}'
	fault_over
	finish '[.errors | keys[] | test("Input/output error")] | all'
	[ "$ERRORS" -ge 1 ] || fail "the engine failed and no request did"
	NOTE="$ERRORS requests failed, as they must"
}

cell engine_hang quick 150 'the engine hangs for 12 s, longer than the request timeout'
engine_hang() {
	PROGRAM=neonsan-node-faulty
	begin "${short_timeouts[@]}"
	sleep 2
	fault
	engine '{"hang":true}'
	sleep 12
	engine '{}'
	fault_over
	# The node drains the old session, and says when to try again: a second at most.
	BOUND_MS=$((BOUND_MS + 1000))
	finish
}

cell engine_slow full 150 'every request takes half a second in the engine, for 10 s'
engine_slow() {
	PROGRAM=neonsan-node-faulty
	begin
	sleep 2
	fault
	engine '{"delay_ms":500}'
	sleep 10
	engine '{}'
	fault_over
	finish
	equal "the requests sent again" "$RESENT" 0
}

# in_its_place MODE SECONDS: something else listens where the node was.
in_its_place() {
	begin "${short_timeouts[@]}"
	sleep 2
	fault
	node_crash
	nsenter --net=/run/netns/node python3 /payload/faults/impostor "$NODE_IP" 9666 "$1" &
	local impostor=$!
	at_exit kill_if_there $impostor
	sleep "$2"
	kill $impostor
	wait $impostor 2>/dev/null || true
	fault_over
	node_back
	finish
}
cell node_silent full 150 'something that accepts and says nothing is at the address for 12 s'
node_silent() { in_its_place silent 12; }
cell node_one_byte full 150 'something that says one byte a second is at the address for 12 s'
node_one_byte() { in_its_place trickle 12; }
cell node_refuses full 150 'something that closes every connection at once is at the address for 12 s'
node_refuses() { in_its_place close 12; }
