#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# The packaged unit runs the node under systemd: ready when it says so, unprivileged, stopped cleanly.
# timeout: 300
. "$TEST_LIB"

need_programs
packaging=/payload/packaging
# What `make install PREFIX=/usr/local` puts on a machine, by its own sed line.
# Units outside /run, which the systemd below has for itself.
mkdir -p /usr/local/sbin /var/tmp/units
at_exit rm -rf /var/tmp/units
install -m 755 /payload/bin/neonsan-node /usr/local/sbin/neonsan-node
at_exit rm -f /usr/local/sbin/neonsan-node
sed 's|/usr/sbin/neonsan|/usr/local/sbin/neonsan|g' "$packaging/neonsan-node.service" >"/var/tmp/units/neonsan-node.service"
systemd-analyze verify --man=no "/var/tmp/units/neonsan-node.service" || fail "systemd has something to say about the unit"
install -D -m 644 "$packaging/neonsan-node.toml" /etc/neonsan/neonsan-node.toml
at_exit rm -rf /etc/neonsan /var/lib/neonsan
systemd-sysusers "$packaging/neonsan-node.sysusers"

# The machine's first process is the lab's own. A systemd of this test is the
# first process of namespaces of its own, as in a container, but on the
# machine's network, where the device is to find the node.
cat >"$TEST_DIR/inside" <<'INSIDE'
set -e
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/systemd/system /sys/fs/cgroup
mountpoint -q /sys/fs/cgroup || mount -t cgroup2 cgroup /sys/fs/cgroup
cp /var/tmp/units/* /run/systemd/system/
# Not the whole system: the node and what it asks for.
exec env container=lab /lib/systemd/systemd --system --log-target=console --show-status=no --unit=neonsan-node.service
INSIDE
unshare --fork --pid --mount --uts --ipc --cgroup --kill-child -- bash "$TEST_DIR/inside" >"$TEST_DIR/systemd.log" 2>&1 &
outer=$!
show_log() { if [ "${code:-0}" -ne 0 ]; then tail -n 60 "$TEST_DIR/systemd.log"; fi; }
at_exit kill -KILL "$outer"
at_exit show_log
wait_for 30 "the namespaces" pgrep -P "$outer"
inner=$(pgrep -P "$outer" | head -n 1)
inside() { nsenter --target "$inner" --pid --mount --uts --ipc --cgroup -- "$@"; }
unit_is() { [ "$(inside systemctl is-active neonsan-node.service)" = "$1" ]; }
# A systemd that gave up is not waited for.
active_or_gone() { unit_is active || ! kill -0 "$outer"; }

# On the debug kernel systemd alone takes minutes.
wait_for $((${LAB_DEBUG_KERNEL:-0} == 1 ? 600 : 120)) "the node to be active" active_or_gone
unit_is active || fail "systemd ended"
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
unit_is inactive || fail "a stopped node left the unit $(inside systemctl is-active neonsan-node.service)"
equal "the result" "$(inside systemctl show -P Result neonsan-node.service)" success
