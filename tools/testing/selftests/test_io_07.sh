#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# payload checksums: a write whose data its owner keeps changing is refused once and then sent from a copy
# timeout: 600
. "$TEST_LIB"

node_start
volume test/changing 16M
# The node is stopped for as long as it takes to look at things.
attach test/changing --payload-crc --connections 1 --request-timeout 5m --heartbeat-timeout 5m
cat >changing.py <<'PY'
# Direct writes of a buffer that another process changes all the time, as a guest does that writes to
# a page under writeback; and in the end one of a buffer that nobody changes. The node is stopped
# between the checksum and the first sending's arrival, and the data changed meanwhile, so the first
# sending of each write is refused however fast anything is.
import json, mmap, os, signal, subprocess, sys, time
device, node, rounds = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
length, page = 256 * 1024, 4096
file = os.open(device, os.O_RDWR | os.O_DIRECT)
buffer = mmap.mmap(-1, length)

def child(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(1)
    return pid

def change_always():
    while True:
        for at in range(0, length, page):
            buffer[at] = (buffer[at] + 1) % 256

def write():
    os._exit(0 if os.pwritev(file, [buffer], 0) == length else 2)

def is_sent():
    said = subprocess.run(["neonsan", "info", "--json", device], stdout=subprocess.PIPE, check=True).stdout
    oldest = json.loads(said)["connections"][0]["oldest_request"]
    return oldest is not None and oldest["state"] == "sent"

changer = child(change_always)
try:
    for _ in range(rounds):
        os.kill(node, signal.SIGSTOP)
        writer = child(write)
        while not is_sent():
            time.sleep(0.05)
        # Every page, whatever the changer has come to.
        for at in range(0, length, page):
            buffer[at + 1] = (buffer[at + 1] + 1) % 256
        os.kill(node, signal.SIGCONT)
        assert os.waitpid(writer, 0)[1] == 0, "a write failed"
finally:
    os.kill(node, signal.SIGCONT)
    os.kill(changer, signal.SIGKILL)
    os.waitpid(changer, 0)
assert os.pwritev(file, [buffer], 0) == length
back = mmap.mmap(-1, length)
assert os.preadv(file, [back], 0) == length
assert back[:] == buffer[:], "what is on the volume is not what was written last"
PY
rounds=$(less 16)
timeout 300 python3 changing.py "$DEVICE" "$NODE_PID" "$rounds" || fail "the writes"
damaged=$(node_metric neonsan_node_requests_rejected_total)
note "$rounds writes, $damaged came other than their checksum says"
# Not fewer, or this shows nothing; not more, since a copy does not change.
equal "writes refused" "$damaged" "$rounds"
equal "connections lost" "$(info '[.connections[].losses] | add')" 0
equal "errors" "$(info .statistics.errors)" 0
detach
