#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# IPv6, host names, several nodes in one target, an index of choice, --json
. "$TEST_LIB"

node_start
volume test/names 16M
check() {
	local device
	device=$(neonsan-attach "$@") || fail "attach $*"
	dd if="$device" of=/dev/null bs=1M count=1 iflag=direct status=none
	neonsan-detach "$device"
}
check "neonsan://[::1]:9666/test/names"
check "neonsan://localhost/test/names"
check "neonsan://127.0.0.1:1,127.0.0.1:9666/test/names"
check test/names --node 127.0.0.1:9666
equal "the device with --index 7" "$(neonsan-attach "neonsan://127.0.0.1/test/names" --index 7)" /dev/neonsan7
equal "info by volume name" "$(neonsan info --json test/names | jq -r .index)" 7
neonsan-detach 7
neonsan-attach "neonsan://127.0.0.1/test/names" --json | jq -e . >/dev/null || fail "attach --json is no JSON"
neonsan-detach --all
