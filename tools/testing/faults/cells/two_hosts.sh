# SPDX-License-Identifier: GPL-2.0 OR MIT
# Two hosts, and a volume that one of them may have.

FIRST=(--host-id 11111111-1111-4111-8111-111111111111) SECOND=(--host-id 22222222-2222-4222-8222-222222222222)

# take_over: the second host attaches the volume by force, and writes. Sets $second, its device.
take_over() {
	local start
	start=$(now_ms)
	second=$(timeout 60 neonsan-attach "neonsan://$NODE_IP/test/v" "${SECOND[@]}" --force) || fail "the takeover by force"
	NOTE="takeover took $(($(now_ms) - start)) ms"
	at_exit detach_leftover "$second"
	head -c 8M /dev/urandom >"$TEST_DIR/second"
	dd if="$TEST_DIR/second" of="$second" bs=1M oflag=direct conv=notrunc,fsync status=none || fail "the second host's writes"
}

# taken: the first host's device has failed and says why, and what the second one wrote is there,
# whatever the first still had under way.
taken() {
	failed() { [ "$(info .state)" = failed ]; }
	wait_for $((30 * slow)) "the first host's device to fail" failed
	info .failure | grep -q 'another host took the volume' || fail "the first host's device says: $(info .failure)"
	sleep 2
	check_failed
	dd if="$second" bs=1M count=8 iflag=direct status=none | cmp - "$TEST_DIR/second" || fail "the first host wrote over the second's data"
	timeout 30 neonsan-detach --force "$DEVICE" || fail "the first host's device cannot be detached"
	neonsan-detach "$second"
}

cell host_two quick raw 150 'a second host wants an exclusive volume: refused, then by force; the first gets errors'
host_two() {
	begin "${FIRST[@]}"
	expect_error 'held' neonsan-attach "neonsan://$NODE_IP/test/v" "${SECOND[@]}"
	fault
	take_over
	fault_over
	taken
}

cell host_takeover_outage full raw 150 'takeover by force while the first host cannot be reached; it comes back'
host_takeover_outage() {
	local in='' out='' port
	# It is not to notice by itself, however slow the machine is.
	begin "${FIRST[@]}" --heartbeat-interval 10s --heartbeat-timeout 60s
	for port in $(ss -Htn "dst $NODE_IP" 'dport = 9666' | awk '{split($4, a, ":"); print a[2]}'); do
		in="$in tcp sport $port drop;" out="$out tcp dport $port drop;"
	done
	[ -n "$in" ] || fail "the first host has no connection"
	fault
	# Only the first host's connections, those that exist.
	filter "$in" "$out"
	take_over
	# It has not heard of it: as far as it knows it has the volume.
	equal "the first host's device" "$(info .state)" live
	unfilter
	fault_over
	taken
}
