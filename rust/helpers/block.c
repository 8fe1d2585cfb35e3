// SPDX-License-Identifier: GPL-2.0

#include <linux/bio.h>
#include <linux/blk-mq.h>
#include <linux/blkdev.h>
#include <linux/crc32c.h>
#include <linux/uio.h>

bool neonsan_helper_blk_mq_add_to_batch(struct request *rq, struct io_comp_batch *iob,
					bool is_error)
{
	return blk_mq_add_to_batch(rq, iob, is_error, blk_mq_end_request_batch);
}

unsigned int neonsan_helper_disk_openers(struct gendisk *disk)
{
	return disk_openers(disk);
}

sector_t neonsan_helper_get_capacity(struct gendisk *disk)
{
	return get_capacity(disk);
}

struct queue_limits neonsan_helper_queue_limits_start_update(struct request_queue *q)
{
	return queue_limits_start_update(q);
}

u32 neonsan_helper_bvec_crc32c(u32 crc, const struct bio_vec *bv)
{
	return crc32c(crc, bvec_virt((struct bio_vec *)bv), bv->bv_len);
}

/* The first (multi-page) vector of what is left of a bio; *done bytes of it are over. */
const struct bio_vec *neonsan_helper_bio_bvecs(const struct bio *bio, unsigned int *done)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 3, 0)
	*done = bio->bi_iter.bi_offset;
#else
	*done = bio->bi_iter.bi_bvec_done;
#endif
	return __bvec_iter_bvec(bio->bi_io_vec, bio->bi_iter);
}
