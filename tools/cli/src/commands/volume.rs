// SPDX-License-Identifier: GPL-2.0 OR MIT

//! `neonsan volume`: volumes on a node, by its control API.

use super::{export, import, snapshot};
use crate::cli::{
    Common, Volume, VolumeAdopt, VolumeCommand, VolumeCreate, VolumeDelete, VolumeInfo, VolumeList,
    VolumeResize,
};
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::output::{self, fields, print, print_json, table};
use crate::target::Target;
use crate::units::show_size;
use neonsan_api::{show_time, ApiError, Client, ClientError, Endpoint, ErrorCode, VolumeName};
use serde_json::json;
use std::future::Future;
use std::io::{BufRead as _, IsTerminal as _};
use std::time::Duration;

/// Runs one of the commands.
pub fn run(common: &Common, config: &Config, volume: &Volume) -> Result<()> {
    let api = volume.api.as_deref();
    let config = &config.with_api_timeout(volume.api_timeout);
    match &volume.command {
        VolumeCommand::Create(args) => create(common, config, api, args),
        VolumeCommand::List(args) => list(common, config, api, args),
        VolumeCommand::Info(args) => info(common, config, api, args),
        VolumeCommand::Resize(args) => resize(common, config, api, args),
        VolumeCommand::Delete(args) => delete(common, config, api, args),
        VolumeCommand::Import(args) => import::run(common, config, args, api),
        VolumeCommand::Export(args) => export::run(common, config, args, api),
        VolumeCommand::Snapshot(args) => snapshot::run(common, config, api, &args.command),
        VolumeCommand::Clone(args) => snapshot::clone(common, config, api, args),
        VolumeCommand::Flatten(args) => snapshot::flatten(common, config, api, args),
        VolumeCommand::Adopt(args) => adopt(common, config, api, args),
    }
}

/// What runs the calls of the API and transfers: one thread.
pub fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::new(Kind::Other, format!("the program cannot start: {error}")))
}

/// When somebody who waits is told what for.
const NOTICE: Duration = Duration::from_secs(3);

/// The result of some work. If that takes a while, `what` is said, once: what is waited for, and how that is
/// ended.
pub(super) async fn noticed<T>(work: impl Future<Output = T>, what: impl FnOnce() -> String) -> T {
    tokio::pin!(work);
    tokio::select! {
        biased;
        result = &mut work => return result,
        () = tokio::time::sleep(NOTICE) => output::note(&what()),
    }
    work.await
}

/// What is waited for: an answer of a node.
pub(super) fn waiting_for(client: &Client) -> String {
    format!("waiting for the node at {} to answer", client.endpoint())
}

/// Runs one call of the API, which changes nothing, to its end.
pub(super) fn block_on<T>(
    client: &Client,
    call: impl Future<Output = std::result::Result<T, ClientError>>,
) -> Result<T> {
    let what = || format!("{}; Ctrl-C ends that", waiting_for(client));
    runtime()?.block_on(noticed(call, what)).map_err(explain)
}

/// Runs one call that changes something to its end. `look` says how that is seen if it is not waited for.
async fn change<T>(
    client: &Client,
    call: impl Future<Output = std::result::Result<T, ClientError>>,
    look: &str,
) -> std::result::Result<T, ClientError> {
    noticed(call, || {
        format!(
            "{}; Ctrl-C ends that, and the node may go on with it all the same: {look}",
            waiting_for(client)
        )
    })
    .await
}

/// Time for the list of all volumes: nothing is lost when it is not waited for any longer.
const LIST_TIMEOUT: Duration = Duration::from_secs(120);

/// Time for what a node may need long for: copying or deleting the data of a large volume. A little less than
/// what the node gives a connection.
pub(super) const LONG_TIMEOUT: Duration = Duration::from_secs(590);

