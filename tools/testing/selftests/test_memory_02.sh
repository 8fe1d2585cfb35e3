#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# a busy ext4 on a device, its node outside the machine, memory short, and an outage
# timeout: 900
. "$TEST_LIB"
. "${TEST_LIB%/*}/memory.lib"
not_on_debug_kernel

outside_node
volume test/busy 800M 4096
attach test/busy --heartbeat-interval 500ms --heartbeat-timeout 2s
ext4_test "$OUTSIDE_PORT"
detach
