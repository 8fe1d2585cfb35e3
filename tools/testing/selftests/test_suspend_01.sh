#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# suspend holds or fails new I/O and lets what is in flight end; resume, detach and a resize go on
. "$TEST_LIB"

node_start
volume test/s 64M
attach test/s
watch_start events
read_one() { dd if="$DEVICE" of=/dev/null bs=4k count=1 iflag=direct status=none; }
ended() { ! kill -0 "$1" 2>/dev/null; }

# Normal: it waits.
neonsan suspend "$DEVICE"
equal "suspended" "$(info .suspended)" normal
equal "the state" "$(info .state)" live
read_one &
reader=$!
sleep 1
if ended $reader; then fail "a read was not held"; fi
neonsan suspend "$DEVICE" --mode normal || fail "the same again is refused"
# A resize waits for the resume, and holds nobody up.
neonsan volume resize "neonsan://$NODE_DATA/test/s" --size 96M --api "$NODE_API"
sleep 0.5
equal "the size while suspended" "$(blockdev --getsize64 "$DEVICE")" $((64 << 20))
neonsan resume "$DEVICE"
wait $reader || fail "the held read failed"
equal "suspended" "$(info '.suspended // "no"')" no
resized() { [ "$(blockdev --getsize64 "$DEVICE")" = $((96 << 20)) ]; }
wait_for 20 "the resize" resized
neonsan resume "$DEVICE" || fail "resuming what is not suspended is refused"

# Error: EIO, at once.
neonsan suspend "$DEVICE" --mode error
equal "suspended" "$(info .suspended)" error
expect_error 'Input/output error' dd if="$DEVICE" of=/dev/null bs=4k count=1 iflag=direct status=none
# What is held fails when the mode changes.
neonsan suspend "$DEVICE" --mode normal
read_one 2>/dev/null &
reader=$!
sleep 0.5
neonsan suspend "$DEVICE" --mode error
if wait $reader; then fail "a held read succeeded though the mode is error"; fi
neonsan resume "$DEVICE"
read_one || fail "a read after resume"

# What is in flight ends; what comes later is held.
kill -STOP "$NODE_PID"
read_one &
early=$!
inflight() { [ "$(info '[.connections[].in_flight] | add')" -ge 1 ]; }
wait_for 20 "the read in flight" inflight
neonsan suspend "$DEVICE"
dd if="$DEVICE" of=/dev/null bs=4k count=1 skip=100 iflag=direct status=none &
late=$!
kill -CONT "$NODE_PID"
wait $early || fail "the read in flight failed"
sleep 0.5
if ended $late; then fail "a read passed"; fi

# Detach works while suspended, and by force too. Who has it open keeps a plain one out.
expect_error 'open' neonsan-detach "$DEVICE"
within 5000 "a forced detach while suspended" neonsan-detach --force "$DEVICE"
if wait $late 2>/dev/null; then fail "the held read succeeded"; fi
attach test/s
neonsan suspend "$DEVICE"
within 20000 "a plain detach while suspended" detach
for event in suspended resumed; do
	grep -q "\"event\":\"$event\"" events || fail "no event $event: $(cat events)"
done
expect_error 'no such device|there is no device' neonsan suspend "$DEVICE"
