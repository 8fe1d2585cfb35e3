#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# a peer that speaks another protocol version, another protocol, or not at all is named as such
. "$TEST_LIB"

need_programs
# serve PORT PYTHON: a peer that does this with each connection c.
serve() {
	python3 -c '
import os, socket, sys, time
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    c, _ = listener.accept()
    try:
        exec(sys.argv[2])
    except OSError:
        pass
    c.close()' "$1" "$2" &
	at_exit kill $!
	wait_for 30 "the port $1" bash -c "exec 7<>/dev/tcp/127.0.0.1/$1"
}
serve 9701 'c.sendall(b"SSH-2.0-OpenSSH_9.9\r\n"); time.sleep(2)'
serve 9702 'c.sendall(os.urandom(65536)); time.sleep(1)'
serve 9703 'pass'
serve 9704 'time.sleep(8)'
expect_error 'does not speak NeonSAN' neonsan-attach neonsan://127.0.0.1:9701/test/x
expect_error 'does not speak NeonSAN' neonsan-attach neonsan://127.0.0.1:9702/test/x
expect_error 'closed|reset' neonsan-attach neonsan://127.0.0.1:9703/test/x
start=$SECONDS
expect_error 'connect timeout' neonsan-attach neonsan://127.0.0.1:9704/test/x --connect-timeout 2s
[ $((SECONDS - start)) -le 15 ] || fail "a silent peer held attach for $((SECONDS - start)) s"
equal "devices left" "$(ls -d /sys/block/neonsan* 2>/dev/null | wc -l)" 0
