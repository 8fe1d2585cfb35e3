#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# neonsan@NAME.service detaches the device that it attached, unless it is open, and no other one.
# timeout: 300
. "$TEST_LIB"
. "$(dirname "$TEST_LIB")/service.lib"

need_programs
program_install neonsan
unit_install neonsan@.service neonsan-resolve.service neonsan-shutdown.service neonsan-unit
systemd-analyze verify --man=no /var/tmp/units/neonsan{@,-resolve,-shutdown}.service ||
	fail "systemd has something to say about the units"
mkdir -p /etc/neonsan/devices
at_exit rm -rf /etc/neonsan
node_start node mem
first=$NODE_DATA first_pid=$NODE_PID
volume vms/one 64M
echo "NEONSAN_TARGET=neonsan://$first/vms/one" >/etc/neonsan/devices/one.conf
systemd_start neonsan-shutdown.service
the_unit=neonsan@one.service

# Attached by hand and mounted: the unit cannot attach, and must not touch it.
attach vms/one
mkfs.ext4 -q "$DEVICE"
mkdir mnt
mount "$DEVICE" mnt
at_exit umount -l mnt
if inside systemctl start "$the_unit"; then fail "the unit attached a volume that is held"; fi
unit_is failed "$the_unit" || fail "the unit is $(inside systemctl is-active "$the_unit")"
[ -b "$DEVICE" ] || fail "a unit that could not start took the device of another away"
dd if=/dev/zero of=mnt/file bs=1M count=8 conv=fsync status=none || fail "the file system lost its device"
inside systemctl stop "$the_unit"
[ -b "$DEVICE" ] || fail "stopping a failed unit took the device of another away"
equal "errors" "$(info .statistics.errors)" 0
umount mnt
detach

# The unit's own device, in use: it stays when the unit is stopped, or restarted.
inside systemctl reset-failed "$the_unit"
inside systemctl start "$the_unit" || fail "the unit does not start"
DEVICE=$(info .device vms/one) DISK=${DEVICE#/dev/}
at_exit detach_leftover "$DEVICE"
session=$(info .session.id)
exec 9<"$DEVICE"
inside systemctl stop "$the_unit" || true
unit_is failed "$the_unit" || fail "a stop that was refused left the unit $(inside systemctl is-active "$the_unit")"
dd if="$DEVICE" of=/dev/null bs=1M count=4 iflag=direct status=none || fail "a stop took an open device away"
inside systemctl start "$the_unit" || fail "the unit does not find its device again"
inside systemctl restart "$the_unit" || fail "the unit does not restart over an open device"
unit_is active "$the_unit" || fail "the unit is $(inside systemctl is-active "$the_unit")"
dd if="$DEVICE" of=/dev/null bs=1M count=4 iflag=direct status=none || fail "a restart took an open device away"
equal "the session" "$(info .session.id)" "$session"
exec 9<&-

# Another node's volume of the same name is another volume.
own=$DEVICE
node_start second mem 9766
volume vms/one 64M
attach vms/one
[ "$DEVICE" != "$own" ] || fail "two devices are one"
equal "the device of the first node" "$(info .device "neonsan://$first/vms/one")" "$own"
equal "the device of the second node" "$(info .device "neonsan://$NODE_DATA/vms/one")" "$DEVICE"
expect_error 'attached 2 times' neonsan info vms/one
expect_error 'from other nodes' neonsan info neonsan://127.0.0.1:9/vms/one
inside systemctl stop "$the_unit"
unit_is inactive "$the_unit" || fail "the unit is $(inside systemctl is-active "$the_unit")"
[ ! -e "/sys/block/${own#/dev/}" ] || fail "the unit left its device"
[ -b "$DEVICE" ] || fail "the unit took the device of another node's volume away"
detach
node_stop

# Only when the machine goes down: whoever stops the unit alone leaves the devices' timeouts as they are.
inside systemctl start "$the_unit" || fail "the unit does not start again"
inside systemctl stop neonsan-shutdown.service
equal "the loss timeout" "$(info .timeouts.loss_ms vms/one)" 0
inside systemctl start neonsan-shutdown.service
inside systemctl stop "$the_unit"

# When the machine goes down nothing holds it up: neither an open device nor a node that is gone.
inside systemctl start "$the_unit" || fail "the unit does not start again"
DEVICE=$(info .device vms/one)
at_exit detach_leftover "$DEVICE"
exec 9<"$DEVICE"
node_crash "$first_pid"
inside systemctl --no-block start poweroff.target --job-mode=replace-irreversibly
wait_for $((${LAB_DEBUG_KERNEL:-0} == 1 ? 300 : 60)) "systemd to end" eval '! kill -0 $outer'
[ ! -e "/sys/block/${DEVICE#/dev/}" ] || fail "the machine went down and the device was not detached"
exec 9<&-
