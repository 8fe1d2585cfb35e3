// SPDX-License-Identifier: GPL-2.0

#include <linux/backing-dev.h>
#include <linux/blkdev.h>
#include <linux/device.h>
#include <linux/sysfs.h>

/* The private data of a disk: what its attributes show, and whether it can be opened. */
struct neonsan_disk_data {
	const char *serial;
	const char *volume;
	bool closed;
};

static inline const struct neonsan_disk_data *neonsan_disk_data_of(struct device *dev)
{
	return dev_to_disk(dev)->private_data;
}

static ssize_t serial_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%s\n", neonsan_disk_data_of(dev)->serial);
}
static DEVICE_ATTR_RO(serial);

static ssize_t volume_show(struct device *dev, struct device_attribute *attr, char *buf)
{
	return sysfs_emit(buf, "%s\n", neonsan_disk_data_of(dev)->volume);
}
/* For root: a volume's name is not for every user of the host. */
static DEVICE_ATTR_ADMIN_RO(volume);

static struct attribute *neonsan_disk_attrs[] = {
	&dev_attr_serial.attr,
	&dev_attr_volume.attr,
	NULL,
};

static const struct attribute_group neonsan_disk_group = { .attrs = neonsan_disk_attrs };

static const struct attribute_group *neonsan_disk_groups[] = { &neonsan_disk_group, NULL };

int neonsan_helper_device_add_disk_with_attributes(struct gendisk *disk)
{
	return device_add_disk(NULL, disk, neonsan_disk_groups);
}

/*
 * Whether a disk is open, and that nobody opens it afterwards, can be told with
 * the lock of opening only; the block layer has no call for it. ublk (block_open)
 * and zram (claim) do the same with it. Tried and not waited for: an open that
 * reads a partition table holds it for as long as a volume is lost.
 */
bool neonsan_helper_trylock_disk_open(struct gendisk *disk)
{
	return mutex_trylock(&disk->open_mutex);
}

/*
 * How far ahead of a reader the page cache reads. The block layer makes it twice the optimal I/O size,
 * whatever that is, and has no limit that a driver could set. Its lock is the one of whoever sets it
 * through sysfs.
 */
unsigned long neonsan_helper_disk_read_ahead_pages(struct gendisk *disk)
{
	return READ_ONCE(disk->bdi->ra_pages);
}

void neonsan_helper_set_disk_read_ahead_pages(struct gendisk *disk, unsigned long pages)
{
	mutex_lock(&disk->queue->limits_lock);
	WRITE_ONCE(disk->bdi->ra_pages, pages);
	mutex_unlock(&disk->queue->limits_lock);
}

void neonsan_helper_unlock_disk_open(struct gendisk *disk)
{
	mutex_unlock(&disk->open_mutex);
}
