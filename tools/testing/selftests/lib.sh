# SPDX-License-Identifier: GPL-2.0 OR MIT
# Helpers of the selftests, sourced by each. A test runs in its own directory
# $TEST_DIR, as root, in the virtual machine, with the module loaded.

set -euo pipefail

fail() { echo "FAIL: $*"; exit 1; }
skip() { echo "$*"; exit 4; }
note() { echo "# $*"; }

cleanups=()
# at_exit COMMAND…: run at the test's end whatever happens, last given first.
at_exit() { cleanups+=("$(printf '%q ' "$@")"); }
run_cleanups() {
	local code=$? i
	set +e
	for ((i = ${#cleanups[@]} - 1; i >= 0; i--)); do eval "${cleanups[i]}"; done
	exit $code
}
trap run_cleanups EXIT

# less N: N, or an eighth of it on the debug kernel. That one is there to find what
# one round shows as well as eight, and takes ten times as long for each.
less() { if [ "${LAB_DEBUG_KERNEL:-0}" = 1 ]; then echo $((($1 + 7) / 8)); else echo "$1"; fi; }

# wait_for SECONDS WHAT COMMAND…: poll until the command succeeds.
wait_for() {
	local limit=$1 what=$2 end
	shift 2
	end=$((SECONDS + limit))
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || fail "waited $limit s for: $what"
		sleep 0.1
	done
}

# expect_error TEXT COMMAND…: the command must fail, and say TEXT (a regular
# expression) on standard error, in one message that is not a panic.
expect_error() {
	local text=$1 output code=0
	shift
	output=$("$@" 2>&1) || code=$?
	[ $code -ne 0 ] || fail "expected to fail: $* (it said: $output)"
	grep -qiE -- "$text" <<<"$output" || fail "$* failed with code $code but its message lacks '$text': $output"
	if grep -qiE 'panicked|RUST_BACKTRACE|core dumped' <<<"$output"; then fail "$* panicked: $output"; fi
	note "as it should: $output"
}

# --- nodes ----------------------------------------------------------------------
#
# A node of a test listens on loopback inside the machine. Its files are in
# $TEST_DIR/NAME*; $NODE_PID, $NODE_DATA (host:port) and $NODE_API are of the one
# started last.

# need_programs: without the tools there is nothing to test, and that is no reason to pass.
need_programs() {
	local program
	for program in neonsan neonsan-node; do
		[ -x "/payload/bin/$program" ] || fail "the program $program is not on the payload disk: build the tools"
	done
}

# root_init DIR: make it the directory of a file engine, once.
root_init() {
	mkdir -p "$1"
	[ -e "$1/.neonsan-engine" ] || neonsan-node init "$1" || fail "the directory $1 could not be made an engine's"
}

# node_config NAME ENGINE PORT: write its config. ENGINE is mem (with a volatile
# cache), mem-durable (without) or file. The control port is PORT + 1.
node_config() {
	local name=$1 engine=$2 port=$3
	{
		printf 'state_path = "%s/%s-state"\n[engine.main]\n' "$TEST_DIR" "$name"
		case $engine in
		mem) printf 'kind = "mem"\ncapacity_bytes = 2147483648\nvolatile_cache = true\n' ;;
		mem-durable) printf 'kind = "mem"\ncapacity_bytes = 2147483648\nvolatile_cache = false\n' ;;
		file)
			# Not on tmpfs: the file engine is to use direct I/O as on a real disk.
			at_exit rm -rf "/var/tmp/$name-volumes"
			root_init "/var/tmp/$name-volumes" >&2
			printf 'kind = "file"\npath = "/var/tmp/%s-volumes"\n' "$name" ;;
		*) fail "no engine $engine" ;;
		esac
		printf '[data]\nlisten = ["127.0.0.1:%d", "[::1]:%d"]\n' "$port" "$port"
		printf '[control]\nlisten = ["127.0.0.1:%d"]\n' $((port + 1))
		# A restarted node must be let in again at once, whatever the default is.
		printf '[timeouts]\nshutdown_grace_ms = 200\n'
	} >"$TEST_DIR/$name.toml"
}

