// SPDX-License-Identifier: GPL-2.0

#include <linux/cpufeature.h>
#include <linux/gfp.h>
#include <linux/instrumented.h>
#include <linux/mm.h>
#include <linux/sched/mm.h>

unsigned int neonsan_helper_memalloc_noreclaim_save(void)
{
	return memalloc_noreclaim_save();
}

void neonsan_helper_memalloc_noreclaim_restore(unsigned int flags)
{
	memalloc_noreclaim_restore(flags);
}

struct page *neonsan_helper_alloc_page(gfp_t gfp)
{
	return alloc_page(gfp);
}

void neonsan_helper_put_page(struct page *page)
{
	put_page(page);
}

void *neonsan_helper_page_address(struct page *page)
{
	return page_address(page);
}

bool neonsan_helper_cpu_has_fast_short_rep_mov(void)
{
#ifdef CONFIG_X86
	return cpu_feature_enabled(X86_FEATURE_FSRM);
#else
	return true;
#endif
}

/* Tells the sanitizers of a copy that they cannot see. */
void neonsan_helper_instrument_copy(void *to, const void *from, size_t len)
{
	instrument_read(from, len);
	instrument_write(to, len);
}
