#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# the host knows which volumes it has; what a forced detach leaves is resumed at once; a second session of the host waits
# timeout: 300
. "$TEST_LIB"

node_start node file
volume test/x 64M
volume test/y 64M
at() { echo "neonsan://${2:-$NODE_DATA}/$1"; }
writes() { dd if=/dev/zero of="$1" bs=4k count=4 oflag=direct conv=notrunc,fsync status=none; }
other=(--host-id 11111111-2222-3333-4444-555555555555)

# A node that restarts is nothing to attach again for: the host says who has the volume, and the node
# keeps it for its session. Within the pause between two tries the device has no connection.
attach test/x --reconnect-delay-min 8s --reconnect-delay-max 8s
x=$DEVICE
node_stop
node_start
expect_error "test/x is attached already as $x" neonsan-attach "$(at test/x)"
expect_error "attached already as $x" neonsan-attach "$(at test/x)" --force
# By another address it is the same node, which knows that this is another session.
expect_error 'held by host' neonsan-attach "$(at test/x '[::1]:9666')"
head -c 1M /dev/zero >image
expect_error 'held by host' neonsan volume import "$(at test/x)" image
expect_error 'held by host' neonsan-attach "$(at test/x)" "${other[@]}"
is_live() { [ "$(info .state "${1:-$x}")" = live ]; }
wait_for 30 "the device to come back" is_live
writes "$x" || fail "the device does not go on"
equal "errors of the device" "$(info .statistics.errors "$x")" 0
# Readers keep nobody out, and another volume is another one.
attach test/x --mode read-only
detach
attach test/y
y=$DEVICE

# The same volume at an address that the host does not know, as when it was copied by mistake: its
# identity tells. The host lets go of what it was let into.
detach "$y"
cp -a /var/tmp/node-volumes /var/tmp/twin-volumes
attach test/y
y=$DEVICE
api=$NODE_API data=$NODE_DATA pid=$NODE_PID
node_start twin file 9766
expect_error "test/y is the same as test/y, which is attached already as $y" neonsan-attach "$(at test/y)"
attach test/y "${other[@]}"
detach
node_stop
NODE_API=$api NODE_DATA=$data NODE_PID=$pid
detach "$y"
detach "$x"
attach test/x
x=$DEVICE
session=$(info .session.id "$x") generation=$(info .session.generation "$x")

# A forced detach says nothing to the node, which would keep the volume for 30 seconds.
writes "$x"
neonsan-detach --force "$x"
expect_error 'held by host .* without a connection .* free in [0-9]+ s, at 20' neonsan-attach "$(at test/x)" "${other[@]}"
within 10000 "attaching after a forced detach" neonsan-attach "$(at test/x)"
wait_for 10 "the device" test -b "$x"
at_exit detach_leftover "$x"
equal "the session" "$(info .session.id "$x")" "$session"
[ "$(info .session.generation "$x")" -gt "$generation" ] || fail "the generation did not grow: $(info .session.generation "$x")"
writes "$x" || fail "the resumed session does not write"

# Likewise if the node was away then, and is another process now.
node_crash
neonsan-detach --force "$x"
node_start
within 10000 "attaching to a node that was away" neonsan-attach "$(at test/x)"
equal "the session" "$(info .session.id "$x")" "$session"
writes "$x" || fail "the session that was resumed twice does not write"
# What ends in order is not resumed, and free for all.
detach "$x"
attach test/x "${other[@]}"
detach
attach test/x
[ "$(info .session.id)" != "$session" ] || fail "a session that ended was resumed"

# A session that was lost meanwhile is not resumed: nobody fences anybody.
neonsan-detach --force "$DEVICE"
attach test/x "${other[@]}" --force
other_device=$DEVICE
expect_error 'held by host' neonsan-attach "$(at test/x)"
writes "$other_device" || fail "the other host lost the volume"
detach "$other_device"
attach test/x
writes "$DEVICE" || fail "a new session does not write"
detach
