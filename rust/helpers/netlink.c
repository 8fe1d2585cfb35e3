// SPDX-License-Identifier: GPL-2.0

#include <net/genetlink.h>

struct sk_buff *neonsan_helper_nlmsg_new(size_t payload, gfp_t flags)
{
	return nlmsg_new(payload, flags);
}

void neonsan_helper_nlmsg_free(struct sk_buff *skb)
{
	nlmsg_free(skb);
}

void neonsan_helper_genlmsg_end(struct sk_buff *skb, void *hdr)
{
	genlmsg_end(skb, hdr);
}

void neonsan_helper_genlmsg_cancel(struct sk_buff *skb, void *hdr)
{
	genlmsg_cancel(skb, hdr);
}

int neonsan_helper_genlmsg_reply(struct sk_buff *skb, struct genl_info *info)
{
	return genlmsg_reply(skb, info);
}

int neonsan_helper_genlmsg_multicast(const struct genl_family *family, struct sk_buff *skb,
				     u32 portid, unsigned int group, gfp_t flags)
{
	return genlmsg_multicast(family, skb, portid, group, flags);
}

int neonsan_helper_genl_set_err(const struct genl_family *family, struct net *net,
				unsigned int group, int code)
{
	return genl_set_err(family, net, 0, group, code);
}

struct net *neonsan_helper_genl_info_net(const struct genl_info *info)
{
	return genl_info_net(info);
}

int neonsan_helper_genl_has_listeners(const struct genl_family *family, struct net *net,
				      unsigned int group)
{
	return genl_has_listeners(family, net, group);
}

const struct genl_info *neonsan_helper_genl_info_dump(struct netlink_callback *cb)
{
	return genl_info_dump(cb);
}

struct nlattr *neonsan_helper_nla_nest_start(struct sk_buff *skb, int attrtype)
{
	return nla_nest_start(skb, attrtype);
}

int neonsan_helper_nla_nest_end(struct sk_buff *skb, struct nlattr *start)
{
	return nla_nest_end_safe(skb, start);
}

void neonsan_helper_nla_nest_cancel(struct sk_buff *skb, struct nlattr *start)
{
	nla_nest_cancel(skb, start);
}

unsigned int neonsan_helper_skb_len(const struct sk_buff *skb)
{
	return skb->len;
}
