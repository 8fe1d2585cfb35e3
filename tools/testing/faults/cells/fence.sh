# SPDX-License-Identifier: GPL-2.0 OR MIT
# Who may have a volume whose session has no connection for a while.

# The device pauses between two tries, so that it has no connection when the node is back.
PAUSE=(--reconnect-delay-min 3s --reconnect-delay-max 3s)

# node_restarted: as an operator does it; there is no connection yet.
node_restarted() {
	fault
	node_stop
	node_run
}

# goes_on: nobody else had the volume, and the load has seen nothing but a restart.
goes_on() {
	fault_over
	finish
	happened "connection lost" "$LOST"
	at_end "the device's session" '.session.generation > 1 and .state == "live"'
}

cell fence_second quick both 150 'node restarted; another session of the same host wants the volume before the first is back: refused'
fence_second() {
	begin "${PAUSE[@]}"
	head -c 1M /dev/zero >"$TEST_DIR/image"
	node_restarted
	expect_error 'held by host' neonsan volume import "neonsan://$NODE_IP/test/v" "$TEST_DIR/image"
	expect_error "attached already as $DEVICE" neonsan-attach "neonsan://$NODE_IP/test/v"
	goes_on
}

# as_clone COMMAND…: run it as on a machine with the same machine id, other firmware and another boot.
as_clone() {
	local boot=/proc/sys/kernel/random/boot_id
	echo 8a7f3c52-6d1b-4f0e-9c41-2b5e7d90a613 >"$TEST_DIR/uuid"
	echo 1f0c9a44-3b7e-4a5d-8e62-d3f4a5b6c7d8 >"$TEST_DIR/boot"
	# The kernel of the lab shows no firmware, so all of its place is the clone's.
	unshare --mount bash -c '
		mount -t tmpfs tmpfs /sys/class && mkdir -p /sys/class/dmi/id && cp "$1" /sys/class/dmi/id/product_uuid &&
			mount --bind "$2" "$3" || { echo "no other firmware and boot"; exit 99; }
		shift 3
		exec "$@"' clone "$TEST_DIR/uuid" "$TEST_DIR/boot" "$boot" "$@"
}

cell fence_clone full both 150 'node restarted; a clone of the host, with the same machine id, wants the volume before the host is back: refused'
fence_clone() {
	begin "${PAUSE[@]}"
	[ -s /etc/machine-id ] || fail "the machine has no machine id that a clone could have"
	node_restarted
	expect_error 'held by host' as_clone neonsan-attach "neonsan://$NODE_IP/test/v"
	goes_on
}
