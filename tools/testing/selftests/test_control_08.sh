#!/bin/bash
# SPDX-License-Identifier: GPL-2.0 OR MIT
# a list of more devices than one netlink message holds is whole, and detach --all ends all
# timeout: 300
. "$TEST_LIB"

node_start
count=10
for i in $(seq $count); do
	volume "test/v$i" 1M
	neonsan attach "neonsan://$NODE_DATA/test/v$i" --connections 4 >/dev/null || fail "attach $i"
done
at_exit neonsan detach --all --force
neonsan list --json >list.json
equal "the number of devices" "$(jq '.devices | length' list.json)" $count
equal "their volumes" "$(jq -r '.devices[].volume' list.json | sort -u | wc -l)" $count
equal "their order" "$(jq -r '.devices[].index' list.json | tr '\n' ' ')" "$(seq -s ' ' 0 $((count - 1))) "
equal "the connections of the last" "$(jq '.devices[-1].connections | length' list.json)" \
	"$(neonsan info --json $((count - 1)) | jq '.connections | length')"
neonsan detach --all
equal "devices left" "$(ls -d /sys/block/neonsan* 2>/dev/null | wc -l)" 0
