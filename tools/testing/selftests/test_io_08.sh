#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# an answered write ends at once, though much of the batch that it was sent with still waits for room
# timeout: 300
. "$TEST_LIB"

node_start
volume test/batch 256M
attach test/batch --connections 1 --request-timeout 5m --heartbeat-timeout 5m
tracing=/sys/kernel/tracing
modprobe sch_netem
# 1 MiB takes a tenth of a second: so the socket is full nearly always.
tc qdisc add dev lo root netem rate 80mbit limit 100000
at_exit tc qdisc delete dev lo root
echo 32768 >$tracing/buffer_size_kb
echo >$tracing/trace
for event in neonsan/neonsan_request_sent neonsan/neonsan_reply_received block/block_rq_complete; do
	echo 1 >$tracing/events/$event/enable
	at_exit sh -c "echo 0 >$tracing/events/$event/enable"
done
fio --output=fio.log --eta=never --filename="$DEVICE" --direct=1 --ioengine=io_uring --rw=write --time_based --runtime=25 \
	--name=large --bs=1M --iodepth=32 --offset=64M --size=128M \
	--name=small --bs=4k --iodepth=8 --offset=0 --size=32M || { cat fio.log; fail "fio"; }
for event in neonsan/neonsan_request_sent neonsan/neonsan_reply_received block/block_rq_complete; do
	echo 0 >$tracing/events/$event/enable
done
cat $tracing/trace >trace
echo >$tracing/trace
grep -c neonsan_reply_received trace | sed 's/^/# replies: /'
python3 - trace <<'PY' || fail "answered writes waited for their batch"
# Between the reply to a small write and its end, how many large ones are answered? None needs to be:
# the small one waits for nothing then. With its whole batch to wait for it would be many.
import os, re, sys
sent, large, answered, large_sent, waits, behind = {}, 0, {}, 0, [], []
for line in open(sys.argv[1], errors="replace"):
    if m := re.search(r"neonsan_request_sent: .* tag=(\d+) .*offset=(\d+) length=(\d+)", line):
        tag, offset, length = map(int, m.groups())
        large_sent += length == 1 << 20
        sent[tag] = (offset // 512, length, large_sent)
    elif m := re.search(r"neonsan_reply_received: .* tag=(\d+) .*length=(\d+)", line):
        sector, length, before = sent.pop(int(m.group(1)), (None, 0, 0))
        if length == 4096:
            answered[sector] = large
            # Large ones that were put into a batch behind it before it was answered.
            behind.append(large_sent - before)
        large += length == 1 << 20
    elif m := re.search(r"block_rq_complete: .*\) (\d+) \+ 8 ", line):
        if (then := answered.pop(int(m.group(1)), None)) is not None:
            waits.append(large - then)
print(f"# {len(waits)} small writes; behind one in its batch: up to {max(behind, default=0)} large ones;"
      f" answered before one ended: up to {max(waits, default=0)}")
if len(waits) < 16 or max(behind) < 8:
    # The debug kernel is slower than the network, and a batch never fills. There the load runs for what
    # that kernel sees.
    sys.exit("too few: this shows nothing" if os.environ.get("LAB_DEBUG_KERNEL", "0") != "1" else 0)
# One or two may be answered in the moment in which a batch is being given to the socket.
sys.exit(max(waits) > 3)
PY
equal "errors" "$(info .statistics.errors)" 0
detach
