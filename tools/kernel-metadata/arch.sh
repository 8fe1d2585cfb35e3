# SPDX-License-Identifier: GPL-2.0 OR MIT
# Of which architecture a kernel is, and which compiler this machine has for it.
# Sourced, never run.

# arch_of CONFIG RELEASE: the kernel's architecture in the words of its own make;
# from the name of the release where there is no configuration yet.
arch_of() {
	if [ -n "$1" ]; then
		case $(sed -n 's/^CONFIG_\(X86_64\|ARM64\)=y$/\1/p' "$1" | sed -n 1p) in
		X86_64) echo x86_64; return ;;
		ARM64) echo arm64; return ;;
		esac
	fi
	case $2 in
	*-amd64 | *-amd64-*) echo x86_64 ;;
	*-arm64 | *-arm64-*) echo arm64 ;;
	*) machine_arch ;;
	esac
}

# The same words for this machine.
machine_arch() { case $(uname -m) in aarch64) echo arm64 ;; *) uname -m ;; esac; }

# What Debian calls it.
debian_arch() { case $1 in x86_64) echo amd64 ;; *) echo "$1" ;; esac; }

# The begin of the names of the GNU compiler and its tools for an architecture.
gnu_prefix() { case $1 in arm64) echo aarch64-linux-gnu- ;; *) echo "$1-linux-gnu-" ;; esac; }

# cross_prefix ARCH: the same, and nothing for the machine's own, whose tools have
# plain names too.
cross_prefix() { if [ "$1" != "$(machine_arch)" ]; then gnu_prefix "$1"; fi; }

# compiler_of WANT ARCH: the C compiler for a kernel that was made by WANT, its own
# words of itself: that one by its name if it is here, else one of its kind.
compiler_of() {
	local name=${1%% *} path
	case $1 in *clang*) echo clang; return ;; esac
	case $name in
	"$(gnu_prefix "$2")"gcc | "$(gnu_prefix "$2")"gcc-[0-9]* | gcc | gcc-[0-9]*)
		# Plain gcc is the machine's own.
		if [ -z "$(cross_prefix "$2")" ] || [ "${name#gcc}" = "$name" ]; then
			if path=$(type -P "$name") && [ -x "$path" ]; then echo "$name"; return; fi
		fi ;;
	esac
	echo "$(cross_prefix "$2")gcc"
}
