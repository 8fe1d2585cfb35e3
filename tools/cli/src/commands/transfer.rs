// SPDX-License-Identifier: GPL-2.0 OR MIT

//! `neonsan volume import` and `export`: a volume's contents from and to a file, over the data
//! protocol. Both know holes: zeroes are neither sent nor stored where that can be helped.

use super::attach::resolve;
use super::volume::{client as control_client, create_for_import, runtime};
use crate::cli::{Common, Transfer, VolumeExport, VolumeImport};
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::host::{show_uuid, Host};
use crate::image::{file_error, Image};
use crate::output::{print_json, warn};
use crate::signals::Signals;
use crate::sparse::{runs, Piece, Source};
use crate::target::Target;
use crate::units::show_size;
use bytes::Bytes;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use neonsan_api::{OpenMode, SessionInfo};
use neonsan_client::Client;
use neonsan_proto::{Capabilities, Mode, Status};
use neonsan_session::{CloseCause, Timeouts};
use serde::Serialize;
use std::fs::File;
use std::future::Future;
use std::io::IsTerminal as _;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::task::JoinSet;

/// Bytes of one piece at most: long enough that its round trip does not show.
const PIECE_BYTES: u64 = 1 << 20;

/// Zeroes written at a time at most, so that progress is seen.
const HOLE_BYTES: u64 = 64 << 20;

/// Pieces under way at a time.
const PIECES: usize = 16;

/// How long a node may be away before a transfer gives up, unless told otherwise.
const LOSS_MS: u32 = 60_000;

/// How long the control API may take to say who holds a volume that is exported.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);

/// The answer, as in Documentation/cli-json.rst.
#[derive(Serialize)]
struct Transferred<'a> {
    volume: &'a str,
    file: String,
    size_bytes: u64,
    data_bytes: u64,
    zero_bytes: u64,
}

/// Writes a file into a volume.
pub fn import(
    common: &Common,
    config: &Config,
    args: &VolumeImport,
    api: Option<&str>,
) -> Result<()> {
    let target: Target = args.target.parse()?;
    if target.volume.contains('@') {
        let message = format!("{} is a snapshot, which can only be read", target.volume);
        return Err(Error::new(Kind::Usage, message).with_hint("name a volume"));
    }
    let file = File::open(&args.file).map_err(|error| file_error(&args.file, &error))?;
    let source = Source::new(file).map_err(|error| file_error(&args.file, &error))?;
    let client_config = client_config(config, &target, &args.transfer, Mode::Exclusive)?;
    let created = if args.create {
        let size = source.size().next_multiple_of(args.block_size.max(512));
        Some(create_for_import(
            config,
            api,
            &target,
            size,
            args.block_size,
        )?)
    } else {
        None
    };
    let bar = progress_bar(common, source.size());
    let path = &args.file;
    let (data_bytes, zero_bytes) = run(async {
        let mut signals = Signals::new()?;
        let client = signals.or(attach(client_config)).await?;
        let result = async {
            if let Some(id) = &created {
                check_created(&client, &target, id)?;
            }
            let sending = send(&client, &source, path, created.is_some(), &bar);
            signals.or(sending).await
        };
        let result = result.await;
        client.detach().await;
        result
    })?;
    bar.finish_and_clear();
    report(
        common,
        &target,
        &args.file,
        source.size(),
        data_bytes,
        zero_bytes,
    )
}

/// Writes a volume into a file.
pub fn export(
    common: &Common,
    config: &Config,
    args: &VolumeExport,
    api: Option<&str>,
) -> Result<()> {
    let target: Target = args.target.parse()?;
    let path = &args.file;
    if path.as_os_str() == "-" {
        let message = "a volume cannot be exported to standard output";
        return Err(Error::new(Kind::Usage, message)
            .with_hint("name a file; one whose name is '-' is written ./-"));
    }
    let client_config = client_config(config, &target, &args.transfer, Mode::ReadOnly)?;
    let control = control_client(api, config, Some(&target))?.with_timeout(ASK_TIMEOUT);
    let (size, data_bytes, zero_bytes) = run(async {
        let mut signals = Signals::new()?;
        let client = signals.or(attach(client_config)).await?;
        let size = client.geometry().size_bytes.get();
        let result = async {
            warn_if_written(&client, &control, &target).await;
            let image = Image::create(path, size, args.force)?;
            let bar = progress_bar(common, size);
            let sums = signals.or(receive(&client, size, &image, &bar)).await?;
            bar.finish_and_clear();
            image.finish()?;
            Ok((size, sums.0, sums.1))
        };
        let result = result.await;
        client.detach().await;
        result
    })?;
    report(common, &target, path, size, data_bytes, zero_bytes)
}

