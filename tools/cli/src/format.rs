// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What a file is that somebody wants to import: a raw disk image has no mark of its own, so what is
//! known to be something else is told by its content, never by its name.

use std::borrow::Cow;
use std::path::Path;

/// How much of a file's beginning is looked at.
pub const HEAD_BYTES: usize = 512;

/// How much of its end.
pub const TAIL_BYTES: usize = 512;

/// A form of a disk image that is not the image itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A virtual disk, by the name that qemu-img has for it.
    Disk {
        name: &'static str,
        qemu_name: &'static str,
    },
    /// Compressed by a program that writes what it unpacks to its standard output.
    Compressed {
        name: &'static str,
        unpack: &'static str,
    },
    /// Something with files in it.
    Archive {
        name: &'static str,
        unpack: &'static str,
    },
    /// Something else, with what to do.
    Other {
        name: &'static str,
        advice: &'static str,
    },
}

use Format::{Archive, Compressed, Disk, Other};

/// Where a mark stands, the mark, and whose it is.
const MARKS: [(usize, &[u8], Format); 22] = [
    (0, b"QFI\xfb", disk("qcow2", "qcow2")),
    (0, b"KDMV", disk("VMDK", "vmdk")),
    (0, b"COWD", disk("VMDK", "vmdk")),
    (
        0,
        b"# Disk DescriptorFile",
        disk("VMDK (its description)", "vmdk"),
    ),
    (0, b"vhdxfile", disk("VHDX", "vhdx")),
    (0, b"conectix", disk("VHD", "vpc")),
    (64, b"\x7f\x10\xda\xbe", disk("VDI", "vdi")),
    (0, b"QED\0", disk("QED", "qed")),
    (0, b"WithoutFreeSpace", disk("Parallels", "parallels")),
    (0, b"WithouFreSpacExt", disk("Parallels", "parallels")),
    (0, b"\x1f\x8b\x08", compressed("gzip", "gzip -dc")),
    (0, b"\xfd7zXZ\0", compressed("xz", "xz -dc")),
    (0, b"\x28\xb5\x2f\xfd", compressed("zstd", "zstd -dc")),
    (0, b"BZh", compressed("bzip2", "bzip2 -dc")),
    (0, b"\x04\x22\x4d\x18", compressed("lz4", "lz4 -dc")),
    (0, b"LZIP", compressed("lzip", "lzip -dc")),
    (
        0,
        b"PK\x03\x04",
        Archive {
            name: "zip",
            unpack: "unzip -p",
        },
    ),
    (
        0,
        b"7z\xbc\xaf\x27\x1c",
        Archive {
            name: "7z",
            unpack: "7z x -so",
        },
    ),
    (
        257,
        b"ustar",
        Archive {
            name: "tar (an OVA, perhaps)",
            unpack: "tar -xOf",
        },
    ),
    (
        0,
        b"rbd image v",
        Other {
            name: "an export of `rbd export --export-format 2`",
            advice: "export it with `rbd export --export-format 1`, which writes a raw image",
        },
    ),
    (
        0,
        b"rbd diff v",
        Other {
            name: "the difference of two Ceph images",
            advice: "export the whole image with `rbd export`",
        },
    ),
    (
        0,
        b"\x3a\xff\x26\xed",
        Other {
            name: "a sparse image of Android",
            advice: "convert it with `simg2img`",
        },
    ),
];

const fn disk(name: &'static str, qemu_name: &'static str) -> Format {
    Disk { name, qemu_name }
}

const fn compressed(name: &'static str, unpack: &'static str) -> Format {
    Compressed { name, unpack }
}

impl Format {
    /// What a file is whose first and last bytes these are; `None` for a raw image, and for what
    /// nobody knows.
    pub fn of(head: &[u8], tail: &[u8]) -> Option<Format> {
        let has = |at: usize, mark: &[u8]| head.get(at..at + mark.len()) == Some(mark);
        for (at, mark, format) in MARKS {
            // Three letters alone are too few: behind them stand a level and the mark of a block.
            let fits = match mark {
                b"BZh" => matches!(head.get(3), Some(b'1'..=b'9')) && has(4, b"1AY&SY"),
                _ => true,
            };
            if fits && has(at, mark) {
                return Some(format);
            }
        }
        // A VHD of a fixed size is a raw image with a footer, which old programs wrote with 511 bytes.
        let mark = b"conectix";
        let is_footer = |length: usize| {
            tail.len()
                .checked_sub(length)
                .and_then(|at| tail.get(at..at + 8))
                == Some(mark)
        };
        (is_footer(512) || is_footer(511)).then_some(disk("VHD", "vpc"))
    }

