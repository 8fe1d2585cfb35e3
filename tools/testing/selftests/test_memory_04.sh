#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# a busy ext4 on a device whose node is on the same host, memory short, and an outage
# timeout: 900
. "$TEST_LIB"
. "${TEST_LIB%/*}/memory.lib"
not_on_debug_kernel

own_host
node_start node file
volume test/busy 600M 4096
attach test/busy --heartbeat-interval 500ms --heartbeat-timeout 2s
ext4_test 9666
detach
