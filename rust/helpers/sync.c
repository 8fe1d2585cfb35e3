// SPDX-License-Identifier: GPL-2.0

#include <linux/bottom_half.h>
#include <linux/cpumask.h>
#include <linux/jiffies.h>
#include <linux/llist.h>
#include <linux/spinlock.h>

bool neonsan_helper_llist_add(struct llist_node *node, struct llist_head *head)
{
	return llist_add(node, head);
}

bool neonsan_helper_llist_empty(const struct llist_head *head)
{
	return llist_empty(head);
}

/* Everything on the list, oldest first. */
struct llist_node *neonsan_helper_llist_take_fifo(struct llist_head *head)
{
	struct llist_node *all = llist_del_all(head);

	return all ? llist_reverse_order(all) : NULL;
}

u64 neonsan_helper_jiffies_ms(void)
{
	return jiffies64_to_msecs(get_jiffies_64());
}

unsigned int neonsan_helper_num_online_cpus(void)
{
	return num_online_cpus();
}

/* From 7.3 on upstream's Rust has such a lock itself. */
#if LINUX_VERSION_CODE < KERNEL_VERSION(7, 3, 0)
unsigned long neonsan_helper_spin_lock_irqsave(spinlock_t *lock)
{
	unsigned long flags;

	spin_lock_irqsave(lock, flags);
	return flags;
}

bool neonsan_helper_spin_trylock_irqsave(spinlock_t *lock, unsigned long *flags)
{
	return spin_trylock_irqsave(lock, *flags);
}

void neonsan_helper_spin_unlock_irqrestore(spinlock_t *lock, unsigned long flags)
{
	spin_unlock_irqrestore(lock, flags);
}
#endif