# node_start [NAME [ENGINE [PORT]]]: start a node (defaults: node, mem, 9666) and
# wait until it answers. A second call with the same name starts it again with
# its config and its data. $NODE_BY is a command that starts it.
node_start() {
	local name=${1:-node} engine=${2:-mem} port=${3:-9666}
	need_programs
	if [ ! -e "$TEST_DIR/$name.toml" ]; then node_config "$name" "$engine" "$port"; fi
	NODE_DATA=127.0.0.1:$port NODE_API=http://127.0.0.1:$((port + 1))
	${NODE_BY:-} neonsan-node --config "$TEST_DIR/$name.toml" >>"$TEST_DIR/$name.log" 2>&1 &
	NODE_PID=$!
	at_exit node_end "$name" "$NODE_PID"
	local try
	for ((try = 0; try < 300; try++)); do
		if neonsan volume list --api "$NODE_API" >/dev/null 2>&1; then return; fi
		kill -0 "$NODE_PID" 2>/dev/null || break
		sleep 0.1
	done
	cat "$TEST_DIR/$name.log"
	fail "the node $name does not answer at $NODE_API"
}

# outside_node: use the node that run-selftests started outside the machine. Its volumes go when the
# test ends.
outside_node() {
	[ -n "${OUTSIDE_PORT:-}" ] || fail "no node was started outside: run it with run-selftests"
	NODE_DATA=10.0.2.2:$OUTSIDE_PORT NODE_API=http://10.0.2.2:$((OUTSIDE_PORT + 1))
	neonsan volume list --api "$NODE_API" >/dev/null || fail "the node outside does not answer"
	at_exit outside_clean
}
outside_clean() {
	local name
	for name in $(neonsan volume list --json --api "$NODE_API" | jq -r '.volumes[].name'); do
		neonsan volume delete --yes "neonsan://$NODE_DATA/$name" --api "$NODE_API"
	done
}

# node_end NAME PID: make sure that it is gone; show its log when the test failed.
node_end() {
	if [ "${code:-0}" -ne 0 ]; then
		echo "--- log of the node $1:"
		tail -n 40 "$TEST_DIR/$1.log"
	fi
	if kill -0 "$2" 2>/dev/null; then
		kill -CONT "$2" 2>/dev/null
		kill -KILL "$2" 2>/dev/null
		wait "$2" 2>/dev/null
	fi
	return 0
}

# node_stop [PID [CODE]]: as an operator stops it, and wait for its end, with that exit code.
node_stop() {
	local pid=${1:-$NODE_PID} wanted=${2:-0} got=0
	kill -TERM "$pid"
	wait "$pid" || got=$?
	[ "$got" = "$wanted" ] || fail "the node ended with code $got when it was asked to stop, not $wanted"
}

# node_crash [PID]: as a power cut stops the process.
node_crash() {
	local pid=${1:-$NODE_PID}
	kill -KILL "$pid"
	wait "$pid" 2>/dev/null || true
}

# node_metric NAME [FILTER]: the sum of a Prometheus metric of the node, over the
# lines that have FILTER in them.
node_metric() {
	curl -fsS "$NODE_API/metrics" |
		awk -v name="$1" -v filter="${2:-}" \
			'index($1, name) == 1 && (filter == "" || index($0, filter)) {sum += $NF} END {printf "%d\n", sum}'
}

# --- volumes and devices ----------------------------------------------------------

# volume VOLUME SIZE [BLOCK-SIZE]: create pool/volume on the node started last.
volume() {
	neonsan volume create "neonsan://$NODE_DATA/$1" --size "$2" --block-size "${3:-512}" --api "$NODE_API"
}

