// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Identities of requests and sessions.

/// blk-mq's index of a request within its hardware queue, and so of a slot within its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tag(pub u16);

/// Fencing counter of a session: every OPEN has a higher one than any before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(pub u64);

impl Generation {
    /// The one to use after this.
    pub const fn next(self) -> Generation {
        Generation(self.0.wrapping_add(1))
    }
}

/// What a request is called on the wire: how often its slot was used, on which connection, which
/// tag. A reply must match all three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie {
    /// How often the slot was used.
    pub slot_generation: u32,
    /// The index of the connection in its session.
    pub connection: u16,
    /// The slot.
    pub tag: Tag,
}

impl Cookie {
    /// The 64 bits of the header's field.
    pub const fn to_wire(self) -> u64 {
        ((self.slot_generation as u64) << 32) | ((self.connection as u64) << 16) | self.tag.0 as u64
    }

    /// Reads the header's field; every value is a cookie of some kind.
    pub const fn from_wire(value: u64) -> Self {
        Cookie {
            slot_generation: (value >> 32) as u32,
            connection: (value >> 16) as u16,
            tag: Tag(value as u16),
        }
    }
}
