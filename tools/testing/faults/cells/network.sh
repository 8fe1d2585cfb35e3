# SPDX-License-Identifier: GPL-2.0 OR MIT
# Faults of the network between host and node.

# filtered SECONDS IN-RULE OUT-RULE [ATTACH-OPTION…]: nothing is served while these rules are there.
filtered() {
	local seconds=$1 in=$2 out=$3
	shift 3
	begin "$@"
	fault total
	filter "$in" "$out"
	sleep "$seconds"
	unfilter
	fault_over
	finish
	happened "connection lost" "$LOST"
}
cell net_drop_15s quick both 120 'everything between host and node is dropped for 15 s'
net_drop_15s() { filtered 15 "$REQUESTS drop;" "$REPLIES drop;"; }
cell net_drop_60s full both 200 'everything between host and node is dropped for 60 s'
net_drop_60s() { filtered 60 "$REQUESTS drop;" "$REPLIES drop;"; }
cell net_drop_700s full both 900 'everything between host and node is dropped for 700 s'
net_drop_700s() { filtered 700 "$REQUESTS drop;" "$REPLIES drop;"; }
cell net_drop_to_node full both 150 'everything to the node is dropped for 20 s'
net_drop_to_node() { filtered 20 "$REQUESTS drop;" ''; }
cell net_drop_to_host full both 150 'everything from the node is dropped for 20 s'
net_drop_to_host() { filtered 20 '' "$REPLIES drop;"; }
cell net_refused full both 150 'every packet is answered with a reset for 10 s'
net_refused() { filtered 10 "$REQUESTS reject with tcp reset;" ''; }

cell net_mtu full both 150 'packets above 600 bytes vanish for 20 s, without a word'
net_mtu() {
	begin "${short_timeouts[@]}"
	# Small reads and flushes pass until something large is in front of them.
	fault
	filter "$REQUESTS meta length gt 600 drop;" "$REPLIES meta length gt 600 drop;"
	sleep 20
	unfilter
	fault_over
	finish
	happened "request sent again" "$RESENT"
}