# attach VOLUME [OPTION…]: attach it from the node started last; sets $DEVICE and
# $DISK (its name in sysfs). What is still attached at the test's end is detached
# by force.
attach() {
	local name=$1
	shift
	DEVICE=$(neonsan-attach "neonsan://$NODE_DATA/$name" "$@") || fail "attach of $name failed"
	DISK=${DEVICE#/dev/}
	[ -b "$DEVICE" ] || fail "attach printed '$DEVICE', which is no block device"
	at_exit detach_leftover "$DEVICE"
}

detach_leftover() {
	if [ -e "/sys/block/${1#/dev/}" ]; then neonsan-detach --force "$1" >/dev/null; fi
	return 0
}

detach() { neonsan-detach "${1:-$DEVICE}" || fail "detach of ${1:-$DEVICE} failed"; }

# info FILTER [DEVICE]: a jq filter over what `neonsan info --json` says.
info() { neonsan info --json "${2:-$DEVICE}" | jq -er "$1"; }

# queue NAME [DISK]: a value of /sys/block/DISK/queue.
queue() { cat "/sys/block/${2:-$DISK}/queue/$1"; }

# equal WHAT GOT WANT
equal() { [ "$2" = "$3" ] || fail "$1 is $2 and should be $3"; }

# --- faults and times -------------------------------------------------------------

now_ms() { date +%s%3N; }

# within MS WHAT COMMAND…: the command must succeed and take no longer; says how long it took. A
# kernel full of checks gets ten times as long.
within() {
	local limit=$1 what=$2 begin took
	shift 2
	begin=$(now_ms)
	"$@" || fail "$what: $* failed"
	took=$(($(now_ms) - begin))
	echo "# $what: $took ms"
	if [ "${LAB_DEBUG_KERNEL:-0}" = 1 ]; then limit=$((limit * 10)); fi
	[ $took -le "$limit" ] || fail "$what took $took ms, more than $limit"
}

# net_drop PORT: from now on nothing passes from or to this port, and nobody is told.
net_drop() {
	nft -f - <<-RULES
		table inet lab {
			chain in { type filter hook input priority 0; tcp dport $1 drop; tcp sport $1 drop; }
		}
	RULES
	at_exit net_heal
}
net_heal() { nft delete table inet lab 2>/dev/null || true; }

# net_reset PORT: every connection with this port is reset, once.
net_reset() {
	nft -f - <<-RULES
		table inet lab {
			chain in { type filter hook input priority 0; tcp dport $1 reject with tcp reset; }
		}
	RULES
	at_exit net_heal
}

# watch_start FILE: what `neonsan watch --json` says goes to FILE from now on: it listens when this
# returns, however long that took. Sets $WATCHER.
watch_start() {
	neonsan watch --json >"$1" 2>&1 &
	WATCHER=$!
	at_exit kill "$WATCHER"
	wait_for 60 "watch to listen" listens "$WATCHER"
}
# listens PID: a netlink socket of this process is in a multicast group.
listens() {
	local fd socket
	for fd in "/proc/$1/fd"/*; do
		socket=$(readlink "$fd") || continue
		[[ $socket = socket:* ]] || continue
		awk -v inode="${socket//[^0-9]/}" '$NF == inode && $4 !~ /^0*$/ {found = 1} END {exit !found}' \
			/proc/net/netlink && return
	done
	return 1
}

# --- load -------------------------------------------------------------------------

# verify NAME OPTION…: an fio job on $DEVICE that checks every byte it wrote. The
# numbers in it name the place and the write, so stale and misplaced blocks show.
verify() {
	local name=$1
	shift
	fio --name="$name" --filename="$DEVICE" --verify=crc32c --verify_fatal=1 --do_verify=1 \
		--verify_backlog=64 --group_reporting --output-format=terse --output="$TEST_DIR/fio-$name" \
		--randseed=42 --allrandrepeat=1 --eta=never "$@" ||
		{ cat "$TEST_DIR/fio-$name"; fail "fio $name"; }
}

# load_begins: wait until the load that was just started on $DEVICE writes.
load_begins() {
	local before
	before=$(info .statistics.writes)
	writes() { [ "$(info .statistics.writes)" -gt $((before + 16)) ]; }
	wait_for 120 "the load to begin" writes
}

# restarts PID ROUNDS: the node is restarted as an operator does it, away for a second longer each
# time, while the job with this id is at work, which must not see it. For the first time as soon as it
# writes: on a fast machine it has little time.
restarts() {
	local round
	load_begins
	for ((round = 0; round < $2; round++)); do
		[ $round = 0 ] || sleep 2
		kill -0 "$1" 2>/dev/null || break
		node_stop
		sleep $round
		node_start
	done
	wait "$1" || fail "the load saw the restarts"
	[ "$(info .session.generation)" -ge 2 ] || fail "the session was never opened anew: the restarts came too late"
	equal "errors" "$(info .statistics.errors)" 0
}

# fill FILE-OR-DEVICE BYTES SEED: write bytes that their place and the seed identify.
fill() { seeded_stream "$3" | head -c "$2" | dd of="$1" bs=1M iflag=fullblock conv=notrunc,fsync status=none; }
seeded_stream() { python3 -c '
import hashlib, sys
seed, n, out = sys.argv[1], 0, sys.stdout.buffer
try:
    while True:
        out.write(b"".join(hashlib.sha256(f"{seed} {i}".encode()).digest() for i in range(n, n + 4096)))
        n += 4096
except BrokenPipeError:
    sys.stderr.close()' "$1" 2>/dev/null || true; }
