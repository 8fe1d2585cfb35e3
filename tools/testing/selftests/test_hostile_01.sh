#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# a node that misbehaves under I/O: the connection closes with the named cause, and no request ends wrong
# timeout: 1200
. "$TEST_LIB"
. "$(dirname "$TEST_LIB")/hostile.lib"

neonsan-hostile-node --list >list
tested=0 wrong=0
while IFS=$'\t' read -r name moment outcome causes _ about; do
	case $moment in hello|open) continue ;; esac
	# Pages of direct I/O may change while they are sent, so this closes nothing: see test_io_07.
	[ "$name" != status-checksum-mismatch ] || outcome=allowed
	hostile_start --misbehave "$name" --after 40
	echo "misbehaviour $name" >/dev/kmsg
	DEVICE=$(neonsan-attach neonsan://127.0.0.1:9710/test/volume "${impatient[@]}" --header-crc --payload-crc --loss-timeout 20s)
	at_exit detach_leftover "$DEVICE"
	code=0
	timeout 60 fio --name=x --filename="$DEVICE" --rw=randrw --bs=4k --size=1M --io_size=1M --direct=1 --ioengine=io_uring \
		--iodepth=4 --verify=crc32c --verify_fatal=1 --output=fio.log || code=$?
	said=$(neonsan info --json "$DEVICE" | jq -r '[.connections[].last_cause | select(. != null)] | join("; ")')
	# The first cause is in the log: a second one may have followed (a session that is unknown).
	said="$said; $(dmesg | sed -n "/misbehaviour $name\$/,\$p" | sed -n 's/.*\(lost (.*)\).*/\1/p' | sed -n 1p)"
	state=$(info .state)
	problem=''
	grep -q '^misbehaved' hostile.log || problem="the node never came to misbehave"
	case $outcome in
	recovers)
		[ $code = 0 ] || problem="$problem; the load failed with code $code"
		grep -qE "$(cause_pattern "$causes")" <<<"$said" || problem="$problem; the cause should be $causes" ;;
	allowed) [ $code = 0 ] || problem="$problem; the load failed with code $code" ;;
	fails) [ $code != 0 ] || problem="$problem; the load succeeded" ;;
	esac
	[ "$code" != 124 ] || problem="$problem; the load hung"
	timeout 30 neonsan-detach --force "$DEVICE" || problem="$problem; forced detach failed"
	hostile_stop
	if [ -n "$problem" ]; then
		wrong=$((wrong + 1))
		echo "WRONG $name ($about): ${problem#; }; state $state, cause: ${said:-none}"
	else
		note "$name: $outcome; ${said:-nothing closed}"
	fi
	tested=$((tested + 1))
	cleanups=()
done <list
[ $tested -ge 10 ] || fail "only $tested misbehaviours were tried"
[ $wrong = 0 ] || fail "$wrong of $tested misbehaviours"
equal "devices left" "$(ls -d /sys/block/neonsan* 2>/dev/null | wc -l)" 0
