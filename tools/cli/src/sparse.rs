// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Files and buffers with holes in them.

use rustix::fs::{seek, SeekFrom};
use rustix::io::Errno;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;

/// Zeroes are looked for in pieces of this size: what most file systems allocate by.
const GRAIN_BYTES: usize = 4096;

/// Bytes of a piece at most.
pub const PIECE_BYTES: u64 = 1 << 20;

/// What is read piece by piece.
pub enum Source {
    /// A file, or a block device: it has a size, and may have holes.
    File {
        /// It.
        file: File,
        /// Its size when it was opened.
        size: u64,
    },
    /// A pipe, or whatever else comes once and in order.
    Stream {
        /// Where the rest comes from.
        rest: Box<dyn Read + Send>,
        /// What was read of it to look at.
        first: Vec<u8>,
    },
}

/// A piece of a source. All have whole blocks but the last.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// Nothing but zeroes, this many.
    Zeroes(u64),
    /// Bytes, not all zero.
    Data(Vec<u8>),
}

impl Piece {
    fn of(data: Vec<u8>) -> Self {
        match is_zero(&data) {
            true => Piece::Zeroes(data.len() as u64),
            false => Piece::Data(data),
        }
    }

    /// How many bytes it has.
    pub fn length(&self) -> u64 {
        match self {
            Piece::Zeroes(length) => *length,
            Piece::Data(data) => data.len() as u64,
        }
    }
}

fn is_zero(data: &[u8]) -> bool {
    data.iter().all(|byte| *byte == 0)
}

impl Source {
    /// A file, a block device, or a pipe. Reads the beginning of a pipe. A file of which somebody has
    /// read a part before this, as a shell's commands can, is what is left of it.
    pub fn new(file: File) -> io::Result<Self> {
        match seek(&file, SeekFrom::Current(0)) {
            Ok(0) | Err(Errno::SPIPE) => {}
            Ok(_) => return Self::stream(file),
            Err(error) => return Err(error.into()),
        }
        // A block device has no length in its metadata, but an end.
        match seek(&file, SeekFrom::End(0)) {
            Ok(size) => Ok(Source::File { file, size }),
            Err(Errno::SPIPE) => Self::stream(file),
            Err(error) => Err(error.into()),
        }
    }

    /// What comes in order. Reads its beginning.
    pub fn stream(mut rest: impl Read + Send + 'static) -> io::Result<Self> {
        let first = read_full(&mut rest)?;
        let rest = Box::new(rest);
        Ok(Source::Stream { rest, first })
    }

    /// Its size in bytes, if that is known before all is read.
    pub fn size(&self) -> Option<u64> {
        match self {
            Source::File { size, .. } => Some(*size),
            // What ends within the first piece has been read whole.
            Source::Stream { first, .. } => {
                let length = first.len() as u64;
                (length < PIECE_BYTES).then_some(length)
            }
        }
    }

    /// Bytes of it, to look at; `None` where there are none or where they have not come yet.
    pub fn look(&self, at: u64, length: usize) -> Option<Vec<u8>> {
        match self {
            Source::File { file, .. } => {
                let mut bytes = vec![0; length];
                file.read_exact_at(&mut bytes, at).ok()?;
                Some(bytes)
            }
            Source::Stream { first, .. } => {
                let at = usize::try_from(at).ok()?;
                Some(first.get(at..at.checked_add(length)?)?.to_vec())
            }
        }
    }

    /// Its last bytes, at most `length`, if they can be looked at.
    pub fn tail(&self, length: usize) -> Option<Vec<u8>> {
        let size = self.size()?;
        let length = (length as u64).min(size);
        self.look(size - length, length as usize)
    }

    /// Its pieces in order, each with the place where it starts. A hole has at most `max_hole` bytes,
    /// a multiple of [`PIECE_BYTES`].
    pub fn pieces(self, max_hole: u64) -> Pieces {
        Pieces {
            source: self,
            at: 0,
            max_hole,
        }
    }

