#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# info says how virtual machines use a device, block sizes included
. "$TEST_LIB"

node_start
volume test/q 16M 4096
attach test/q
qemu=$(neonsan info --qemu "$DEVICE")
for part in "file=$DEVICE,format=raw" logical_block_size=4096 physical_block_size=4096; do
	grep -q -- "$part" <<<"$qemu" || fail "--qemu lacks $part: $qemu"
done
equal "the arguments in JSON" "$(neonsan info --qemu --json "$DEVICE" | jq -r '.arguments | join(" ")')" "$qemu"
neonsan info --libvirt "$DEVICE" >disk.xml
python3 - disk.xml "$DEVICE" <<'PYTHON'
import sys, xml.etree.ElementTree as tree
disk = tree.parse(sys.argv[1]).getroot()
assert disk.tag == "disk" and disk.get("type") == "block", tree.tostring(disk)
assert disk.find("source").get("dev") == sys.argv[2]
assert disk.find("blockio").attrib == {"logical_block_size": "4096", "physical_block_size": "4096"}
PYTHON
for command in "list" "info $DEVICE"; do
	neonsan $command >text
	grep -q test/q text || fail "$command does not name the volume: $(cat text)"
done
[ "$(info .session.id)" != null ] || fail "root is not told the session's identity"
detach
