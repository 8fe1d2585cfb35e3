// SPDX-License-Identifier: GPL-2.0 OR MIT
//! The form of records on disk: entries of type, length and value.
//!
//! Little-endian, a multiple of 512 bytes:
//!
//! | at      | bytes | what                                             |
//! |---------|-------|--------------------------------------------------|
//! | 0       | 8     | magic: which kind of record                      |
//! | 8       | 4     | version of this form, which the kind counts      |
//! | 12      | 4     | bytes of all entries                             |
//! | 16      |       | the entries, then zeroes                         |
//! | end - 4 | 4     | CRC-32C of all before it                         |
//!
//! An entry has a type (2 bytes), flags (2 bytes), the length of its value
//! (4 bytes), and the value, filled with zeroes to a multiple of 8 bytes. Bit 0
//! of the flags is set for what a program must know to use the record: one that
//! does not know the type refuses. All others it keeps when it writes the record
//! anew, so that a later release finds again what it has put there.
//!
//! The checksum is where version 1 of a volume's description, which had 512
//! bytes without entries, has its own: an older release sees a whole record
//! of another version, and says so.

/// Smallest record, and the unit of its length.
const BLOCK_BYTES: usize = 512;

/// Longest record.
pub(crate) const MAX_BYTES: usize = 64 * 1024;

/// Bytes before the entries.
const HEADER_BYTES: usize = 16;

/// Bytes of an entry before its value.
const ENTRY_BYTES: usize = 8;

const CRC_BYTES: usize = 4;

/// The flag of what must be known.
const REQUIRED: u16 = 1;

/// Which kind of record.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    /// The first bytes.
    pub(crate) magic: [u8; 8],
    /// The version that this program writes and reads.
    pub(crate) version: u32,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    tag: u16,
    flags: u16,
    value: Vec<u8>,
}

/// The entries of a record, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Entries(Vec<Entry>);

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..at.checked_add(2)?)?;
    Some(u16::from_le_bytes(bytes.try_into().ok()?))
}

/// Whether the bytes begin as a record of this kind does.
pub(crate) fn begins(kind: &Kind, bytes: &[u8]) -> bool {
    bytes.starts_with(&kind.magic)
}

/// The version that a whole record has, whatever follows.
///
/// # Errors
///
/// What is wrong, as a clause to follow the record's name.
pub(crate) fn version(kind: &Kind, bytes: &[u8]) -> Result<u32, String> {
    if !begins(kind, bytes) {
        return Err("does not begin as it should".into());
    }
    if bytes.len() < BLOCK_BYTES || bytes.len() % BLOCK_BYTES != 0 || bytes.len() > MAX_BYTES {
        return Err(format!(
            "has {} bytes, which is not its length (is it cut short?)",
            bytes.len()
        ));
    }
    let crc_at = bytes.len() - CRC_BYTES;
    let stored = word(bytes, crc_at).unwrap_or(0);
    let computed = crc32c::crc32c(&bytes[..crc_at]);
    if stored != computed {
        return Err(format!(
            "has the checksum {stored:08x} where {computed:08x} would be right"
        ));
    }
    Ok(word(bytes, 8).unwrap_or(0))
}

/// What a record of another version is called.
pub(crate) fn wrong_version(kind: &Kind, found: u32) -> String {
    format!(
        "has version {found}, and this program knows versions up to {}: a newer release wrote it; \
         use that",
        kind.version
    )
}

impl Entries {
    /// Reads the entries of a record.
    ///
    /// # Errors
    ///
    /// What is wrong, as a clause to follow the record's name.
    pub(crate) fn decode(kind: &Kind, bytes: &[u8]) -> Result<Self, String> {
        let found = version(kind, bytes)?;
        if found != kind.version {
            return Err(wrong_version(kind, found));
        }
        let cut = || "has entries that go beyond its end".to_owned();
        let len = word(bytes, 12).unwrap_or(0) as usize;
        let room = &bytes[HEADER_BYTES..bytes.len() - CRC_BYTES];
        let mut rest = room.get(..len).ok_or_else(cut)?;
        let mut entries = Self::default();
        while !rest.is_empty() {
            let tag = half(rest, 0).ok_or_else(cut)?;
            let flags = half(rest, 2).ok_or_else(cut)?;
            let len = word(rest, 4).ok_or_else(cut)? as usize;
            let value = rest
                .get(ENTRY_BYTES..)
                .and_then(|rest| rest.get(..len))
                .ok_or_else(cut)?;
            if entries.0.iter().any(|entry| entry.tag == tag) {
                return Err(format!("has two entries of the type {tag}"));
            }
            entries.0.push(Entry {
                tag,
                flags,
                value: value.to_vec(),
            });
            let next = ENTRY_BYTES + len.next_multiple_of(8);
            rest = rest.get(next..).ok_or_else(cut)?;
        }
        Ok(entries)
    }