/// Runs such a call, of a client with that time, to its end. `look` says how its end is seen if it is
/// not waited for any more: the node does not stop when nobody waits.
pub(super) fn block_on_long<T>(
    client: &Client,
    call: impl Future<Output = std::result::Result<T, ClientError>>,
    look: &str,
) -> Result<T> {
    runtime()?
        .block_on(change(client, call, look))
        .map_err(|error| explain_long(error, look))
}

fn explain_long(error: ClientError, look: &str) -> Error {
    match error {
        ClientError::Timeout { .. } => {
            explain(error).with_hint(format!("the node goes on with it; {look}"))
        }
        _ => explain_change(error, look),
    }
}

/// What the control API says of a change. A node that fell silent may have made it: `look` says how that is
/// seen.
pub(super) fn explain_change(error: ClientError, look: &str) -> Error {
    match error {
        ClientError::Timeout { .. } | ClientError::Silent { .. } => explain(error).with_more(
            format!("whether the node does it all the same is seen when it answers: {look}"),
        ),
        _ => explain(error),
    }
}

/// The control API to ask: --api, else that of the target's host, else the config file's, else the
/// one on this machine. This machine is asked by its socket, or else by its port.
pub fn client(api: Option<&str>, config: &Config, target: Option<&Target>) -> Result<Client> {
    let of_target = target.and_then(|target| target.nodes.first());
    let address = match (api, of_target, &config.api) {
        (Some(api), _, _) => api.to_owned(),
        (None, Some(node), _) if node.is_this_machine() => {
            let host = node.host();
            // As the resolver wants it: IPv6 without brackets.
            let host = host.trim_start_matches('[').trim_end_matches(']');
            return Ok(patient(Client::of_this_machine(host), config));
        }
        (None, Some(node), _) => node.host(),
        (None, None, Some(api)) => api.clone(),
        (None, None, None) => return Ok(patient(Client::of_this_machine("127.0.0.1"), config)),
    };
    let endpoint: Endpoint = address.parse().map_err(explain)?;
    Ok(patient(Client::new(endpoint), config))
}

/// A client that gives a silent node as much time as somebody has said.
fn patient(client: Client, config: &Config) -> Client {
    match config.api_timeout {
        Some(milliseconds) => client.with_patience(Duration::from_millis(milliseconds.into())),
        None => client,
    }
}

/// The volume that a target names, which must not be a snapshot.
fn parse_target(text: &str) -> Result<(Target, VolumeName)> {
    let target: Target = text.parse()?;
    let name = target
        .volume
        .parse()
        .map_err(|error| Error::new(Kind::Usage, format!("'{text}': {error}")))?;
    Ok((target, name))
}

/// The control API to ask about the volume that a target names, and the volume's name.
pub(super) fn volume_at(
    api: Option<&str>,
    config: &Config,
    text: &str,
) -> Result<(Client, VolumeName)> {
    let (target, name) = parse_target(text)?;
    Ok((client(api, config, Some(&target))?, name))
}

/// What the control API says, for people.
pub(super) fn explain(error: ClientError) -> Error {
    match error {
        ClientError::Endpoint(_) => Error::new(Kind::Usage, error.to_string())
            .with_hint("write http://host[:port] or unix:/path"),
        ClientError::Connect { ref source, .. }
            if source.kind() == std::io::ErrorKind::PermissionDenied =>
        {
            Error::new(Kind::Permission, error.to_string()).with_hint(
                "the socket is for root and a group, that of the node (neonsan) unless configured \
                 otherwise: run the command as root, or become a member",
            )
        }
        ClientError::Connect { .. } => Error::new(Kind::Unreachable, error.to_string()).with_hint(
            "check that neonsan-node runs there and that its control API listens at this address \
             (a node of another machine does so only where its control.listen says it); --api \
             names another",
        ),
        ClientError::Nowhere { .. } => Error::new(Kind::Unreachable, error.to_string()).with_hint(
            "check that neonsan-node runs here (systemctl status neonsan-node); --api names \
             another node, or another place that its control.listen says",
        ),
        ClientError::Timeout { .. } => {
            Error::new(Kind::Unreachable, error.to_string()).with_hint(
                "`neonsan node health` shows how its engines are; the node's log says more",
            )
        }
        ClientError::Silent { .. } => Error::new(Kind::Unreachable, error.to_string()).with_hint(
            "check on its machine whether the node is stopped or hangs (systemctl status \
             neonsan-node, and its log), and that nothing else listens at this address; \
             --api-timeout waits longer",
        ),
        ClientError::Protocol { .. } => Error::new(Kind::Protocol, error.to_string()).with_hint(
            "the control API listens on another port than the data protocol (control.listen of the \
             node says which); --api names another",
        ),
        ClientError::Refused(error) => explain_refusal(error),
    }
}

