// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What the host has for its volumes: rules, units, configuration, devices, a node of its own.

use super::{output_of, run_program, Ended, Report};
use crate::commands::get_devices;
use crate::commands::volume::{client, runtime};
use crate::config::{Config, DEFAULT_PATH};
use crate::device_node;
use crate::host::Host;
use crate::netlink::Client;
use crate::root::Root;
use crate::target::Target;
use crate::units::show_duration_ms;
use neonsan_api::{HealthStatus, DEFAULT_CONTROL_SOCKET};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const REINSTALL: &str = "install the package neonsan again, or make install";

/// Where files of a kind lie, those first that win.
fn places(kind: &str) -> [String; 4] {
    ["/etc", "/run", "/usr/lib", "/lib"].map(|place| format!("{place}/{kind}"))
}

/// udev's rules for the links and for what systemd is to know of the devices.
pub(super) fn look_at_rules(report: &mut Report, root: &Root) {
    let found = places("udev/rules.d").into_iter().find_map(|place| {
        let names = root.names(&place).into_iter();
        let mut ours = names.filter(|name| name.contains("neonsan") && name.ends_with(".rules"));
        ours.next().map(|name| format!("{place}/{name}"))
    });
    let Some(file) = found else {
        let message = "there are no udev rules for the devices: no links below /dev/disk";
        report.problem("udev", message, REINSTALL);
        return;
    };
    let is_masked = root.text(&file).is_none_or(|text| text.is_empty());
    if is_masked {
        let message = format!("{file} is empty or a link to nothing, which turns the rules off");
        report.problem("udev", message, "remove it");
    } else if !root.path("/run/udev/control").exists() {
        let message = format!("{file} is there, but udev does not run: no links below /dev/disk");
        report.warning("udev", message, "systemctl start systemd-udevd");
    } else {
        report.ok("udev", format!("runs, with {file}"));
    }
}

/// The command's config file, and the identity of this host.
pub(super) fn look_at_config(report: &mut Report, root: &Root, path: Option<&Path>) -> Config {
    let file = path.map_or_else(|| root.path(DEFAULT_PATH), Path::to_path_buf);
    let config = match (file.exists(), path) {
        (false, None) => Config::default(),
        _ => match Config::load(Some(&file)) {
            Ok(config) => {
                report.ok("config", format!("{} is good", file.display()));
                config
            }
            Err(error) => {
                report.error("config", &error);
                Config::default()
            }
        },
    };
    match Host::of(config.host_id.as_deref(), root) {
        Ok(host) if host.boot == 0 => report.warning(
            "host",
            "the firmware's UUID is for root only: the identity may be another one than that of attach",
            "run the command as root to see that",
        ),
        Ok(host) => report.ok(
            "host",
            format!("its identity is {}", crate::host::show_uuid(&host.id)),
        ),
        Err(error) => report.error("host", &error),
    }
    config
}

/// The units that attach volumes at boot. Returns the targets of their files.
pub(super) fn look_at_units(report: &mut Report, root: &Root, is_here: bool) -> Vec<Target> {
    let has = |unit: &str| {
        let places = places("systemd/system").into_iter();
        places
            .map(|place| format!("{place}/{unit}"))
            .any(|path| root.path(&path).exists())
    };
    for unit in [
        "neonsan@.service",
        "neonsan-resolve.service",
        "neonsan-shutdown.service",
    ] {
        if !has(unit) {
            let message = format!("the unit {unit} is missing");
            report.problem("units", message, REINSTALL);
        }
    }
    let enabled = enabled_units(root);
    let mut targets = Vec::new();
    let mut names: Vec<_> = root
        .names("/etc/neonsan/devices")
        .into_iter()
        .filter_map(|file| file.strip_suffix(".conf").map(str::to_owned))
        .collect();
    names.extend(
        enabled
            .iter()
            .filter(|name| !names.contains(name))
            .cloned()
            .collect::<Vec<_>>(),
    );
    for name in names {
        let file = format!("/etc/neonsan/devices/{name}.conf");
        let Some(text) = root.text(&file) else {
            let message = format!("neonsan@{name} is enabled, but {file} cannot be read");
            report.problem(
                "units",
                message,
                "write it (neonsan(8)), or systemctl disable the unit",
            );
            continue;
        };
        match target_of(&text) {
            Err(why) => {
                report.problem(
                    "units",
                    format!("{file}: {why}"),
                    "correct the line NEONSAN_TARGET=",
                );
                continue;
            }
            Ok(target) => targets.push(target),
        }
        if !enabled.contains(&name) {
            let message = format!("{file} is there, but nothing attaches it at boot");
            report.warning(
                "units",
                message,
                &format!("systemctl enable --now neonsan@{name}"),
            );
        } else if is_here && has_failed(&name) {
            let advice = format!("systemctl status neonsan@{name} says why");
            report.problem("units", format!("neonsan@{name} has failed"), &advice);
        } else {
            report.ok("units", format!("neonsan@{name} is enabled"));
        }
    }
    targets
}

