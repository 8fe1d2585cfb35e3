// SPDX-License-Identifier: GPL-2.0 OR MIT

//! User-space client of NeonSAN volumes.
//!
//! It runs the same session machine as the kernel module (`neonsan-session`), over tokio's sockets:
//! what the driver decides after a lost connection, this client decides too. The command line uses
//! it for import and export; tests and benchmarks use it as a peer that needs no kernel.
//!
//! ```no_run
//! # async fn example() -> Result<(), neonsan_client::Error> {
//! use neonsan_client::{Client, Config};
//! let config = Config::new("pool/volume", vec!["127.0.0.1:9666".parse().unwrap()]);
//! let client = Client::attach(config).await?;
//! client.write(0, bytes::Bytes::from(vec![7; 4096])).await?;
//! client.flush().await?;
//! assert_eq!(client.read(0, 4096).await?[0], 7);
//! client.detach().await;
//! # Ok(()) }
//! ```
//!
//! # Who does what
//!
//! [`io`](Client) calls put requests into the slots of a *lane* (one per connection). A *control*
//! task owns the session machine and does what it says. While a connection is in force, a *link*
//! (a reader and a writer task) moves bytes between its socket and its lane.

mod config;
mod control;
mod error;
mod io;
mod lane;
mod left;
mod link;

pub use config::Config;
pub use control::Event;
pub use error::Error;
pub use io::{Client, WriteFlags};
