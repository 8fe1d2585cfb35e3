#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# discarded and zeroed ranges read as zeroes, and their neighbours stay
. "$TEST_LIB"

node_start node file
volume test/z 64M
attach test/z
fill "$DEVICE" 16777216 z
blockdev --flushbufs "$DEVICE"
dd if="$DEVICE" of=want bs=1M count=16 iflag=direct status=none
zero() { dd if=/dev/zero of=want bs=512 seek=$(($1 / 512)) count=$(($2 / 512)) conv=notrunc status=none; }
same() {
	dd if="$DEVICE" of=got bs=1M count=16 iflag=direct status=none
	cmp want got || fail "$1"
}
blkdiscard --offset 1048576 --length 2097152 "$DEVICE"
if info '.abilities | index("discard-zeroes")' >/dev/null; then
	zero 1048576 2097152
	same "after blkdiscard"
else
	# Not promised: only the neighbours are.
	dd if="$DEVICE" of=want bs=1M skip=1 seek=1 count=2 iflag=direct conv=notrunc status=none
fi
while read -r offset length; do
	blkdiscard --zeroout --offset "$offset" --length "$length" "$DEVICE"
	zero "$offset" "$length"
	same "after zeroing $length bytes at $offset"
done <<RANGES
4194304 4096
5242880 512
6291968 1536
8388608 4194304
RANGES
[ "$(info .statistics.write_zeroes)" -gt 0 ] || fail "no write-zeroes request was made"
[ "$(info .statistics.discards)" -gt 0 ] || fail "no discard request was made"
# A whole-device discard is split as the limits say.
blkdiscard "$DEVICE"
detach
