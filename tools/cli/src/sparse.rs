// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Files and buffers with holes in them.

use rustix::fs::{seek, SeekFrom};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// Zeroes are looked for in pieces of this size: what most file systems allocate by.
const GRAIN_BYTES: usize = 4096;

/// A file to be read piece by piece.
pub struct Source {
    file: File,
    size: u64,
}

/// A piece of a file, padded with zeroes to whole blocks at the file's end.
pub enum Piece {
    /// Nothing but zeroes, this many.
    Zeroes(u64),
    /// Bytes, not all zero.
    Data(Vec<u8>),
}

impl Piece {
    /// How many bytes it has.
    pub fn length(&self) -> u64 {
        match self {
            Piece::Zeroes(length) => *length,
            Piece::Data(data) => data.len() as u64,
        }
    }
}

impl Source {
    /// A file, or a block device.
    pub fn new(file: File) -> io::Result<Self> {
        // A block device has no length in its metadata, but an end.
        let size = seek(&file, SeekFrom::End(0))?;
        Ok(Source { file, size })
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The piece that starts at `at`, which must be where the piece before it ended; `None` at the
    /// end. Data has at most `max` bytes, and a hole `max_hole`; `block` divides `max`, and `max`
    /// divides `max_hole`.
    pub fn piece(&self, at: u64, max: u64, max_hole: u64, block: u64) -> io::Result<Option<Piece>> {
        if at >= self.size {
            return Ok(None);
        }
        let end = (at + max).min(self.size);
        let hole = self.hole_length(at)?;
        let left = (self.size - at).next_multiple_of(block);
        if hole >= max {
            let length = hole.min(max_hole);
            let length = if at + length >= self.size {
                left
            } else {
                length / max * max
            };
            return Ok(Some(Piece::Zeroes(length)));
        }
        let mut data = vec![0; (end - at) as usize];
        if hole < end - at {
            self.file.read_exact_at(&mut data, at)?;
        }
        data.resize(data.len().next_multiple_of(block as usize), 0);
        if data.iter().all(|byte| *byte == 0) {
            return Ok(Some(Piece::Zeroes(data.len() as u64)));
        }
        Ok(Some(Piece::Data(data)))
    }

    /// How many bytes of a hole there are at `at`; 0 in data, and where holes cannot be told.
    fn hole_length(&self, at: u64) -> io::Result<u64> {
        match seek(&self.file, SeekFrom::Data(at)) {
            Ok(data) => Ok(data.saturating_sub(at)),
            // There is no data behind.
            Err(Errno::NXIO) => Ok(self.size - at),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }
}

/// The runs of a buffer, by turns zeroes and not: where each starts, its bytes, whether they are
/// zeroes.
pub fn runs(data: &[u8]) -> Vec<(usize, &[u8], bool)> {
    let mut runs: Vec<(usize, &[u8], bool)> = Vec::new();
    let mut start = 0;
    let mut kind = None;
    for (index, grain) in data.chunks(GRAIN_BYTES).enumerate() {
        let zero = grain.iter().all(|byte| *byte == 0);
        let at = index * GRAIN_BYTES;
        match kind {
            Some(before) if before != zero => {
                runs.push((start, &data[start..at], before));
                start = at;
            }
            _ => {}
        }
        kind = Some(zero);
    }
    if let Some(kind) = kind {
        runs.push((start, &data[start..], kind));
    }
    runs
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const MAX: u64 = 1 << 20;

    /// Puts the pieces together again.
    fn whole(source: &Source, block: u64) -> (Vec<u8>, u64) {
        let mut bytes = Vec::new();
        let mut sent = 0;
        while let Some(piece) = source
            .piece(bytes.len() as u64, MAX, 64 * MAX, block)
            .unwrap()
        {
            assert_eq!(piece.length() % block, 0);
            match piece {
                Piece::Zeroes(length) => bytes.resize(bytes.len() + length as usize, 0),
                Piece::Data(data) => {
                    assert!(data.len() as u64 <= MAX);
                    sent += data.len() as u64;
                    bytes.extend(data);
                }
            }
        }
        (bytes, sent)
    }

    fn source_with(size: u64, data: &[(u64, &[u8])]) -> Source {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        for (at, bytes) in data {
            file.write_all_at(bytes, *at).unwrap();
        }
        Source::new(file).unwrap()
    }

    #[test]
    fn pieces_together_are_the_file_padded_to_blocks() {
        let tail = [7; 100];
        let far = 5 * MAX + 12_345;
        let source = source_with(
            far + 100,
            &[(0, &[1; 5000]), (3 * MAX - 1, &[2; 2]), (far, &tail)],
        );
        let mut expected = vec![0; source.size() as usize];
        source.file.read_exact_at(&mut expected, 0).unwrap();
        expected.resize(expected.len().next_multiple_of(4096), 0);
        let (bytes, sent) = whole(&source, 4096);
        assert!(bytes == expected);
        assert!(sent <= 4 * MAX, "{sent}");
    }

    #[test]
    fn a_file_of_holes_sends_nothing() {
        for size in [1, 512, MAX, 200 * MAX + 1] {
            let (bytes, sent) = whole(&source_with(size, &[]), 512);
            assert_eq!(bytes.len() as u64, size.next_multiple_of(512));
            assert_eq!(sent, 0);
        }
        assert!(source_with(0, &[])
            .piece(0, MAX, MAX, 512)
            .unwrap()
            .is_none());
    }

    #[test]
    fn runs_cover_the_buffer_by_turns() {
        let mut data = vec![0; 5 * GRAIN_BYTES + 10];
        data[GRAIN_BYTES] = 1;
        data[2 * GRAIN_BYTES] = 1;
        data[5 * GRAIN_BYTES + 9] = 1;
        let found: Vec<_> = runs(&data)
            .iter()
            .map(|(at, run, zero)| (*at, run.len(), *zero))
            .collect();
        let g = GRAIN_BYTES;
        assert_eq!(
            found,
            [
                (0, g, true),
                (g, 2 * g, false),
                (3 * g, 2 * g, true),
                (5 * g, 10, false)
            ]
        );
        assert!(runs(&[]).is_empty());
    }
}
