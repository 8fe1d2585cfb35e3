// SPDX-License-Identifier: GPL-2.0

#include <linux/bio.h>
#include <linux/blk-mq.h>
#include <linux/blkdev.h>
#include <linux/crc32c.h>
#include <linux/uio.h>

void *neonsan_helper_blk_mq_rq_to_pdu(struct request *rq)
{
	return blk_mq_rq_to_pdu(rq);
}

struct request *neonsan_helper_blk_mq_rq_from_pdu(void *pdu)
{
	return blk_mq_rq_from_pdu(pdu);
}

struct request *neonsan_helper_blk_mq_tag_to_rq(struct blk_mq_tags *tags, unsigned int tag)
{
	return blk_mq_tag_to_rq(tags, tag);
}

unsigned int neonsan_helper_req_op(const struct request *rq)
{
	return (__force unsigned int)req_op(rq);
}

sector_t neonsan_helper_blk_rq_pos(const struct request *rq)
{
	return blk_rq_pos(rq);
}

unsigned int neonsan_helper_blk_rq_bytes(const struct request *rq)
{
	return blk_rq_bytes(rq);
}

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

unsigned int neonsan_helper_blk_mq_freeze_queue(struct request_queue *q)
{
	return blk_mq_freeze_queue(q);
}

void neonsan_helper_blk_mq_unfreeze_queue(struct request_queue *q, unsigned int memflags)
{
	blk_mq_unfreeze_queue(q, memflags);
}

struct queue_limits neonsan_helper_queue_limits_start_update(struct request_queue *q)
{
	return queue_limits_start_update(q);
}

void neonsan_helper_queue_limits_cancel_update(struct request_queue *q)
{
	queue_limits_cancel_update(q);
}

size_t neonsan_helper_iov_iter_count(const struct iov_iter *iter)
{
	return iov_iter_count(iter);
}

/* An iterator over what is left of one bio, for copying from or to its pages. */
void neonsan_helper_iov_iter_bio(struct iov_iter *iter, unsigned int direction, struct bio *bio)
{
	struct bvec_iter bi;
	struct bio_vec bv;
	unsigned long nr = 0;

	bio_for_each_bvec(bv, bio, bi)
		nr++;
	iov_iter_bvec(iter, direction, __bvec_iter_bvec(bio->bi_io_vec, bio->bi_iter), nr,
		      bio->bi_iter.bi_size);
#if LINUX_VERSION_CODE >= KERNEL_VERSION(7, 3, 0)
	iter->iov_offset = bio->bi_iter.bi_offset;
#else
	iter->iov_offset = bio->bi_iter.bi_bvec_done;
#endif
}

u32 neonsan_helper_bvec_crc32c(u32 crc, const struct bio_vec *bv)
{
	return crc32c(crc, bvec_virt((struct bio_vec *)bv), bv->bv_len);
}

struct bvec_iter neonsan_helper_bio_iter(const struct bio *bio)
{
	return bio->bi_iter;
}

/* The next (multi-page) vector of a bio; the iterator is advanced past it. */
struct bio_vec neonsan_helper_bio_next_bvec(const struct bio *bio, struct bvec_iter *iter)
{
	struct bio_vec bv = mp_bvec_iter_bvec(bio->bi_io_vec, *iter);

	bio_advance_iter_single(bio, iter, bv.bv_len);
	return bv;
}
