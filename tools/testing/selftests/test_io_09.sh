#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# a write whose last piece takes the last place of a batch ends when it is answered, not with the next message
# timeout: 200
. "$TEST_LIB"

node_config node mem 9666
# No heartbeat of either end: nothing is sent but the writes.
printf 'heartbeat_interval_ms = 1800000\nheartbeat_timeout_ms = 3600000\n' >>"$TEST_DIR/node.toml"
node_start
volume test/edge 64M
attach test/edge --connections 1 --request-timeout 1h --heartbeat-interval 30m --heartbeat-timeout 1h
cat >edge.py <<'PY'
# Direct writes of N pages of which no two are neighbours in memory, so of N pieces; with its header a
# write of 255 pieces fills a batch of 256. A little less and more, should pieces be joined after all.
import mmap, os, sys
page = 4096
file = os.open(sys.argv[1], os.O_RDWR | os.O_DIRECT)
buffer = mmap.mmap(-1, 2 * 520 * page)
for at in range(0, len(buffer), page):
    buffer[at] = 1
view = memoryview(buffer)
pieces = [view[at:at + page] for at in range(0, len(buffer), 2 * page)]
for count in [*range(240, 260), *range(500, 515)]:
    assert os.pwritev(file, pieces[:count], 0) == count * page
    print("#", count, "pieces", flush=True)
PY
timeout 100 python3 edge.py "$DEVICE" || fail "a write did not end though it was answered"
detach
