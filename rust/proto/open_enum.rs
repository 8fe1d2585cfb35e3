// SPDX-License-Identifier: GPL-2.0 OR MIT

//! Enumerations that keep what they do not know.

/// Declares an enumeration over an integer of the wire whose unknown values survive decoding.
macro_rules! open_enum {
    (
        $(#[$outer:meta])*
        pub enum $name:ident($repr:ty) {
            $( $(#[$inner:meta])* $variant:ident = $value:literal, )*
        }
    ) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $( $(#[$inner])* $variant, )*
            /// A value which this version of the protocol does not define.
            Unknown($repr),
        }

        impl $name {
            /// Every value that this version defines, in the order of the document.
            pub const ALL: &'static [$name] = &[ $( $name::$variant, )* ];

            /// Decodes a value of the wire. Never fails: unknown values are kept.
            #[inline]
            pub const fn from_wire(value: $repr) -> Self {
                match value {
                    $( $value => $name::$variant, )*
                    other => $name::Unknown(other),
                }
            }

            /// The value as it goes over the wire.
            #[inline]
            pub const fn to_wire(self) -> $repr {
                match self {
                    $( $name::$variant => $value, )*
                    $name::Unknown(other) => other,
                }
            }

            /// The name that the protocol document uses, or `"unknown"`.
            pub const fn name(self) -> &'static str {
                match self {
                    $( $name::$variant => stringify!($variant), )*
                    $name::Unknown(_) => "unknown",
                }
            }
        }
    };
}

pub(crate) use open_enum;
