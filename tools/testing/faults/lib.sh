# SPDX-License-Identifier: GPL-2.0 OR MIT
# Helpers of the fault matrix's cells, on top of those of the selftests.
#
# A cell is a function of a file in cells/, announced by a line
#
#   cell NAME quick|full SECONDS 'what is injected'
#
# It runs in a process and a directory of its own ($TEST_DIR), as root, in the
# virtual machine. The node is in the network namespace "node" (10.77.0.2, and
# 10.77.0.3), the host at the other end of a veth pair (10.77.0.1). A cell calls
#
#   begin [OPTION…]     node, volume, attach with these options, checker
#   fault / fault_over  around what it does, which is timed
#   finish [ALLOWED]    service is back, the checker finds nothing, no I/O error
#
# On ext4 (a name with @ext4) the checker works on a file of a file system there.

. "${TEST_LIB:?}"

# What recovery may take after the fault's end: the longest pause between tries,
# one heartbeat, and for the emulated machine a margin.
slow=$((${LAB_DEBUG_KERNEL:-0} * 4 + 1))
: "${MARGIN_MS:=4000}"
BOUND_MS=$((1000 + 3000 + MARGIN_MS * slow))

HOST_IP=10.77.0.1 NODE_IP=10.77.0.2 OTHER_IP=10.77.0.3
NODE_API=http://$NODE_IP:9667
PROGRAM=neonsan-node

now_ms() { local t=${EPOCHREALTIME/[.,]/}; echo $((t / 1000)); }
in_node() { nsenter --net=/run/netns/node "$@"; }

# --- the network ------------------------------------------------------------------

network() {
	ip netns add node
	at_exit ip netns delete node
	ip link add to-node type veth peer name to-host netns node
	# Both ends at once: what is left to the end of a namespace happens later.
	at_exit ip link delete to-node
	ip addr add $HOST_IP/24 dev to-node
	ip link set to-node up
	in_node ip link set lo up
	in_node ip addr add $NODE_IP/24 dev to-host
	in_node ip addr add $OTHER_IP/24 dev to-host
	in_node ip link set to-host up
}

# filter RULE…: nft rules on the node's side; unfilter takes them all away. The
# chains are "in" (from the host) and "out" (to the host).
filter() {
	in_node nft -f - <<-RULES
		table inet fault {
			chain in { type filter hook input priority 0; $1 }
			chain out { type filter hook output priority 0; $2 }
		}
	RULES
}
unfilter() { in_node nft delete table inet fault; }

# emulate OPTION…: netem both ways, until emulate_off.
emulate() {
	tc qdisc replace dev to-node root netem "$@"
	in_node tc qdisc replace dev to-host root netem "$@"
}
emulate_off() {
	tc qdisc delete dev to-node root
	in_node tc qdisc delete dev to-host root
}

# --- the node ---------------------------------------------------------------------

# node_conf [ENGINE-LINE…]: its configuration. $NODE_MORE is added to [data], and
# $NODE_LIMITS to [limits].
node_conf() {
	local listen="\"${NODE_LISTEN:-$NODE_IP}:9666\""
	mkdir -p "${VOLUMES:=/run/lab/disk/volumes}"
	{
		printf '[engine.main]\nkind = "file"\npath = "%s"\n' "$VOLUMES"
		printf '%s\n' "$@"
		printf '[data]\nlisten = [%s]\n%s\n' "$listen" "${NODE_MORE:-}"
		printf '[control]\nlisten = ["%s:9667"]\n' "$NODE_IP"
		printf '[limits]\n%s\n' "${NODE_LIMITS:-}"
		printf '[timeouts]\nshutdown_grace_ms = 200\n'
	} >"$TEST_DIR/node.toml"
}

node_up() { in_node neonsan volume list --api "$NODE_API" >/dev/null 2>&1; }

