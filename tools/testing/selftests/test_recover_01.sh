#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# a node restart under fio verify, as an operator does it, without an error
# timeout: 600
. "$TEST_LIB"

node_start node file
volume test/r 128M
attach test/r
verify restart --rw=randrw --direct=1 --ioengine=io_uring --iodepth=16 --bssplit=4k/60:64k/30:512k/10 --size=96M --io_size=192M &
restarts $! 3
equal "the state" "$(info .state)" live
detach