    fn piece(&mut self, at: u64, max_hole: u64) -> io::Result<Option<Piece>> {
        match self {
            Source::Stream { rest, first } => {
                let data = match std::mem::take(first) {
                    first if first.is_empty() => read_full(rest)?,
                    first => first,
                };
                Ok((!data.is_empty()).then(|| Piece::of(data)))
            }
            Source::File { file, size } if at >= *size => {
                // What came behind it meanwhile was not read.
                match seek(&*file, SeekFrom::End(0))? {
                    end if end > *size => Err(io::Error::other(
                        "it became longer while it was read: is it still being written?",
                    )),
                    end if end < *size => Err(shorter()),
                    _ => Ok(None),
                }
            }
            Source::File { file, size } => {
                let length = PIECE_BYTES.min(*size - at);
                let hole = hole_length(file, at, *size)?;
                if hole >= PIECE_BYTES && at + hole.min(max_hole) < *size {
                    let length = hole.min(max_hole) / PIECE_BYTES * PIECE_BYTES;
                    return Ok(Some(Piece::Zeroes(length)));
                }
                if hole >= length {
                    return Ok(Some(Piece::Zeroes(hole.min(max_hole))));
                }
                let mut data = vec![0; length as usize];
                file.read_exact_at(&mut data, at).map_err(cut_short)?;
                Ok(Some(Piece::of(data)))
            }
        }
    }
}

/// The pieces of a source.
pub struct Pieces {
    source: Source,
    at: u64,
    max_hole: u64,
}

impl Iterator for Pieces {
    type Item = io::Result<(u64, Piece)>;

    fn next(&mut self) -> Option<Self::Item> {
        let at = self.at;
        let piece = self.source.piece(at, self.max_hole).transpose()?;
        if let Ok(piece) = &piece {
            self.at += piece.length();
        }
        Some(piece.map(|piece| (at, piece)))
    }
}

/// A whole piece, however short the reads are; less only at the end.
fn read_full(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    from.take(PIECE_BYTES).read_to_end(&mut data)?;
    Ok(data)
}

fn cut_short(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => shorter(),
        _ => error,
    }
}

fn shorter() -> io::Error {
    let kind = io::ErrorKind::UnexpectedEof;
    io::Error::new(kind, "it became shorter while it was read")
}

