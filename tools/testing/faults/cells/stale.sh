# SPDX-License-Identifier: GPL-2.0 OR MIT
# A stalled write must not land over newer data (ydb-platform/nbs #7070).

# The story, to the letter: a write stalls in the node's engine; the client times
# out, reconnects and sends it again; newer writes to the same block are
# acknowledged; then the stalled one wakes up.

# fill_block BYTE: write 4 KiB of that byte, flushed, behind the part that the checker uses.
fill_block() {
	head -c 4096 /dev/zero | tr '\0' "\\$(printf %03o "$1")" |
		dd of="$DEVICE" bs=4096 seek=$((60 * 256)) oflag=direct,dsync conv=notrunc status=none
}
block() {
	dd if="$DEVICE" bs=4096 skip=$((60 * 256)) count=1 iflag=direct status=none | od -An -tu1 -N1 | tr -d ' '
}

cell stale_write full raw 200 'a write stalls in the engine for 12 s, is sent again, newer ones follow, it wakes up'
stale_write() {
	local writer
	PROGRAM=neonsan-node-faulty
	begin "${short_timeouts[@]}"
	fill_block 1 || fail "the first write"
	fault
	engine '{"stall_next":1}'
	# Whichever write stalls, the checker's or this one: it is sent again, and both are looked at.
	fill_block 2 &
	writer=$!
	sleep 12
	# The node lets nobody in while the old write is in the engine.
	[ "$(info .state)" != live ] || fail "every connection was let in while an old write was in the engine"
	engine '{}'
	fault_over
	BOUND_MS=$((BOUND_MS + 1000))
	wait $writer || fail "the write failed"
	fill_block 3 || fail "the newer write"
	sleep 1
	equal "the block" "$(block)" 3
	finish
	happened "request sent again" "$RESENT"
}

cell stale_write_caught quick raw 200 'the same with a node that does not fence: the checker must notice'
stale_write_caught() {
	PROGRAM=neonsan-node-unfenced
	# Few blocks, so that the block of the stalled write is written again meanwhile.
	CHECK_OPTIONS='--hot-percent 100 --flush-percent 5' PAUSE_MS=10
	begin "${short_timeouts[@]}"
	fault
	engine '{"stall_next":4}'
	wait_for 40 "the write to be sent again" resent
	local records code=0
	records=$(log_records)
	wait_for 60 "newer writes" log_has $((records + 1200))
	# All that is under way ends well. Nothing is written again after the stalled writes land.
	check_stop
	engine '{}'
	fault_over
	sleep 2
	neonsan-checker verify "$TARGET" --log "$TEST_DIR/log" --json >"$TEST_DIR/verify.json" || code=$?
	equal "the checker's verdict on a node without fencing" $code 3
	jq -e '[.violations[].broken] | index("stale") != null' "$TEST_DIR/verify.json" >/dev/null ||
		fail "no stale block among what the checker found: $(jq -c '.violations[:3]' "$TEST_DIR/verify.json")"
	NOTE="caught: $(jq -r '.violations[0] | "block \(.block) has version \(.found.version), not \(.at_least)"' "$TEST_DIR/verify.json")"
	detach
}
resent() { [ "$(info .statistics.resent)" -gt 0 ] && [ "$(info .state)" = live ]; }
