// SPDX-License-Identifier: GPL-2.0 OR MIT

//! 4 KiB requests at random places of a volume, through a node, without the driver: what
//! `tools/testing/bench/ceph` compares with librbd alone.

use neonsan_client::{Client, Config};
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

/// Bytes of a request, as in the benchmark's other 4k rows.
const BLOCK: u64 = 4096;

/// Options of `through`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The node's data address.
    #[arg(long)]
    node: SocketAddr,
    /// The volume, as `pool/volume`.
    #[arg(long)]
    volume: String,
    /// Write instead of reading.
    #[arg(long)]
    write: bool,
    /// Connections.
    #[arg(long, default_value_t = 1)]
    connections: u16,
    /// Requests in flight.
    #[arg(long, default_value_t = 32)]
    depth: u64,
    /// Requests altogether.
    #[arg(long)]
    count: u64,
}

/// The output mix of SplitMix64 (Steele, Lea, Flood 2014): places without a pattern, and the same
/// ones in every run.
fn scattered(index: u64) -> u64 {
    let mut z = index.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// One of `depth` loops: each has one request in flight.
async fn job(client: Client, options: (bool, u64, u64), first: u64) -> io::Result<()> {
    let (write, depth, count) = options;
    let blocks = client.geometry().size_bytes.get() / BLOCK;
    for index in (first..count).step_by(depth as usize) {
        let at = scattered(index) % blocks * BLOCK;
        let done = if write {
            let data = vec![index as u8; BLOCK as usize];
            client.write(at, data.into()).await
        } else {
            client.read(at, BLOCK as usize).await.map(drop)
        };
        done.map_err(io::Error::other)?;
    }
    Ok(())
}

async fn all(options: &Options) -> io::Result<f64> {
    let mut config = Config::new(&options.volume, vec![options.node]);
    config.connections = options.connections;
    let client = Client::attach(config).await.map_err(io::Error::other)?;
    let begun = Instant::now();
    let mut jobs = tokio::task::JoinSet::new();
    for first in 0..options.depth {
        let what = (options.write, options.depth, options.count);
        jobs.spawn(job(client.clone(), what, first));
    }
    while let Some(ended) = jobs.join_next().await {
        ended.map_err(io::Error::other)??;
    }
    let seconds = begun.elapsed().as_secs_f64();
    client.detach().await;
    Ok(seconds)
}

/// Does the requests and prints how many it ended a second.
pub fn run(options: &Options) -> io::Result<()> {
    if options.depth == 0 || options.count == 0 {
        return Err(io::Error::other("depth and count must be at least 1"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let seconds = runtime.block_on(all(options))?;
    println!("{:.1}", options.count as f64 / seconds);
    Ok(())
}