fn explain_refusal(error: ApiError) -> Error {
    let kind = match error.code {
        ErrorCode::BadRequest
        | ErrorCode::BadSize
        | ErrorCode::Unsupported
        | ErrorCode::Conflict => Kind::Refused,
        ErrorCode::BadName => Kind::Usage,
        ErrorCode::NotFound => Kind::NotFound,
        ErrorCode::AlreadyExists | ErrorCode::Busy => Kind::Busy,
        ErrorCode::NoSpace => Kind::NoSpace,
        ErrorCode::Corrupt | ErrorCode::Io => Kind::Data,
        ErrorCode::NotPermitted => Kind::Permission,
        ErrorCode::ShuttingDown | ErrorCode::Unavailable => Kind::Unreachable,
        _ => Kind::Other,
    };
    let shown = Error::new(kind, error.message);
    match error.hint {
        Some(hint) => shown.with_hint(hint),
        None => shown,
    }
}

/// A block size that the API can be asked for.
pub(super) fn parse_block_size(bytes: u64) -> Result<u32> {
    u32::try_from(bytes).map_err(|_| {
        Error::new(Kind::Usage, "a block size is at most 64K")
            .with_hint("disks have a logical block size of 512 or 4096")
    })
}

fn create(common: &Common, config: &Config, api: Option<&str>, args: &VolumeCreate) -> Result<()> {
    let (target, name) = parse_target(&args.target)?;
    let create = neonsan_api::VolumeCreate {
        name,
        size_bytes: args.size,
        logical_block_size_bytes: parse_block_size(args.block_size)?,
        physical_block_size_bytes: args.physical_block_size.map(parse_block_size).transpose()?,
        engine: args.engine.clone(),
    };
    let client = client(api, config, Some(&target))?;
    let look = format!("`neonsan volume info {}` shows the volume", args.target);
    let call = client.create_volume(&create);
    let created = runtime()?.block_on(change(&client, call, &look));
    let volume = created.map_err(|error| explain_change(error, &look))?;
    warn(&volume);
    if common.json {
        print_json(&volume)
    } else {
        print(&format!("{}\n", volume.name))
    }
}

