# SPDX-License-Identifier: GPL-2.0 OR MIT
# Taking devices away, and the module, in the middle of an outage.

cell host_detach_busy full both 120 'a plain detach while the node is away and the device is open: refused'
host_detach_busy() {
	begin
	away refused 'open|busy|use' neonsan-detach "$DEVICE"
	finish
}
cell host_rmmod full both 120 'rmmod while the node is away: refused'
host_rmmod() {
	begin
	away refused 'in use' rmmod neonsan
	finish
}
refused() {
	sleep 1
	expect_error "$@"
	sleep 1
}

# forced: detach --force under load. The caller has taken the network away and brings it back
# afterwards, so whatever needed it could not end.
forced() {
	local start
	start=$(now_ms)
	timeout 60 neonsan-detach --force "$DEVICE" || fail "the forced detach failed"
	NOTE="detach took $(($(now_ms) - start)) ms"
	[ ! -e "/sys/block/$DISK" ] || fail "the disk is still there"
	check_failed
	timeout 60 rmmod neonsan || fail "the module cannot be unloaded after a forced detach"
	insmod /payload/neonsan.ko
}
# again [OPTION…]: what was acknowledged before is on the volume.
again() {
	ATTACHED+=("$@")
	attach_there
	check_verify "$DEVICE"
	detach
}
cell host_detach_killed full raw 120 'detach --force under load, the node gone; the module unloaded'
host_detach_killed() {
	begin
	away forced
	wait_for 30 "the node" node_up
	# With the module went what it knew of the session, and for the node that still has the volume.
	expect_error 'held by host .* free in' neonsan-attach "neonsan://$NODE_IP/test/v"
	again --force
}
cell host_detach_black_hole full raw 120 'detach --force under load, the network a black hole; the module unloaded'
host_detach_black_hole() {
	begin
	fault
	drop_all
	sleep 1
	forced
	unfilter
	fault_over
	# For the node the old session still has the volume.
	again --force
}

cell host_storm full raw 600 '64 devices attached, the node killed, all detached by force, twice'
host_storm() {
	local round i
	node_conf
	at_exit rm -rf "$VOLUMES"
	network
	node_run
	for ((i = 0; i < 64; i++)); do
		in_node neonsan volume create "neonsan://$NODE_IP/test/s$i" --size 4M --api "$NODE_API" >/dev/null
	done
	for round in 1 2; do
		all_at_once succeed attach_nth --connections 1 --connect-timeout 60s
		equal "the devices" "$(ls -d /sys/block/neonsan* | wc -l)" 64
		fault
		node_crash
		# Each is read, which waits, and is open for that.
		for ((i = 0; i < 64; i++)); do
			{ dd if="/dev/neonsan$i" of=/dev/null bs=4k count=1 iflag=direct status=none || echo >>"$TEST_DIR/failed.$round"; } 2>/dev/null &
		done
		sleep 1
		all_at_once succeed detach_nth
		if ls -d /sys/block/neonsan* 2>/dev/null; then fail "devices are left"; fi
		all_failed() { [ "$(wc -l <"$TEST_DIR/failed.$round")" = 64 ]; }
		wait_for $((10 * slow)) "an error for every read" all_failed
		# Nobody is there: every attach ends with an error, in time.
		all_at_once fail attach_nth --connect-timeout 2s
		fault_over
		node_run
	done
	all_at_once succeed attach_nth --connections 1 --connect-timeout 60s
	neonsan-detach --all || fail "detach after the storm"
	node_stop
}
attach_nth() { neonsan-attach "neonsan://$NODE_IP/test/s$1" --index "$1" "${@:2}" >/dev/null; }
detach_nth() { neonsan-detach --force "/dev/neonsan$1"; }
# all_at_once succeed|fail COMMAND [OPTION…]: for 0 to 63, all of them in the background; each must
# end so.
all_at_once() {
	local want=$1 command=$2 pids=() i outcome
	shift 2
	for ((i = 0; i < 64; i++)); do
		"$command" "$i" "$@" 2>>"$TEST_DIR/storm.log" & pids+=($!)
	done
	for i in "${!pids[@]}"; do
		outcome=succeed
		wait "${pids[i]}" || outcome=fail
		[ $outcome = "$want" ] || { tail -n 5 "$TEST_DIR/storm.log"; fail "$command $i should $want"; }
	done
}
