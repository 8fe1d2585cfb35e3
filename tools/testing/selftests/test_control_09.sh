#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# devices come and go under eyes that look all the time: list, info, watch, debugfs, tracepoints
# timeout: 300
. "$TEST_LIB"

node_start
volume test/a 16M
volume test/b 16M
mountpoint -q /sys/kernel/tracing || mount -t tracefs none /sys/kernel/tracing
echo 1 >/sys/kernel/tracing/events/neonsan/enable
at_exit bash -c 'echo 0 >/sys/kernel/tracing/events/neonsan/enable'
watch_start events
touch looking
look() { # what is asked may be gone by then: refusals are fine, crashes are not
	while [ -e looking ]; do
		"$@" >>looks 2>&1 || [ $? -lt 100 ] || { echo "$* ended with code $?" >>crashes; }
	done
}
look neonsan list --json &
lookers="$!"
look neonsan info 0 &
lookers="$lookers $!"
look cat /sys/kernel/debug/neonsan/state &
lookers="$lookers $!"
at_exit rm -f "$TEST_DIR/looking"
for round in $(seq 8); do
	first=$(neonsan-attach "neonsan://$NODE_DATA/test/a") || fail "attach of a in round $round"
	second=$(neonsan-attach "neonsan://$NODE_DATA/test/b" --connections 1) || fail "attach of b in round $round"
	dd if="$first" of=/dev/null bs=64k count=16 iflag=direct status=none
	neonsan-detach "$first" || fail "detach of a in round $round"
	if [ $((round % 2)) = 0 ]; then neonsan-detach --force "$second"; else neonsan-detach "$second"; fi
done
rm looking
for looker in $lookers; do wait "$looker" || true; done
[ ! -e crashes ] || fail "$(cat crashes)"
[ -s looks ] || fail "nobody looked"
grep -q neonsan_request_sent /sys/kernel/tracing/trace || fail "no request was traced"
grep -q neonsan_session_state /sys/kernel/tracing/trace || grep -q neonsan_connection_state /sys/kernel/tracing/trace ||
	fail "no state was traced"
all_seen() { [ "$(grep -c '"attached"' events)" = 16 ] && [ "$(grep -c '"detached"' events)" = 16 ]; }
wait_for 30 "16 attached and 16 detached events" all_seen
equal "devices left" "$(ls -d /sys/block/neonsan* 2>/dev/null | wc -l)" 0
