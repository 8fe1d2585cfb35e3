#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# connections are made in the network namespace of the netlink socket, which is the initial one; from another one nothing can be attached or seen
. "$TEST_LIB"

node_start
volume test/n 16M
[ -e /payload/ynl ] || skip "the kernel's tools/net/ynl is not on the payload disk"
cat >gone.py <<'PYTHON'
"""Opens the netlink socket here, goes to a new network namespace, and attaches from there."""
import os, sys
sys.path.append("/payload/ynl")
from pyynl.lib import YnlFamily
family = YnlFamily("/payload/specs/neonsan.yaml", schema="")
os.unshare(os.CLONE_NEWNET)
answer = family.do("attach", {"volume": "test/n", "node": [{"ipv4": "127.0.0.1", "port": 9666}],
                              "host-id": bytes(range(16)), "timeouts": {"connect": 3000}})
print(answer["name"])
PYTHON
name=$(python3 gone.py) || fail "attach by a socket of the initial namespace"
DEVICE=/dev/$name
at_exit detach_leftover "$DEVICE"
equal "the state" "$(info .state)" live
dd if="$DEVICE" of=/dev/null bs=4k count=16 iflag=direct status=none || fail "a read"

# From another namespace the family is not there, whatever the privilege.
ip netns add other
at_exit ip netns delete other
ip -n other link set lo up
for command in "list" "info $DEVICE" "detach $DEVICE" "watch --count 1" "attach neonsan://127.0.0.1/test/n"; do
	# shellcheck disable=SC2086
	expect_error 'network namespace' ip netns exec other timeout 20 neonsan $command
done
detach
