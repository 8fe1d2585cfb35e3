// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What import and export have in common: how the volume is opened, and what is said at the end.

use super::attach::resolve;
use super::volume::noticed;
use crate::cli::{Common, Transfer};
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::host::{show_uuid, Host};
use crate::output::{json_text, print, say};
use crate::signals::Signals;
use crate::target::Target;
use crate::units::show_size;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use neonsan_client::Client;
use neonsan_proto::{Mode, Status};
use neonsan_session::{CloseCause, Timeouts};
use serde::Serialize;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Pieces under way at a time.
pub(super) const PIECES: usize = 16;

/// How long a node may be away before a transfer gives up, unless told otherwise.
const LOSS_MS: u32 = 60_000;

/// How long a command that was interrupted waits for a node that is about to open the volume.
const LET_GO: Duration = Duration::from_secs(3);

/// The answer, as in Documentation/cli-json.rst.
#[derive(Serialize)]
struct Transferred<'a> {
    volume: &'a str,
    file: String,
    size_bytes: u64,
    data_bytes: u64,
    zero_bytes: u64,
}

/// Bytes that were transferred, by what they were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    /// Sent or written as data.
    pub data: u64,
    /// Zeroes.
    pub zeroes: u64,
}

/// Opens the volume. A signal that comes meanwhile does not leave a session behind, which the node would
/// keep for a while: nobody else could have the volume, and it could not be deleted.
pub(super) async fn attach(
    signals: &mut Signals,
    config: neonsan_client::Config,
) -> Result<Client> {
    let nodes: Vec<_> = config.nodes.iter().map(ToString::to_string).collect();
    let what = format!(
        "waiting for {} to open {}; Ctrl-C ends that",
        nodes.join(" or "),
        config.volume
    );
    let mut attaching = tokio::spawn(Client::attach(config));
    let attached = noticed(&mut attaching, || what);
    let interrupted = match signals.or(async { Ok(joined(attached.await)) }).await {
        Ok(result) => return result,
        Err(interrupted) => interrupted,
    };
    let let_go = async {
        if let Ok(Ok(client)) = attaching.await {
            client.detach().await;
        }
        Ok(())
    };
    // A node that does not answer has opened nothing, or is found out by its own time.
    let _ = signals
        .or(async { tokio::time::timeout(LET_GO, let_go).await.unwrap_or(Ok(())) })
        .await;
    Err(interrupted)
}

/// The identity of the volume that is open, as the control API writes it.
pub(super) fn identity(client: &Client) -> String {
    show_uuid(&client.opened().volume_id).replace('-', "")
}

/// A thread for what must not keep the client from answering the node: reading and writing files, which
/// may take as long as it likes. It ends with the process at the latest.
pub(super) fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map(drop)
        .map_err(|error| Error::new(Kind::Other, format!("no thread can be started: {error}")))
}

/// A file as it is named in messages: `-` is one of the standard streams.
pub(super) fn shown<'a>(path: &'a Path, stream: &'a str) -> std::borrow::Cow<'a, str> {
    match path.as_os_str() == "-" {
        true => stream.into(),
        false => path.to_string_lossy(),
    }
}

/// How the volume is opened.
pub(super) fn client_config(
    config: &Config,
    target: &Target,
    args: &Transfer,
    mode: Mode,
) -> Result<neonsan_client::Config> {
    let nodes = resolve(target, &args.nodes, config)?
        .into_iter()
        .filter(|node| !node.is_unresolved())
        .map(|node| node.socket())
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

/// The result of a task that has ended.
pub(super) fn joined<T>(
    result: std::result::Result<
        std::result::Result<T, neonsan_client::Error>,
        tokio::task::JoinError,
    >,
) -> Result<T> {
    match result {
        Ok(result) => result.map_err(explain),
        Err(error) => Err(Error::new(
            Kind::Other,
            format!("a transfer ended: {error}"),
        )),
    }
}

/// Shows how far it is, to a person; of a size that may not be known.
pub(super) fn progress_bar(common: &Common, size: Option<u64>) -> ProgressBar {
    let shown = !common.json && std::io::stderr().is_terminal();
    let target = if shown {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let form = match size {
        Some(_) => "{bar:40} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
        None => "{bytes}, {bytes_per_sec}",
    };
    let style = ProgressStyle::with_template(form).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::with_draw_target(size, target).with_style(style)
}

/// Says what was done. Standard output may be taken by the image.
pub(super) fn report(
    common: &Common,
    target: &Target,
    file: &Path,
    size_bytes: u64,
    sums: Sums,
    to_stderr: bool,
) -> Result<()> {
    if common.json {
        let text = json_text(&Transferred {
            volume: &target.volume,
            file: file.display().to_string(),
            size_bytes,
            data_bytes: sums.data,
            zero_bytes: sums.zeroes,
        })?;
        if to_stderr {
            say(&text);
            return Ok(());
        }
        return print(&text);
    }
    say(&format!(
        "{}: {}, of which {} data\n",
        target.volume,
        show_size(size_bytes),
        show_size(sums.data)
    ));
    Ok(())
}

/// What the client says, for people.
pub(super) fn explain(error: neonsan_client::Error) -> Error {
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
        Status::HeldByOther | Status::StaleGeneration | Status::Fenced => Kind::Busy,
        Status::Draining | Status::TooManySessions | Status::TooManyConnections | Status::Busy => {
            Kind::Temporary
        }
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
