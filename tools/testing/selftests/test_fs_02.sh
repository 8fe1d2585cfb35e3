#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# partitions: made with sfdisk, found again after attach, each its own
. "$TEST_LIB"

node_start
for block in 512 4096; do
	volume test/part$block 64M $block
	attach test/part$block
	printf 'label: gpt\nsize=8MiB\nsize=16MiB\n' | sfdisk -q "$DEVICE"
	blockdev --rereadpt "$DEVICE" 2>/dev/null || partx -u "$DEVICE"
	wait_for 30 "${DEVICE}p2" test -b "${DEVICE}p2"
	equal "the size of partition 2" "$(blockdev --getsize64 "${DEVICE}p2")" 16777216
	fill "${DEVICE}p1" 8388608 one
	fill "${DEVICE}p2" 8388608 two
	expect_error 'in use|busy|open' bash -c "exec 7<${DEVICE}p2; neonsan-detach $DEVICE"
	detach
	[ ! -e "${DEVICE}p1" ] || fail "${DEVICE}p1 is still there"
	attach test/part$block
	[ -b "${DEVICE}p2" ] || fail "the partitions were not found at attach"
	fill want1 8388608 one
	fill want2 8388608 two
	cmp -n 8388608 "${DEVICE}p1" want1 || fail "partition 1 has other contents"
	cmp -n 8388608 "${DEVICE}p2" want2 || fail "partition 2 has other contents"
	detach
done
