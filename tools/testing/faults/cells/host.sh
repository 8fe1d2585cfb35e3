# SPDX-License-Identifier: GPL-2.0 OR MIT
# What happens to the host in the middle of an outage.

CPU1=/sys/devices/system/cpu/cpu1/online
# With a connection for each CPU, CPU 1 is the only one of its queue, and requests wait there.
cell host_cpu full both 150 'a CPU goes offline and comes back while the node is away'
host_cpu() {
	CONNECTIONS=4
	begin
	away cpu_cycle
	finish
}
cpu_cycle() {
	sleep 1
	cpu_off
	sleep 3
	echo 1 >$CPU1
	sleep 1
}
cpu_off() {
	at_exit sh -c "echo 1 >$CPU1"
	# It must not wait for the requests of its queue, which wait for the node.
	echo 0 >$CPU1 &
	wait_for $((20 * slow)) "the CPU to go offline while the node is away" is_off
	wait $! || fail "the CPU cannot be taken offline"
}
is_off() { [ "$(cat $CPU1)" = 0 ]; }
cell host_cpu_load full both 150 'a CPU goes offline during an outage and stays so until service is back'
host_cpu_load() {
	CONNECTIONS=4
	begin
	away cpu_away
	finish
	is_off || fail "the CPU came back too early"
}
cpu_away() {
	sleep 1
	cpu_off
	sleep 1
}

cell host_memory full both 300 'memory is short while the node is away and comes back, with dirty pages for the device'
host_memory() {
	. "${TEST_LIB%/*}/memory.lib"
	local scanned
	if [ "${LAB_DEBUG_KERNEL:-0}" = 1 ] && [ "${ON:-raw}" = ext4 ]; then
		skip "to fill the memory beside the load takes more than ten minutes there, and the cell has 20"
	fi
	begin
	leave 100
	NOTE="$(available_mib) MiB of memory left"
	scanned=$(scanned)
	away dirty
	service_back
	kill "$READER_PID"
	wait "$DIRTY_PID" || fail "the writer of dirty pages"
	finish
	scanned=$(($(scanned) - scanned))
	happened "search for pages to free" $scanned
	NOTE="$NOTE, $(available_mib) at the end; $scanned pages were looked at to free some"
}
# dirty: there are pages that only the device can take, and somebody wants all that is left.
dirty() {
	local to=$TEST_DIR/mnt/dirty seek=0
	[ "${ON:-raw}" = ext4 ] || to=$DEVICE seek=32
	dd if=/dev/zero of="$to" bs=1M seek=$seek count=24 conv=notrunc status=none &
	DIRTY_PID=$!
	read_files &
	READER_PID=$!
	at_exit kill_if_there $READER_PID
	sleep 6
}
# Of these there is more than fits in memory.
read_files() {
	while :; do cat /usr/bin/* /usr/lib/*/*.so* >/dev/null 2>&1 || true; done
}
scanned() { awk '/^pgscan_(kswapd|direct) / {sum += $2} END {print sum}' /proc/vmstat; }

cell host_swap full raw 300 'a process lives in swap on another device of the node when this goes away'
host_swap() {
	local swap swapper before group=/sys/fs/cgroup/swapper
	begin
	in_node neonsan volume create "neonsan://$NODE_IP/test/swap" --size 160M --api "$NODE_API" >/dev/null
	swap=$(neonsan-attach "neonsan://$NODE_IP/test/swap") || fail "attach of the swap"
	mkswap "$swap" >/dev/null
	swapon "$swap"
	at_exit swapoff "$swap"
	# What is left in swap would hold up the one above if the node is gone.
	at_exit detach_leftover "$swap"
	# It may have so much in memory, and is held up, not killed, when it has more. Its numbers alone
	# take that, so it never has all of them.
	mountpoint -q /sys/fs/cgroup || mount -t cgroup2 none /sys/fs/cgroup
	echo +memory >/sys/fs/cgroup/cgroup.subtree_control
	mkdir $group
	at_exit rmdir $group
	echo 24M >$group/memory.high
	sh -c "echo \$\$ >$group/cgroup.procs; exec python3 /payload/faults/swapper 24" >"$TEST_DIR/swapper" 2>&1 &
	swapper=$!
	at_exit kill_if_there $swapper
	next_round
	before=$(swapped)
	away sleep 6
	service_back
	# The one that the fault was in, one that began after it, and another.
	next_round
	next_round
	next_round
	kill -TERM $swapper
	wait $swapper || { cat "$TEST_DIR/swapper"; fail "the memory is not what it was"; }
	equal "errors of the swap" "$(info .statistics.errors "$swap")" 0
	happened "page from swap" $(($(swapped) - before))
	NOTE="$(($(swapped) - before)) pages from swap since the fault"
	swapoff "$swap"
	detach "$swap"
	finish
}
next_round() {
	local round
	round=$(($(rounds) + 1))
	wait_for $((120 * slow)) "round $round of the swapper" has_round $round
}
has_round() { [ "$(rounds)" -ge "$1" ]; }
# None is no error.
rounds() { grep -c '^round ' "$TEST_DIR/swapper" || true; }
swapped() { awk '$1 == "pswpin" {print $2}' /proc/vmstat; }

