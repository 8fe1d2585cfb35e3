#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# atomic writes within the limit work, one over it is refused by the kernel, none is split or merged
. "$TEST_LIB"

node_start node file
neonsan volume create "neonsan://$NODE_DATA/test/at" --size 64M --block-size 512 --api "$NODE_API"
attach test/at
max=$(queue atomic_write_unit_max_bytes)
equal "what info says" "$(info .limits.atomic_unit_max)" "$max"
if [ "$max" = 0 ]; then
	neonsan-detach "$DEVICE"
	node_start mem mem 9700
	volume test/at 64M
	attach test/at
	max=$(queue atomic_write_unit_max_bytes)
fi
[ "$max" != 0 ] || skip "no engine promises atomic writes here"
cat >atomic.py <<'PY'
import errno, mmap, os, sys
device, length, offset = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
RWF_ATOMIC = 0x40
file = os.open(device, os.O_RDWR | os.O_DIRECT)
buffer = mmap.mmap(-1, length)
buffer.write(bytes([length % 251]) * length)
try:
    print(os.pwritev(file, [buffer], offset, RWF_ATOMIC))
except OSError as error:
    print(errno.errorcode[error.errno])
PY
length=$(queue atomic_write_unit_min_bytes)
while [ "$length" -le "$max" ]; do
	writes=$(info .statistics.writes)
	equal "an atomic write of $length bytes" "$(python3 atomic.py "$DEVICE" "$length" $((length * 4)))" "$length"
	equal "requests it took" "$(($(info .statistics.writes) - writes))" 1
	length=$((length * 2))
done
equal "an atomic write over the limit" "$(python3 atomic.py "$DEVICE" $((max * 2)) 0)" EINVAL
# Many that follow each other, given to the kernel at once: it must not make one of them.
min=$(queue atomic_write_unit_min_bytes)
if [ "$max" -gt "$min" ]; then
	equal "merging is off (nomerges)" "$(queue nomerges)" 2
	writes=$(info .statistics.writes)
	fio --name=adjacent --filename="$DEVICE" --ioengine=libaio --direct=1 --atomic=1 --rw=write --bs="$min" \
		--offset="$min" --size=$((min * 256)) --iodepth=16 --iodepth_batch=16 --iodepth_batch_complete_min=16 \
		--output="$TEST_DIR/adjacent" || { cat "$TEST_DIR/adjacent"; fail "adjacent atomic writes"; }
	equal "requests that 256 adjacent atomic writes took" "$(($(info .statistics.writes) - writes))" 256
	equal "errors" "$(info .statistics.errors)" 0
fi
equal "an atomic write out of alignment" "$(python3 atomic.py "$DEVICE" "$max" 512)" "$([ "$max" = 512 ] && echo 512 || echo EINVAL)"
detach
