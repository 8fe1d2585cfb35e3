# SPDX-License-Identifier: GPL-2.0 OR MIT
# Sourced by the parts of tools/testing/host/run, in the machine. A test is a
# function; `t NAME` runs it in a shell of its own under `set -e`, prints "ok NAME"
# or "not ok NAME" with the end of what it said, and cleans up after it.

set -uo pipefail
: "${SOON_S:=60}"
export LC_ALL=C.UTF-8 PATH=/payload/bin:$PATH
logs=/run/host-test
mkdir -p "$logs" /mnt/a /mnt/b

fail() { echo "FAILED: $*"; exit 1; }

# settled: udev and systemd have nothing to do any more. Long, since the machine is emulated.
settled() { udevadm settle --timeout=120; }

# soon WHAT COMMAND…: within a minute; right and wrong differ by far more than a slow machine.
soon() {
	local what=$1 end=$((SECONDS + ${SOON_S:-60}))
	shift
	until "$@" >/dev/null 2>&1; do
		if [ $SECONDS -ge $end ]; then
			echo "last try of: $*"
			"$@" || true
			fail "$what: not within ${SOON_S:-60} s"
		fi
		sleep 0.2
	done
}

# volume NAME SIZE [OPTION…]
volume() { neonsan volume create "$1" --size "$2" "${@:3}" >/dev/null; }
# attach NAME [OPTION…]: sets device and disk.
attach() {
	device=$(neonsan attach "$@") || fail "attach $*"
	disk=${device#/dev/}
	settled
}
detach() { settled; SOON_S=20 soon "detach $1" neonsan detach "$1"; }
# leads LINK DEVICE: it is there by itself, soon, and leads to the device.
leads_now() { [ -L "$1" ] && [ "$(readlink -f "$1")" = "$2" ]; }
leads() { soon "$1 leads to $2" leads_now "$1" "$2"; }
is_gone() { [ ! -e "$1" ] && [ ! -L "$1" ]; }
property() { udevadm info --query=property --property="$2" --value "$1"; }
state_is() { [ "$(systemctl show -P "$2" "$1")" = "$3" ]; }

# clean_up: nothing of ours is mounted, assembled, attached or kept.
clean_up() {
	local try vg
	rm -f /etc/systemd/system/*.wants/neonsan@*.service
	systemctl daemon-reload
	for try in 1 2 3; do
		grep -oE '^/dev/(neonsan|mapper/|dm-|md)[^ ]*' /proc/swaps | while read -r swap; do swapoff "$swap"; done
		awk '$1 ~ /^\/dev\/(neonsan|mapper|dm-|md|test)/ {print $2}' /proc/mounts | sort -r | while read -r mount; do umount "$mount" || umount -l "$mount"; done
		for vg in $(vgs --noheadings -o vg_name 2>/dev/null); do vgchange -qq -an "$vg"; done
		dmsetup remove_all >/dev/null 2>&1
		for md in /dev/md[0-9]*; do [ -b "$md" ] && mdadm --quiet --stop "$md"; done
		systemctl stop 'neonsan@*' 2>/dev/null
		# By force only what does not go otherwise: the node keeps that for a while.
		neonsan detach --all || neonsan detach --all --force
		[ -n "$(ls -d /sys/block/neonsan* 2>/dev/null)" ] || break
		sleep 1
	done
	systemctl reset-failed 2>/dev/null
	rm -f /etc/neonsan/devices/*.conf
	settled
	[ -z "$(ls -d /sys/block/neonsan* 2>/dev/null)" ] || { echo "a device is left"; return 1; }
	SOON_S=90 soon "the volumes are deleted" no_volume_is_left
}
no_volume_is_left() {
	local volume snapshot
	for volume in $(neonsan volume list --json | jq -r '.volumes[].name'); do
		for snapshot in $(neonsan volume snapshot list "$volume" --json | jq -r '.snapshots[].name'); do
			neonsan volume snapshot delete "$snapshot" --yes || return
		done
		neonsan volume delete "$volume" --yes || return
	done
}

t() {
	local name=$1 code=0
	if [ -n "${HOST_ONLY:-}" ] && [[ ! $name =~ $HOST_ONLY ]]; then return 0; fi
	(
		set -eE
		trap 'echo "line $LINENO: $BASH_COMMAND: status $?"' ERR
		"$name"
	) >"$logs/$name.log" 2>&1 </dev/null
	code=$?
	if [ -z "${KEEP:-}" ]; then (clean_up) >"$logs/$name.clean.log" 2>&1 || { code=1; sed 's/^/# clean up: /' "$logs/$name.clean.log"; }; fi
	if [ $code = 0 ]; then echo "ok $name"; else
		tail -n 40 "$logs/$name.log" | sed 's/^/# /'
		echo "not ok $name"
	fi
}
