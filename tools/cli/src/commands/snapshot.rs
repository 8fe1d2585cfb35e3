// SPDX-License-Identifier: GPL-2.0 OR MIT

//! `neonsan volume snapshot`, `clone` and `flatten`: the content of a volume at one moment, and
//! volumes made from it, by a node's control API.

use super::volume::{
    block_on, block_on_long, client, confirm, show_sessions, volume_at, warn, LONG_TIMEOUT,
};
use crate::cli::{
    Common, SnapshotChange, SnapshotCommand, SnapshotList, SnapshotTarget, VolumeClone,
    VolumeFlatten,
};
use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::output::{fields, print, print_json, table};
use crate::target::Target;
use crate::units::show_size;
use neonsan_api::{show_time, Client, SnapshotName, VolumeName};
use serde_json::json;

/// Runs one of the commands on snapshots.
pub fn run(
    common: &Common,
    config: &Config,
    api: Option<&str>,
    command: &SnapshotCommand,
) -> Result<()> {
    match command {
        SnapshotCommand::Create(args) => create(common, config, api, args),
        SnapshotCommand::List(args) => list(common, config, api, args),
        SnapshotCommand::Info(args) => info(common, config, api, args),
        SnapshotCommand::Delete(args) => delete(common, config, api, args),
        SnapshotCommand::Rollback(args) => roll_back(common, config, api, args),
    }
}

/// The control API to ask about the snapshot that a target names, and the snapshot's name.
fn snapshot_at(api: Option<&str>, config: &Config, text: &str) -> Result<(Client, SnapshotName)> {
    let target: Target = text.parse()?;
    let name = target.volume.parse().map_err(|error| {
        Error::new(Kind::Usage, format!("'{text}': {error}"))
            .with_hint("write pool/volume@snapshot, or neonsan://host/pool/volume@snapshot")
    })?;
    Ok((client(api, config, Some(&target))?, name))
}

fn create(
    common: &Common,
    config: &Config,
    api: Option<&str>,
    args: &SnapshotTarget,
) -> Result<()> {
    let (client, name) = snapshot_at(api, config, &args.target)?;
    let client = client.with_timeout(LONG_TIMEOUT);
    let look = format!(
        "`neonsan volume snapshot info {}` shows it when it is made",
        args.target
    );
    let snapshot = block_on_long(&client, client.create_snapshot(&name), &look)?;
    if common.json {
        print_json(&snapshot)
    } else {
        print(&format!("{}\n", snapshot.name))
    }
}

fn list(common: &Common, config: &Config, api: Option<&str>, args: &SnapshotList) -> Result<()> {
    let (client, name) = volume_at(api, config, &args.target)?;
    let list = block_on(&client, client.list_snapshots(&name))?;
    if common.json {
        return print_json(&list);
    }
    let rows: Vec<_> = list
        .snapshots
        .iter()
        .map(|snapshot| {
            let readers: Vec<_> = snapshot.sessions.iter().map(|s| s.host.as_str()).collect();
            vec![
                snapshot.name.to_string(),
                show_size(snapshot.size_bytes),
                show_time(snapshot.created_unix_s),
                readers.join(", "),
            ]
        })
        .collect();
    print(&table(&["SNAPSHOT", "SIZE", "CREATED", "READ BY"], &rows))?;
    for snapshot in &list.snapshots {
        for warning in &snapshot.warnings {
            crate::output::warn(&format!("{}: {warning}", snapshot.name));
        }
    }
    Ok(())
}

fn info(common: &Common, config: &Config, api: Option<&str>, args: &SnapshotTarget) -> Result<()> {
    let (client, name) = snapshot_at(api, config, &args.target)?;
    let snapshot = block_on(&client, client.snapshot(&name))?;
    if common.json {
        return print_json(&snapshot);
    }
    let size = format!(
        "{} ({} bytes)",
        show_size(snapshot.size_bytes),
        snapshot.size_bytes
    );
    let mut pairs = vec![
        ("snapshot", snapshot.name.to_string()),
        ("id", snapshot.id.clone()),
        ("size", size),
        ("created", show_time(snapshot.created_unix_s)),
    ];
    for child in &snapshot.children {
        pairs.push(("clone", child.to_string()));
    }
    for warning in &snapshot.warnings {
        pairs.push(("warning", warning.clone()));
    }
    let mut out = fields(&pairs);
    if !snapshot.sessions.is_empty() {
        out.push('\n');
        out.push_str(&show_sessions("READ BY", &snapshot.sessions));
    }
    print(&out)
}

fn delete(
    common: &Common,
    config: &Config,
    api: Option<&str>,
    args: &SnapshotChange,
) -> Result<()> {
    let (client, name) = snapshot_at(api, config, &args.target)?;
    if !args.yes {
        let question = format!("Delete the snapshot {name}?");
        let hint = "--yes deletes without asking";
        confirm(&question, &name.to_string(), "is not deleted", hint)?;
    }
    let client = client.with_timeout(LONG_TIMEOUT);
    let look = format!(
        "`neonsan volume snapshot info {}` finds none when it has ended",
        args.target
    );
    block_on_long(&client, client.delete_snapshot(&name), &look)?;
    if common.json {
        print_json(&json!({ "deleted": name }))?;
    }
    Ok(())
}

fn roll_back(
    common: &Common,
    config: &Config,
    api: Option<&str>,
    args: &SnapshotChange,
) -> Result<()> {
    let (client, name) = snapshot_at(api, config, &args.target)?;
    if !args.yes {
        let question = format!(
            "Roll {} back, and lose all that was written to it since the snapshot {name}?",
            name.volume()
        );
        let hint = "--yes rolls back without asking";
        confirm(&question, &name.to_string(), "is not rolled back to", hint)?;
    }
    let client = client.with_timeout(LONG_TIMEOUT);
    let look = "until it has ended, the node refuses whoever attaches the volume";
    let volume = block_on_long(&client, client.roll_back(&name), look)?;
    if common.json {
        print_json(&volume)?;
    }
    Ok(())
}

/// Creates a volume from a snapshot.
pub fn clone(
    common: &Common,
    config: &Config,
    api: Option<&str>,
    args: &VolumeClone,
) -> Result<()> {
    let (client, from) = snapshot_at(api, config, &args.target)?;
    let to: VolumeName = args
        .name
        .parse()
        .map_err(|error| Error::new(Kind::Usage, format!("'{}': {error}", args.name)))?;
    let client = client.with_timeout(LONG_TIMEOUT);
    let look = format!("`neonsan volume info {to}` shows the volume when it is made");
    let volume = block_on_long(&client, client.clone_snapshot(&from, &to), &look)?;
    warn(&volume);
    if common.json {
        print_json(&volume)
    } else {
        print(&format!("{}\n", volume.name))
    }
}

/// Makes a clone whole.
pub fn flatten(
    common: &Common,
    config: &Config,
    api: Option<&str>,
    args: &VolumeFlatten,
) -> Result<()> {
    let (client, name) = volume_at(api, config, &args.target)?;
    let client = client.with_timeout(LONG_TIMEOUT);
    let look = format!(
        "`neonsan volume info {}` shows no 'cloned from' when it has ended",
        args.target
    );
    let volume = block_on_long(&client, client.flatten_volume(&name), &look)?;
    if common.json {
        print_json(&volume)?;
    }
    Ok(())
}
