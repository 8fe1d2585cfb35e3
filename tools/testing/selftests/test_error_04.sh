#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# the node's disk fails a flush: the host is told, without a restart; and nobody is let in who cannot be remembered
# timeout: 300
. "$TEST_LIB"

# A file system on a disk that takes what is written to the page cache and loses
# it later: a loop device whose file is on a file system that fills up.
need_programs
modprobe loop
mkdir -p backing disk
mount -t tmpfs -o size=32m tmpfs backing
at_exit umount -l backing
truncate -s 96M backing/image
# Without a journal: the node notes the loss in a file, and a journal whose disk is full is aborted, with
# the whole file system.
mkfs.ext4 -q -O ^has_journal -E lazy_itable_init=1,nodiscard -I 256 -N 64 backing/image
loop=$(losetup --find --show backing/image)
at_exit losetup -d "$loop"
mount -o errors=continue "$loop" disk
at_exit umount -l disk
root_init "$TEST_DIR/disk"
{
	printf 'state_path = "%s/state"\n' "$TEST_DIR"
	printf '[engine.main]\nkind = "file"\npath = "%s"\nbuffered = true\n' "$TEST_DIR/disk"
	printf '[data]\nlisten = ["127.0.0.1:9666"]\n[control]\nlisten = ["127.0.0.1:9667"]\n[timeouts]\nshutdown_grace_ms = 200\n'
} >node.toml
node_start
volume test/flush 64M
attach test/flush
boot=$(info .session.boot_id)
fill "$DEVICE" 1048576 before
# The disk below is full from here on; the file system above does not know.
dd if=/dev/zero of=backing/ballast bs=64k status=none 2>/dev/null || true
dd if=/dev/urandom of="$DEVICE" bs=1M seek=8 count=24 oflag=direct status=none || fail "the page cache did not take the writes"
if sync "$DEVICE" 2>sync.log; then fail "a flush succeeded though the disk lost the data"; fi
note "as it should: $(cat sync.log)"
rm backing/ballast
# The kernel below says now that all is well. The node knows better: the session is opened again,
# with another boot id, and what was not flushed before is told by a flush.
told() { [ "$(info .session.boot_id)" != "$boot" ] && [ "$(info .state)" = live ]; }
wait_for 30 "the session to be opened again, with another boot id" told
if sync "$DEVICE" 2>/dev/null; then fail "no flush after the loss said that writes may be lost"; fi
# Told once, and the device goes on.
sync "$DEVICE" || fail "a flush with nothing to lose fails"
dd if="$DEVICE" of=/dev/null bs=1M count=1 iflag=direct status=none || fail "reads fail"
fill "$DEVICE" 1048576 meanwhile || fail "the volume does not take writes after the loss"
boot=$(info .session.boot_id)
detach
# What the next node process begins with is the new id: this one stopped in order.
node_stop
node_start
attach test/flush
equal "the boot id after a stop in order" "$(info .session.boot_id)" "$boot"
fill "$DEVICE" 1048576 after || fail "the volume does not take writes after the restart"
detach

node_stop

# Who would be unknown after a restart of the node is not let in.
node_start other file 9676
volume test/record 4M
record=/var/tmp/other-volumes/test/record/record
chattr +i "$record"
at_exit chattr -i "$record"
expect_error 'cannot save who holds the volume|cannot open .*record' neonsan-attach "neonsan://$NODE_DATA/test/record"
chattr -i "$record"
attach test/record
detach
node_stop
