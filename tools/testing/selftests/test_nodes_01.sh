#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# a node moves to another address: set --node, and names that are resolved again or late, bring the device back without an error
# timeout: 420
. "$TEST_LIB"

node_config one file 9700
# The same directory at another port, and at another address.
sed 's/:9700/:9740/g; s/:9701/:9741/g' one.toml >two.toml
sed 's/127\.0\.0\.1:9700/127.0.0.2:9700/' one.toml >three.toml
node_start one file 9700
one=$NODE_PID
volume test/move 64M
volume test/other 16M

live() { [ "$(info .state)" = live ]; }
lost() { [ "$(info .lost_ms)" != 0 ]; }
named() { info '[.nodes[] | select(.learned | not) | "\(.address):\(.port)"] | join(" ")'; }
in_use() { info '[.connections[].node | "\(.address):\(.port)"] | unique | join(" ")'; }

attach test/move
fill "$DEVICE" $((8 << 20)) move
before=$(dd if="$DEVICE" bs=1M count=8 iflag=direct status=none | sha256sum)

# What makes no sense is refused, and changes nothing.
expect_error 'nothing is to be changed' neonsan set "$DEVICE"
expect_error 'no address of a node.*the host is missing' neonsan set "$DEVICE" --node ''
expect_error 'not from 1 to 65535' neonsan set "$DEVICE" --node 127.0.0.1:0
expect_error 'cannot be resolved' neonsan set "$DEVICE" --node no.such.name.invalid
expect_error 'cannot be used with' neonsan set --all --node 127.0.0.1:9740
expect_error 'no device' neonsan set 99 --node 127.0.0.1:9740
many=()
for ((i = 1; i <= 100; i++)); do many+=(--node "192.0.2.$i"); done
expect_error 'too many nodes' neonsan set "$DEVICE" "${many[@]}"
equal "the nodes" "$(named)" 127.0.0.1:9700

# A device that has service stays where it is, also when one of its connections is made anew.
epochs=$(info '[.connections[].epoch] | add')
neonsan set "$DEVICE" --node 127.0.0.1:9740 --node 127.0.0.1:9700
equal "the nodes" "$(named)" "127.0.0.1:9740 127.0.0.1:9700"
neonsan set "$DEVICE" --node 127.0.0.1:9740
equal "the nodes" "$(named)" 127.0.0.1:9740
equal "the node in use" "$(in_use)" 127.0.0.1:9700
equal "the state" "$(info .state)" live
equal "connections made" "$(info '[.connections[].epoch] | add')" "$epochs"
dd if="$DEVICE" of=/dev/null bs=1M count=8 iflag=direct status=none || fail "a healthy device stopped working"

# The list is next when its node is gone, without another word: the node moves there.
verify move --rw=randwrite --bs=4k --direct=1 --ioengine=io_uring --iodepth=8 --offset=16M --size=16M --io_size=64M --rate_iops=400 &
job=$!
load_begins
node_crash "$one"
node_start two file 9740
two=$NODE_PID
# Until it has noticed the crash it is live too.
served_by() { live && [ "$(in_use)" = "$1" ]; }
wait_for 60 "the device at the node's new port" served_by 127.0.0.1:9740

# Lost: the node is back where nobody has told the device of.
node_crash "$two"
wait_for 30 "the device to be lost" lost
node_start one file 9700
one=$NODE_PID
sleep 2
lost || fail "the device found a node by itself"
neonsan set "$DEVICE" --node 127.0.0.1:9700
within 5000 "set --node on a lost device" wait_for 10 "the device at the old port" live
wait "$job" || fail "the load saw the moves"
equal "the content" "$(dd if="$DEVICE" bs=1M count=8 iflag=direct status=none | sha256sum)" "$before"
equal "errors" "$(info .statistics.errors)" 0

