# SPDX-License-Identifier: GPL-2.0 OR MIT
# Helpers of the selftests, sourced by each. A test runs in its own directory
# $TEST_DIR, as root, in the virtual machine, with the module loaded.

set -euo pipefail

fail() { echo "FAIL: $*"; exit 1; }
skip() { echo "$*"; exit 4; }
note() { echo "# $*"; }

cleanups=()
# at_exit COMMAND…: run at the test's end whatever happens, last given first.
at_exit() { cleanups+=("$(printf '%q ' "$@")"); }
run_cleanups() {
	local code=$? i
	set +e
	for ((i = ${#cleanups[@]} - 1; i >= 0; i--)); do eval "${cleanups[i]}"; done
	exit $code
}
trap run_cleanups EXIT

# wait_for SECONDS WHAT COMMAND…: poll until the command succeeds.
wait_for() {
	local limit=$1 what=$2 end
	shift 2
	end=$((SECONDS + limit))
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || fail "waited $limit s for: $what"
		sleep 0.1
	done
}

# expect_error TEXT COMMAND…: the command must fail, and say TEXT (a regular
# expression) on standard error, in one message that is not a panic.
expect_error() {
	local text=$1 output code=0
	shift
	output=$("$@" 2>&1) || code=$?
	[ $code -ne 0 ] || fail "expected to fail: $* (it said: $output)"
	grep -qiE -- "$text" <<<"$output" || fail "$* failed with code $code but its message lacks '$text': $output"
	if grep -qiE 'panicked|RUST_BACKTRACE|core dumped' <<<"$output"; then fail "$* panicked: $output"; fi
	note "as it should: $output"
}
