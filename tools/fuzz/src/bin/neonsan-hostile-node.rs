// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A storage node that serves one volume in memory and misbehaves on purpose, for tests of clients.

use clap::Parser;
use neonsan_fuzz::conversation::geometry;
use neonsan_fuzz::hostile::{self, Misbehaviour, Outcome};
use neonsan_fuzz::node::{Config, Node};
use neonsan_proto::{Features, Geometry, VolumeName};
use std::net::TcpListener;
use std::process::ExitCode;

/// Serve one volume in memory over the NeonSAN protocol, right until it misbehaves.
///
/// Prints "listening on ADDRESS" when it is ready and "misbehaved: NAME" each time it did.
/// It runs until it is killed.
#[derive(Debug, Parser)]
#[command(
    name = "neonsan-hostile-node",
    version,
    after_help = "Exit codes: 0 after --list and --help, 1 cannot listen or accept, 2 wrong usage."
)]
struct Args {
    /// What to do wrong: a name of --list. Without it the node only behaves.
    #[arg(long, value_name = "NAME")]
    misbehave: Option<String>,

    /// Address and port to listen on; port 0 picks a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9666")]
    listen: String,

    /// How many requests to answer right first. With 0 a misbehaviour of the handshake comes with
    /// the first connection; with more, connections are cut for it.
    #[arg(long, value_name = "N", default_value_t = 100)]
    after: u64,

    /// How often to misbehave, each time after so many right answers.
    #[arg(long, value_name = "N", default_value_t = 1)]
    times: u64,

    /// The name of the volume.
    #[arg(long, value_name = "POOL/VOLUME", default_value = "test/volume")]
    volume: String,

    /// Size of the volume in MiB.
    #[arg(long, value_name = "MIB", default_value_t = 64, value_parser = clap::value_parser!(u64).range(1..=4096))]
    size: u64,

    /// Logical block size in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 512, value_parser = clap::builder::PossibleValuesParser::new(["512", "1024", "2048", "4096"]).map(|s: String| s.parse::<u32>().unwrap_or(512)))]
    block_size: u32,

    /// Optimal size of an I/O in bytes: a multiple of 4096, or 0 for none.
    #[arg(long, value_name = "BYTES", default_value_t = 65536, value_parser = optimal_io)]
    optimal_io: u32,

    /// The checksums that the node offers.
    #[arg(long, value_name = "WHICH", default_value = "all", value_parser = ["none", "header", "all"])]
    checksums: String,

    /// Print every misbehaviour: name, moment, what becomes of the device, the causes that a
    /// client may report (and without checksums, if they differ), what it does; separated by tabs.
    #[arg(long)]
    list: bool,
}

use clap::builder::TypedValueParser as _;

fn optimal_io(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(bytes) if bytes % 4096 == 0 => Ok(bytes),
        _ => Err("write a number of bytes that is a multiple of 4096".to_owned()),
    }
}

fn list() {
    for m in hostile::all() {
        let outcome = match m.outcome {
            Outcome::Recovers => "recovers",
            Outcome::Allowed => "allowed",
            Outcome::Fails => "fails",
        };
        let causes = |causes: &[&str]| match causes {
            [] => "-".to_owned(),
            causes => causes.join("|"),
        };
        let moment = format!("{:?}", m.moment).to_lowercase();
        let unchecked = causes(m.causes(Features::NONE));
        println!(
            "{}\t{moment}\t{outcome}\t{}\t{unchecked}\t{}",
            m.name,
            causes(m.causes),
            m.about
        );
    }
}

fn usage(message: &str) -> ExitCode {
    eprintln!("neonsan-hostile-node: {message}");
    ExitCode::from(2)
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.list {
        list();
        return ExitCode::SUCCESS;
    }
    let misbehaviour = match args
        .misbehave
        .as_deref()
        .map(|n| (n, Misbehaviour::find(n)))
    {
        Some((name, None)) => {
            return usage(&format!(
                "there is no misbehaviour {name:?}; --list shows them"
            ))
        }
        Some((_, found)) => found,
        None => None,
    };
    if let Err(error) = VolumeName::parse(&args.volume) {
        return usage(&format!("{}: {error}", args.volume));
    }
    let node = Node::new(Config {
        volume: args.volume,
        geometry: Geometry {
            io_opt_bytes: args.optimal_io.into(),
            ..geometry(args.size << 20, args.block_size)
        },
        features: match args.checksums.as_str() {
            "none" => Features::NONE,
            "header" => Features::HEADER_CRC,
            _ => Features::KNOWN,
        },
        misbehaviour,
        after: args.after,
        times: args.times,
    });
    let listener = match TcpListener::bind(&args.listen) {
        Ok(listener) => listener,
        Err(error) => {
            eprintln!(
                "neonsan-hostile-node: cannot listen on {}: {error}",
                args.listen
            );
            return ExitCode::FAILURE;
        }
    };
    match listener.local_addr() {
        Ok(address) => println!("listening on {address}"),
        Err(_) => println!("listening on {}", args.listen),
    }
    if let Err(error) = node.serve(&listener) {
        eprintln!("neonsan-hostile-node: cannot accept: {error}");
    }
    ExitCode::FAILURE
}