fn list(common: &Common, config: &Config, api: Option<&str>, args: &VolumeList) -> Result<()> {
    let client = client(api, config, None)?;
    let said = Duration::from_millis(config.api_timeout.unwrap_or(0).into());
    let client = client.with_timeout(LIST_TIMEOUT.max(said));
    let what = || format!("{}; Ctrl-C ends that", waiting_for(&client));
    let listing = noticed(client.list_volumes(args.pool.as_deref()), what);
    let list = runtime()?.block_on(listing).map_err(|error| {
        let is_late = matches!(error, ClientError::Timeout { .. });
        match (is_late, explain(error)) {
            (true, error) => error.with_more("--api-timeout waits longer"),
            (false, error) => error,
        }
    })?;
    // Only of those that cannot be attached: that space may run short is told of one at a time.
    let is_unusable = |volume: &&neonsan_api::VolumeInfo| {
        volume.size_bytes == 0 || !volume.same_identity.is_empty()
    };
    for unusable in list.volumes.iter().filter(is_unusable) {
        for warning in &unusable.warnings {
            output::warn(&format!("{}: {warning}", unusable.name));
        }
    }
    if common.json {
        print_json(&list)?;
        return complete(&list);
    }
    let rows: Vec<_> = list
        .volumes
        .iter()
        .map(|volume| {
            let held: Vec<_> = volume.sessions.iter().map(|s| s.host.as_str()).collect();
            vec![
                volume.name.to_string(),
                show_size(volume.size_bytes),
                volume.allocated_bytes.map_or_else(|| "-".into(), show_size),
                format!(
                    "{}/{}",
                    volume.logical_block_size_bytes, volume.physical_block_size_bytes
                ),
                volume.engine.clone(),
                held.join(", "),
            ]
        })
        .collect();
    print(&table(
        &["VOLUME", "SIZE", "ALLOCATED", "BLOCKS", "ENGINE", "HELD BY"],
        &rows,
    ))?;
    complete(&list)
}

/// A list without the volumes of an engine has been shown, and must not pass for a whole one.
fn complete(list: &neonsan_api::VolumeList) -> Result<()> {
    if list.missing.is_empty() {
        return Ok(());
    }
    let missing = list.missing.join("; ");
    Err(Error::new(
        Kind::Data,
        format!("the list is not complete: {missing}"),
    ))
}

fn info(common: &Common, config: &Config, api: Option<&str>, args: &VolumeInfo) -> Result<()> {
    let (client, name) = volume_at(api, config, &args.target)?;
    let volume = block_on(&client, client.volume(&name))?;
    if common.json {
        return print_json(&volume);
    }
    print(&show(&volume))
}

fn show(volume: &neonsan_api::VolumeInfo) -> String {
    let yes = |value: bool| if value { "yes" } else { "no" }.to_owned();
    let size = format!(
        "{} ({} bytes)",
        show_size(volume.size_bytes),
        volume.size_bytes
    );
    let mut pairs = vec![
        ("volume", volume.name.to_string()),
        ("id", volume.id.clone()),
        ("engine", volume.engine.clone()),
        ("size", size),
        (
            "allocated",
            volume
                .allocated_bytes
                .map_or_else(|| "unknown".into(), show_size),
        ),
        (
            "logical block size",
            volume.logical_block_size_bytes.to_string(),
        ),
        (
            "physical block size",
            volume.physical_block_size_bytes.to_string(),
        ),
        ("created", show_time(volume.created_unix_s)),
    ];
    if let Some(parent) = &volume.parent {
        pairs.push(("cloned from", parent.to_string()));
    }
    if let Some(limits) = &volume.limits {
        let none_or = |bytes: u64| {
            if bytes == 0 {
                "none".into()
            } else {
                show_size(bytes)
            }
        };
        pairs.extend([
            ("volatile write cache", yes(limits.volatile_write_cache)),
            ("FUA", yes(limits.fua)),
            ("longest I/O", show_size(limits.max_io_bytes.into())),
            ("longest discard", none_or(limits.max_discard_bytes)),
            (
                "longest write-zeroes",
                none_or(limits.max_write_zeroes_bytes),
            ),
            (
                "longest atomic write",
                none_or(limits.atomic_write_max_bytes.into()),
            ),
        ]);
    }
    for warning in &volume.warnings {
        pairs.push(("warning", warning.clone()));
    }
    let mut out = fields(&pairs);
    if !volume.sessions.is_empty() {
        out.push('\n');
        out.push_str(&show_sessions("HELD BY", &volume.sessions));
    }
    out
}