    /// The record with these entries.
    pub(crate) fn encode(&self, kind: &Kind) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(BLOCK_BYTES);
        bytes.extend_from_slice(&kind.magic);
        bytes.extend_from_slice(&kind.version.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        for entry in &self.0 {
            bytes.extend_from_slice(&entry.tag.to_le_bytes());
            bytes.extend_from_slice(&entry.flags.to_le_bytes());
            // Far below `MAX_BYTES`: what was read had room, and what is put is short.
            bytes.extend_from_slice(&(entry.value.len() as u32).to_le_bytes());
            bytes.extend_from_slice(&entry.value);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        let len = (bytes.len() - HEADER_BYTES) as u32;
        bytes[12..16].copy_from_slice(&len.to_le_bytes());
        bytes.resize((bytes.len() + CRC_BYTES).next_multiple_of(BLOCK_BYTES), 0);
        let crc_at = bytes.len() - CRC_BYTES;
        let crc = crc32c::crc32c(&bytes[..crc_at]);
        bytes[crc_at..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn put(&mut self, tag: u16, flags: u16, value: &[u8]) {
        self.0.retain(|entry| entry.tag != tag);
        self.0.push(Entry {
            tag,
            flags,
            value: value.to_vec(),
        });
    }

    /// Sets what every program must know that uses the record.
    pub(crate) fn put_required(&mut self, tag: u16, value: &[u8]) {
        self.put(tag, REQUIRED, value);
    }

    /// Sets what a program may leave alone.
    pub(crate) fn put_optional(&mut self, tag: u16, value: &[u8]) {
        self.put(tag, 0, value);
    }

    /// Takes an entry out: what stays is not known.
    ///
    /// # Errors
    ///
    /// A clause to follow the record's name, when it has another length.
    pub(crate) fn take<const N: usize>(&mut self, tag: u16) -> Result<Option<[u8; N]>, String> {
        let Some(index) = self.0.iter().position(|entry| entry.tag == tag) else {
            return Ok(None);
        };
        let value = self.0.remove(index).value;
        match <[u8; N]>::try_from(value.as_slice()) {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(format!(
                "has an entry of the type {tag} with {} bytes where {N} should be",
                value.len()
            )),
        }
    }

    /// The same for what must be there.
    pub(crate) fn need<const N: usize>(&mut self, tag: u16) -> Result<[u8; N], String> {
        self.take(tag)?
            .ok_or_else(|| format!("lacks the entry of the type {tag}"))
    }

    /// What is left when all known entries were taken out; it is to be kept.
    ///
    /// # Errors
    ///
    /// A clause to follow the record's name, when a program must know one of them.
    pub(crate) fn unknown(self) -> Result<Self, String> {
        match self.0.iter().find(|entry| entry.flags & REQUIRED != 0) {
            Some(entry) => Err(format!(
                "has an entry of the type {}, which this program does not know and would have to: \
                 a newer release wrote it; use that",
                entry.tag
            )),
            None => Ok(self),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const KIND: Kind = Kind {
        magic: *b"NEONTST\n",
        version: 2,
    };

    fn some() -> Entries {
        let mut entries = Entries::default();
        entries.put_required(1, &[7; 16]);
        entries.put_optional(2, b"text");
        entries.put_optional(3, b"");
        entries
    }

    #[test]
    fn what_was_written_is_read() {
        let bytes = some().encode(&KIND);
        assert_eq!(bytes.len(), BLOCK_BYTES);
        let mut read = Entries::decode(&KIND, &bytes).unwrap();
        assert_eq!(read, some());
        assert_eq!(read.need::<16>(1).unwrap(), [7; 16]);
        assert_eq!(read.take::<4>(2).unwrap(), Some(*b"text"));
        assert_eq!(read.take::<4>(2).unwrap(), None);
        assert!(read.take::<4>(3).unwrap_err().contains("0 bytes"));
    }

    #[test]
    fn a_long_record_has_several_blocks() {
        let mut entries = some();
        entries.put_optional(9, &[1; 3000]);
        let bytes = entries.encode(&KIND);
        assert_eq!(bytes.len(), 7 * BLOCK_BYTES);
        assert_eq!(Entries::decode(&KIND, &bytes).unwrap(), entries);
    }

    #[test]
    fn any_changed_bit_and_any_lost_byte_is_noticed() {
        let good = some().encode(&KIND);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Entries::decode(&KIND, &bad).is_err(), "bit {bit}");
        }
        for len in 0..good.len() {
            assert!(Entries::decode(&KIND, &good[..len]).is_err(), "{len} bytes");
        }
    }

    /// Puts the checksum of a changed record right.
    fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
        let at = bytes.len() - CRC_BYTES;
        let crc = crc32c::crc32c(&bytes[..at]);
        bytes[at..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn lengths_that_lie_are_refused_and_never_panic() {
        let good = some().encode(&KIND);
        for at in 12..80 {
            for value in [0u8, 1, 7, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                // Whatever it is taken for, it does not panic.
                let _ = Entries::decode(&KIND, &sealed(bad));
            }
        }
        let mut long = good.clone();
        long[12..16].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Entries::decode(&KIND, &sealed(long)).is_err());
        let mut long = good;
        long[20..24].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Entries::decode(&KIND, &sealed(long)).is_err());
    }

    #[test]
    fn a_type_that_comes_twice_is_refused() {
        let mut entries = some();
        entries.0.push(entries.0[0].clone());
        let why = Entries::decode(&KIND, &entries.encode(&KIND)).unwrap_err();
        assert!(why.contains("two entries"), "{why}");
    }

    #[test]
    fn what_must_be_known_is_refused_and_the_rest_kept() {
        let mut entries = some();
        entries.take::<16>(1).unwrap();
        let kept = entries.unknown().unwrap();
        assert_eq!(kept.0.len(), 2);
        let why = some().unknown().unwrap_err();
        assert!(why.contains("type 1"), "{why}");
        let newer = Kind { version: 3, ..KIND };
        let why = Entries::decode(&KIND, &some().encode(&newer)).unwrap_err();
        assert!(why.contains("version 3"), "{why}");
    }
}
