// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Making and reading attributes. What does not fit reads as absent: a newer module may know more
//! than this program, and an older one less.

use netlink_packet_core::{NLA_F_NESTED, NLA_HEADER_SIZE, NLA_TYPE_MASK};

/// Attributes being written.
#[derive(Clone, Debug, Default)]
pub struct AttrsMut(Vec<u8>);

impl AttrsMut {
    /// Bytes as they are. Attributes of this family are short: at most 64 KiB.
    pub fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let len = u16::try_from(NLA_HEADER_SIZE + value.len()).unwrap_or(u16::MAX);
        let value = &value[..usize::from(len) - NLA_HEADER_SIZE];
        self.0.extend(len.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// A `u16` in host byte order.
    pub fn u16(&mut self, kind: u16, value: u16) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// A `u32` in host byte order.
    pub fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    /// An attribute without a value.
    pub fn flag(&mut self, kind: u16) -> &mut Self {
        self.bytes(kind, &[])
    }

    /// A text with the zero byte behind it.
    pub fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    /// An attribute that holds others.
    pub fn nest(&mut self, kind: u16, inner: &AttrsMut) -> &mut Self {
        self.bytes(kind | NLA_F_NESTED, &inner.0)
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The attributes as they stand in a message.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Attributes of a message or of a nest, being read.
#[derive(Clone, Copy)]
pub struct Attrs<'a>(pub &'a [u8]);

impl<'a> Attrs<'a> {
    /// The payload of every attribute of this type, in order. A damaged attribute ends the run.
    fn all(mut self, kind: u16) -> impl Iterator<Item = &'a [u8]> {
        let run = std::iter::from_fn(move || {
            let (header, _) = self.0.split_first_chunk::<NLA_HEADER_SIZE>()?;
            let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
            let kind = u16::from_ne_bytes([header[2], header[3]]) & NLA_TYPE_MASK;
            let value = self.0.get(NLA_HEADER_SIZE..len)?;
            self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or(&[]);
            Some((kind, value))
        });
        run.filter_map(move |(found, value)| (found == kind).then_some(value))
    }

    /// The payload of the last attribute of this type: netlink lets a later one win.
    pub fn bytes(self, kind: u16) -> Option<&'a [u8]> {
        self.all(kind).last()
    }

    /// A number of 1, 2, 4 or 8 bytes in host byte order.
    pub fn number(self, kind: u16) -> Option<u64> {
        match *self.bytes(kind)? {
            [a] => Some(a.into()),
            [a, b] => Some(u16::from_ne_bytes([a, b]).into()),
            [a, b, c, d] => Some(u32::from_ne_bytes([a, b, c, d]).into()),
            [a, b, c, d, e, f, g, h] => Some(u64::from_ne_bytes([a, b, c, d, e, f, g, h])),
            _ => None,
        }
    }

    /// A number that fits 32 bits.
    pub fn u32(self, kind: u16) -> Option<u32> {
        self.number(kind).and_then(|value| value.try_into().ok())
    }

    /// A text up to its zero byte.
    pub fn text(self, kind: u16) -> Option<String> {
        let text = self.bytes(kind)?.split(|byte| *byte == 0).next()?;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    /// The attributes within the last attribute of this type.
    pub fn nested(self, kind: u16) -> Option<Attrs<'a>> {
        self.bytes(kind).map(Attrs)
    }

    /// The attributes within each attribute of this type, in order.
    pub fn all_nested(self, kind: u16) -> impl Iterator<Item = Attrs<'a>> {
        self.all(kind).map(Attrs)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let (mut message, mut first, mut second) = <(AttrsMut, AttrsMut, AttrsMut)>::default();
        first.u16(1, 9666).bytes(2, &[192, 0, 2, 1]);
        second.u16(1, 9667);
        message
            .u32(1, 7)
            .text(2, "name")
            .nest(3, &first)
            .nest(3, &second)
            .bytes(4, &u64::MAX.to_ne_bytes())
            .flag(5);
        let attrs = Attrs(message.as_bytes());
        assert_eq!(attrs.u32(1), Some(7));
        assert_eq!(attrs.text(2).unwrap(), "name");
        let ports: Vec<_> = attrs.all_nested(3).map(|n| n.number(1).unwrap()).collect();
        assert_eq!(ports, [9666, 9667]);
        assert_eq!(attrs.number(4), Some(u64::MAX));
        assert_eq!(attrs.u32(4), None);
        assert_eq!(attrs.bytes(5), Some(&[][..]));
        assert_eq!(attrs.number(6), None);
    }

    #[test]
    fn damaged_attributes_read_as_absent() {
        let mut message = AttrsMut::default();
        message.u32(1, 7).u32(2, 8);
        for damage in [0xffff_u16, 0, 3] {
            let mut bytes = message.as_bytes().to_vec();
            bytes[8..10].copy_from_slice(&damage.to_ne_bytes());
            assert_eq!(Attrs(&bytes).u32(1), Some(7));
            assert_eq!(Attrs(&bytes).u32(2), None);
        }
        assert_eq!(Attrs(&[1, 2, 3]).u32(1), None);
    }
}