    /// What it is, for people.
    pub fn name(&self) -> Cow<'static, str> {
        match self {
            Disk { name, .. } => format!("a virtual disk in the format {name}").into(),
            Compressed { name, .. } => format!("compressed with {name}").into(),
            Archive { name, .. } => format!("an archive: {name}").into(),
            Other { name, .. } => (*name).into(),
        }
    }

    /// What to do to import what is in it. `file`: `None` for standard input.
    pub fn advice(&self, file: Option<&Path>, target: &str) -> String {
        let insist = "--format raw writes it as it is";
        let import = format!("neonsan volume import {} -", quoted(target));
        let raw = file.map_or_else(String::new, |path| {
            format!("{}.raw", path.to_string_lossy())
        });
        let named = file.map(|path| quoted(&path.to_string_lossy()).into_owned());
        match (self, named) {
            (Disk { qemu_name, .. }, Some(file)) => format!(
                "convert it first: qemu-img convert -f {qemu_name} -O raw {file} {}; {insist}",
                quoted(&raw)
            ),
            (Disk { qemu_name, .. }, None) => format!(
                "write it into a file and convert that: qemu-img convert -f {qemu_name} -O raw FILE \
                 FILE.raw; {insist}"
            ),
            (Compressed { unpack, .. }, Some(file)) => format!(
                "unpack it on the way: {unpack} {file} | {import} (with --create, --size says how \
                 large the volume is to be); {insist}"
            ),
            (Compressed { unpack, .. }, None) => {
                format!("unpack it on the way: … | {unpack} | {import}; {insist}")
            }
            (Archive { unpack, .. }, Some(file)) => format!(
                "if a raw image is all that is in it: {unpack} {file} | {import}; else unpack it \
                 first, and import the image; {insist}"
            ),
            (Archive { .. }, None) => format!("unpack it first, and import the image; {insist}"),
            (Other { advice, .. }, _) => format!("{advice}; {insist}"),
        }
    }
}

/// A word as a shell takes it.
pub fn quoted(word: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@,+%[]".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.into();
    }
    format!("'{}'", word.replace('\'', "'\\''")).into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_by_their_marks() {
        for (at, mark, format) in MARKS {
            let mut head = vec![0; HEAD_BYTES];
            head[at..at + mark.len()].copy_from_slice(mark);
            if mark == b"BZh" {
                assert_eq!(Format::of(&head, &[]), None, "three letters are no mark");
                head[..10].copy_from_slice(b"BZh91AY&SY");
            }
            assert_eq!(Format::of(&head, &[]), Some(format));
            // One byte off it is something else.
            head.remove(0);
            assert_eq!(Format::of(&head, &[]), None, "{format:?}");
            let advice = format.advice(Some(Path::new("an image")), "p/v");
            assert!(advice.contains("--format raw"), "{advice}");
        }
    }

    #[test]
    fn a_fixed_vhd_is_told_by_its_end() {
        let mut tail = vec![0; TAIL_BYTES];
        tail[..8].copy_from_slice(b"conectix");
        assert_eq!(Format::of(&[0; 512], &tail), Some(disk("VHD", "vpc")));
        tail.rotate_right(1);
        assert_eq!(Format::of(&[0; 512], &tail), Some(disk("VHD", "vpc")));
        tail.rotate_right(1);
        assert_eq!(Format::of(&[0; 512], &tail), None);
    }

    #[test]
    fn raw_images_and_short_files_have_no_format() {
        let mut mbr = vec![0; 512];
        mbr[510..].copy_from_slice(&[0x55, 0xaa]);
        for head in [&mbr[..], b"", b"Q", b"QFI", &[0; 512]] {
            assert_eq!(Format::of(head, head), None);
        }
    }

    #[test]
    fn advice_can_be_pasted_into_a_shell() {
        let gzip = compressed("gzip", "gzip -dc");
        let advice = gzip.advice(Some(Path::new("it's.gz")), "neonsan://h/p/v");
        assert!(
            advice.contains("gzip -dc 'it'\\''s.gz' | neonsan volume import neonsan://h/p/v -"),
            "{advice}"
        );
        let qcow2 = disk("qcow2", "qcow2");
        let advice = qcow2.advice(Some(Path::new("my disk.qcow2")), "p/v");
        assert!(
            advice.contains("qemu-img convert -f qcow2 -O raw 'my disk.qcow2' 'my disk.qcow2.raw'"),
            "{advice}"
        );
    }
}
