#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# detach beside set, suspend, resume and another detach: all of them end, and nothing is left
# timeout: 600
. "$TEST_LIB"

node_start
volume test/race 16M
# again_and_again FILE COMMAND…: until the file is there. The device comes and goes, so errors are none.
again_and_again() {
	local file=$1
	shift
	until [ -e "$file" ]; do timeout 60 "$@" >/dev/null 2>&1 || [ $? != 124 ] || echo "$*" >>"$TEST_DIR/hangs"; done
}
racers=()
race() { again_and_again "$TEST_DIR/over" "$@" & racers+=($!); }
race neonsan set --request-timeout 20s /dev/neonsan9
race sh -c 'neonsan suspend /dev/neonsan9; neonsan resume /dev/neonsan9'
race sh -c 'neonsan suspend --mode error /dev/neonsan9; neonsan resume /dev/neonsan9'
race neonsan info /dev/neonsan9
rounds=$(less 40)
for ((round = 0; round < rounds; round++)); do
	attach test/race --index 9 --connections 2
	neonsan resume "$DEVICE" || fail "resume"
	dd if="$DEVICE" of=/dev/null bs=64k count=4 iflag=direct status=none 2>/dev/null &
	load=$!
	again=()
	for detacher in 1 2 3; do
		timeout 60 neonsan-detach --force "$DEVICE" >/dev/null 2>"$TEST_DIR/detach-$detacher" &
		again+=($!)
	done
	ended=0
	for pid in "${again[@]}"; do
		code=0
		wait "$pid" || code=$?
		[ $code != 124 ] || fail "round $round: a detach has not ended within a minute"
		[ $code != 0 ] || ended=$((ended + 1))
	done
	[ $ended -gt 0 ] || fail "round $round: no detach succeeded: $(cat "$TEST_DIR"/detach-*)"
	wait $load || true
	[ ! -e "/sys/block/$DISK" ] || fail "round $round: the disk is still there"
done
touch "$TEST_DIR/over"
for pid in "${racers[@]}"; do wait "$pid" || true; done
[ ! -e "$TEST_DIR/hangs" ] || fail "these did not end: $(sort -u "$TEST_DIR/hangs")"
timeout 60 rmmod neonsan || fail "the module does not unload"
insmod /payload/neonsan.ko
