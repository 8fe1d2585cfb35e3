# SPDX-License-Identifier: GPL-2.0 OR MIT
# Faults of what the node stores its volumes on.

# small_disk: the node's volumes are on an ext4 of 200 MB of their own.
small_disk() {
	truncate -s 200M /run/lab/disk/small
	at_exit rm -f /run/lab/disk/small
	mkfs.ext4 -q -F /run/lab/disk/small
	VOLUMES=$TEST_DIR/small
	mkdir -p "$VOLUMES"
	small_disk_there
	at_exit umount -l "$VOLUMES"
}
small_disk_there() { mount -o loop /run/lab/disk/small "$VOLUMES"; }

cell engine_full full raw 200 "the node's file system is full for 8 s"
engine_full() {
	small_disk
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

# small_disk_gone: to the file system it is as if its disk were gone: nothing is written any more.
small_disk_gone() {
	python3 -c '
import fcntl, os, struct, sys
EXT4_IOC_SHUTDOWN, WITHOUT_THE_LOG = 0x8004587D, 2
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), EXT4_IOC_SHUTDOWN, struct.pack("<I", WITHOUT_THE_LOG))' "$VOLUMES" ||
		fail "the file system does not go away"
}
# small_disk_back: mounted again, without a boot of the machine. What the node that is gone had in
# the kernel holds the old mount for a moment.
small_disk_back() {
	wait_for 20 "the file system to be unmounted" umount "$VOLUMES"
	small_disk_there || fail "the file system cannot be mounted again"
}
# In both cells reads, and writes without FUA, may fail only as long as the file system is gone; a
# flush must fail, for what was answered before.
UNFLUSHED='--cache volatile --flush-percent 1 --fua-percent 2'

cell engine_gone_killed full raw 200 'the file system below the engine is gone, and the node killed before it notices; mounted and started again'
engine_gone_killed() {
	CHECK_OPTIONS=$UNFLUSHED
	small_disk
	begin
	local boot
	boot=$(info .session.boot_id)
	kill -STOP "$NODE_PID"
	fault total
	small_disk_gone
	node_crash
	small_disk_back
	fault_over
	node_back
	finish '.failed.flushes + .failed.fua_writes >= 1 and .failed.reads == 0 and .failed.writes == .failed.fua_writes'
	gone_is_told "$boot"
}
cell engine_gone full raw 200 'the file system below the engine is gone for 3 s; the node stopped, the file system mounted again, the node started again'
engine_gone() {
	CHECK_OPTIONS=$UNFLUSHED
	small_disk
	begin
	local boot
	boot=$(info .session.boot_id)
	fault
	small_disk_gone
	sleep 3
	# It can neither sync nor note that it could not: it says so, and ends when its time is up.
	node_stop "$NODE_PID" 1
	grep -q 'may not be on stable storage' "$TEST_DIR/node.log" || fail "the node did not say that answered data may be lost"
	small_disk_back
	fault_over
	node_back
	finish '.failed.flushes + .failed.fua_writes >= 1'
	gone_is_told "$boot"
}
gone_is_told() {
	[ "$(jq -r .session.boot_id <<<"$END")" != "$1" ] || fail "the device was told the boot id of before"
	happened "failed flush" "$ERRORS"
	NOTE="$ERRORS requests failed; the boot id is another"
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
