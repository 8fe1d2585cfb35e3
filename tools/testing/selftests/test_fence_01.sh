#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# an exclusive volume names its holder; --force says whom it fenced; the fenced device fails at once and says why
. "$TEST_LIB"

node_start
volume test/x 64M
attach test/x
first=$DEVICE
other=(--host-id 11111111-2222-3333-4444-555555555555)
host=$(info '.session.host_id' | tr -d -)
name=$(info '.session.host_name')
expect_error "held by host $name" neonsan-attach "neonsan://$NODE_DATA/test/x" "${other[@]}"
message=$(neonsan-attach "neonsan://$NODE_DATA/test/x" "${other[@]}" 2>&1 || true)
grep -q "$host" <<<"$message" || fail "the refusal lacks the host's id $host: $message"
grep -qE 'from (127\.0\.0\.1|\[::1\]):[0-9]+' <<<"$message" || fail "the refusal lacks the address: $message"
grep -qE 'since 20[0-9]{2}-[0-9]{2}-[0-9]{2} [0-9:]{8} UTC' <<<"$message" || fail "the refusal lacks the time: $message"

watch_start events
dd if="$first" of=/dev/null bs=4k count=1 iflag=direct status=none || fail "the holder suffers from the refusal"
second=$(neonsan-attach --json "neonsan://$NODE_DATA/test/x" "${other[@]}" --force 2>forced) || fail "$(cat forced)"
jq -er .fenced <<<"$second" | grep -q "$host" || fail "attach does not say whom it fenced: $second"
grep -q "fenced: .*$host" forced || fail "people are not told whom it fenced: $(cat forced)"
second=$(jq -r .device <<<"$second")
at_exit detach_leftover "$second"
grep_event() { grep "\"event\":\"$1\"" events | grep -q "$2"; }
wait_for 10 "the event that names the fenced host" grep_event attached "$host"

failed() { [ "$(info .state "$first")" = failed ]; }
wait_for 20 "the first device to fail" failed
begin=$(now_ms)
if dd if="$first" of=/dev/null bs=4k count=1 iflag=direct status=none 2>/dev/null; then fail "the fenced device reads"; fi
# Whatever waits for something waits for half a minute at least.
[ $(($(now_ms) - begin)) -lt 10000 ] || fail "the error took $(($(now_ms) - begin)) ms"
info .failure "$first" | grep -q 'another host took the volume' || fail "info says: $(info .failure "$first")"
neonsan info "$first" | grep -q 'another host took the volume' || fail "people are not told why"
# The node is asked who it was, in the background.
names_taker() { info .failure "$first" | grep -q '11111111222233334444555555555555'; }
wait_for 20 "the name of the new holder" names_taker
info .failure "$first" | grep -qE '(taken|held) by host .* from .* since 20' || fail "info says: $(info .failure "$first")"
grep -q 'failure="another host took the volume' /sys/kernel/debug/neonsan/state || fail "debugfs does not say why"
grep_event failed 'another host took' || fail "no event says why: $(cat events)"
dd if="$second" of=/dev/null bs=4k count=1 iflag=direct status=none || fail "the new holder cannot read"
neonsan-detach "$first" || fail "the fenced device cannot be detached"
neonsan-detach "$second"
