#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# sockets give back the right to the memory reserves, and have a lock class of their own
. "$TEST_LIB"

# Each socket that may use the reserves must say when it no longer does: the kernel counts them.
tracing=/sys/kernel/tracing
mountpoint -q $tracing || mount -t tracefs none $tracing
if [ -e $tracing/kprobe_events ]; then
	kprobes_off() {
		echo 0 >$tracing/events/neonsan_test/enable
		echo '-:neonsan_test/set' >>$tracing/kprobe_events
		echo '-:neonsan_test/clear' >>$tracing/kprobe_events
	}
	echo 'p:neonsan_test/set sk_set_memalloc' >>$tracing/kprobe_events
	echo 'p:neonsan_test/clear sk_clear_memalloc' >>$tracing/kprobe_events
	echo 1 >$tracing/events/neonsan_test/enable
	at_exit kprobes_off
	counting=yes
else
	note "this kernel has no kprobe events: the counts are not looked at"
	counting=no
fi
hits() { awk -v event="$1" '$1 == event {print $2}' $tracing/kprobe_profile; }

node_start node file
volume test/m 64M
attach test/m --connections 4 --reconnect-delay-max 200ms
dd if=/dev/urandom of="$DEVICE" bs=256k count=64 oflag=direct status=none &
writer=$!
# Connections that are lost while they carry data, and tries that fail, end their sockets too.
for round in 1 2 3; do
	net_reset 9666
	sleep 0.3
	net_heal
	sleep 0.5
done
wait $writer || fail "the writer saw the resets"
is_live() { [ "$(info .state)" = live ]; }
wait_for 30 "the device to be live" is_live
if [ -e /proc/lockdep ]; then
	grep -q 'sk_lock-AF_INET-NEONSAN' /proc/lockdep || fail "the sockets have the common lock class"
else
	note "this kernel has no lockdep: the class of the locks is not looked at"
fi
detach
if [ $counting = yes ]; then
	set=$(hits set) clear=$(hits clear)
	note "$set sockets were let use the reserves, $clear gave that back"
	[ "$set" -ge 8 ] || fail "only $set sockets were made: the resets came to nothing"
	equal "the sockets that gave it back" "$clear" "$set"
fi
