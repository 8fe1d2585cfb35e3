#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# payload checksums: data that its owner changes while it is written costs no connection
. "$TEST_LIB"

node_start
volume test/changing 16M
attach test/changing --payload-crc --connections 1
cat >changing.py <<'PY'
# Direct writes of a buffer that another process changes now and then, as a guest does that writes to
# a page under writeback; and in the end of one that nobody changes.
import mmap, os, sys, time
device, seconds, pause = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
length = 256 * 1024
file = os.open(device, os.O_RDWR | os.O_DIRECT)
buffer = mmap.mmap(-1, length)
child = os.fork()
if child == 0:
    while True:
        buffer[length - 1] = (buffer[length - 1] + 1) % 256
        time.sleep(pause)
end, writes = time.monotonic() + seconds, 0
while time.monotonic() < end:
    assert os.pwritev(file, [buffer], 0) == length
    writes += 1
os.kill(child, 9)
os.waitpid(child, 0)
assert os.pwritev(file, [buffer], 0) == length
back = mmap.mmap(-1, length)
assert os.preadv(file, [back], 0) == length
assert back[:] == buffer[:], "what is on the volume is not what was written last"
print(writes)
PY
# Longer than a write takes: who changes his data each time it is sent gets it through on no connection.
pause=0.003
[ "${LAB_DEBUG_KERNEL:-0}" = 0 ] || pause=0.15
damaged() { node_metric neonsan_node_requests_rejected_total; }
for try in 1 2 3 4 5 6; do
	writes=$(timeout 120 python3 changing.py "$DEVICE" 5 $pause) || fail "the writes"
	[ "$(damaged)" = 0 ] || break
done
[ "$(damaged)" -gt 0 ] || fail "no write has met its change: this shows nothing"
note "$writes writes in the last round, $(damaged) came other than their checksum says"
equal "connections lost" "$(info '[.connections[].losses] | add')" 0
equal "errors" "$(info .statistics.errors)" 0
detach