fn has_failed(name: &str) -> bool {
    let unit = format!("neonsan@{name}.service");
    let state = output_of(
        "systemctl",
        &["show", "--property=ActiveState", "--value", &unit],
    );
    state.is_some_and(|state| state.trim() == "failed")
}

/// The names of which `neonsan@NAME.service` is wanted by some target.
fn enabled_units(root: &Root) -> Vec<String> {
    let directory = "/etc/systemd/system";
    let wants = root.names(directory).into_iter();
    let wants = wants.filter(|name| name.ends_with(".wants") || name.ends_with(".requires"));
    let mut found: Vec<String> = Vec::new();
    for unit in wants.flat_map(|wants| root.names(&format!("{directory}/{wants}"))) {
        let name = unit
            .strip_prefix("neonsan@")
            .and_then(|rest| rest.strip_suffix(".service"));
        if let Some(name) = name.filter(|name| !name.is_empty()) {
            if !found.iter().any(|known| known == name) {
                found.push(name.to_owned());
            }
        }
    }
    found
}

/// The target in the file of a unit.
fn target_of(text: &str) -> std::result::Result<Target, String> {
    let lines = text.lines().map(str::trim);
    let value = lines
        .filter_map(|line| line.strip_prefix("NEONSAN_TARGET="))
        .next_back();
    let value = value.ok_or("there is no line NEONSAN_TARGET=")?;
    let value = value.trim().trim_matches(['"', '\'']);
    value
        .parse::<Target>()
        .map_err(|error| error.message().to_owned())
}

/// The attached devices. Returns the addresses of their nodes.
pub(super) fn look_at_devices(report: &mut Report, root: &Root, is_here: bool) -> Vec<String> {
    let names = root.names("/sys/block").into_iter();
    for name in names.filter(|name| name.starts_with("neonsan")) {
        look_at_node_and_links(report, root, &name);
    }
    let devices = is_here.then(Client::connect).and_then(Result::ok);
    let devices = devices.and_then(|mut client| get_devices(&mut client).ok());
    let mut nodes = Vec::new();
    for device in devices.unwrap_or_default() {
        nodes.extend(device.nodes.iter().map(|node| match &node.name {
            // Looking at it says what is wrong with the name.
            Some(name) if node.resolved().is_unresolved() => format!("{name}:{}", node.port),
            _ => std::net::SocketAddr::new(node.address, node.port).to_string(),
        }));
        let name = &device.name;
        let more = format!("neonsan info {name} says more");
        if device.lost_ms > 0 {
            let lost = show_duration_ms(device.lost_ms);
            report.problem("devices", format!("{name} is lost for {lost}"), &more);
        } else if let Some(failure) = &device.failure {
            report.problem("devices", format!("{name} has failed: {failure}"), &more);
        }
        if let Some(mode) = &device.suspended {
            let message = format!("{name} is suspended ({mode})");
            report.warning("devices", message, &format!("neonsan resume {name}"));
        }
        if device.at_risk_bytes > 0 {
            let message = format!("{name} may have lost writes that were not flushed");
            report.warning("devices", message, &more);
        }
    }
    nodes
}

