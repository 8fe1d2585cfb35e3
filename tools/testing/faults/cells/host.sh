# SPDX-License-Identifier: GPL-2.0 OR MIT
# What happens to the host, each in the middle of an outage.

# outage COMMAND…: the node is away for as long as the command takes, and 2 s.
outage() {
	fault
	node_crash
	sleep 1
	"$@"
	sleep 1
	fault_over
	node_back
}

cell host_cpu full 150 'a CPU goes offline and comes back while the node is away'
host_cpu() {
	begin
	sleep 2
	cpu_cycle() {
		local cpu=/sys/devices/system/cpu/cpu1/online
		[ -e $cpu ] || skip "the machine has one CPU"
		echo 0 >$cpu
		sleep 3
		echo 1 >$cpu
	}
	outage cpu_cycle
	finish
}

cell host_cpu_load full 150 'a CPU goes offline during an outage and stays so until service is back'
host_cpu_load() {
	begin
	sleep 2
	outage sh -c 'echo 0 >/sys/devices/system/cpu/cpu1/online'
	at_exit sh -c 'echo 1 >/sys/devices/system/cpu/cpu1/online'
	finish
}

cell host_memory full 300 'memory is used up while the node is away, with dirty pages for the device'
host_memory() {
	begin
	sleep 2
	hog() {
		# All but a little, for a while; and pages that only the device can take.
		dd if=/dev/zero of="$DEVICE" bs=1M seek=32 count=24 conv=notrunc status=none &
		local writer=$!
		python3 -c '
import time
free = next(int(l.split()[1]) for l in open("/proc/meminfo") if l.startswith("MemAvailable"))
hog = bytearray((free - 96 * 1024) * 1024)
for at in range(0, len(hog), 4096): hog[at] = 1
time.sleep(4)' || note "the hog was killed"
		wait $writer || fail "the writer of dirty pages"
	}
	if [ "${ON:-raw}" = ext4 ]; then
		hog() { python3 -c '
import time
free = next(int(l.split()[1]) for l in open("/proc/meminfo") if l.startswith("MemAvailable"))
hog = bytearray((free - 96 * 1024) * 1024)
for at in range(0, len(hog), 4096): hog[at] = 1
time.sleep(4)' || note "the hog was killed"; }
	fi
	outage hog
	finish
}

cell host_detach_busy full 120 'a plain detach while the node is away and the device is open: refused'
host_detach_busy() {
	begin
	sleep 2
	outage expect_error 'open|busy|use' neonsan-detach "$DEVICE"
	finish
}

# forced RULES: detach --force under load, the network as the caller made it.
forced() {
	local start took
	start=$(now_ms)
	timeout 60 neonsan-detach --force "$DEVICE" || fail "the forced detach failed"
	took=$(($(now_ms) - start))
	NOTE="detach took $took ms"
	[ $took -le $((500 + 1500 * slow)) ] || fail "the forced detach took $took ms"
	[ ! -e "/sys/block/$DISK" ] || fail "the disk is still there"
	# The load gets errors, and what was acknowledged is on the volume.
	kill -TERM "$CHECK_PID"
	wait "$CHECK_PID" || fail "the checker found $(jq -c '.violations[:3]' "$TEST_DIR/run.json")"
	RECOVERY_MS=0 LIVE_MS=0
	ERRORS=$(jq '.failed | add - .fua_writes' "$TEST_DIR/run.json")
}
again() {
	local code=0
	attach_there
	neonsan-checker verify "$DEVICE" --log "$TEST_DIR/log" --json >"$TEST_DIR/verify.json" || code=$?
	equal "the checker's verdict" $code 0
	detach
}
cell host_detach_killed full 120 'detach --force under load, the node gone'
host_detach_killed() {
	begin
	sleep 2
	fault
	node_crash
	sleep 2
	forced
	fault_over
	node_back
	wait_for 30 "the node" node_up
	again
}
cell host_detach_black_hole full 120 'detach --force under load, the network a black hole'
host_detach_black_hole() {
	begin
	sleep 2
	fault
	filter 'tcp dport 9666 drop;' 'tcp sport 9666 drop;'
	sleep 1
	forced
	unfilter
	fault_over
	# The node knows the host's old session: the same host gets the volume back.
	again
}

cell host_resize full 150 'the volume grows while the node cannot be reached'
host_resize() {
	begin
	sleep 2
	fault
	filter 'tcp dport 9666 drop;' 'tcp sport 9666 drop;'
	sleep 4
	in_node neonsan volume resize "neonsan://$NODE_IP/test/v" --size 96M --api "$NODE_API" >/dev/null || fail "resize"
	sleep 12
	unfilter
	fault_over
	grown() { [ "$(blockdev --getsize64 "$DEVICE")" = $((96 << 20)) ]; }
	wait_for 30 "the new size" grown
	finish
}

cell host_rmmod full 120 'rmmod while the node is away: refused'
host_rmmod() {
	begin
	sleep 2
	outage expect_error 'in use' rmmod neonsan
	finish
}

cell host_readers full 150 'sysfs, debugfs and netlink are read in a loop while the node goes and comes'
host_readers() {
	local readers=() reader
	begin
	( while :; do grep -rs . "/sys/block/$DISK" >/dev/null; done ) & readers+=($!)
	( while :; do neonsan info --json "$DEVICE" >/dev/null; neonsan list >/dev/null; done ) & readers+=($!)
	( while :; do cat /sys/kernel/debug/neonsan/state >/dev/null; done ) & readers+=($!)
	for reader in "${readers[@]}"; do at_exit kill_if_there "$reader"; done
	sleep 1
	outage sleep 3
	# The readers take most of both CPUs.
	BOUND_MS=$((BOUND_MS * 2))
	wait_for 60 "every connection to be back" is_live
	for reader in "${readers[@]}"; do kill "$reader"; wait "$reader" 2>/dev/null || true; done
	finish
}

cell host_storm full 600 '64 devices attached, the node killed, all detached by force, twice'
host_storm() {
	local round i pids pid
	node_conf
	at_exit rm -rf "$VOLUMES"
	network
	node_run
	for ((i = 0; i < 64; i++)); do
		in_node neonsan volume create "neonsan://$NODE_IP/test/s$i" --size 4M --api "$NODE_API" >/dev/null
	done
	for round in 1 2; do
		pids=()
		for ((i = 0; i < 64; i++)); do
			neonsan-attach "neonsan://$NODE_IP/test/s$i" --index "$i" --connections 1 --connect-timeout 60s >/dev/null & pids+=($!)
		done
		for pid in "${pids[@]}"; do wait "$pid" || fail "an attach failed"; done
		equal "the devices" "$(ls -d /sys/block/neonsan* | wc -l)" 64
		fault
		node_crash
		pids=()
		for ((i = 0; i < 64; i++)); do
			dd if="/dev/neonsan$i" of=/dev/null bs=4k count=1 iflag=direct status=none 2>/dev/null & pids+=($!)
		done
		sleep 1
		for ((i = 0; i < 64; i++)); do neonsan-detach --force "/dev/neonsan$i" & pids+=($!); done
		for pid in "${pids[@]}"; do wait "$pid" || true; done
		ls -d /sys/block/neonsan* 2>/dev/null && fail "devices are left"
		# Nobody is there: every attach ends with an error, in time.
		pids=()
		for ((i = 0; i < 64; i++)); do
			neonsan-attach "neonsan://$NODE_IP/test/s$i" --connect-timeout 2s >/dev/null 2>&1 & pids+=($!)
		done
		for pid in "${pids[@]}"; do if wait "$pid"; then fail "an attach succeeded without a node"; fi; done
		fault_over
		node_run
	done
	for ((i = 0; i < 64; i++)); do
		neonsan-attach "neonsan://$NODE_IP/test/s$i" --connections 1 >/dev/null || fail "attach after the storm"
	done
	neonsan-detach --all || fail "detach after the storm"
	node_stop
}

cell host_two quick 150 'a second host wants an exclusive volume: refused, then by force; the first gets errors'
host_two() {
	local first second start
	begin --host-id 11111111-1111-4111-8111-111111111111
	first=$DEVICE
	sleep 1
	expect_error 'held' neonsan-attach "neonsan://$NODE_IP/test/v" --host-id 22222222-2222-4222-8222-222222222222
	fault
	start=$(now_ms)
	second=$(neonsan-attach "neonsan://$NODE_IP/test/v" --host-id 22222222-2222-4222-8222-222222222222 --force) ||
		fail "the takeover by force"
	fault_over
	NOTE="takeover took $((OVER_MS - start)) ms"
	# What the second host writes must stay, whatever the first still had under way.
	head -c 8M /dev/urandom >"$TEST_DIR/second"
	dd if="$TEST_DIR/second" of="$second" bs=1M oflag=direct conv=notrunc,fsync status=none || fail "the second host's writes"
	failed() { [ "$(info .state "$first")" = failed ]; }
	wait_for $((10 * slow)) "the first host's device to fail" failed
	sleep 2
	kill -TERM "$CHECK_PID"
	wait "$CHECK_PID" || true
	ERRORS=$(jq '.failed | add - .fua_writes' "$TEST_DIR/run.json")
	[ "$ERRORS" -gt 0 ] || fail "the first host's writes did not fail"
	dd if="$second" bs=1M count=8 iflag=direct status=none | cmp - "$TEST_DIR/second" || fail "the first host wrote over the second's data"
	timeout 30 neonsan-detach --force "$first"
	neonsan-detach "$second"
	RECOVERY_MS=0
}

cell host_takeover_outage full 150 'takeover by force while the first host cannot be reached; it comes back'
host_takeover_outage() {
	local first second
	begin --host-id 11111111-1111-4111-8111-111111111111
	first=$DEVICE
	sleep 1
	fault
	# Only the first host's connections: those that exist.
	filter "$(ss -Htn "dst $NODE_IP" 'dport = 9666' | awk '{split($4, a, ":"); printf "tcp sport %s drop; ", a[2]}')" ''
	second=$(timeout 60 neonsan-attach "neonsan://$NODE_IP/test/v" --host-id 22222222-2222-4222-8222-222222222222 --force) ||
		fail "the takeover by force"
	head -c 8M /dev/urandom >"$TEST_DIR/second"
	dd if="$TEST_DIR/second" of="$second" bs=1M oflag=direct conv=notrunc,fsync status=none || fail "the second host's writes"
	unfilter
	fault_over
	failed() { [ "$(info .state "$first")" = failed ]; }
	wait_for $((40 * slow)) "the first host's device to fail" failed
	sleep 1
	kill -TERM "$CHECK_PID"
	wait "$CHECK_PID" || true
	ERRORS=$(jq '.failed | add - .fua_writes' "$TEST_DIR/run.json")
	[ "$ERRORS" -gt 0 ] || fail "the first host's writes did not fail"
	dd if="$second" bs=1M count=8 iflag=direct status=none | cmp - "$TEST_DIR/second" || fail "the first host wrote over the second's data"
	timeout 30 neonsan-detach --force "$first"
	neonsan-detach "$second"
	RECOVERY_MS=0
}