cell net_reset quick both 120 'every connection is reset, once'
net_reset() {
	begin
	reset_each "$(ports | paste -sd,)"
	finish
	at_end "every connection should have been lost" '[.connections[].losses] | all(. >= 1)'
}
# ports: those of the host's connections, a line each.
ports() { ss -Htn "dst $NODE_IP" "dport = 9666" | awk '{split($4, address, ":"); print address[2]}'; }
# reset_each PORT,…: the connections from these ports, and not those that replace them.
reset_each() {
	fault
	filter "tcp sport { $1 } reject with tcp reset;" ''
	are_lost() { [ "$(info '[.connections[].losses] | add')" -ge "$(wc -w <<<"${1//,/ }")" ]; }
	wait_for $((10 * slow)) "the connections to be lost" are_lost "$1"
	unfilter
	fault_over
	BOUND_MS=$((500 + 1000 * slow))
}

cell net_one_of_four full both 150 'one of four connections is reset, once'
net_one_of_four() {
	local generation
	CONNECTIONS=4
	begin
	# Not always the first: it goes on with what a cell before has left by a forced detach.
	generation=$(info .session.generation)
	reset_each "$(ports | sed -n 2p)"
	finish
	equal "the connections lost" "$LOST" 1
	at_end "the session should go on" ".session.generation == $generation"
	# What this connection had in flight, and nothing else: the load has eight requests at a time.
	[ "$RESENT" -le 8 ] || fail "$RESENT requests were sent again"
	NOTE="slowest answer $SLOWEST_MS ms"
}

# emulated SECONDS NETEM…
emulated() {
	local seconds=$1
	shift
	fault
	emulate "$@"
	sleep "$seconds"
	emulate_off
	fault_over
	# What was lost is sent again by TCP, which may wait for long by then.
	BOUND_MS=$((BOUND_MS + 9000))
	finish
}
cell net_loss_1 full both 150 '1 % of the packets are lost, both ways, for 15 s'
net_loss_1() {
	begin
	emulated 15 loss 1%
	happened "packet dropped" "$DROPPED"
}
cell net_loss_30 full both 150 '30 % of the packets are lost, both ways, for 15 s'
net_loss_30() {
	begin
	emulated 15 loss 30%
	happened "packet dropped" "$DROPPED"
}
# counted COUNTER SECONDS NETEM…: the counter of TCP must grow.
counted() {
	local name=$1 before
	shift
	before=$(tcp_counter "$name")
	emulated "$@"
	happened "$name" $(($(tcp_counter "$name") - before))
	NOTE="$name $(($(tcp_counter "$name") - before))"
}
cell net_reorder full both 150 'a quarter of the packets overtake others for 15 s'
net_reorder() {
	begin
	counted TCPOFOQueue 15 delay 5ms reorder 25% 50%
}
cell net_duplicate full both 150 'a third of the packets come twice for 15 s'
net_duplicate() {
	begin
	counted TCPDSACKOldSent 15 duplicate 33%
}
cell net_delay full both 150 '300 ms of delay each way for 15 s'
net_delay() {
	begin
	emulated 15 delay 300ms 100ms
	[ "$SLOWEST_MS" -ge 400 ] || fail "the slowest answer took $SLOWEST_MS ms: nothing was delayed"
}
cell net_one_byte full both 200 'one byte a second passes, each way, for 20 s'
net_one_byte() {
	begin
	emulated 20 rate 8bit
	happened "connection lost" "$LOST"
	[ "$GAP_MS" -ge 15000 ] || fail "there was service: the longest time without was $GAP_MS ms"
}
cell net_corrupt full both 150 '5 % of the packets are damaged for 15 s, no checksums but those of TCP'
net_corrupt() {
	begin
	counted InCsumErrors 15 corrupt 5%
}
cell net_corrupt_crc full both 150 '5 % of the packets are damaged for 15 s, with payload checksums'
net_corrupt_crc() {
	begin --payload-crc
	counted InCsumErrors 15 corrupt 5%
}

# Damage that TCP does not see: only checksums of our own help.
cell net_damaged_data full both 200 'a box on the way flips a bit in every 100th message for 15 s, with payload checksums'
net_damaged_data() {
	local box
	# The box has the address that the host knows.
	NODES=$OTHER_IP
	before_attach() {
		nsenter --net=/run/netns/node python3 /payload/faults/bitflipper "$OTHER_IP" 9666 "$NODE_IP" 9666 100 2>"$TEST_DIR/flips" &
		box=$!
		at_exit kill_if_there $box
		wait_for 20 "the box" grep -q ready "$TEST_DIR/flips"
	}
	NODE_LISTEN=$NODE_IP
	begin --payload-crc
	equal "the checksums" "$(info '.checksums | length')" 2
	fault
	kill -USR1 $box
	sleep 15
	kill -USR2 $box
	fault_over
	finish
	local flips found
	flips=$(grep -c flipped "$TEST_DIR/flips" || true)
	happened "bit flipped" "$flips"
	happened "connection lost" "$LOST"
	# Either end may have found it.
	found=$(jq '[.connections[].last_cause | strings | select(test("arrived damaged"))] | length' <<<"$END")
	happened "damage found" $((found + $(grep -c 'arrived damaged' "$TEST_DIR/node.log" || true)))
	NOTE="$flips bits flipped"
}

cell net_half_open full both 150 'the node is started anew while the network is cut: old connections are half open'
net_half_open() {
	begin
	fault total
	drop_all
	node_crash
	node_run
	sleep 2
	unfilter
	fault_over
	finish
	happened "connection lost" "$LOST"
}

cell net_address full both 150 "the host's address changes"
net_address() {
	begin "${short_timeouts[@]}"
	fault total
	ip addr del $HOST_IP/24 dev to-node
	ip addr add 10.77.0.11/24 dev to-node
	sleep 0.5
	fault_over
	# The old connections die by their heartbeat only.
	BOUND_MS=$((BOUND_MS + 2000))
	finish
	happened "connection lost" "$LOST"
}
