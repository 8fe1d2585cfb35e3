// SPDX-License-Identifier: GPL-2.0

//! Reading attributes of a request. The core has checked their framing and types by the policy;
//! nothing here relies on it: what does not fit reads as absent.

const HEADER_BYTES: usize = 4;
const TYPE_MASK: u16 = 0x3fff;

/// A run of attributes.
#[derive(Clone, Copy)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Attributes(bytes)
    }

    /// The last attribute of this type: netlink lets a later one win.
    pub fn get(self, kind: u16) -> Option<Attribute<'a>> {
        self.all(kind).last()
    }

    /// Whether there is an attribute of this type.
    pub fn has(self, kind: u16) -> bool {
        self.get(kind).is_some()
    }

    /// Every attribute of this type, in order.
    pub fn all(self, kind: u16) -> impl Iterator<Item = Attribute<'a>> {
        self.filter(move |attribute| attribute.kind == kind)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        let (header, _) = self.0.split_first_chunk::<HEADER_BYTES>()?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK;
        let payload = self.0.get(HEADER_BYTES..len)?;
        // Attributes start at multiples of 4; the last one need not be padded.
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some(Attribute { kind, payload })
    }
}

/// One attribute.
#[derive(Clone, Copy)]
pub struct Attribute<'a> {
    kind: u16,
    payload: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// A `u16` in host byte order.
    pub fn u16(self) -> Option<u16> {
        self.payload.try_into().ok().map(u16::from_ne_bytes)
    }

    /// A `u32` in host byte order.
    pub fn u32(self) -> Option<u32> {
        self.payload.try_into().ok().map(u32::from_ne_bytes)
    }

    /// The bytes, if there are `N`.
    pub fn array<const N: usize>(self) -> Option<[u8; N]> {
        self.payload.try_into().ok()
    }

    /// A text, up to its first zero byte; `None` if it is not UTF-8.
    pub fn str(self) -> Option<&'a str> {
        let text = self.payload.split(|byte| *byte == 0).next().unwrap_or(&[]);
        core::str::from_utf8(text).ok()
    }

    /// The attributes within this one.
    pub fn nested(self) -> Attributes<'a> {
        Attributes(self.payload)
    }
}
