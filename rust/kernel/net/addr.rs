// SPDX-License-Identifier: GPL-2.0

//! Addresses.
//!
//! C headers: `include/uapi/linux/in.h`, `include/uapi/linux/in6.h`.

use core::fmt;
use neonsan_bindings as bindings;

/// An Internet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpAddr {
    /// Version 4, in network order.
    V4([u8; 4]),
    /// Version 6, in network order.
    V6([u8; 16]),
}

/// Where a TCP server listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketAddr {
    /// The host.
    pub ip: IpAddr,
    /// The port, in host order.
    pub port: u16,
    /// The interface of a link-local version 6 address, else zero.
    pub scope_id: u32,
}

/// A C socket address of either family.
#[repr(C)]
pub(super) union RawAddr {
    v4: bindings::sockaddr_in,
    v6: bindings::sockaddr_in6,
}

impl RawAddr {
    /// No address (`AF_UNSPEC`), and its length.
    pub(super) fn unspecified() -> (RawAddr, usize) {
        let mut v4: bindings::sockaddr_in = pin_init::zeroed();
        v4.sin_family = bindings::AF_UNSPEC as u16;
        (RawAddr { v4 }, size_of::<bindings::sockaddr_in>())
    }
}

impl SocketAddr {
    /// The C form and its length.
    pub(super) fn to_raw(self) -> (RawAddr, usize) {
        match self.ip {
            IpAddr::V4(ip) => {
                let mut v4: bindings::sockaddr_in = pin_init::zeroed();
                v4.sin_family = bindings::AF_INET as u16;
                v4.sin_port = self.port.to_be();
                v4.sin_addr.s_addr = u32::from_ne_bytes(ip);
                (RawAddr { v4 }, size_of::<bindings::sockaddr_in>())
            }
            IpAddr::V6(ip) => {
                let mut v6: bindings::sockaddr_in6 = pin_init::zeroed();
                v6.sin6_family = bindings::AF_INET6 as u16;
                v6.sin6_port = self.port.to_be();
                v6.sin6_scope_id = self.scope_id;
                v6.sin6_addr.in6_u.u6_addr8 = ip;
                (RawAddr { v6 }, size_of::<bindings::sockaddr_in6>())
            }
        }
    }

    /// The address family, for making a socket.
    pub(super) fn family(&self) -> u32 {
        match self.ip {
            IpAddr::V4(_) => bindings::AF_INET,
            IpAddr::V6(_) => bindings::AF_INET6,
        }
    }
}

impl fmt::Display for IpAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IpAddr::V4([a, b, c, d]) => write!(f, "{a}.{b}.{c}.{d}"),
            IpAddr::V6(bytes) => {
                for (i, pair) in bytes.chunks_exact(2).enumerate() {
                    let separator = if i == 0 { "" } else { ":" };
                    if let [high, low] = pair {
                        write!(f, "{separator}{:x}", u16::from_be_bytes([*high, *low]))?;
                    }
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for SocketAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            IpAddr::V4(_) => write!(f, "{}:{}", self.ip, self.port),
            IpAddr::V6(_) if self.scope_id != 0 => {
                write!(f, "[{}%{}]:{}", self.ip, self.scope_id, self.port)
            }
            IpAddr::V6(_) => write!(f, "[{}]:{}", self.ip, self.port),
        }
    }
}
