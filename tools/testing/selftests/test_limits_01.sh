#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# ioctls and sysfs limits are what the volume says, for each pair of block sizes
. "$TEST_LIB"

node_start
while read -r logical physical; do
	name=test/l$logical-$physical
	neonsan volume create "neonsan://$NODE_DATA/$name" --size 64M --block-size "$logical" \
		--physical-block-size "$physical" --api "$NODE_API" || fail "create $name"
	attach "$name"
	volume_json=$(neonsan volume info "neonsan://$NODE_DATA/$name" --json --api "$NODE_API")
	says() { jq -r ".$1" <<<"$volume_json"; }
	equal "BLKSSZGET" "$(blockdev --getss "$DEVICE")" "$logical"
	equal "BLKPBSZGET" "$(blockdev --getpbsz "$DEVICE")" "$physical"
	equal "BLKGETSIZE64" "$(blockdev --getsize64 "$DEVICE")" "$(says size_bytes)"
	equal "BLKROGET" "$(blockdev --getro "$DEVICE")" 0
	equal "logical_block_size" "$(queue logical_block_size)" "$(says logical_block_size_bytes)"
	equal "physical_block_size" "$(queue physical_block_size)" "$(says physical_block_size_bytes)"
	equal "max_hw_sectors_kb" "$(queue max_hw_sectors_kb)" "$(($(says limits.max_io_bytes) / 1024))"
	equal "fua" "$(queue fua)" "$([ "$(says limits.fua)" = true ] && echo 1 || echo 0)"
	equal "write_cache" "$(queue write_cache)" "$([ "$(says limits.volatile_write_cache)" = true ] && echo 'write back' || echo 'write through')"
	equal "discard_granularity" "$(queue discard_granularity)" "$(says limits.discard_granularity_bytes)"
	equal "rotational" "$(queue rotational)" 0
	if [ "$(says limits.max_write_zeroes_bytes)" != 0 ]; then
		[ "$(queue write_zeroes_max_bytes)" -gt 0 ] || fail "write_zeroes_max_bytes is 0"
	fi
	equal "atomic_write_unit_max_bytes" "$(queue atomic_write_unit_max_bytes)" "$(says limits.atomic_write_max_bytes)"
	for pair in logical_block_size:logical_block_size physical_block_size:physical_block_size \
		io_opt:optimal_io_size atomic_unit_max:atomic_write_unit_max_bytes; do
		equal "info's ${pair%:*}" "$(info ".limits.${pair%:*}")" "$(queue "${pair#*:}")"
	done
	qemu=$(neonsan info --qemu "$DEVICE")
	case $qemu in
	*"logical_block_size=$logical,physical_block_size=$physical"*) ;;
	*) fail "info --qemu lacks the block sizes: $qemu" ;;
	esac
	neonsan info --libvirt "$DEVICE" | grep -q "logical_block_size='$logical'" || fail "info --libvirt lacks the block sizes"
	# I/O below the logical block size is refused by the kernel, at it it works.
	dd if="$DEVICE" of=/dev/null bs="$logical" count=3 iflag=direct status=none || fail "a read of $logical bytes"
	if [ "$logical" = 4096 ] && dd if="$DEVICE" of=/dev/null bs=512 count=1 iflag=direct status=none 2>/dev/null; then
		fail "a direct read of 512 bytes worked"
	fi
	detach
done <<PAIRS
512 512
512 4096
4096 4096
PAIRS