# node_run: start it, in its namespace, and wait until it answers.
node_run() {
	# Not by in_node: the process is to be the node, not a shell that waits for it.
	nsenter --net=/run/netns/node "$PROGRAM" --config "$TEST_DIR/node.toml" >>"$TEST_DIR/node.log" 2>&1 &
	NODE_PID=$!
	at_exit node_end node "$NODE_PID"
	local try
	for ((try = 0; try < 300 * slow; try++)); do
		node_up && return
		kill -0 "$NODE_PID" 2>/dev/null || break
		sleep 0.1
	done
	tail -n 20 "$TEST_DIR/node.log"
	fail "the node does not answer"
}

# node_back: start it again, without waiting: the fault ends here.
node_back() {
	nsenter --net=/run/netns/node "$PROGRAM" --config "$TEST_DIR/node.toml" >>"$TEST_DIR/node.log" 2>&1 &
	NODE_PID=$!
	at_exit node_end node "$NODE_PID"
}

# engine JSON: what goes wrong in the engine of neonsan-node-faulty from now on.
engine() {
	in_node curl -fsS -X PUT -H 'Content-Type: application/json' -d "$1" "$NODE_API/v1/test-faults" >/dev/null ||
		fail "the node does not take the faults $1"
}

# --- the load ---------------------------------------------------------------------

# begin [ATTACH-OPTION…]: everything up, and the checker at work.
begin() {
	need_programs
	[ -e "$TEST_DIR/node.toml" ] || node_conf
	at_exit rm -rf "$VOLUMES"
	network
	node_run
	in_node neonsan volume create "neonsan://$NODE_IP/test/v" --size "${SIZE:-64M}" --api "$NODE_API" >/dev/null ||
		fail "the volume cannot be made"
	ATTACHED=("$@")
	attach_there
	TARGET=$DEVICE
	if [ "${ON:-raw}" = ext4 ]; then
		mkfs.ext4 -q -F -E lazy_itable_init=0 "$DEVICE" || fail "mkfs.ext4"
		mkdir -p "$TEST_DIR/mnt"
		mount "$DEVICE" "$TEST_DIR/mnt" || fail "mount"
		at_exit umount "$TEST_DIR/mnt"
		# Written once, so that the faults meet data and not only allocation.
		dd if=/dev/zero of="$TEST_DIR/mnt/file" bs=1M count=24 conv=fsync status=none
		TARGET=$TEST_DIR/mnt/file
	fi
	check_start
}