fn run<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    runtime()?.block_on(work)
}

async fn attach(config: neonsan_client::Config) -> Result<Client> {
    Client::attach(config).await.map_err(explain)
}

/// The identity of the volume that is open, as the control API writes it.
fn identity(client: &Client) -> String {
    show_uuid(&client.opened().volume_id).replace('-', "")
}

/// Warns of an image that mixes states: a host may write to the volume meanwhile. Only the control API
/// knows, and what it does not say is no reason not to export.
async fn warn_if_written(client: &Client, control: &neonsan_api::Client, target: &Target) {
    // What is no volume's name is a snapshot's, to which nobody writes.
    let Ok(name) = target.volume.parse() else {
        return;
    };
    let Ok(volume) = control.volume(&name).await else {
        return;
    };
    // Another node may have a volume of this name.
    if volume.id != identity(client) {
        return;
    }
    let writes = |session: &&SessionInfo| session.mode != OpenMode::ReadOnly;
    let writers = volume.sessions.iter().filter(writes);
    let hosts: Vec<_> = writers.map(|session| session.host.as_str()).collect();
    if !hosts.is_empty() {
        warn(&format!(
            "{name} is held for writing, by {}: the image may mix states of different moments; make a \
             snapshot and export that",
            hosts.join(", ")
        ));
    }
}

/// Refuses to write into a volume that is not the one which was created: the control API and the
/// data protocol may have been asked of two nodes, each with a volume of this name.
fn check_created(client: &Client, target: &Target, id: &str) -> Result<()> {
    let opened = identity(client);
    if opened == id {
        return Ok(());
    }
    let message = format!(
        "the volume {} that was created has the identity {id}, the one that the nodes of the data \
         protocol serve has {opened}: nothing was written",
        target.volume
    );
    Err(Error::new(Kind::Refused, message).with_hint(
        "name one node for both with --api and --node; the new volume is empty: look at both with \
         `neonsan volume info` before deleting it",
    ))
}

fn client_config(
    config: &Config,
    target: &Target,
    args: &Transfer,
    mode: Mode,
) -> Result<neonsan_client::Config> {
    let nodes = resolve(target, &args.nodes, config)?
        .into_iter()
        .map(|node| match (node.address, node.scope_id) {
            (IpAddr::V6(address), Some(scope)) => {
                SocketAddr::V6(SocketAddrV6::new(address, node.port, 0, scope))
            }
            (address, _) => SocketAddr::new(address, node.port),
        })
        .collect();
    let default = Timeouts::DEFAULT;
    let times = &config.timeouts;
    let mut client = neonsan_client::Config::new(&target.volume, nodes);
    client.mode = mode;
    client.connections = args.connections;
    client.checksums = config.attach.payload_crc.unwrap_or(false);
    match Host::this(config.host_id.as_deref()) {
        Ok(host) => {
            client.host_id = host.id;
            client.host_boot = host.boot;
            client.session_dir = session_dir();
        }
        Err(error) if config.host_id.is_some() => return Err(error),
        // The client has a random one of its own: good enough for as long as this command runs.
        Err(_) => {}
    }
    client.timeouts = Timeouts {
        request_ms: times.request.unwrap_or(default.request_ms),
        connect_ms: times.connect.unwrap_or(default.connect_ms),
        heartbeat_interval_ms: times
            .heartbeat_interval
            .unwrap_or(default.heartbeat_interval_ms),
        heartbeat_timeout_ms: times
            .heartbeat_timeout
            .unwrap_or(default.heartbeat_timeout_ms),
        reconnect_delay_min_ms: times
            .reconnect_delay_min
            .unwrap_or(default.reconnect_delay_min_ms),
        reconnect_delay_max_ms: times
            .reconnect_delay_max
            .unwrap_or(default.reconnect_delay_max_ms),
        loss_ms: times.loss.unwrap_or(LOSS_MS),
    };
    Ok(client)
}

