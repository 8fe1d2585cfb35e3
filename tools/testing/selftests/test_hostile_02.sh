#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# a node that misbehaves in the handshake: attach fails with the named cause, or gets through on its next try
# timeout: 900
. "$TEST_LIB"
. "$(dirname "$TEST_LIB")/hostile.lib"

neonsan-hostile-node --list >list
tested=0 wrong=0
while IFS=$'\t' read -r name moment outcome causes _ about; do
	case $moment in hello|open) ;; *) continue ;; esac
	hostile_start --misbehave "$name" --after 0
	problem='' code=0
	DEVICE=$(timeout 30 neonsan-attach neonsan://127.0.0.1:9710/test/volume "${impatient[@]}" --header-crc --payload-crc 2>message) || code=$?
	if [ $code = 0 ]; then
		at_exit detach_leftover "$DEVICE"
		dd if="$DEVICE" of=/dev/null bs=4096 count=4 iflag=direct status=none 2>/dev/null ||
			[ "$outcome" = fails ] || problem="the device does not work"
		timeout 30 neonsan-detach --force "$DEVICE" || problem="$problem; forced detach failed"
	elif [ $code = 124 ]; then
		problem="attach hung"
	else
		[ "$outcome" != allowed ] || problem="attach failed though this is allowed"
		grep -qE "$(cause_pattern "$causes")" message || problem="$problem; the message should be of $causes"
	fi
	hostile_stop
	if [ -n "$problem" ]; then
		wrong=$((wrong + 1))
		echo "WRONG $name ($about): ${problem#; }; $(cat message)"
	else
		note "$name: code $code; $(head -n 1 message)"
	fi
	tested=$((tested + 1))
	cleanups=()
done <list
[ $tested -ge 5 ] || fail "only $tested misbehaviours were tried"
[ $wrong = 0 ] || fail "$wrong of $tested misbehaviours"
equal "devices left" "$(ls -d /sys/block/neonsan* 2>/dev/null | wc -l)" 0