/// How many bytes of a hole there are at `at`; 0 in data, and where holes cannot be told.
fn hole_length(file: &File, at: u64, size: u64) -> io::Result<u64> {
    match seek(file, SeekFrom::Data(at)) {
        // The file may grow meanwhile.
        Ok(data) => Ok(data.min(size).saturating_sub(at)),
        // There is no data behind: a hole, if the file is still as long as it was.
        Err(Errno::NXIO) if seek(file, SeekFrom::End(0))? < size => Err(shorter()),
        Err(Errno::NXIO) => Ok(size - at),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(0),
        Err(error) => Err(error.into()),
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

    const MAX: u64 = PIECE_BYTES;

    /// Puts the pieces together again. Returns the bytes, and how many of them were data.
    fn whole(source: Source) -> (Vec<u8>, u64) {
        let mut bytes = Vec::new();
        let mut sent = 0;
        for piece in source.pieces(64 * MAX) {
            let (at, piece) = piece.unwrap();
            assert_eq!(at, bytes.len() as u64);
            assert_eq!(at % 4096, 0, "only the last piece is odd");
            assert!(piece.length() > 0 && piece.length() <= 64 * MAX);
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

    fn file_with(size: u64, data: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        for (at, bytes) in data {
            file.write_all_at(bytes, *at).unwrap();
        }
        file
    }

    #[test]
    fn pieces_together_are_the_file() {
        let tail = [7; 100];
        let far = 5 * MAX + 12_345;
        let data: [(u64, &[u8]); 3] = [(0, &[1; 5000]), (3 * MAX - 1, &[2; 2]), (far, &tail)];
        let file = file_with(far + 100, &data);
        let mut expected = vec![0; far as usize + 100];
        file.read_exact_at(&mut expected, 0).unwrap();
        let source = Source::new(file).unwrap();
        assert_eq!(source.size(), Some(far + 100));
        assert_eq!(source.tail(100).unwrap(), tail);
        assert_eq!(source.look(0, 3).unwrap(), [1; 3]);
        let (bytes, sent) = whole(source);
        assert!(bytes == expected);
        assert!(sent <= 4 * MAX, "{sent}");
    }

    #[test]
    fn a_file_of_holes_sends_nothing() {
        for size in [0, 1, 511, 512, 513, MAX, 64 * MAX, 200 * MAX + 1] {
            let (bytes, sent) = whole(Source::new(file_with(size, &[])).unwrap());
            assert_eq!((bytes.len() as u64, sent), (size, 0));
        }
    }

    /// Gives out a few bytes at a time, as a pipe does.
    struct Drops<R>(R);

    impl<R: Read> Read for Drops<R> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = buffer.len().min(7777);
            self.0.read(&mut buffer[..length])
        }
    }

    #[test]
    fn short_reads_of_a_pipe_make_whole_pieces() {
        for size in [0, 1, 511, 513, MAX - 1, MAX, MAX + 1, 3 * MAX + 4097] {
            let mut bytes: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
            if size > 2 * MAX {
                bytes[MAX as usize..2 * MAX as usize].fill(0);
            }
            let source = Source::stream(Drops(io::Cursor::new(bytes.clone()))).unwrap();
            assert_eq!(source.size(), (size < MAX).then_some(size));
            assert_eq!(source.look(0, 600).is_some(), size >= 600);
            let (received, sent) = whole(source);
            assert!(received == bytes);
            assert!(sent <= size.saturating_sub(if size > 2 * MAX { MAX } else { 0 }));
        }
    }

    #[test]
    fn a_file_that_is_cut_while_it_is_read_is_told_of() {
        let file = file_with(2 * MAX, &[(0, &[1; 10]), (MAX, &[1; 10])]);
        let mut pieces = Source::new(file.try_clone().unwrap()).unwrap().pieces(MAX);
        pieces.next().unwrap().unwrap();
        file.set_len(MAX + 5).unwrap();
        let error = pieces.next().unwrap().unwrap_err();
        assert!(error.to_string().contains("became shorter"), "{error}");
    }

    #[test]
    fn a_file_that_is_cut_or_grows_while_it_is_read_is_never_taken_for_whole() {
        let size = 2 * MAX;
        for (now, said) in [
            // Cut before what is read next: there is no data, which is no hole.
            (0, "became shorter"),
            (MAX / 2, "became shorter"),
            (MAX, "became shorter"),
            (size - 1, "became shorter"),
            (size + 1, "became longer"),
        ] {
            let file = file_with(size, &[(0, &[1; 10]), (MAX, &[1; 10])]);
            let mut pieces = Source::new(file.try_clone().unwrap()).unwrap().pieces(MAX);
            pieces.next().unwrap().unwrap();
            file.set_len(now).unwrap();
            let error = pieces.find_map(io::Result::err);
            let error = error.unwrap_or_else(|| panic!("{now}: taken for whole"));
            assert!(error.to_string().contains(said), "{now}: {error}");
        }
        // And when all of it had been read.
        let file = file_with(MAX, &[(0, &[1; 10])]);
        let mut pieces = Source::new(file.try_clone().unwrap()).unwrap().pieces(MAX);
        pieces.next().unwrap().unwrap();
        file.set_len(MAX / 2).unwrap();
        assert!(pieces.next().unwrap().is_err());
    }

    #[test]
    fn what_is_left_of_a_file_is_what_was_not_read_before() {
        use std::io::Seek as _;
        let mut file = file_with(3 * MAX, &[(512, &[7; 10])]);
        file.seek(io::SeekFrom::Start(512)).unwrap();
        let (bytes, _) = whole(Source::new(file).unwrap());
        assert_eq!(bytes.len() as u64, 3 * MAX - 512);
        assert_eq!(bytes[..10], [7; 10]);
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
