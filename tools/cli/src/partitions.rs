// SPDX-License-Identifier: GPL-2.0 OR MIT

//! The partition table of a disk image. It counts in blocks and does not say in which size of them:
//! on a disk of another block size the partitions are not found, or are found in wrong places.

/// The block sizes that disks have.
const BLOCK_SIZES: [u64; 2] = [512, 4096];

/// Reads bytes of an image: `None` where there are none, or where they cannot be looked at.
pub type Look<'a> = dyn Fn(u64, usize) -> Option<Vec<u8>> + 'a;

/// What the table of an image says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// `GPT` or `MBR`.
    pub kind: &'static str,
    /// The block size that it was made for, if that can be told.
    pub block_size: Option<u64>,
    /// Where the disk ends that it describes, or its last partition, in blocks.
    end: u64,
}

impl Table {
    /// Looks for a table in an image.
    pub fn find(look: &Look<'_>) -> Option<Table> {
        find_gpt(look).or_else(|| find_mbr(look))
    }

    /// Whether it fits a disk of this block size, as far as that can be told. `size`: of the image.
    pub fn fits(&self, block_size: u64, size: Option<u64>) -> bool {
        match self.block_size {
            Some(own) => own == block_size,
            // Whatever lies beyond the end with large blocks, and not with small ones, was made for
            // small ones.
            None => match size {
                Some(size) => !(self.end_bytes(block_size) > size && self.end_bytes(512) <= size),
                None => true,
            },
        }
    }

    /// The block size that it was made for, when it does not fit another.
    pub fn made_for(&self) -> u64 {
        self.block_size.unwrap_or(512)
    }

    /// Where the disk ends that a GPT describes, or the last partition of an MBR, in bytes.
    pub fn end_bytes(&self, block_size: u64) -> u64 {
        self.end.saturating_mul(block_size)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at + 4)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at + 8)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

/// A GPT has its header in block 1, which says where the copy is: in the disk's last block.
fn find_gpt(look: &Look<'_>) -> Option<Table> {
    BLOCK_SIZES.iter().find_map(|block_size| {
        let header = look(*block_size, 92)?;
        if !header.starts_with(b"EFI PART") || u64_at(&header, 24)? != 1 {
            return None;
        }
        Some(Table {
            kind: "GPT",
            block_size: Some(*block_size),
            end: u64_at(&header, 32)?.checked_add(1)?,
        })
    })
}

/// An MBR has four entries in block 0.
fn find_mbr(look: &Look<'_>) -> Option<Table> {
    let block = look(0, 512)?;
    if block.get(510..) != Some(&[0x55, 0xaa][..]) {
        return None;
    }
    let mut end = 0;
    let mut starts = Vec::new();
    for entry in block.get(446..510)?.chunks(16) {
        let (start, count) = (u32_at(entry, 8)?, u32_at(entry, 12)?);
        match (entry[0], entry[4]) {
            (_, 0) => continue,
            // A file system without partitions has code or text there.
            (0 | 0x80, _) if start > 0 && count > 0 => {}
            _ => return None,
        }
        end = end.max(u64::from(start) + u64::from(count));
        starts.push(u64::from(start));
    }
    if starts.is_empty() {
        return None;
    }
    let has_content: Vec<_> = BLOCK_SIZES
        .iter()
        // Of all, not of the first alone: what is in that may not be known, and with larger blocks its
        // start may fall on that of another.
        .filter(|size| starts.iter().any(|start| is_known(look, start * **size)))
        .collect();
    let block_size = match has_content.as_slice() {
        [size] => Some(**size),
        _ => None,
    };
    Some(Table {
        kind: "MBR",
        block_size,
        end,
    })
}

