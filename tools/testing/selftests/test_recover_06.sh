#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# a node tells of another that serves the volume: when it is gone, the device goes there
# timeout: 300
. "$TEST_LIB"

node_config one file 9700
sed -i 's/^listen = \["127.0.0.1:9700".*/&\nnodes = ["127.0.0.1:9700", "127.0.0.1:9720"]/' one.toml
node_start one file 9700
first=$NODE_PID
volume test/move 64M
attach test/move
equal "the nodes" "$(info '[.nodes[] | "\(.port) \(.learned)"] | join(", ")')" "9700 false, 9720 true"
fill "$DEVICE" $((8 << 20)) move
before=$(dd if="$DEVICE" bs=1M count=8 iflag=direct status=none | sha256sum)
verify move --rw=randwrite --bs=4k --direct=1 --ioengine=io_uring --iodepth=8 --offset=16M --size=16M --io_size=32M &
job=$!
sleep 1
node_crash "$first"
# The other one serves the same directory.
sed 's/9700"/9720"/g; s/9701"/9721"/; s/"127.0.0.1:9720", "127.0.0.1:9720"/"127.0.0.1:9700", "127.0.0.1:9720"/' one.toml >two.toml
grep -q 9720 two.toml || fail "$(cat two.toml)"
node_start two file 9720
live() { [ "$(info .state)" = live ]; }
wait_for 60 "the device at the other node" live
equal "the port" "$(info '[.connections[].node.port] | unique | join(",")')" 9720
wait $job || fail "the load saw the move"
equal "the content" "$(dd if="$DEVICE" bs=1M count=8 iflag=direct status=none | sha256sum)" "$before"
equal "errors" "$(info .statistics.errors)" 0
neonsan info "$DEVICE" | grep -q 'told by a node' || fail "people do not see where the address comes from"
detach
