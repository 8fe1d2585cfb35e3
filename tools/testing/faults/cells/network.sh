# SPDX-License-Identifier: GPL-2.0 OR MIT
# Faults of the network between host and node.

# filtered SECONDS IN-RULE OUT-RULE [ATTACH-OPTION…]
filtered() {
	local seconds=$1 in=$2 out=$3
	shift 3
	begin "$@"
	sleep 2
	fault
	filter "$in" "$out"
	sleep "$seconds"
	unfilter
	fault_over
	finish
}
port='tcp dport 9666'
reply='tcp sport 9666'
cell net_drop_60s full 200 'everything between host and node is dropped for 60 s'
net_drop_60s() { filtered 60 "$port drop;" "$reply drop;"; }
cell net_drop_15s quick 120 'everything between host and node is dropped for 15 s'
net_drop_15s() { filtered 15 "$port drop;" "$reply drop;"; }
cell net_drop_700s full 900 'everything between host and node is dropped for 700 s'
net_drop_700s() { filtered 700 "$port drop;" "$reply drop;"; }
cell net_drop_to_node full 150 'everything to the node is dropped for 20 s'
net_drop_to_node() { filtered 20 "$port drop;" ''; }
cell net_drop_to_host full 150 'everything from the node is dropped for 20 s'
net_drop_to_host() { filtered 20 '' "$reply drop;"; }
cell net_refused full 150 'every packet is answered with a reset for 10 s'
net_refused() { filtered 10 "$port reject with tcp reset;" ''; }
cell net_mtu full 150 'packets above 600 bytes vanish for 20 s, without a word'
net_mtu() { filtered 20 "$port meta length gt 600 drop;" "$reply meta length gt 600 drop;" "${short_timeouts[@]}"; }

cell net_reset quick 120 'every connection is reset, once'
net_reset() {
	begin
	sleep 2
	fault
	filter "$port reject with tcp reset;" ''
	sleep 0.2
	unfilter
	fault_over
	BOUND_MS=$((500 + 1000 * slow))
	finish
}

cell net_one_of_four full 150 'one of four connections is reset, once'
net_one_of_four() {
	local one losses
	begin --connections 4
	sleep 2
	one=$(ss -Htn "dst $NODE_IP" "dport = 9666" | awk 'NR == 2 {split($4, a, ":"); print a[2]}')
	fault
	filter "tcp sport $one reject with tcp reset;" ''
	sleep 0.3
	unfilter
	fault_over
	wait_for 10 "the connection to be back" is_live
	losses=$(info '[.connections[].losses] | tojson')
	equal "connections lost" "$(jq '[.[] | select(. > 0)] | length' <<<"$losses")" 1
	equal "the generation" "$(info .session.generation)" 1
	finish
}

# emulated SECONDS NETEM…
emulated() {
	local seconds=$1
	shift
	sleep 2
	fault
	emulate "$@"
	sleep "$seconds"
	emulate_off
	fault_over
	# What was lost is sent again by TCP, which may wait for long by then.
	BOUND_MS=$((BOUND_MS + 9000))
	finish
}
cell net_loss_1 full 150 '1 % of the packets are lost, both ways, for 15 s'
net_loss_1() { begin; emulated 15 loss 1%; }
cell net_loss_30 full 150 '30 % of the packets are lost, both ways, for 15 s'
net_loss_30() { begin; emulated 15 loss 30%; }
cell net_reorder full 150 'a quarter of the packets overtake others for 15 s'
net_reorder() { begin; emulated 15 delay 5ms reorder 25% 50%; }
cell net_duplicate full 150 'a third of the packets come twice for 15 s'
net_duplicate() { begin; emulated 15 duplicate 33%; }
cell net_delay full 150 '300 ms of delay each way for 15 s'
net_delay() { begin; emulated 15 delay 300ms 100ms; }
cell net_corrupt full 150 '5 % of the packets are damaged for 15 s, no checksums but those of TCP'
net_corrupt() { begin; emulated 15 corrupt 5%; }
cell net_corrupt_crc full 150 '5 % of the packets are damaged for 15 s, with payload checksums'
net_corrupt_crc() { begin --payload-crc; emulated 15 corrupt 5%; }

# Damage that TCP does not see: a proxy flips a bit now and then. Only checksums help.
cell net_damaged_data full 150 'a box on the way flips a bit in every 300th message, with payload checksums'
net_damaged_data() {
	begin --payload-crc
	sleep 1
	fault
	nsenter --net=/run/netns/node python3 /payload/faults/bitflipper "$NODE_IP" 9777 "$NODE_IP" 9666 300 2>"$TEST_DIR/flips" &
	local proxy=$!
	at_exit kill_if_there $proxy
	wait_for 10 "the proxy" grep -q ready "$TEST_DIR/flips"
	in_node nft -f - <<-RULES
		table ip divert {
			chain pre { type nat hook prerouting priority -100; ip saddr $HOST_IP tcp dport 9666 redirect to :9777; }
		}
	RULES
	# New connections take the way through the box.
	filter "tcp dport 9666 ip saddr $HOST_IP reject with tcp reset;" ''
	sleep 0.3
	unfilter
	sleep 15
	in_node nft delete table ip divert
	kill $proxy
	wait $proxy 2>/dev/null || true
	fault_over
	local flips
	flips=$(grep -c flipped "$TEST_DIR/flips" || true)
	[ "$flips" -gt 0 ] || fail "no bit was flipped"
	finish
	NOTE="$flips bits flipped"
}

cell net_half_open full 150 'the node is started anew while the network is cut: old connections are half open'
net_half_open() {
	begin
	sleep 2
	fault
	filter "$port drop;" "$reply drop;"
	node_crash
	node_run
	sleep 2
	unfilter
	fault_over
	finish
}

cell net_address full 150 "the host's address changes"
net_address() {
	begin "${short_timeouts[@]}"
	sleep 2
	fault
	ip addr del $HOST_IP/24 dev to-node
	ip addr add 10.77.0.11/24 dev to-node
	sleep 0.5
	fault_over
	# The old connections die by their heartbeat only.
	BOUND_MS=$((BOUND_MS + 2000))
	finish
}