/// Where it is noted which sessions are open, so that the next command can resume what a killed one
/// has left.
fn session_dir() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Some(PathBuf::from("/run/neonsan-client"));
    }
    let own = std::env::var_os("XDG_RUNTIME_DIR")?;
    Some(Path::new(&own).join("neonsan-client"))
}

/// Sends every piece of the source and makes it durable. Returns the bytes sent, and those that
/// were zeroes. `fresh`: the volume reads as zeroes, which then need not be written.
async fn send(
    client: &Client,
    source: &Source,
    path: &Path,
    fresh: bool,
    bar: &ProgressBar,
) -> Result<(u64, u64)> {
    let geometry = client.geometry();
    let room = geometry.size_bytes.get();
    if source.size() > room {
        let message = format!(
            "{} has {} and does not fit the volume, which has {}",
            path.display(),
            show_size(source.size()),
            show_size(room)
        );
        return Err(Error::new(Kind::Refused, message)
            .with_hint("make the volume larger with `neonsan volume resize`"));
    }
    let block = u64::from(geometry.logical_block_size.get());
    let zeroes = geometry.capabilities().contains(Capabilities::WRITE_ZEROES);
    // Zeroes that must be sent are pieces like any other.
    let max_hole = if zeroes || fresh {
        HOLE_BYTES
    } else {
        PIECE_BYTES
    };
    let (mut data_bytes, mut zero_bytes) = (0, 0);
    let mut under_way = JoinSet::new();
    let mut at = 0;
    while let Some(piece) = source
        .piece(at, PIECE_BYTES, max_hole, block)
        .map_err(|error| file_error(path, &error))?
    {
        let client = client.clone();
        let length = piece.length();
        match piece {
            Piece::Zeroes(length) => {
                zero_bytes += length.min(source.size() - at);
                if zeroes && !fresh {
                    under_way.spawn(async move { client.write_zeroes(at, length, false).await });
                } else if !fresh {
                    let data = Bytes::from(vec![0; length as usize]);
                    under_way.spawn(async move { client.write(at, data).await });
                }
            }
            Piece::Data(data) => {
                data_bytes += length.min(source.size() - at);
                under_way.spawn(async move { client.write(at, data.into()).await });
            }
        }
        at += length;
        while under_way.len() >= PIECES {
            joined(under_way.join_next().await)?;
        }
        bar.set_position(at);
        // Pieces that need no round trip must not keep a signal waiting.
        tokio::task::yield_now().await;
    }
    while let Some(result) = under_way.join_next().await {
        joined(Some(result))?;
    }
    client.flush().await.map_err(explain)?;
    Ok((data_bytes, zero_bytes))
}

/// Reads the whole volume into the image. Returns the bytes written, and those that were zeroes.
async fn receive(
    client: &Client,
    size: u64,
    image: &Image,
    bar: &ProgressBar,
) -> Result<(u64, u64)> {
    let (mut data_bytes, mut zero_bytes) = (0, 0);
    let mut under_way = JoinSet::new();
    let mut at = 0;
    while at < size || !under_way.is_empty() {
        if at < size && under_way.len() < PIECES {
            let client = client.clone();
            let length = PIECE_BYTES.min(size - at) as usize;
            under_way.spawn(async move { client.read(at, length).await.map(|data| (at, data)) });
            at += length as u64;
            continue;
        }
        let Some((start, data)) = joined(under_way.join_next().await)? else {
            break;
        };
        for (offset, run, zero) in runs(&data) {
            if zero {
                zero_bytes += run.len() as u64;
            } else {
                data_bytes += run.len() as u64;
            }
            if !zero || !image.reads_as_zeroes() {
                image.write_at(run, start + offset as u64)?;
            }
        }
        bar.inc(data.len() as u64);
    }
    Ok((data_bytes, zero_bytes))
}

