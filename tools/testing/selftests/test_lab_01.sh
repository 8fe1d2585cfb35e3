#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# the machine has what the other tests rely on
. "$TEST_LIB"

for program in fio qemu-system-x86_64 qemu-io mkfs.ext4 mkfs.xfs resize2fs parted sfdisk nft strace python3 curl jq socat blkdiscard; do
	command -v "$program" >/dev/null || fail "the machine's image lacks $program"
done
for module in xfs null_blk sch_netem nf_tables kvm_amd; do
	modprobe "$module" || fail "the stock kernel's module $module does not load"
done
modprobe -r null_blk sch_netem
[ -e /sys/kernel/debug/block ] || fail "debugfs is not mounted"
[ -e /sys/kernel/tracing/events ] || fail "tracefs is not mounted"
