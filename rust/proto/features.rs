// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Bit sets of the wire. Unknown bits are kept by decoding and refused where they would matter.

macro_rules! bit_set {
    (
        $(#[$outer:meta])*
        pub struct $name:ident($repr:ty) {
            $( $(#[$inner:meta])* $bit:ident = $value:expr, )*
        }
    ) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct $name(pub $repr);

        impl $name {
            $( $(#[$inner])* pub const $bit: $name = $name($value); )*

            /// No bit.
            pub const NONE: $name = $name(0);

            /// Every bit that this version defines.
            pub const KNOWN: $name = $name(0 $( | $value )*);

            /// The names of the bits in the protocol document, with their values.
            pub const NAMES: &'static [(&'static str, $repr)] = &[ $( (stringify!($bit), $value), )* ];

            /// Whether all bits of `other` are set.
            pub const fn contains(self, other: $name) -> bool {
                self.0 & other.0 == other.0
            }

            /// The bits that either has.
            pub const fn union(self, other: $name) -> $name {
                $name(self.0 | other.0)
            }

            /// The bits that both have.
            pub const fn intersection(self, other: $name) -> $name {
                $name(self.0 & other.0)
            }

            /// The bits of `self` that `other` lacks.
            pub const fn difference(self, other: $name) -> $name {
                $name(self.0 & !other.0)
            }

            /// Whether no bit is set.
            pub const fn is_empty(self) -> bool {
                self.0 == 0
            }
        }
    };
}

bit_set! {
    /// What both ends can do on a connection, agreed in the hellos.
    pub struct Features(u64) {
        /// Headers carry a CRC-32C.
        HEADER_CRC = 1 << 0,
        /// Payloads carry a CRC-32C. Needs [`Features::HEADER_CRC`], which protects the
        /// checksum itself.
        PAYLOAD_CRC = 1 << 1,
    }
}

bit_set! {
    /// Modifiers of a request (`flags` of the header).
    pub struct RequestFlags(u8) {
        /// WRITE and WRITE_ZEROES: answer only when the data is durable.
        FUA = 1 << 0,
        /// WRITE: after a power loss all of it or none of it is there.
        ATOMIC = 1 << 1,
        /// WRITE_ZEROES: keep the space allocated.
        NO_UNMAP = 1 << 2,
        /// CLOSE: end the whole session, not only this connection.
        RELEASE = 1 << 3,
    }
}

bit_set! {
    /// Modifiers of an OPEN.
    pub struct OpenFlags(u8) {
        /// Take an exclusive volume from the host that holds it; that host is fenced first.
        FORCE = 1 << 0,
    }
}

bit_set! {
    /// What a volume can do (`capabilities` of a `Geometry`).
    pub struct Capabilities(u32) {
        /// Writes are refused: a snapshot, or a volume opened read-only.
        READ_ONLY = 1 << 0,
        /// An answered write may be lost with power until a FLUSH is answered.
        VOLATILE_CACHE = 1 << 1,
        /// [`RequestFlags::FUA`] is honoured.
        FUA = 1 << 2,
        /// DISCARD is honoured.
        DISCARD = 1 << 3,
        /// Discarded ranges (whole granules) read as zeroes.
        DISCARD_ZEROES = 1 << 4,
        /// WRITE_ZEROES is honoured.
        WRITE_ZEROES = 1 << 5,
        /// [`RequestFlags::ATOMIC`] is honoured within the atomic limits.
        ATOMIC = 1 << 6,
        /// Seeks cost: a hint to the host's I/O scheduler.
        ROTATIONAL = 1 << 7,
    }
}
