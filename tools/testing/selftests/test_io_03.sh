#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# the same on 4096-byte blocks, and 512-byte writes on a node whose storage has 4096-byte blocks
# timeout: 600
. "$TEST_LIB"

node_config node file 9666
sed -i 's/^kind = "file"/&\nmin_block_bytes = 4096/' "$TEST_DIR/node.toml"
node_start
volume test/b4096 128M 4096
attach test/b4096
verify b4096 --rw=randrw --direct=1 --ioengine=io_uring --iodepth=32 --bssplit=4k/50:16k/20:64k/20:1m/10 --numjobs=4 \
	--size=24M --offset_increment=32M --io_size="$(less 16)M"
detach
volume test/b512 128M 512
attach test/b512
verify b512 --rw=randrw --direct=1 --ioengine=io_uring --iodepth=32 --bsrange=512-16k --blockalign=512 --numjobs=4 \
	--size=8M --offset_increment=32M --io_size="$(less 6)M"
detach