/// The result of a task that has ended.
fn joined<T>(
    result: Option<
        std::result::Result<std::result::Result<T, neonsan_client::Error>, tokio::task::JoinError>,
    >,
) -> Result<Option<T>> {
    match result {
        None => Ok(None),
        Some(Ok(Ok(value))) => Ok(Some(value)),
        Some(Ok(Err(error))) => Err(explain(error)),
        Some(Err(error)) => Err(Error::new(
            Kind::Other,
            format!("a transfer ended: {error}"),
        )),
    }
}

fn progress_bar(common: &Common, size: u64) -> ProgressBar {
    let shown = !common.json && std::io::stderr().is_terminal();
    let target = if shown {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let form = "{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    let style = ProgressStyle::with_template(form).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(Some(size), target).with_style(style)
}

fn report(
    common: &Common,
    target: &Target,
    file: &Path,
    size_bytes: u64,
    data_bytes: u64,
    zero_bytes: u64,
) -> Result<()> {
    if common.json {
        return print_json(&Transferred {
            volume: &target.volume,
            file: file.display().to_string(),
            size_bytes,
            data_bytes,
            zero_bytes,
        });
    }
    eprintln!(
        "{}: {}, of which {} data",
        target.volume,
        show_size(size_bytes),
        show_size(data_bytes)
    );
    Ok(())
}

fn explain(error: neonsan_client::Error) -> Error {
    use neonsan_client::Error as E;
    let message = error.to_string();
    match error {
        E::Misuse(_) => Error::new(Kind::Usage, message),
        E::Connect { cause, .. } | E::Lost(cause) => explain_cause(cause, message),
        E::Refused { status, .. } | E::Io { status, .. } => {
            Error::new(kind_of_status(status), message)
        }
        E::WritesLost => Error::new(Kind::Data, message)
            .with_hint("run the import again: what was written may be lost"),
        E::Detached => Error::new(Kind::Other, message),
    }
}

fn explain_cause(cause: CloseCause, message: String) -> Error {
    match cause {
        CloseCause::ConnectFailed(_)
        | CloseCause::ConnectTimeout
        | CloseCause::SocketError(_)
        | CloseCause::PeerClosed
        | CloseCause::RequestTimeout
        | CloseCause::HeartbeatTimeout
        | CloseCause::GoingAway => Error::new(Kind::Unreachable, message).with_hint(
            "check that neonsan-node runs there and takes data connections at this address \
             (port 9666 unless configured otherwise)",
        ),
        CloseCause::Refused(status) => Error::new(kind_of_status(status), message),
        CloseCause::Fenced | CloseCause::VolumeChanged(_) => Error::new(Kind::Busy, message),
        _ => Error::new(Kind::Protocol, message)
            .with_hint("check that it is a NeonSAN node of a version that fits, and its data port"),
    }
}

fn kind_of_status(status: Status) -> Kind {
    match status {
        Status::NoSuchVolume | Status::NoSuchSnapshot => Kind::NotFound,
        Status::HeldByOther
        | Status::Draining
        | Status::TooManySessions
        | Status::TooManyConnections
        | Status::StaleGeneration
        | Status::Fenced
        | Status::Busy => Kind::Busy,
        Status::NotPermitted => Kind::Permission,
        Status::NoSpace => Kind::NoSpace,
        Status::VolumeDamaged
        | Status::MediaError
        | Status::ChecksumMismatch
        | Status::Internal => Kind::Data,
        Status::VersionUnsupported | Status::FeatureUnsupported | Status::Unknown(_) => {
            Kind::Protocol
        }
        Status::GoingAway | Status::UnknownSession | Status::NotOwner => Kind::Unreachable,
        Status::Ok
        | Status::BadName
        | Status::OpenedReadOnly
        | Status::BadOpen
        | Status::OutOfRange
        | Status::Misaligned
        | Status::TooLarge
        | Status::Unsupported
        | Status::ReadOnly
        | Status::AtomicLimit
        | Status::BadRequest => Kind::Refused,
    }
}
