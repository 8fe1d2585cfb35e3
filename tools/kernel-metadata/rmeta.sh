# SPDX-License-Identifier: GPL-2.0 OR MIT
# What a file of Rust metadata says of itself. Sourced, never run.

# rustc_of_metadata FILE: the compiler that made it, in the words of its own
# `rustc --version`; nothing where the file says none. They stand near its
# begin: rustc reads them before all else (`METADATA_HEADER` in
# compiler/rustc_metadata), and takes no other version's metadata.
rustc_of_metadata() {
	head -c 512 "$1" 2>/dev/null | tr -c '[:print:]' '\n' |
		sed -n 's/^.*\(rustc [0-9][^ ]* ([0-9a-f]* [0-9-]*).*\)$/\1/p' | sed -n 1p || true
}