/// A table of sessions.
pub(super) fn show_sessions(heading: &str, sessions: &[neonsan_api::SessionInfo]) -> String {
    let rows: Vec<_> = sessions
        .iter()
        .map(|session| {
            let mode = serde_json::to_value(session.mode).ok();
            let mode = mode.as_ref().and_then(|m| m.as_str()).unwrap_or("unknown");
            vec![
                session.host.clone(),
                mode.to_owned(),
                session.generation.to_string(),
                session.connections.len().to_string(),
                crate::units::show_duration_ms(session.age_s.saturating_mul(1000)),
            ]
        })
        .collect();
    table(
        &[heading, "MODE", "GENERATION", "CONNECTIONS", "SINCE"],
        &rows,
    )
}

fn resize(common: &Common, config: &Config, api: Option<&str>, args: &VolumeResize) -> Result<()> {
    let (client, name) = volume_at(api, config, &args.target)?;
    let resize = neonsan_api::VolumeResize {
        size_bytes: args.size,
        allow_shrink: args.allow_shrink,
    };
    let client = client.with_timeout(LONG_TIMEOUT);
    let look = format!("`neonsan volume info {}` shows the size", args.target);
    let volume = block_on_long(&client, client.resize_volume(&name, &resize), &look)?;
    warn(&volume);
    if common.json {
        print_json(&volume)?;
    }
    Ok(())
}

fn delete(common: &Common, config: &Config, api: Option<&str>, args: &VolumeDelete) -> Result<()> {
    let (client, name) = volume_at(api, config, &args.target)?;
    if !args.yes {
        let question = format!("Delete the volume {name} and all its data?");
        confirm(
            &question,
            name.as_str(),
            "is not deleted",
            "--yes deletes without asking",
        )?;
    }
    let client = client.with_timeout(LONG_TIMEOUT);
    let look = format!(
        "`neonsan volume info {}` finds no volume when it has ended",
        args.target
    );
    block_on_long(&client, client.delete_volume(&name), &look)?;
    if common.json {
        print_json(&json!({ "deleted": name }))?;
    }
    Ok(())
}

/// Gives a copy an identity of its own.
fn adopt(common: &Common, config: &Config, api: Option<&str>, args: &VolumeAdopt) -> Result<()> {
    let (client, name) = volume_at(api, config, &args.target)?;
    let look = format!("`neonsan volume info {}` shows the identity", args.target);
    let adopted = runtime()?.block_on(change(&client, client.adopt_volume(&name), &look));
    let volume = adopted.map_err(|error| explain_change(error, &look))?;
    warn(&volume);
    if common.json {
        print_json(&volume)
    } else {
        print(&format!(
            "{}: its identity is {} now\n",
            volume.name, volume.id
        ))
    }
}

/// Asks on the terminal; without one the answer is no.
pub(super) fn confirm(question: &str, name: &str, refusal: &str, hint: &str) -> Result<()> {
    let refused = |message: String| Error::new(Kind::Usage, message).with_hint(hint);
    if !std::io::stdin().is_terminal() {
        return Err(refused(format!("{name} {refusal}: nobody can be asked")));
    }
    output::say(&format!("{question} Type its name to go on: "));
    let mut answer = String::new();
    let read = std::io::stdin().lock().read_line(&mut answer);
    if read.is_err() || answer.trim() != name {
        return Err(refused(format!("{name} {refusal}")));
    }
    Ok(())
}

pub(super) fn warn(volume: &neonsan_api::VolumeInfo) {
    for warning in &volume.warnings {
        output::warn(warning);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_wait_any_more_learns_how_to_see_the_end() {
        let endpoint = Endpoint::Unix("/run/x".into());
        let timeout = LONG_TIMEOUT;
        let error = explain_long(ClientError::Timeout { endpoint, timeout }, "look there");
        assert_eq!(error.kind(), Kind::Unreachable);
        let text = error.to_string();
        assert!(text.contains("within 590 s"), "{text}");
        assert!(text.contains("goes on with it; look there"), "{text}");
        let refused = ApiError::new(ErrorCode::Busy, "it is held");
        let error = explain_long(ClientError::Refused(refused), "look there");
        assert_eq!(error.to_string(), "it is held");
    }
}
