// SPDX-License-Identifier: GPL-2.0 OR MIT

//! `neonsan info`

use super::{find_index, get_device};
use crate::cli::{Common, Info};
use crate::device::{Connection, Device, Node, HIDDEN};
use crate::error::{Error, Kind, Result};
use crate::netlink::Client;
use crate::output::{fields, print, print_json, table};
use crate::qemu::{libvirt_disk, qemu_arguments};
use crate::root::Root;
use crate::units::{show_duration_ms, show_size};
use crate::users;
use serde_json::json;

/// Shows a device, or how virtual machines use it.
pub fn run(common: &Common, args: &Info) -> Result<()> {
    let mut client = Client::connect()?;
    let index = find_index(&mut client, &args.device)?;
    let mut device = get_device(&mut client, index)?;
    if !device.hidden {
        // The search looks at every process.
        device.used_by = Some(match device.open_count {
            0 => Vec::new(),
            _ => users::of_device(&Root::system(), &device.name),
        });
    }
    if (args.qemu || args.libvirt) && device.hidden {
        let message = format!("{} does not show its block sizes to you", device.name);
        return Err(Error::new(Kind::Permission, message)
            .with_hint("run the command as root: it needs CAP_SYS_ADMIN"));
    }
    if args.qemu {
        let arguments = qemu_arguments(&device);
        if common.json {
            print_json(&json!({ "device": device.device, "arguments": arguments }))
        } else {
            print(&format!("{}\n", arguments.join(" ")))
        }
    } else if args.libvirt {
        let xml = libvirt_disk(&device, &args.target_dev);
        if common.json {
            print_json(&json!({ "device": device.device, "xml": xml }))
        } else {
            print(&xml)
        }
    } else if common.json {
        print_json(&device.shown())
    } else {
        print(&show(&device))
    }
}

fn time(ms: u32, zero: &str) -> String {
    if ms == 0 {
        zero.into()
    } else {
        show_duration_ms(ms.into())
    }
}

fn show(device: &Device) -> String {
    if device.hidden {
        return show_part(device);
    }
    let session = &device.session;
    let limits = &device.limits;
    let timeouts = &device.timeouts;
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let size = |bytes: u32| show_size(bytes.into());
    let none_or = |bytes: u32| {
        if bytes == 0 {
            "none".into()
        } else {
            size(bytes)
        }
    };
    let mut state = show_state(device);
    if let Some(ms) = device.loss_deadline_ms {
        state += &format!(", I/O fails in {}", show_duration_ms(ms));
    }
    if let Some(failure) = &device.failure {
        state += &format!(": {failure}");
    }
    let host = format!("{} {}", text(&session.host_name), text(&session.host_id));
    let nodes: Vec<_> = device.nodes.iter().map(show_node).collect();
    let block = format!(
        "{} logical, {} physical",
        limits.logical_block_size, limits.physical_block_size
    );
    let atomic = if limits.atomic_unit_max == 0 {
        "none".to_owned()
    } else {
        format!(
            "{} to {}",
            size(limits.atomic_unit_min),
            size(limits.atomic_unit_max)
        )
    };
    let delay = format!(
        "{} to {}",
        time(timeouts.reconnect_delay_min_ms, "0"),
        time(timeouts.reconnect_delay_max_ms, "0")
    );
    let size_text = format!(
        "{} ({} bytes)",
        show_size(device.size_bytes),
        device.size_bytes
    );
    let mut pairs = vec![
        ("device", device.device.clone()),
        ("volume", device.volume.clone()),
        ("volume id", text(&device.volume_id)),
        ("mode", device.mode.clone()),
        ("state", state),
        ("size", size_text),
        ("open count", device.open_count.to_string()),
        ("used by", show_users(device)),
        ("nodes", nodes.join(", ")),
        ("session", text(&session.id)),
        ("generation", session.generation.to_string()),
        ("boot id", text(&session.boot_id)),
        ("host", host.trim().to_owned()),
        ("block size", block),
        ("longest I/O", size(limits.io_max)),
        ("best I/O", none_or(limits.io_opt)),
        ("discard", none_or(limits.discard_max)),
        ("write zeroes", none_or(limits.write_zeroes_max)),
        ("atomic writes", atomic),
        ("abilities", device.abilities.join(", ")),
        ("checksums", device.checksums.join(", ")),
        ("request timeout", time(timeouts.request_ms, "none")),
        ("connect timeout", time(timeouts.connect_ms, "none")),
        ("heartbeat", time(timeouts.heartbeat_interval_ms, "none")),
        (
            "heartbeat timeout",
            time(timeouts.heartbeat_timeout_ms, "none"),
        ),
        ("reconnect delay", delay),
        (
            "loss timeout",
            time(timeouts.loss_ms, "none (waits for ever)"),
        ),
        ("poll queues", device.poll_queues.to_string()),
        ("queue depth", device.queue_depth.to_string()),
        ("statistics", show_statistics(device)),
    ];
    if device.at_risk_bytes != 0 {
        let size = show_size(device.at_risk_bytes);
        let text = format!(
            "up to {size} of writes that were acknowledged but not flushed went with a node's \
             cache: check the data, then neonsan set --clear-data-at-risk {}",
            device.name
        );
        pairs.insert(5, ("data at risk", text));
    }
    if let Some(bytes) = device.shrunk_bytes {
        let text = format!(
            "the volume was shrunk to {} ({bytes} bytes), and I/O waits: grow it again, or cut the \
             device with neonsan set --accept-size {}, or detach it",
            show_size(bytes),
            device.name
        );
        pairs.insert(5, ("waits for you", text));
    }
    if let Some(fenced) = &device.fenced {
        pairs.insert(5, ("taken from", fenced.clone()));
    }
    if let Some(mode) = &device.suspended {
        pairs.insert(5, ("suspended", show_suspended(mode)));
    }
    let mut out = fields(&pairs);
    if !device.connections.is_empty() {
        let rows: Vec<_> = device.connections.iter().map(connection_row).collect();
        out.push('\n');
        out.push_str(&table(
            &[
                "CONNECTION",
                "STATE",
                "SINCE",
                "NODE",
                "MADE",
                "LOST",
                "IN FLIGHT",
                "PARKED",
                "OLDEST REQUEST",
                "LAST LOSS",
            ],
            &rows,
        ));
    }
    out
}

