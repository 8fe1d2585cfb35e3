#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# swap on a device whose node is on the same host, and an outage: the host makes progress with no memory left
# timeout: 900
. "$TEST_LIB"
. "${TEST_LIB%/*}/memory.lib"
not_on_debug_kernel

own_host
node_start node file
volume test/swap 800M 4096
attach test/swap --heartbeat-interval 500ms --heartbeat-timeout 2s
swap_test 9666
detach
