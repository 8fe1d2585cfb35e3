#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# the kernel's YNL command line drives the family from its specification
. "$TEST_LIB"

node_start
volume test/ynl 16M
[ -e /payload/ynl ] || skip "the kernel's tools/net/ynl is not on the payload disk"
ynl() { PYTHONPATH=/payload/ynl python3 /payload/ynl/pyynl/cli.py --no-schema --spec /payload/specs/neonsan.yaml --output-json "$@"; }
if [ -e /payload/genetlink.yaml ]; then
	PYTHONPATH=/payload/ynl python3 /payload/ynl/pyynl/cli.py --schema /payload/genetlink.yaml \
		--spec /payload/specs/neonsan.yaml --list-ops >/dev/null || fail "the specification breaks the kernel's schema"
fi
ynl --do attach --json '{"volume": "test/ynl", "node": [{"ipv4": "127.0.0.1", "port": 9666}], "mode": "exclusive", "host-id": "000102030405060708090a0b0c0d0e0f"}' >attached ||
	{ cat attached; fail "attach"; }
index=$(jq -r .index attached)
DEVICE=/dev/$(jq -r .name attached)
at_exit detach_leftover "$DEVICE"
[ -b "$DEVICE" ] || fail "no $DEVICE"
equal "device-get" "$(ynl --do device-get --json "{\"index\": $index}" | jq -r .volume)" test/ynl
equal "the dump" "$(ynl --dump device-get | jq -r '.[0].name')" "${DEVICE#/dev/}"
ynl --do device-set --json "{\"index\": $index, \"timeouts\": {\"request\": 12345}}"
equal "the timeout" "$(info .timeouts.request_ms)" 12345
expect_error 'no device|not attached|no such' ynl --do device-get --json '{"index": 77}'
expect_error 'mode|range|invalid' ynl --do attach --json '{"volume": "test/ynl", "node": [{"ipv4": "127.0.0.1"}], "mode": 9, "host-id": "000102030405060708090a0b0c0d0e0f"}'
ynl --do detach --json "{\"index\": $index}"
[ ! -e "$DEVICE" ] || fail "$DEVICE is still there"