/// Whether something that is often in a partition begins here.
fn is_known(look: &Look<'_>, at: u64) -> bool {
    let has = |offset: u64, mark: &[u8]| {
        look(at.saturating_add(offset), mark.len()).is_some_and(|found| found == mark)
    };
    has(0, b"XFSB")
        || has(0, b"LUKS\xba\xbe")
        || has(510, &[0x55, 0xaa])
        || has(512, b"LABELONE")
        || has(1080, &[0x53, 0xef])
        || has(4086, b"SWAPSPACE2")
        || has(0x1_0040, b"_BHRfS_M")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub mod tests {
    use super::*;

    /// An image of this size with a GPT for disks of a block size, whose copy is in the last block of
    /// `end` bytes.
    pub fn gpt(size: usize, block_size: usize, end: usize) -> Vec<u8> {
        let mut image = vec![0; size];
        image[510..512].copy_from_slice(&[0x55, 0xaa]);
        image[446 + 4] = 0xee;
        image[446 + 8] = 1;
        image[446 + 12..446 + 16].copy_from_slice(&[0xff; 4]);
        let header = &mut image[block_size..block_size + 92];
        header[..8].copy_from_slice(b"EFI PART");
        header[24..32].copy_from_slice(&1_u64.to_le_bytes());
        let last = (end / block_size - 1) as u64;
        header[32..40].copy_from_slice(&last.to_le_bytes());
        image
    }

    /// One with an MBR with one partition, in blocks.
    pub fn mbr(size: usize, start: u32, count: u32) -> Vec<u8> {
        let mut image = vec![0; size];
        image[510..512].copy_from_slice(&[0x55, 0xaa]);
        image[446 + 4] = 0x83;
        image[446 + 8..446 + 12].copy_from_slice(&start.to_le_bytes());
        image[446 + 12..446 + 16].copy_from_slice(&count.to_le_bytes());
        image
    }

    fn find(image: &[u8]) -> Option<Table> {
        Table::find(&|at, length| {
            image
                .get(at as usize..at as usize + length)
                .map(<[u8]>::to_vec)
        })
    }

    #[test]
    fn a_gpt_says_by_its_place_for_which_blocks_it_is() {
        const MIB: usize = 1 << 20;
        for block_size in [512, 4096] {
            let table = find(&gpt(MIB, block_size, MIB)).unwrap();
            assert_eq!(table.kind, "GPT");
            for other in [512, 4096] {
                assert_eq!(
                    table.fits(other, Some(MIB as u64)),
                    block_size as u64 == other
                );
            }
            assert_eq!(table.made_for(), block_size as u64);
            assert_eq!(table.end_bytes(block_size as u64), MIB as u64);
        }
        // A header that is not where it says it is is none.
        let mut image = gpt(MIB, 512, MIB);
        image[512 + 24] = 7;
        assert_ne!(find(&image).unwrap().kind, "GPT");
    }

    #[test]
    fn an_mbr_is_told_by_what_is_in_its_partitions_or_by_their_end() {
        const MIB: usize = 1 << 20;
        let whole = mbr(MIB, 64, (MIB / 512 - 64) as u32);
        let table = find(&whole).unwrap();
        assert_eq!((table.kind, table.block_size), ("MBR", None));
        assert!(table.fits(512, Some(MIB as u64)) && !table.fits(4096, Some(MIB as u64)));
        // A small partition may be of either, until its content says where it begins.
        let mut small = mbr(MIB, 64, 64);
        assert!(find(&small).unwrap().fits(4096, Some(MIB as u64)));
        small[64 * 4096 + 1080..64 * 4096 + 1082].copy_from_slice(&[0x53, 0xef]);
        let table = find(&small).unwrap();
        assert!(!table.fits(512, Some(MIB as u64)) && table.fits(4096, Some(MIB as u64)));
        // Of a pipe the end is not known.
        assert!(find(&whole).unwrap().fits(4096, None));
    }

    #[test]
    fn a_partition_is_not_taken_for_another_one() {
        const MIB: usize = 1 << 20;
        // Firmware's own, of which nothing is known, of 7 MiB; and behind it, where that would begin with
        // blocks of 4096, a file system.
        let mut image = mbr(16 * MIB, 2048, 7 * 2048);
        image[446 + 16 + 4] = 0x83;
        image[446 + 16 + 8..446 + 16 + 12].copy_from_slice(&(8 * 2048_u32).to_le_bytes());
        image[446 + 16 + 12..446 + 16 + 16].copy_from_slice(&(8 * 2048_u32).to_le_bytes());
        image[8 * MIB + 1080..8 * MIB + 1082].copy_from_slice(&[0x53, 0xef]);
        let size = Some(16 * MIB as u64);
        let table = find(&image).unwrap();
        assert!(
            table.fits(512, size) && !table.fits(4096, size),
            "{table:?}"
        );
    }

    #[test]
    fn a_file_system_without_partitions_is_no_table() {
        let mut fat = vec![b'x'; 4096];
        fat[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(find(&fat), None);
        for image in [&[0; 4096][..], &[], &[0x55; 100]] {
            assert_eq!(find(image), None);
        }
        // And one whose entries are all empty has nothing that could be wrong.
        let mut empty = vec![0; 4096];
        empty[510..512].copy_from_slice(&[0x55, 0xaa]);
        assert_eq!(find(&empty), None);
    }
}
