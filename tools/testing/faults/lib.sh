# SPDX-License-Identifier: GPL-2.0 OR MIT
# Helpers of the fault matrix's cells, on top of those of the selftests.
#
# A cell is a function of a file in cells/, announced by a line
#
#   cell NAME quick|full raw|both SECONDS 'what is injected'
#
# quick: in `make check` too. both: also run as NAME@ext4, on a mounted ext4; raw:
# not, since a file system rightly gives up when its requests fail or its device goes.
#
# It runs in a process and a directory of its own ($TEST_DIR), as root, in the
# virtual machine. The node is in the network namespace "node" (10.77.0.2, and
# 10.77.0.3), the host at the other end of a veth pair (10.77.0.1). A cell calls
#
#   begin [OPTION…]     node, volume, attach with these options, checker at work
#   fault [total]       what it does begins; total: until it is over nothing is served
#   fault_over          it is over
#   finish [ALLOWED]    service is back, the checker finds nothing, no I/O error
#
# and shows with "happened" or "at_end" that the fault was one. On ext4 the checker
# works on a file of a file system there.

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
# What the rules of the cells match: requests and replies, on any connection.
REQUESTS='tcp dport 9666' REPLIES='tcp sport 9666'
# drop_all: nothing passes between host and node, and nobody is told; until unfilter. The
# node's control API, used inside its namespace, goes on.
drop_all() { filter "$REQUESTS drop;" "$REPLIES drop;"; }

# emulate OPTION…: netem both ways, until emulate_off, which counts in $DROPPED the
# packets that netem has dropped.
emulate() {
	tc qdisc replace dev to-node root netem "$@"
	in_node tc qdisc replace dev to-host root netem "$@"
}
emulate_off() {
	DROPPED=$({ tc -s -j qdisc show dev to-node; in_node tc -s -j qdisc show dev to-host; } |
		jq -s '[.[][] | select(.kind == "netem") | .drops] | add')
	tc qdisc delete dev to-node root
	in_node tc qdisc delete dev to-host root
}

# tcp_counter NAME: a counter of TCP, as in /proc/net/snmp and netstat, of both ends.
tcp_counter() {
	{ cat /proc/net/snmp /proc/net/netstat; in_node cat /proc/net/snmp /proc/net/netstat; } |
		awk -v name="$1" '$1 == kind {for (i in names) if (names[i] == name) sum += $i}
			{kind = $1; split($0, names)} END {print sum + 0}'
}

# --- the node ---------------------------------------------------------------------

# node_conf [ENGINE-LINE…]: its configuration. $NODE_MORE is added to [data], $NODE_LIMITS to [limits]
# and $NODE_TIMEOUTS to [timeouts].
node_conf() {
	local listen="\"${NODE_LISTEN:-$NODE_IP}:9666\""
	root_init "${VOLUMES:=/run/lab/disk/volumes}" >&2
	{
		printf 'state_path = "%s/state"\n' "$TEST_DIR"
		printf '[engine.main]\nkind = "file"\npath = "%s"\n' "$VOLUMES"
		printf '%s\n' "$@"
		printf '[data]\nlisten = [%s]\n%s\n' "$listen" "${NODE_MORE:-}"
		printf '[control]\nlisten = ["%s:9667"]\n' "$NODE_IP"
		printf '[limits]\n%s\n' "${NODE_LIMITS:-}"
		printf '[timeouts]\nshutdown_grace_ms = 200\n%s\n' "${NODE_TIMEOUTS:-}"
	} >"$TEST_DIR/node.toml"
}

node_up() { in_node neonsan volume list --api "$NODE_API" >/dev/null 2>&1; }

# node_back: start it, in its namespace, without waiting: a fault ends here.
node_back() {
	# Not by in_node: the process is to be the node, not a shell that waits for it.
	nsenter --net=/run/netns/node "$PROGRAM" --config "$TEST_DIR/node.toml" >>"$TEST_DIR/node.log" 2>&1 &
	NODE_PID=$!
	at_exit node_end node "$NODE_PID"
}

# node_run: start it, and wait until it answers.
node_run() {
	node_back
	local try
	for ((try = 0; try < 300 * slow; try++)); do
		node_up && return
		kill -0 "$NODE_PID" 2>/dev/null || break
		sleep 0.1
	done
	tail -n 20 "$TEST_DIR/node.log"
	fail "the node does not answer"
}

