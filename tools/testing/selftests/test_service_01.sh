#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# The packaged unit runs the node under systemd: ready when it says so, unprivileged, stopped cleanly.
# timeout: 300
. "$TEST_LIB"
. "$(dirname "$TEST_LIB")/service.lib"

need_programs
program_install neonsan-node
unit_install neonsan-node.service
systemd-analyze verify --man=no /var/tmp/units/neonsan-node.service || fail "systemd has something to say about the unit"
install -D -m 644 "$packaging/neonsan-node.toml" /etc/neonsan/neonsan-node.toml
at_exit rm -rf /etc/neonsan /var/lib/neonsan /var/lib/neonsan-node
systemd-sysusers "$packaging/neonsan-node.sysusers"
# As the operator does, once; the directory is the node's user's then.
/usr/local/sbin/neonsan-node init /var/lib/neonsan
equal "the owner of the engine's directory" "$(stat -c %U /var/lib/neonsan/.neonsan-engine)" neonsan

systemd_start neonsan-node.service
# Type=notify: active means that it serves. No waiting from here on.
inside neonsan volume list --api http://127.0.0.1:9667 >/dev/null || fail "the unit is active but the node does not answer"
pid=$(inside systemctl show -P MainPID neonsan-node.service)
[ "$(inside ps -o user= -p "$pid" | tr -d ' ')" = neonsan ] || fail "the node does not run as the user neonsan"
inside grep -q '^CapEff:\s*0000000000000000$' "/proc/$pid/status" || fail "the node has capabilities"
inside grep -q '^NoNewPrivs:\s*1$' "/proc/$pid/status" || fail "the node may gain privileges"

NODE_API=http://127.0.0.1:9667 NODE_DATA=127.0.0.1:9666
volume vms/one 64M
attach vms/one
fill "$DEVICE" 4194304 service

# A restart by systemd is an outage that nobody notices, and the data is there.
inside systemctl restart neonsan-node.service || fail "the restart failed"
cmp -n 4194304 "$DEVICE" <(seeded_stream service | head -c 4194304) || fail "the data is not what was written"
equal "errors" "$(info .statistics.errors)" 0
detach

inside systemctl stop neonsan-node.service
unit_is inactive neonsan-node.service || fail "a stopped node left the unit $(inside systemctl is-active neonsan-node.service)"
equal "the result" "$(inside systemctl show -P Result neonsan-node.service)" success