# One that is still being attached, to an address where nobody answers.
moved=$DEVICE
net_drop 9760
neonsan attach neonsan://127.0.0.1:9760/test/other --index 7 --connect-timeout 60s >attached 2>&1 &
attaching=$!
at_exit detach_leftover /dev/neonsan7
opening() { [ "$(info .state /dev/neonsan7)" = opening ]; }
wait_for 10 "the attach to begin" opening
within 5000 "set --node while attaching" neonsan set 7 --node 127.0.0.1:9700
wait "$attaching" || fail "the attach did not go to the new node: $(cat attached)"
equal "attach" "$(cat attached)" /dev/neonsan7
net_heal
detach /dev/neonsan7

# By name: the helper asks the resolver when the device is lost.
DEVICE=$moved
detach
cp /etc/hosts hosts
at_exit cp "$TEST_DIR/hosts" /etc/hosts
resolves_to() { { cat hosts; echo "$1 moving.test"; } >/etc/hosts; }
resolves_to 127.0.0.1
DEVICE=$(neonsan attach neonsan://moving.test:9700/test/move) || fail "attach by name"
at_exit detach_leftover "$DEVICE"
equal "the nodes" "$(named)" 127.0.0.1:9700
watch_start events
neonsan resolve >resolved 2>&1 &
resolver=$!
at_exit kill "$resolver"
wait_for 60 "resolve to listen" listens "$resolver"
verify name --rw=randwrite --bs=4k --direct=1 --ioengine=io_uring --iodepth=8 --offset=16M --size=16M --io_size=32M --rate_iops=400 &
job=$!
load_begins
node_crash "$one"
resolves_to 127.0.0.2
node_start three file 9700
wait_for 60 "the device at the address that the name has now" served_by 127.0.0.2:9700
wait "$job" || fail "the load saw the move"
equal "the name" "$(info '.nodes[0].name')" moving.test
equal "errors" "$(info .statistics.errors)" 0
grep -q 'test/move is served by 127.0.0.2:9700 (moving.test) now' resolved || fail "resolve said: $(cat resolved)"
equal "events" "$(jq -r 'select(.event == "still-lost") | .device' events | sort -u)" "$DEVICE"
kill "$resolver"
# Nothing is lost any more: there is nothing to do.
equal "resolve --once" "$(neonsan resolve --once)" ''
detach

# A name that has no address yet at attach is kept, and looked up until it has one.
listed() { info '[.nodes[] | select(.learned | not) | "\(.name // "-") \(.address // "-")"] | join(", ")'; }
DEVICE=$(neonsan attach neonsan://late.test:9740,127.0.0.2:9700/test/move 2>said) || fail "attach: $(cat said)"
grep -q "the name 'late.test' cannot be resolved" said || fail "attach said: $(cat said)"
equal "the nodes" "$(listed)" 'late.test -, - 127.0.0.2'
grep -q 'late.test:9740 (not resolved yet)' <(neonsan info "$DEVICE") || fail "info: $(neonsan info "$DEVICE")"
dd if="$DEVICE" of=/dev/null bs=1M count=8 iflag=direct status=none || fail "it does not work"
equal "resolve --once" "$(neonsan resolve --once 2>/dev/null)" ''
neonsan resolve >resolved 2>&1 &
resolver=$!
at_exit kill "$resolver"
wait_for 60 "resolve to listen" listens "$resolver"
{ cat hosts; echo 127.0.0.1 late.test; } >/etc/hosts
now_has() { [ "$(listed)" = 'late.test 127.0.0.1, - 127.0.0.2' ]; }
wait_for 60 "the name to be looked up on a device that is well" now_has
kill "$resolver"
equal "the node in use" "$(in_use)" 127.0.0.2:9700
# Its node is gone: the other one, of which only the name was known, serves.
node_crash "$NODE_PID"
node_start two file 9740
wait_for 60 "the device at the node that came late" served_by 127.0.0.1:9740
equal "errors" "$(info .statistics.errors)" 0
# By set --node too.
neonsan set "$DEVICE" --node 127.0.0.1:9740 --node later.test 2>said
grep -q 'neonsan-resolve.service.*looks up again.*later.test' said || fail "set said: $(cat said)"
equal "the nodes" "$(listed)" '- 127.0.0.1, later.test -'
detach
expect_error 'no device' neonsan set "$DEVICE" --node 127.0.0.1:9700
