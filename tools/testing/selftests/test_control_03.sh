#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# volumes: create, list, info, export, import, delete
. "$TEST_LIB"

node_start node file
n=neonsan://$NODE_DATA
volume pool/a 32M
volume pool/b 8M 4096
equal "the list" "$(neonsan volume list --json --api "$NODE_API" | jq -r '[.volumes[].name] | sort | join(" ")')" "pool/a pool/b"
fill image 33554432 image
neonsan volume import "$n/pool/a" image --api "$NODE_API" || fail "import"
neonsan volume export "$n/pool/a" copy --api "$NODE_API" || fail "export"
cmp image copy || fail "the exported copy differs"
attach pool/a
cmp "$DEVICE" image || fail "the device has other contents than what was imported"
detach
truncate -s 64M big
expect_error 'larger|size|fit' neonsan volume import "$n/pool/b" big --api "$NODE_API"
neonsan volume delete "$n/pool/b" --yes --api "$NODE_API"
expect_error 'no such|not found|no volume|does not exist' neonsan volume info "$n/pool/b" --api "$NODE_API"
