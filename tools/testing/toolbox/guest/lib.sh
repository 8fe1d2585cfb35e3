# SPDX-License-Identifier: GPL-2.0 OR MIT
# Sourced by the parts of the toolbox, in the virtual machine. A test is a function; `t NAME` runs it in
# a shell of its own, in a directory of its own, and says "ok NAME", "ok NAME # SKIP why" or "not ok NAME".
# $TOOLBOX_DISK says whose disks they are: neonsan, or nbd to compare with.

. "$(dirname "${BASH_SOURCE[0]}")/../../selftests/lib.sh"
logs=${TOOLBOX_LOGS:-/run/lab/toolbox}
part=$(basename "$0")
mkdir -p "$logs"

# skip WHY: this test cannot be made here.
skip() { echo "SKIP: $*"; exit 4; }

# t NAME [ARGUMENT…]: run the function. What it started is ended, whatever happens.
t() {
	local name=$1 code=0 begun=$SECONDS
	if [ $# -gt 1 ]; then name=$(IFS=_ && echo "$*"); fi
	if [ -n "${TOOLBOX_ONLY:-}" ] && [[ ! $part:$name =~ $TOOLBOX_ONLY ]]; then return 0; fi
	export TEST_DIR=${TOOLBOX_DIR:-/var/tmp/toolbox}/$name
	rm -rf "$TEST_DIR"
	mkdir -p "$TEST_DIR"
	set +e
	(
		cleanups=()
		trap run_cleanups EXIT
		# Or a program that has gone would end this shell without them.
		trap '' PIPE
		set -eE
		trap 'echo "line $LINENO: $BASH_COMMAND: status $?"' ERR
		cd "$TEST_DIR"
		"$@"
	) >"$logs/$name.log" 2>&1 </dev/null
	code=$?
	set -e
	if [ $code -ne 0 ]; then
		# What the programs said, but the node, whose log is there already.
		find "$TEST_DIR" -maxdepth 1 -name '*.log' ! -name 'node*' -size +0 -exec tail -n 20 {} + >>"$logs/$name.log"
	fi
	for left in /sys/block/neonsan*; do
		[ -e "$left" ] || continue
		echo "left the device ${left##*/}" >>"$logs/$name.log"
		neonsan detach --force "/dev/${left##*/}" >>"$logs/$name.log" 2>&1
		code=1
	done
	rm -rf "$TEST_DIR"
	case $code in
	0) echo "ok $name # $((SECONDS - begun)) s" ;;
	4) echo "ok $name # SKIP $(sed -n 's/^SKIP: //p' "$logs/$name.log" | head -n 1)" ;;
	*)
		tail -n 40 "$logs/$name.log" | sed 's/^/#   /'
		echo "not ok $name # status $code, $((SECONDS - begun)) s" ;;
	esac
}

# disk SIZE [BLOCK]: a new disk of zeroes; sets $device. BLOCK is its logical block size.
disk() { "disk_$TOOLBOX_DISK" "$1" "${2:-512}"; }

disk_neonsan() {
	local name=toolbox/disk$((disks += 1))
	# One node for the disks of a test.
	[ "$disks" -gt 1 ] || node_start node file
	volume "$name" "$1" "$2"
	attach "$name"
	device=$DEVICE
}

# What QEMU calls a device of this machine.
driver=host_device

# No device at all: to try a part of the toolbox outside the machine.
disk_file() {
	device=$TEST_DIR/disk$((disks += 1))
	truncate -s "$1" "$device"
	driver=file
}

# The same file system below, no cache between, discards passed on: what NeonSAN's file engine does.
disk_nbd() {
	local number=$((disks += 1)) file=$TEST_DIR/nbd$disks socket=$TEST_DIR/nbd$disks.socket
	truncate -s "$1" "$file"
	qemu-nbd -f raw --cache=none --aio=native --discard=unmap --persistent --shared=4 -k "$socket" "$file" &
	at_exit end "$!"
	wait_for 20 "the NBD server" [ -S "$socket" ]
	device=/dev/nbd$number
	nbd-client -unix "$socket" "$device" -b "$2" >/dev/null
	at_exit nbd-client -d "$device"
}
disks=0