fn look_at_node_and_links(report: &mut Report, root: &Root, name: &str) {
    if let Err(wrong) = device_node::look(root, name) {
        let advice =
            "findmnt /dev shows whether /dev is a devtmpfs; remove what else has the name, then \
                      detach and attach";
        report.problem("devices", format!("/dev/{name} {wrong}"), advice);
        return;
    }
    let serial = root
        .text(&format!("/sys/block/{name}/serial"))
        .unwrap_or_default();
    let link = root.path(&format!("/dev/disk/by-id/neonsan-{serial}"));
    let own = root.path(&format!("/dev/{name}"));
    let number = crate::users::device_number;
    // For root only.
    let volume = root.text(&format!("/sys/block/{name}/volume"));
    let volume = volume.unwrap_or_default();
    if let Some(other) = device_node::other_of_name(root, name, &volume) {
        report.warning(
            "devices",
            device_node::say_other_of_name(name, &other, &volume),
            &format!("use /dev/disk/by-id/neonsan-{serial}"),
        );
    }
    if serial.is_empty() {
        report.ok("devices", name);
    } else if number(&link).is_some() && number(&link) == number(&own) {
        report.ok("devices", format!("{name}, with its links"));
    } else {
        report.warning(
            "devices",
            format!("{name} has no link /dev/disk/by-id/neonsan-{serial}"),
            &format!("udevadm trigger --action=add /sys/block/{name}; udevadm test /sys/block/{name} shows what the rules do"),
        );
    }
}

/// The node of this machine. Returns whether there is one.
pub(super) fn look_at_local_node(report: &mut Report, root: &Root, is_here: bool) -> bool {
    let file = "/etc/neonsan/neonsan-node.toml";
    let socket = root.path(DEFAULT_CONTROL_SOCKET);
    let is_running = socket.exists();
    if is_here && root.path(file).exists() {
        check_node_config(report, file, is_running);
    }
    if !is_running {
        return false;
    }
    let api = format!("unix:{}", socket.display());
    let health = client(Some(&api), &Config::default(), None).and_then(|client| {
        let client = client.with_timeout(Duration::from_secs(3));
        let asked = runtime()?.block_on(client.health());
        asked.map_err(crate::commands::volume::explain)
    });
    match health {
        Ok(health) if health.status == HealthStatus::Ok => {
            report.ok("node", "the node of this machine is well");
        }
        Ok(health) => {
            let message = format!(
                "the node of this machine is not well: {}",
                health.problems.join("; ")
            );
            report.problem("node", message, "neonsan node health shows each engine");
        }
        Err(error) => report.error("node", &error),
    }
    true
}

/// Whether the node of this machine would start with its configuration, as it says itself.
fn check_node_config(report: &mut Report, file: &str, is_running: bool) {
    const LIMIT: Duration = Duration::from_secs(10);
    let args = ["--check", "--config", file];
    let (said, advice) = match run_program("neonsan-node", &args, LIMIT) {
        Ended::Itself(true, ..) | Ended::Absent => return,
        Ended::Itself(false, _, errors) => (
            errors.split_whitespace().collect::<Vec<_>>().join(" "),
            format!("neonsan-node --check --config {file} says it again"),
        ),
        Ended::Late => (
            format!(
                "neonsan-node --check --config {file} has not ended after {} s",
                LIMIT.as_secs()
            ),
            "see with dmesg whether the disk of an engine hangs".to_owned(),
        ),
    };
    match is_running {
        true => report.warning("node", format!("it would not start again: {said}"), &advice),
        false => report.problem("node", said, &advice),
    }
}

/// A clock that is years behind makes nonsense of all times that are shown.
pub(super) fn look_at_clock(report: &mut Report) {
    const BUILT: u64 = 1_767_225_600; // 2026
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    if now.map_or(true, |now| now.as_secs() < BUILT) {
        let message = "the clock is years behind";
        report.warning("clock", message, "timedatectl set-ntp true");
    }
}