# engine JSON: what goes wrong in the engine of neonsan-node-faulty from now on.
engine() {
	in_node curl -fsS -X PUT -H 'Content-Type: application/json' -d "$1" "$NODE_API/v1/test-faults" >/dev/null ||
		fail "the node does not take the faults $1"
}

# --- the load ---------------------------------------------------------------------

# Connections of the device.
CONNECTIONS=2
# What a cell does when the node is there and the device is not.
before_attach() { :; }

# begin [ATTACH-OPTION…]: everything up, and the checker at work for two seconds.
begin() {
	need_programs
	[ -e "$TEST_DIR/node.toml" ] || node_conf
	at_exit rm -rf "$VOLUMES"
	network
	node_run
	in_node neonsan volume create "neonsan://$NODE_IP/test/v" --size "${SIZE:-64M}" --api "$NODE_API" >/dev/null ||
		fail "the volume cannot be made"
	before_attach
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
	sleep 2
}

# attach_there: attach test/v with what begin was given.
attach_there() {
	DEVICE=$(neonsan-attach "neonsan://${NODES:-$NODE_IP}/test/v" --connections "$CONNECTIONS" ${ATTACHED[@]+"${ATTACHED[@]}"}) ||
		fail "attach failed"
	DISK=${DEVICE#/dev/}
	at_exit detach_leftover "$DEVICE"
}

# check_start: the checker, in the background; CHECK_OPTIONS are its options. It pauses between
# requests, since every one of them has to be emulated.
check_start() {
	# shellcheck disable=SC2086
	neonsan-checker run "$TARGET" --log "$TEST_DIR/log" --size 25165824 --pause-ms "${PAUSE_MS:-25}" --json \
		--tolerate-errors ${CHECK_OPTIONS:-} >"$TEST_DIR/run.json" 2>"$TEST_DIR/check.log" &
	CHECK_PID=$!
	at_exit kill_if_there "$CHECK_PID"
	wait_for $((20 * slow)) "the checker's first writes" log_has 40
}
kill_if_there() { if kill -0 "$1" 2>/dev/null; then kill -KILL "$1" 2>/dev/null; fi; return 0; }
log_has() { [ "$(stat -c %s "$TEST_DIR/log" 2>/dev/null || echo 0)" -ge $(($1 * 64)) ]; }
log_records() { echo $(($(stat -c %s "$TEST_DIR/log") / 64)); }

# --- the fault --------------------------------------------------------------------

FAULT_MS=0 OVER_MS=0 TOTAL=partial
fault() { FAULT_MS=$(now_ms) TOTAL=${1:-partial}; }
fault_over() { OVER_MS=$(now_ms); }

# away COMMAND…: the node is killed, and started again when the command has ended.
away() {
	fault total
	node_crash
	"$@"
	fault_over
	node_back
}

is_live() { [ "$(info .state)" = live ]; }

# service_back: wait until every connection is back, and note when that was.
service_back() {
	wait_for $(((BOUND_MS + 20000) / 1000)) "every connection to be back" is_live
	LIVE_MS=$(($(now_ms) - OVER_MS))
}

# finish [FILTER]: the fault is over. Service must be back in time, the checker
# must find every byte where it belongs, and no request may have failed, or only
# with errors that the jq filter (over the checker's report) lets pass.
finish() {
	local records
	[ "$OVER_MS" -gt 0 ] || fault_over
	[ -n "${LIVE_MS:-}" ] || service_back
	records=$(log_records)
	wait_for $((20 * slow)) "writes after the fault" log_has $((records + 40))
	# Some faults are noticed only now, when nothing comes from a connection that looked well.
	is_live || service_back
	sleep 1
	END=$(neonsan info --json "$DEVICE")
	LOST=$(jq '[.connections[].losses] | add' <<<"$END") RESENT=$(jq .statistics.resent <<<"$END")
	check_end "${1:-}"
	judge
	clean_up
}

# at_end WHAT FILTER: what the device said of itself before finish detached it.
at_end() { jq -e "$2" <<<"$END" >/dev/null || fail "$1: $(jq -c "[.state, .connections]" <<<"$END")"; }

# happened WHAT N: the fault has shown, so many times. One that does nothing proves nothing.
happened() { [ "$2" -gt 0 ] || fail "the fault has not shown: no $1"; }

# check_stop: end the checker, which must have found nothing; sets $ERRORS.
check_stop() {
	local code=0
	kill -TERM "$CHECK_PID"
	wait "$CHECK_PID" || code=$?
	grep . "$TEST_DIR/check.log" | head -n 20 || true
	[ $code = 0 ] || fail "the checker ended with code $code: $(jq -c '.violations[:3]' "$TEST_DIR/run.json")"
	ERRORS=$(jq '.failed | add - .fua_writes' "$TEST_DIR/run.json")
}

# check_verify DISK: read all, and compare it with what the checker was told.
check_verify() {
	local code=0
	neonsan-checker verify "$1" --log "$TEST_DIR/log" --json --tolerate-errors \
		>"$TEST_DIR/verify.json" 2>"$TEST_DIR/check.log" || code=$?
	grep . "$TEST_DIR/check.log" | head -n 20 || true
	[ $code = 0 ] || fail "verify ended with code $code: $(jq -c '.violations[:3]' "$TEST_DIR/verify.json")"
}

# check_end [FILTER]: stop the checker, look at its errors, and read all.
check_end() {
	check_stop
	if [ "$ERRORS" -ne 0 ]; then
		jq -c .errors "$TEST_DIR/run.json"
		[ -n "${1:-}" ] || fail "$ERRORS requests failed"
		jq -e "$1" "$TEST_DIR/run.json" >/dev/null || fail "requests failed otherwise than they should"
	fi
	check_verify "$TARGET"
}

# check_failed: end the checker where its device has failed or gone: it must have been told.
check_failed() {
	check_stop
	[ "$ERRORS" -gt 0 ] || fail "the device is gone, and no request of the load failed"
}

# judge: times from the checker's gaps, against the bound.
judge() {
	read -r GAP_MS RECOVERY_MS < <(jq -r --argjson over "$OVER_MS" \
		'[.service.longest_gap_ms, ([.service.gaps[] | select(.from_unix_ms < $over + 500 and .to_unix_ms > $over)
			| .to_unix_ms - $over] | max // 0)] | "\(.[0]) \(.[1])"' "$TEST_DIR/run.json")
	# They looked well when the loss had not been noticed yet.
	[ "$LIVE_MS" -ge "$RECOVERY_MS" ] || LIVE_MS=$RECOVERY_MS
	SLOWEST_MS=$(jq .service.slowest_ms "$TEST_DIR/run.json")
	note "without service $GAP_MS ms; back $RECOVERY_MS ms after the fault's end, all connections $LIVE_MS ms; slowest answer $SLOWEST_MS ms"
	[ "$RECOVERY_MS" -le "$BOUND_MS" ] || fail "service was back $RECOVERY_MS ms after the fault ended; the bound is $BOUND_MS ms"
	[ "$LIVE_MS" -le "$BOUND_MS" ] || fail "every connection was back $LIVE_MS ms after the fault ended; the bound is $BOUND_MS ms"
	# On the debug kernel the commands that begin and end a fault take seconds themselves.
	[ "$TOTAL" = partial ] || [ "$GAP_MS" -ge $(((OVER_MS - FAULT_MS) * 9 / 10 - 500 - 2000 * (slow - 1))) ] ||
		fail "there was service during the fault of $((OVER_MS - FAULT_MS)) ms: the longest time without was $GAP_MS ms"
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
	# A cell that failed may have ended in the middle of its fault.
	[ "$OVER_MS" -gt 0 ] || FAULT_MS=0
	jq -n --argjson fault "$FAULT_MS" --argjson over "$OVER_MS" --argjson gap "${GAP_MS:-null}" \
		--argjson recovery "${RECOVERY_MS:-null}" --argjson live "${LIVE_MS:-null}" --argjson bound "$BOUND_MS" \
		--argjson slowest "${SLOWEST_MS:-null}" --argjson lost "${LOST:-null}" \
		--argjson errors "${ERRORS:-null}" --argjson resent "${RESENT:-null}" --arg note "${NOTE:-}" \
		'{fault_ms: (if $fault > 0 then $over - $fault else null end), without_service_ms: $gap,
		recovery_ms: $recovery, all_connections_ms: $live, slowest_answer_ms: $slowest, bound_ms: $bound, connections_lost: $lost,
		errors: $errors, resent: $resent,
		note: $note}' >"$TEST_DIR/result.json"
}
at_exit result

# Cells that need "longer than every timeout" shorten them all.
short_timeouts=(--request-timeout 3s --connect-timeout 2s --heartbeat-interval 500ms --heartbeat-timeout 2s)
