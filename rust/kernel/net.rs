// SPDX-License-Identifier: GPL-2.0

//! Networking: TCP connections that the kernel itself makes.
//!
//! - [`Net`]: a network namespace.
//! - [`SocketAddr`]: where to connect to.
//! - [`TcpSocket`]: one connection, blocking calls, for connecting and shaking hands.
//! - [`SendBatch`]: headers and the memory of requests, to be sent in place.
//! - [`Attached`]: a connection with its callbacks installed: data is handed to the driver as it
//!   arrives.
//!
//! C headers: `include/linux/net.h`, `include/net/sock.h`, `include/net/tcp.h`.

mod addr;
mod attached;
mod namespace;
mod send_batch;
mod tcp_socket;

pub use addr::{IpAddr, SocketAddr};
pub use attached::{Attached, Callbacks};
pub use namespace::Net;
pub use send_batch::{BatchSize, SendBatch};
pub use tcp_socket::{SocketState, TcpSocket};