# grow SIZE: the disk made last gets larger while it is open.
grow() {
	case $TOOLBOX_DISK in
	neonsan) neonsan volume resize "neonsan://$NODE_DATA/toolbox/disk$disks" --size "$1" --api "$NODE_API" ;;
	*) skip "an NBD disk does not change its size while it is open" ;;
	esac
}

# end PID: ask it, then make it.
end() {
	kill "$1" 2>/dev/null || return 0
	for _ in $(seq 100); do
		kill -0 "$1" 2>/dev/null || break
		sleep 0.1
	done
	kill -KILL "$1" 2>/dev/null || true
	wait "$1" 2>/dev/null || true
}

# numbers FILE MIB: a file whose blocks are random, zeroes and holes in turn.
numbers() {
	python3 - "$1" "$2" <<-'PYTHON'
		import os, random, sys
		rng = random.Random(sys.argv[2])
		with open(sys.argv[1], "wb") as file:
		    for step in range(int(sys.argv[2]) * 4):
		        kind = rng.choice("rrzh")
		        if kind == "r":
		            file.write(rng.randbytes(256 << 10))
		        elif kind == "z":
		            file.write(bytes(256 << 10))
		        else:
		            file.seek(256 << 10, os.SEEK_CUR)
		    file.truncate(int(sys.argv[2]) << 20)
	PYTHON
}

# same FILE [DEVICE]: the device begins with what the file has, read past every cache of the device.
same() {
	[ ! -b "${2:-$device}" ] || blockdev --flushbufs "${2:-$device}"
	cmp -n "$(stat -c %s "$1")" "$1" "${2:-$device}"
}

# script SEED BYTES COUNT: commands for qemu-io that write, read and check what they read, on a disk of
# zeroes. Offsets and lengths are multiples of 512, whatever the disk's blocks are: QEMU reads, changes
# and writes what is not aligned. What is discarded is a multiple of 4096: QEMU 10 hands a discard on as it is,
# and no disk of such blocks takes a part of one.
script() {
	python3 - "$@" <<-'PYTHON'
		import random, sys
		seed, size, count = map(int, sys.argv[1:])
		rng = random.Random(seed)
		model = [0] * (size // 512)
		def area():
		    length = rng.choice([1, 1, 2, 7, 8, 8, 16, 63, 64, 256, 1024])
		    start = rng.randrange(len(model) - length)
		    if rng.random() < 0.5:
		        start = start // 8 * 8
		    return start, length
		for _ in range(count):
		    start, length = area()
		    where = f"{start * 512} {length * 512}"
		    kind = rng.choice(["write", "write", "write -f", "writev", "aio_write", "write -z", "write -z -u", "discard", "read", "read", "flush"])
		    value = rng.randrange(1, 255)
		    if kind in ("write", "write -f", "writev", "aio_write"):
		        print(f"{kind} -P {value} {where}")
		        if kind == "aio_write":
		            print("aio_flush")
		        model[start:start + length] = [value] * length
		    elif kind in ("write -z", "write -z -u"):
		        print(f"{kind} {where}")
		        model[start:start + length] = [0] * length
		    elif kind == "discard":
		        # What a discarded block has is the disk's own business.
		        first, last = -(-start // 8) * 4096, (start + length) // 8 * 4096
		        if first < last:
		            print(f"discard {first} {last - first}")
		        print(f"write -P {value} {where}")
		        model[start:start + length] = [value] * length
		    elif kind == "flush":
		        print("flush")
		    else:
		        end = start + 1
		        while end < len(model) and end - start < length and model[end] == model[start]:
		            end += 1
		        print(f"read -P {model[start]} {start * 512} {(end - start) * 512}")
		print("flush")
	PYTHON
}

# qemu_io OPTION… <COMMANDS: run them; every one must succeed, and every pattern be right.
qemu_io() {
	local said
	said=$(qemu-io "$@" 2>&1) || fail "qemu-io $* ended with $?: $(tail -n 5 <<<"$said")"
	if grep -iE 'fail|error|invalid|not supported|usage' <<<"$said"; then fail "qemu-io $*"; fi
	grep -qE 'wrote|read|discard' <<<"$said" || fail "qemu-io $* did nothing: $said"
}
