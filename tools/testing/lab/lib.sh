# SPDX-License-Identifier: GPL-2.0 OR MIT
# Shared by the lab's scripts: where things are, how they speak, how they wait
# for one another. Sourced, never run.
#
# Every product of the lab lies under $NEONSAN_CACHE and is keyed by a stamp: a
# file that holds the hash of what the product was made from. A script that
# finds the right stamp does nothing; one that was interrupted starts over at
# the step that has no stamp.

set -euo pipefail

lab_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
neonsan_top=$(cd "$lab_dir/../../.." && pwd)
. "$neonsan_top/tools/kernel-metadata/loud.sh"
: "${NEONSAN_CACHE:=/var/cache/neonsan}"
export NEONSAN_CACHE

# The Debian release the lab builds and tests with, on whatever machine it runs.
# NEONSAN_SUITE is of a root that has another (tools/testing/kernels makes some).
lab_suite=${NEONSAN_SUITE:-trixie}
# The kernel series that is looked for in backports, and the flavour booted.
lab_kernel_series=7.3
lab_kernel_flavour=cloud-amd64

# What is built may be of another architecture than the lab: `build`, `kernel` and
# tools/packaging/deb then work in a root that has its compilers and libraries.
lab_arch=${NEONSAN_ARCH:-amd64}
case $lab_arch in
amd64|x86_64) lab_arch=amd64 lab_target='' ;;
arm64|aarch64)
	lab_arch=arm64 lab_target=aarch64-unknown-linux-gnu lab_kernel_flavour=cloud-arm64
	export NEONSAN_ROOT=${NEONSAN_ROOT:-cross-arm64} NEONSAN_FOREIGN=arm64 ;;
*) printf 'lab: error: nothing is built for the architecture %s, only for amd64 and arm64\n' "$lab_arch" >&2; exit 1 ;;
esac
# Packages of that architecture have it behind their names, where it is not the root's.
lab_foreign=${lab_target:+:$lab_arch}

# Two roots: `root` builds and runs QEMU, `vm-root` becomes the VM's disk.
lab_root=$NEONSAN_CACHE/${NEONSAN_ROOT:-root}
lab_stamps=$NEONSAN_CACHE/stamps
lab_metadata=$NEONSAN_CACHE/kernel-metadata${lab_target:+-$lab_arch}
lab_images=$NEONSAN_CACHE/images
# Which kernel that is, once one is chosen.
lab_kernel_file=$NEONSAN_CACHE/kernel-release${lab_target:+-$lab_arch}
lab_cargo_home=$NEONSAN_CACHE/cargo-home
# Debug builds, tests and lints; release builds have a stage (stage.lib). Two
# checkouts that build at the same time each name a directory of their own here
# (under $NEONSAN_CACHE): else they would overwrite each other's programs.
lab_cargo_target=${NEONSAN_CARGO_TARGET:-$NEONSAN_CACHE/cargo-target}

log() { printf '[lab %s] %s\n' "$(date +%H:%M:%S)" "$*" >&2; }
die() { printf 'lab: error: %s\n' "$*" >&2; exit 1; }

# lock NAME: hold the named lock until this process ends. Two callers that need
# the same product wait for one another; the second finds it made.
lock() {
	mkdir -p "$NEONSAN_CACHE/locks"
	exec 8>"$NEONSAN_CACHE/locks/$1"
	if ! flock --nonblock 8; then
		log "waiting for another run that makes: $1"
		flock 8
	fi
}

# hash_of ARG…: one word that changes when an argument does. An argument that
# names a file stands for the file's content.
hash_of() {
	local arg
	for arg in "$@"; do
		if [ -f "$arg" ]; then cat "$arg"; else printf '%s\n' "$arg"; fi
	done | sha256sum | cut -c1-16
}

stamp_is() { [ "$(cat "$lab_stamps/$1" 2>/dev/null || true)" = "$2" ]; }
stamp_set() { mkdir -p "$lab_stamps"; printf '%s\n' "$2" >"$lab_stamps/$1"; }
stamp_clear() { rm -f "$lab_stamps/$1"; }

# pin_kernels ROOT SUITE: there, a kernel of backports and what is of its version is
# as good as one of the release itself; all else of backports comes only when asked for.
pin_kernels() {
	local pins=$1/etc/apt/preferences.d/lab
	[ ! -f "$pins" ] || return 0
	cat >"$pins" <<-PINS
		Package: linux-base linux-base-* linux-image-* linux-modules-* linux-binary-* linux-headers-* linux-kbuild-* linux-source-*
		Pin: release n=$2-backports
		Pin-Priority: 500
	PINS
}

# need_space DIR MIB WHAT: fail early and clearly instead of late and strangely.
need_space() {
	local have
	mkdir -p "$1"
	have=$(df --output=avail -m "$1" | tail -n 1 | tr -d ' ')
	[ "$have" -ge "$2" ] ||
		die "$3 needs $2 MiB in $1, which has $have MiB free; free some space or set NEONSAN_CACHE to another disk"
}

need_root() {
	[ "$(id -u)" -eq 0 ] || die "the lab needs root (it makes a chroot); run it with sudo"
}