cell host_resize full both 150 'the volume grows while the node cannot be reached'
host_resize() {
	begin
	fault total
	drop_all
	sleep 4
	in_node neonsan volume resize "neonsan://$NODE_IP/test/v" --size 96M --api "$NODE_API" >/dev/null || fail "resize"
	sleep 12
	unfilter
	fault_over
	service_back
	grown() { [ "$(blockdev --getsize64 "$DEVICE")" = $((96 << 20)) ]; }
	wait_for 30 "the new size" grown
	finish
}

cell host_readers full both 200 'sysfs, debugfs and netlink are read in a loop while the node goes and comes'
host_readers() {
	local readers=() reader before
	begin
	again_and_again sysfs grep -rs . "/sys/block/$DISK/" & readers+=($!)
	again_and_again netlink sh -c "neonsan info --json $DEVICE && neonsan list" & readers+=($!)
	again_and_again debugfs cat /sys/kernel/debug/neonsan/state & readers+=($!)
	for reader in "${readers[@]}"; do at_exit kill_if_there "$reader"; done
	sleep 1
	before=$(wc -l <"$TEST_DIR/rounds")
	# The readers take most of the CPUs.
	BOUND_MS=$((BOUND_MS * 2))
	away sleep 3
	service_back
	for reader in sysfs netlink debugfs; do
		happened "reading of $reader" "$(tail -n +$((before + 1)) "$TEST_DIR/rounds" | grep -c $reader || true)"
	done
	for reader in "${readers[@]}"; do kill "$reader"; wait "$reader" 2>/dev/null || true; done
	finish
}
# Some files are for writing only, so an error is none.
again_and_again() {
	local name=$1
	shift
	while :; do
		"$@" >/dev/null 2>&1 || true
		echo "$name" >>"$TEST_DIR/rounds"
	done
}

cell host_suspend full both 200 'suspended (normal) and resumed while the node is away; suspended again, the node back, resumed'
host_suspend() {
	local records
	begin
	fault
	node_crash
	sleep 1
	timeout 30 neonsan suspend "$DEVICE" || fail "suspend needs the node"
	sleep 1
	timeout 30 neonsan resume "$DEVICE" || fail "resume needs the node"
	sleep 1
	timeout 30 neonsan suspend "$DEVICE" || fail "suspend needs the node"
	node_back
	wait_for $((30 * slow)) "every connection to be back" is_live
	# What had been sent is answered; what came later waits.
	sleep 2
	records=$(log_records)
	sleep 3
	equal "what the load has noted while suspended" "$(log_records)" "$records"
	neonsan resume "$DEVICE"
	fault_over
	finish
	happened "request sent again" "$RESENT"
}

cell host_suspend_error full raw 200 'suspended (error) while the node is away: new requests fail at once, what was sent is sent again'
host_suspend_error() {
	begin
	fault
	node_crash
	sleep 1
	timeout 30 neonsan suspend --mode error "$DEVICE" || fail "suspend needs the node"
	expect_error 'Input/output error' timeout 30 dd if="$DEVICE" of=/dev/null bs=4k count=1 iflag=direct status=none
	sleep 1
	node_back
	wait_for $((30 * slow)) "every connection to be back" is_live
	expect_error 'Input/output error' timeout 30 dd if="$DEVICE" of=/dev/null bs=4k count=1 iflag=direct status=none
	sleep 1
	neonsan resume "$DEVICE"
	fault_over
	finish '[.errors | keys[] | test("Input/output error")] | all'
	happened "request sent again" "$RESENT"
	happened "request that failed" "$ERRORS"
}

# Nothing but the reads themselves makes anybody look at what waits: no second connection, no
# heartbeat within the bound, no other load.
cell host_statistics quick raw 300 'four processes ask for state and statistics without a pause, one connection, no heartbeat'
host_statistics() {
	local askers=() pid asked=0 reads
	CONNECTIONS=1
	NODE_TIMEOUTS=$'heartbeat_interval_ms = 60000\nheartbeat_timeout_ms = 180000'
	begin --heartbeat-interval 60s --heartbeat-timeout 180s --request-timeout 90s
	check_stop
	equal "the requests of the checker that failed" "$ERRORS" 0
	fault
	for pid in 1 2 3 4; do
		python3 /payload/faults/asker >"$TEST_DIR/asked.$pid" &
		askers+=($!)
		at_exit kill_if_there $!
	done
	fio --name=reads --filename="$DEVICE" --rw=randread --bs=4k --iodepth=1 --ioengine=psync --direct=1 --size=24M \
		--time_based --runtime=10 --eta=never --output-format=json --output="$TEST_DIR/fio.json" || fail "fio"
	fault_over
	for pid in "${askers[@]}"; do
		kill "$pid"
		wait "$pid" || fail "a process that asked ended with code $?"
	done
	asked=$(awk '{sum += $1} END {print sum + 0}' "$TEST_DIR"/asked.*)
	reads=$(jq '.jobs[0].read.total_ios' "$TEST_DIR/fio.json")
	SLOWEST_MS=$(jq '.jobs[0].read.clat_ns.max / 1000000 | floor' "$TEST_DIR/fio.json")
	NOTE="$reads reads, $asked questions"
	happened "question answered" "$asked"
	happened "read" "$reads"
	# A request that was left behind would wait for the heartbeat, or for the request timeout.
	[ "$SLOWEST_MS" -le "$BOUND_MS" ] || fail "a read took $SLOWEST_MS ms; the bound is $BOUND_MS ms"
	check_verify "$TARGET"
	clean_up
}
