// SPDX-License-Identifier: GPL-2.0

//! Networking: TCP connections that the kernel itself makes.
//!
//! - [`Net`]: a network namespace.
//! - [`SocketAddr`]: where to connect to.
//! - [`TcpSocket`]: one connection, blocking calls, for connecting and shaking hands.
//! - [`BvecBatch`]: memory to be sent in place.
//! - [`Attached`]: a connection with its callbacks installed: data is handed to the driver as it
//!   arrives.
//!
//! C headers: `include/linux/net.h`, `include/net/sock.h`, `include/net/tcp.h`.

mod addr;
mod attached;
mod bvec_batch;
mod namespace;
mod tcp_socket;

pub use addr::{IpAddr, SocketAddr};
pub use attached::{Attached, Callbacks};
pub use bvec_batch::{BvecBatch, SendFlags};
pub use namespace::Net;
pub use tcp_socket::{SocketState, TcpSocket};
