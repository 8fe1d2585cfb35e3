#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# a peer that speaks another protocol version, another protocol, or not at all is named as such
. "$TEST_LIB"

need_programs
serve() { # PORT COMMAND…
	local port=$1
	shift
	socat "TCP-LISTEN:$port,reuseaddr,fork" "SYSTEM:$*" &
	at_exit kill $!
	wait_for 5 "the port $port" bash -c "exec 7<>/dev/tcp/127.0.0.1/$port"
}
serve 9701 "printf 'SSH-2.0-OpenSSH_9.9\r\n'; sleep 5"
serve 9702 "cat /dev/urandom"
serve 9703 "true"
serve 9704 "sleep 60"
expect_error 'not a NeonSAN node|protocol|magic' neonsan-attach neonsan://127.0.0.1:9701/test/x
expect_error 'not a NeonSAN node|protocol|magic' neonsan-attach neonsan://127.0.0.1:9702/test/x
expect_error 'closed|lost|reset|ended' neonsan-attach neonsan://127.0.0.1:9703/test/x
start=$SECONDS
expect_error 'time|answer|silent' neonsan-attach neonsan://127.0.0.1:9704/test/x --connect-timeout 2s
[ $((SECONDS - start)) -le 15 ] || fail "a silent peer held attach for $((SECONDS - start)) s"
equal "devices left" "$(ls -d /sys/block/neonsan* 2>/dev/null | wc -l)" 0