/// What a caller without privilege is told.
fn show_part(device: &Device) -> String {
    let mut pairs = vec![
        ("device", device.device.clone()),
        ("state", show_state(device)),
    ];
    if let Some(mode) = &device.suspended {
        pairs.push(("suspended", show_suspended(mode)));
    }
    pairs.push(("hidden", HIDDEN.to_owned()));
    fields(&pairs)
}

fn show_state(device: &Device) -> String {
    match device.lost_ms {
        0 => device.state.clone(),
        ms => format!("{}, lost for {}", device.state, show_duration_ms(ms)),
    }
}

fn show_users(device: &Device) -> String {
    let users = device.used_by.as_deref().unwrap_or_default();
    match (users::sentence(users), device.open_count) {
        (Some(users), _) => users,
        (None, 0) => "nobody".to_owned(),
        (None, _) => "nobody who can be seen from here".to_owned(),
    }
}

fn show_suspended(mode: &str) -> String {
    let what = match mode {
        "normal" => "new I/O waits",
        "error" => "new I/O fails",
        _ => "new I/O does not pass",
    };
    format!("{mode}: {what}")
}

fn show_node(node: &Node) -> String {
    match node.learned {
        true => format!("{node} (told by a node)"),
        false => node.to_string(),
    }
}

/// The state of a connection, and what counts down in it.
fn show_connection_state(connection: &Connection) -> String {
    match (connection.retry_ms, connection.deadline_ms) {
        (Some(ms), _) => format!("{}, next try in {}", connection.state, show_duration_ms(ms)),
        (None, Some(ms)) => format!("{}, given up in {}", connection.state, show_duration_ms(ms)),
        (None, None) => connection.state.clone(),
    }
}

fn show_statistics(device: &Device) -> String {
    let s = &device.statistics;
    format!(
        "{} reads ({}), {} writes ({}), {} flushes, {} discards, {} write-zeroes, {} errors, {} resent, {} timeouts",
        s.reads,
        show_size(s.read_bytes),
        s.writes,
        show_size(s.written_bytes),
        s.flushes,
        s.discards,
        s.write_zeroes,
        s.errors,
        s.resent,
        s.timeouts
    )
}

fn connection_row(connection: &Connection) -> Vec<String> {
    let oldest = connection.oldest_request.as_ref().map_or_else(
        || "-".into(),
        |request| {
            let mut text = format!(
                "{} {} at {}, {} for {}",
                request.op,
                request.length_bytes,
                request.offset_bytes,
                request.state,
                show_duration_ms(request.age_ms)
            );
            if let Some(ms) = request.deadline_ms {
                text += &format!(", resent in {}", show_duration_ms(ms));
            }
            text
        },
    );
    vec![
        connection.index.to_string(),
        show_connection_state(connection),
        show_duration_ms(connection.since_ms),
        connection
            .node
            .as_ref()
            .map_or_else(|| "-".into(), ToString::to_string),
        connection.epoch.to_string(),
        connection.losses.to_string(),
        connection.in_flight.to_string(),
        connection.parked.to_string(),
        oldest,
        connection.last_cause.clone().unwrap_or_else(|| "-".into()),
    ]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::device::tests::{hidden_message, sample_message};
    use crate::netlink::Attrs;
    use crate::users::User;

    #[test]
    fn a_caller_without_privilege_is_told_what_is_hidden_and_why() {
        let device = Device::parse(Attrs(hidden_message().as_bytes()));
        let text = show(&device);
        assert!(text.contains("recovering, lost for 12.3s"), "{text}");
        assert!(text.contains("CAP_SYS_ADMIN"), "{text}");
        assert!(!text.contains("size"), "{text}");
        let json = serde_json::to_value(device.shown()).unwrap();
        assert_eq!(json["state"], "recovering");
        assert!(json["hidden"].as_str().unwrap().contains("CAP_SYS_ADMIN"));
        assert_eq!(json.as_object().unwrap().len(), 7, "{json}");
    }

    fn sample() -> Device {
        let mut device = Device::parse(Attrs(sample_message().as_bytes()));
        device.used_by = Some(vec![
            User::Mount {
                device: "neonsan3p1".into(),
                at: "/srv".into(),
                seen_by: None,
            },
            User::Process {
                device: "neonsan3".into(),
                name: "qemu-system-x86".into(),
                pid: 4711,
            },
        ]);
        device
    }

    /// Holds a text against tests/golden/NAME; NEONSAN_UPDATE=1 writes it anew.
    fn golden(name: &str, text: &str) {
        let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("NEONSAN_UPDATE").is_some() {
            std::fs::write(&path, text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{path}");
    }

    #[test]
    fn the_json_form_is_stable() {
        let text = serde_json::to_string_pretty(&sample()).unwrap() + "\n";
        golden("info.json", &text);
    }

    #[test]
    fn people_see_the_stuck_request() {
        let text = show(&sample());
        golden("info.txt", &text);
        assert!(
            text.contains("write 4096 at 21474836480, parked for 12.3s"),
            "{text}"
        );
    }
}
