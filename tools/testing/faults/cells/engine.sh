# SPDX-License-Identifier: GPL-2.0 OR MIT
# Faults of what the node stores its volumes on.

cell engine_full full raw 200 "the node's file system is full for 8 s"
engine_full() {
	truncate -s 200M /run/lab/disk/small
	at_exit rm -f /run/lab/disk/small
	mkfs.ext4 -q -F /run/lab/disk/small
	VOLUMES=$TEST_DIR/small
	mkdir -p "$VOLUMES"
	mount -o loop /run/lab/disk/small "$VOLUMES"
	at_exit umount -l "$VOLUMES"
	begin
	fault
	# The first takes what it can get at once, the second the rest.
	fallocate -l 1G "$VOLUMES/ballast" 2>/dev/null || dd if=/dev/zero of="$VOLUMES/ballast.2" bs=1M status=none 2>/dev/null || true
	sleep 8
	rm -f "$VOLUMES"/ballast*
	fault_over
	# What needs space fails, as documented; no read, and nothing else.
	finish '.failed.reads == 0 and .failed.flushes == 0 and ([.errors | keys[] | test("No space")] | all)'
	happened "write failed for lack of space" "$ERRORS"
	NOTE="$ERRORS writes failed for lack of space"
	node_crash
	rm -rf "${VOLUMES:?}"/*
}

# engine_fault SECONDS JSON [ATTACH-OPTION…]: this goes wrong for so long; sets $OVER_MS.
engine_fault() {
	local seconds=$1 what=$2
	PROGRAM=neonsan-node-faulty
	shift 2
	begin "$@"
	engine "$what"
	# Not before: on a slow kernel the command takes seconds itself, and there is service meanwhile.
	fault total
	sleep "$seconds"
	engine '{}'
	fault_over
}

cell engine_eio full raw 150 'the engine fails everything with EIO for 3 s'
engine_eio() {
	engine_fault 3 '{"fail":"io"}'
	# As from a disk whose medium is bad.
	finish '[.errors | keys[] | test("No data available")] | all'
	happened "failed request" "$ERRORS"
	NOTE="$ERRORS requests failed, as they must"
}

cell engine_hang quick both 150 'the engine hangs for 12 s, longer than the request timeout'
engine_hang() {
	engine_fault 12 '{"hang":true}' "${short_timeouts[@]}"
	# The node drains the old session, and says when to try again: a second at most.
	BOUND_MS=$((BOUND_MS + 1000))
	finish
	happened "connection lost" "$LOST"
}

cell engine_slow full both 150 'every request takes half a second in the engine, for 10 s'
engine_slow() {
	engine_fault 10 '{"delay_ms":500}'
	TOTAL=partial
	finish
	[ "$SLOWEST_MS" -ge 500 ] || fail "the slowest answer took $SLOWEST_MS ms: the engine was not slow"
	equal "the requests sent again" "$RESENT" 0
}

cell engine_hang_attach full raw 150 'the engine hangs while a second volume is attached and its partition table read'
engine_hang_attach() {
	local second
	PROGRAM=neonsan-node-faulty
	begin
	in_node neonsan volume create "neonsan://$NODE_IP/test/second" --size 16M --api "$NODE_API" >/dev/null
	engine '{"hang":true}'
	fault total
	# Loss timeout and all else by default: only attach itself bounds it.
	expect_error 'partition table|timeout' timeout 90 neonsan-attach "neonsan://$NODE_IP/test/second" --index 5 \
		--request-timeout 2s --connect-timeout 2s --heartbeat-interval 500ms --heartbeat-timeout 2s
	[ ! -e /sys/block/neonsan5 ] || fail "the device is there all the same"
	engine '{}'
	fault_over
	BOUND_MS=$((BOUND_MS + 1000))
	# The node lets it in once nothing of the first attempt is in the engine.
	attached() { second=$(neonsan-attach "neonsan://$NODE_IP/test/second" --index 5 2>"$TEST_DIR/attach"); }
	wait_for 30 "the second volume to be attached" attached
	detach "$second"
	finish
}
