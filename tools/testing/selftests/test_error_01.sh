#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# bad input is refused with a message that says what to do, and leaves nothing behind
# timeout: 300
. "$TEST_LIB"

node_start
volume test/e 16M
target=neonsan://127.0.0.1/test/e
expect_error 'refused|no node|not answer|reach|cannot connect' neonsan-attach neonsan://127.0.0.1:9999/test/e
expect_error 'no such volume|not found|no volume|does not exist' neonsan-attach neonsan://127.0.0.1/test/absent
expect_error 'long' neonsan-attach "neonsan://127.0.0.1/test/$(printf 'x%.0s' $(seq 300))"
expect_error 'character|must|name' neonsan-attach 'neonsan://127.0.0.1/test/a b'
expect_error 'character|must|name' neonsan-attach 'neonsan://127.0.0.1/../etc'
expect_error 'neonsan://|scheme|target' neonsan-attach 'http://127.0.0.1/test/e'
expect_error 'resolve|unknown|name' neonsan-attach neonsan://no-such-host.invalid/test/e
# A node's control port talks HTTP.
expect_error 'not a NeonSAN node|HTTP|protocol' neonsan-attach neonsan://127.0.0.1:9667/test/e
expect_error 'size' neonsan volume create neonsan://127.0.0.1/test/odd --size 1000 --api "$NODE_API"
expect_error 'size|zero|0' neonsan volume create neonsan://127.0.0.1/test/none --size 0 --api "$NODE_API"
expect_error 'block' neonsan volume create neonsan://127.0.0.1/test/bs --size 1M --block-size 768 --api "$NODE_API"
expect_error 'exists|already' neonsan volume create $target --size 16M --api "$NODE_API"
expect_error 'no device|not attached|no such' neonsan-detach /dev/neonsan9
expect_error 'no device|not attached|no such' neonsan info /dev/neonsan9
# Busy: held by another host.
attach test/e
expect_error 'held|busy|in use|another' neonsan-attach $target --host-id 11111111-2222-3333-4444-555555555555
# In use: its volume is not deleted.
expect_error 'held|busy|in use|attached' neonsan volume delete $target --yes --api "$NODE_API"
detach
# No permission.
expect_error 'permission|root|privilege|CAP_SYS_ADMIN' setpriv --reuid 65534 --clear-groups neonsan-attach $target
# A config with unknown keys.
printf 'nodes = ["127.0.0.1"]\nretires = 3\n' >bad.toml
expect_error 'retires' neonsan-attach --config bad.toml test/e
printf '[engine.main]\nkind = "mem"\ncapacity_bytes = 1048576\nvolatile = true\n' >bad-node.toml
expect_error 'volatile' neonsan-node --config bad-node.toml
equal "devices left" "$(ls -d /sys/block/neonsan* 2>/dev/null | wc -l)" 0
# The module is not loaded.
rmmod neonsan
at_exit insmod /payload/neonsan.ko
expect_error 'module|modprobe|insmod' neonsan-attach $target
