#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# a user without privilege sees names and states of devices, and nothing of volumes, nodes, hosts or requests
. "$TEST_LIB"

node_start
volume test/secret 16M
# The request below hangs for as long as the test takes.
attach test/secret --connections 1 --request-timeout 1h --heartbeat-timeout 1h
mountpoint -q /sys/kernel/debug || mount -t debugfs none /sys/kernel/debug
as_nobody() { setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }
host=$(info .session.host_id)
[ "$host" != null ] || fail "root is not told the host's identity"
# A read that hangs, so that there is a request to be seen.
kill -STOP "$NODE_PID"
dd if="$DEVICE" of=/dev/null bs=4k count=1 skip=3 iflag=direct status=none &
reader=$!
inflight() { [ "$(info '[.connections[].in_flight] | add')" -ge 1 ]; }
wait_for 20 "the read in flight" inflight

# hides WHAT COMMAND…: what it prints has the device and its state, and none of the secrets.
hides() {
	local what=$1 secret
	shift
	"$@" >shown 2>&1 || fail "$what failed: $(cat shown)"
	grep -q "$DISK" shown || fail "$what does not name the device: $(cat shown)"
	grep -q live shown || fail "$what does not name the state: $(cat shown)"
	for secret in secret 127.0.0.1 9666 "$host" exclusive oldest offset; do
		if grep -q -- "$secret" shown; then fail "$what shows $secret: $(cat shown)"; fi
	done
	grep -q CAP_SYS_ADMIN shown || fail "$what does not say what is hidden and why: $(cat shown)"
}
hides "info" as_nobody neonsan info "$DEVICE"
hides "info --json" as_nobody neonsan info --json "$DEVICE"
hides "list" as_nobody neonsan list
hides "list --json" as_nobody neonsan list --json
expect_error 'CAP_SYS_ADMIN' as_nobody neonsan info test/secret
expect_error 'CAP_SYS_ADMIN' as_nobody neonsan info --qemu "$DEVICE"
# Not by root of a user namespace either, and not by the raw family.
hides "info in a user namespace" as_nobody unshare --user --map-root-user neonsan info "$DEVICE"
if [ -e /payload/ynl ]; then
	cat >raw.py <<-'PYTHON'
		import sys
		sys.path.append("/payload/ynl")
		from pyynl.lib import YnlFamily
		family = YnlFamily("/payload/specs/neonsan.yaml", schema="")
		allowed = {"index", "name", "state", "lost-ms", "suspend"}
		for device in [family.do("device-get", {"index": int(sys.argv[1])})] + family.dump("device-get", {}):
		    assert set(device) <= allowed, device
		    assert device["state"] == "live", device
	PYTHON
	as_nobody python3 - "${DISK#neonsan}" <raw.py || fail "the family shows more than name and state"
fi

# Events.
expect_error 'CAP_SYS_ADMIN' as_nobody timeout 20 neonsan watch --count 1
# Files.
expect_error 'Permission denied' as_nobody cat "/sys/block/$DISK/volume"
expect_error 'Permission denied' as_nobody cat /sys/kernel/debug/neonsan/state
equal "the volume in sysfs, for root" "$(cat "/sys/block/$DISK/volume")" test/secret
equal "the serial, for nobody" "$(as_nobody cat "/sys/block/$DISK/serial")" "$(cat "/sys/block/$DISK/serial")"

kill -CONT "$NODE_PID"
wait $reader || fail "the read failed"
equal "the volume, for root" "$(info .volume)" test/secret
equal "hidden, for root" "$(info '.hidden // "nothing"')" nothing
detach
