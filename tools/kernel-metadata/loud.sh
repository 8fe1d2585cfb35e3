# SPDX-License-Identifier: GPL-2.0 OR MIT
# Sourced by the project's bash scripts: none of them may end without a word.
#
# A command substitution, a pipe or a test that fails under `set -e` ends a script
# where it stands, whether or not the failed program said anything. This says
# where that was, with which status, and what was run. It does so once, in the
# script's own process and not in its subshells, and never for a failure that the
# script looks at itself or ends with by `exit`.

set -E
loud_words() {
	local code=$1 line=$2 command=$3
	case $- in *e*) ;; *) return 0 ;; esac
	[ "$BASH_SUBSHELL" -eq 0 ] || return 0
	printf '%s: stopped at line %s with status %s: %s\n' "${BASH_SOURCE[1]}" "$line" "$code" "${command%%$'\n'*}" >&2
}
trap 'loud_words $? "$LINENO" "$BASH_COMMAND"' ERR
