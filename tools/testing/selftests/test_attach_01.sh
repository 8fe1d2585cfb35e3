#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# attach returns a usable device with the volume's size and contents, and detach takes it away
. "$TEST_LIB"

node_start
volume test/a 64M
attach test/a
equal "the size" "$(blockdev --getsize64 "$DEVICE")" 67108864
fill "$DEVICE" 4194304 a
sum=$(dd if="$DEVICE" bs=1M count=4 iflag=direct status=none | sha256sum)
echo "attach_01 detaches $DISK" >/dev/kmsg
detach
# The node closes the connections then, which is no loss.
said=$(dmesg | sed "1,/attach_01 detaches $DISK/d")
if grep -q "$DISK: lost" <<<"$said"; then fail "a detach is told as a loss: $said"; fi
[ ! -e "$DEVICE" ] || fail "$DEVICE is still there after detach"
[ ! -e "/sys/block/$DISK" ] || fail "/sys/block/$DISK is still there after detach"
attach test/a
equal "the contents after a second attach" "$(dd if="$DEVICE" bs=1M count=4 iflag=direct status=none | sha256sum)" "$sum"
equal "the state" "$(info .state)" live
equal "the volume" "$(info .volume)" test/a
equal "the list" "$(neonsan list --json | jq -r '.devices[0].volume // .[0].volume')" test/a
detach