attach_there() {
	DEVICE=$(neonsan-attach "neonsan://${NODES:-$NODE_IP}/test/v" --connections 2 ${ATTACHED[@]+"${ATTACHED[@]}"}) ||
		fail "attach failed"
	DISK=${DEVICE#/dev/}
	at_exit detach_leftover "$DEVICE"
}

# check_start: the checker, in the background; CHECK_OPTIONS are its options.
check_start() {
	# shellcheck disable=SC2086
	neonsan-checker run "$TARGET" --log "$TEST_DIR/log" --size 25165824 --pause-ms 10 --json \
		--tolerate-errors ${CHECK_OPTIONS:-} >"$TEST_DIR/run.json" 2>"$TEST_DIR/check.log" &
	CHECK_PID=$!
	at_exit kill_if_there "$CHECK_PID"
	wait_for $((20 * slow)) "the checker's first writes" log_has 40
}
kill_if_there() { if kill -0 "$1" 2>/dev/null; then kill -KILL "$1" 2>/dev/null; fi; return 0; }
log_has() { [ "$(stat -c %s "$TEST_DIR/log" 2>/dev/null || echo 0)" -ge $(($1 * 64)) ]; }
log_records() { echo $(($(stat -c %s "$TEST_DIR/log") / 64)); }

# --- the fault --------------------------------------------------------------------

FAULT_MS=0 OVER_MS=0
fault() { FAULT_MS=$(now_ms); }
fault_over() { OVER_MS=$(now_ms); }

is_live() { [ "$(info .state)" = live ]; }

# finish [FILTER]: the fault is over. Service must be back in time, the checker
# must find every byte where it belongs, and no request may have failed, or only
# with errors that the jq filter (over the object of errors) lets pass.
finish() {
	local records found
	[ "$OVER_MS" -gt 0 ] || fault_over
	wait_for $(((BOUND_MS + 20000) / 1000)) "every connection to be back" is_live
	LIVE_MS=$(($(now_ms) - OVER_MS))
	records=$(log_records)
	wait_for $((20 * slow)) "writes after the fault" log_has $((records + 40))
	sleep 1
	found=$(info '.statistics')
	check_end "${1:-}"
	RESENT=$(jq '.resent' <<<"$found")
	judge
	clean_up
}

# check_end [FILTER]: stop the checker, and read all.
check_end() {
	local code=0
	kill -TERM "$CHECK_PID"
	wait "$CHECK_PID" || code=$?
	grep . "$TEST_DIR/check.log" | head -n 20 || true
	[ $code = 0 ] || fail "the checker ended with code $code: $(jq -c '.violations[:3]' "$TEST_DIR/run.json")"
	neonsan-checker verify "$TARGET" --log "$TEST_DIR/log" --json --tolerate-errors \
		>"$TEST_DIR/verify.json" 2>"$TEST_DIR/check.log" || code=$?
	grep . "$TEST_DIR/check.log" | head -n 20 || true
	[ $code = 0 ] || fail "verify ended with code $code: $(jq -c '.violations[:3]' "$TEST_DIR/verify.json")"
	ERRORS=$(jq '.failed | add - .fua_writes' "$TEST_DIR/run.json")
	if [ "$ERRORS" -ne 0 ]; then
		jq -c .errors "$TEST_DIR/run.json"
		[ -n "${1:-}" ] || fail "$ERRORS requests failed"
		jq -e "$1" "$TEST_DIR/run.json" >/dev/null || fail "requests failed otherwise than they should"
	fi
}

# judge: times from the checker's gaps, against the bound.
judge() {
	read -r GAP_MS RECOVERY_MS < <(jq -r --argjson over "$OVER_MS" --argjson live "${LIVE_MS:-0}" \
		'[.service.longest_gap_ms, ([.service.gaps[] | select(.from_unix_ms < $over + 500 and .to_unix_ms > $over)
			| .to_unix_ms - $over] | max // 0)] | "\(.[0]) \(.[1])"' "$TEST_DIR/run.json")
	note "without service $GAP_MS ms; back $RECOVERY_MS ms after the fault's end, all connections $LIVE_MS ms"
	[ "$RECOVERY_MS" -le "$BOUND_MS" ] || fail "service was back $RECOVERY_MS ms after the fault ended; the bound is $BOUND_MS ms"
}

# clean_up: everything away, in order.
clean_up() {
	if [ "${ON:-raw}" = ext4 ]; then
		umount "$TEST_DIR/mnt" || fail "umount"
		e2fsck -fn "$DEVICE" >"$TEST_DIR/fsck" 2>&1 || { cat "$TEST_DIR/fsck"; fail "the file system is damaged"; }
	fi
	detach
}

# result: what the runner puts into the table; written at the end, whatever happens.
result() {
	jq -n --argjson fault "$FAULT_MS" --argjson over "$OVER_MS" --argjson gap "${GAP_MS:-null}" \
		--argjson recovery "${RECOVERY_MS:-null}" --argjson live "${LIVE_MS:-null}" --argjson bound "$BOUND_MS" \
		--argjson errors "${ERRORS:-null}" --argjson resent "${RESENT:-null}" --arg note "${NOTE:-}" \
		'{fault_ms: (if $fault > 0 then $over - $fault else null end), without_service_ms: $gap,
		recovery_ms: $recovery, all_connections_ms: $live, bound_ms: $bound, errors: $errors, resent: $resent,
		note: $note}' >"$TEST_DIR/result.json"
}
at_exit result

# Cells that need "longer than every timeout" shorten them all.
short_timeouts=(--request-timeout 3s --connect-timeout 2s --heartbeat-interval 500ms --heartbeat-timeout 2s)
