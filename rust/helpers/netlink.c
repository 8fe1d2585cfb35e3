// SPDX-License-Identifier: GPL-2.0

#include <net/genetlink.h>

void *neonsan_helper_nlmsg_data(const struct nlmsghdr *nlh)
{
	return nlmsg_data(nlh);
}
