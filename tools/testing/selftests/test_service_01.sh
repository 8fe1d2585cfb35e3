#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# The packaged unit runs the node under systemd: ready when it says so, unprivileged, reloaded,
# started again however it ended, stopped cleanly. Its control socket and its data port on loopback
# are for root and its own user, under all that the unit forbids it.
# timeout: 600
. "$TEST_LIB"
. "$(dirname "$TEST_LIB")/service.lib"

need_programs
program_install neonsan-node neonsan
unit_install neonsan-node.service
systemd-analyze verify --man=no /var/tmp/units/neonsan-node.service || fail "systemd has something to say about the unit"
install -D -m 644 "$packaging/neonsan-node.toml" /etc/neonsan/neonsan-node.toml
at_exit rm -rf /etc/neonsan /var/lib/neonsan /var/lib/neonsan-node
systemd-sysusers "$packaging/neonsan-node.sysusers"
# As the operator does, once; the directory is the node's user's then.
/usr/local/sbin/neonsan-node init /var/lib/neonsan
equal "the owner of the engine's directory" "$(stat -c %U /var/lib/neonsan/.neonsan-engine)" neonsan

systemd_start neonsan-node.service
# Type=notify-reload: active means that it serves. No waiting from here on.
inside neonsan volume list >/dev/null || fail "the unit is active but the node does not answer at the default socket"
equal "the control socket" "$(inside stat -c '%a %U %G %F' /run/neonsan/control.sock)" "660 neonsan neonsan socket"
if (exec 3<>/dev/tcp/127.0.0.1/9667) 2>/dev/null; then fail "the control API listens on TCP though nobody asked for it"; fi
pid=$(inside systemctl show -P MainPID neonsan-node.service)
[ "$(inside ps -o user= -p "$pid" | tr -d ' ')" = neonsan ] || fail "the node does not run as the user neonsan"
inside grep -q '^CapEff:\s*0000000000000000$' "/proc/$pid/status" || fail "the node has capabilities"
inside grep -q '^NoNewPrivs:\s*1$' "/proc/$pid/status" || fail "the node may gain privileges"

NODE_API=unix:/proc/$inner/root/run/neonsan/control.sock NODE_DATA=127.0.0.1:9666
volume vms/one 64M

# Any other user is kept out, of the socket and of the data port; the module, which is the kernel, is not.
as_nobody() { setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }
expect_error 'permission denied|not permitted' inside setpriv --reuid 65534 --regid 65534 --clear-groups \
	/usr/local/sbin/neonsan volume list
expect_error 'uid 65534.*data.local_users' as_nobody /usr/local/sbin/neonsan volume export \
	"neonsan://$NODE_DATA/vms/one" nobody.img
attach vms/one
fill "$DEVICE" 4194304 service

# A restart by systemd is an outage that nobody notices, and the data is there.
inside systemctl restart neonsan-node.service || fail "the restart failed"
cmp -n 4194304 "$DEVICE" <(seeded_stream service | head -c 4194304) || fail "the data is not what was written"
equal "errors" "$(info .statistics.errors)" 0

# A reload changes what it can, and ends when that is done.
printf '[limits]\nmax_sessions = 7\n' >limits
sed '/^\[limits\]/,/^$/d' /etc/neonsan/neonsan-node.toml >without-limits.toml
cat without-limits.toml limits >/etc/neonsan/neonsan-node.toml
before=$(inside systemctl show -P MainPID neonsan-node.service)
inside systemctl reload neonsan-node.service || fail "the reload failed"
unit_is active neonsan-node.service || fail "a reload left the unit $(inside systemctl is-active neonsan-node.service)"
equal "the process after a reload" "$(inside systemctl show -P MainPID neonsan-node.service)" "$before"
equal "max_sessions" "$(curl -fsS --unix-socket "${NODE_API#unix:}" http://localhost/v1/node | jq .limits.max_sessions)" 7

# It is started again however often it ends, and the device sees an outage.
for round in 1 2 3 4 5 6 7; do
	before=$(inside systemctl show -P MainPID neonsan-node.service)
	inside kill -KILL "$before"
	wait_for 60 "the node to be started again ($round)" eval \
		'[ "$(inside systemctl show -P MainPID neonsan-node.service)" != "$before" ] && unit_is active neonsan-node.service'
done
dd if="$DEVICE" of=/dev/null bs=1M count=4 iflag=direct status=none || fail "the device saw the restarts"
equal "errors" "$(info .statistics.errors)" 0
detach

inside systemctl stop neonsan-node.service
unit_is inactive neonsan-node.service || fail "a stopped node left the unit $(inside systemctl is-active neonsan-node.service)"
equal "the result" "$(inside systemctl show -P Result neonsan-node.service)" success
