#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# the netlink family refuses bad requests, each with its message, and keeps nothing of them
. "$TEST_LIB"

[ -e /payload/ynl ] || skip "the kernel's tools/net/ynl is not on the payload disk"
cat >refuse.py <<'PYTHON'
"""Drives the family with the kernel's YNL library; each request must be refused with its message."""
import re, sys
sys.path.append("/payload/ynl")
from pyynl.lib import YnlFamily, NlError

family = YnlFamily("/payload/specs/neonsan.yaml", schema="")
failures = 0

def refused(operation, text, **request):
    global failures
    try:
        answer = family.do(operation, request)
        said = f"no refusal but {answer}"
    except NlError as error:
        said = str(error)
    if not re.search(text, said, re.IGNORECASE):
        failures += 1
        print(f"FAIL: {operation} {str(request)[:200]}: expected '{text}', got: {said}")
    elif re.search("the kernel (answers|refused)", said):
        failures += 1
        print(f"FAIL: {operation}: no message of its own: {said}")
    else:
        print(f"# as it should: {said}")

if sys.argv[1:] == ["nobody"]:
    for operation in "attach", "detach", "device-set":
        refused(operation, "CAP_SYS_ADMIN", index=5)
    sys.exit(failures)

good = {"volume": "test/v", "node": [{"ipv4": "127.0.0.1"}], "host-id": bytes(range(16))}
def bad(text, leave_out=(), **changes):
    request = {name: value for name, value in good.items() if name not in leave_out}
    request.update({name.replace("_", "-"): value for name, value in changes.items()})
    refused("attach", text, **request)

bad("name the host", leave_out=["host-id"])
bad("name the host", host_id=bytes(16))
bad("out of range", host_id=b"short")
bad("name the volume", leave_out=["volume"])
bad("the pool is missing", volume="v")
bad("not allowed", volume="test/v w")
bad("must start with", volume="../v")
bad("longer than 255", volume="test/" + "v" * 300)
bad("name a node", leave_out=["node"])
bad("either IPv4 or IPv6", node=[{"port": 1}])
bad("either IPv4 or IPv6", node=[{"ipv4": "127.0.0.1", "ipv6": "::1"}])
bad("out of range", node=[{"ipv4": "127.0.0.1", "port": 0}])
bad("too many nodes", node=[{"ipv4": "127.0.0.1"}] * 200)
bad("out of range", mode=7)
bad("out of range", checksums=8)
bad("out of range", queue_depth=100000)
bad("out of range", connections=100000)
for name, least in {"request": 100, "connect": 100, "heartbeat-interval": 100, "heartbeat-timeout": 100,
                    "reconnect-delay-min": 1, "reconnect-delay-max": 1, "loss": 0}.items():
    for value in {max(least - 1, 0), 2073600001, 2**31 - 1, 2**31, 2**32 - 1} - {least}:
        bad(f"must be {least} ms to 24 days", timeouts={name: value})
bad("heartbeat timeout", timeouts={"heartbeat-interval": 5000, "heartbeat-timeout": 4000})
refused("detach", "name the device")
refused("detach", "no device neonsan5", index=5, force=True)
refused("device-get", "no device neonsan5", index=5)
refused("device-set", "no device neonsan5", index=5, timeouts={"loss": 0})
# An attribute that the operation does not take.
refused("detach", "unknown attribute", index=5, size=1)
devices = family.dump("device-get", {})
if devices:
    failures += 1
    print(f"FAIL: devices are left: {devices}")
sys.exit(failures)
PYTHON
python3 refuse.py || fail "a bad request was not refused as it should be"
chmod 755 . && chmod 644 refuse.py
setpriv --reuid 65534 --clear-groups python3 - nobody <refuse.py || fail "somebody without privilege was not refused"
equal "devices left" "$(ls -d /sys/block/neonsan* 2>/dev/null | wc -l)" 0
