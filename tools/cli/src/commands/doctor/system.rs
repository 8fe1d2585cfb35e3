// SPDX-License-Identifier: GPL-2.0 OR MIT

//! What the host has for its volumes: rules, units, configuration, devices, a node of its own.

use super::{output_of, run_program, Ended, Report};
use crate::commands::get_devices;
use crate::commands::volume::{client, runtime};
use crate::config::{Config, DEFAULT_PATH};
use crate::device_node;
use crate::host::Host;
use crate::netlink::Client;
use crate::root::{read, Root};
use crate::target::Target;
use crate::units::show_duration_ms;
use neonsan_api::{HealthStatus, DEFAULT_CONTROL_SOCKET};
use std::io::ErrorKind;
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

/// In which state systemd has a unit (`active`, `activating`, `inactive`, `failed`, …); `None` where it is not
/// to be asked, or does not answer.
pub(super) type StateOf<'a> = dyn FnMut(&str) -> Option<String> + 'a;

/// That of this machine. One that does not answer is not asked again, since each time takes its time.
pub(super) fn states_here() -> impl FnMut(&str) -> Option<String> {
    let mut answers = true;
    move |unit| {
        let words = ["show", "--property=ActiveState", "--value", unit];
        let state = answers
            .then(|| output_of("systemctl", &words))
            .flatten()
            .map(|state| state.trim().to_owned())
            .filter(|state| !state.is_empty());
        answers = state.is_some();
        state
    }
}

/// The units that attach volumes at boot. Returns the targets of their files.
pub(super) fn look_at_units(
    report: &mut Report,
    root: &Root,
    state_of: &mut StateOf<'_>,
) -> Vec<Target> {
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
        let is_enabled = enabled.contains(&name);
        if name.contains('\\') {
            // It takes the names of EnvironmentFile= for patterns.
            let message =
                format!("systemd does not find {file}, since it has a backslash in its name");
            let advice = "name file and unit with letters, digits and . _ - : only";
            report.problem("units", message, advice);
            continue;
        }
        let text = match read(&root.path(&file)) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                let message = format!("{file} is not for you to read");
                report.warning("units", message, "run the command as root to see that");
                continue;
            }
            Err(error) if is_enabled => {
                report.problem(
                    "units",
                    format!("neonsan@{name} is enabled, but {file} cannot be read: {error}"),
                    "write it (neonsan(8)), or systemctl disable the unit",
                );
                continue;
            }
            Err(error) => {
                let message = format!("{file} cannot be read: {error}");
                report.problem("units", message, "write it (neonsan(8)), or remove it");
                continue;
            }
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
        match is_enabled || is_required_by_mount(root, &name) {
            true => look_at_state(report, &name, state_of),
            false => report.warning(
                "units",
                format!("{file} is there, but nothing attaches it at boot"),
                &format!("systemctl enable --now neonsan@{name}"),
            ),
        }
    }
    targets
}

/// Whether a unit that is started at boot has done what it is for.
fn look_at_state(report: &mut Report, name: &str, state_of: &mut StateOf<'_>) {
    let unit = format!("neonsan@{name}");
    let state = state_of(&format!("{unit}.service"));
    match state.as_deref() {
        None | Some("active") => report.ok("units", format!("{unit} is enabled")),
        Some("failed") => report.problem(
            "units",
            format!("{unit} has failed"),
            &format!("systemctl status {unit} says why"),
        ),
        Some("inactive") => report.warning(
            "units",
            format!("{unit} is enabled, but not started: its volume is not attached by it"),
            &format!("systemctl start {unit}"),
        ),
        // It is tried again for as long as its node is not there.
        Some("activating") => report.warning(
            "units",
            format!("{unit} has not attached its volume yet, and goes on trying"),
            &format!("journalctl -u {unit} says what it waits for"),
        ),
        Some(state) => report.warning(
            "units",
            format!("{unit} is {state}"),
            &format!("systemctl status {unit} says more"),
        ),
    }
}

/// Whether a file system of /etc/fstab starts a unit.
fn is_required_by_mount(root: &Root, name: &str) -> bool {
    let option = format!("x-systemd.requires=neonsan@{name}.service");
    let table = root.text("/etc/fstab").unwrap_or_default();
    table.lines().any(|line| {
        let options = line.split_whitespace().nth(3).unwrap_or_default();
        !line.trim_start().starts_with('#') && options.split(',').any(|one| one == option)
    })
}

/// The units that are wanted by some target.
fn wanted_units(root: &Root) -> Vec<String> {
    let directory = "/etc/systemd/system";
    let wants = root.names(directory).into_iter();
    let wants = wants.filter(|name| name.ends_with(".wants") || name.ends_with(".requires"));
    wants
        .flat_map(|wants| root.names(&format!("{directory}/{wants}")))
        .collect()
}

/// The names of which `neonsan@NAME.service` is wanted by some target.
fn enabled_units(root: &Root) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for unit in wanted_units(root) {
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
pub(super) fn look_at_local_node(
    report: &mut Report,
    root: &Root,
    is_here: bool,
    state_of: &mut StateOf<'_>,
) -> bool {
    let file = "/etc/neonsan/neonsan-node.toml";
    let socket = root.path(DEFAULT_CONTROL_SOCKET);
    let is_running = socket.exists();
    if is_here && root.path(file).exists() {
        check_node_config(report, file, is_running);
    }
    if !is_running {
        look_at_node_unit(report, root, state_of);
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

/// The unit of a node that is not at its socket.
fn look_at_node_unit(report: &mut Report, root: &Root, state_of: &mut StateOf<'_>) {
    const UNIT: &str = "neonsan-node.service";
    let is_enabled = wanted_units(root).iter().any(|unit| unit == UNIT);
    match state_of(UNIT).as_deref() {
        Some("failed") => report.problem(
            "node",
            "the node of this machine has failed",
            "systemctl status neonsan-node says why",
        ),
        Some("activating") => report.problem(
            "node",
            "the node of this machine does not serve yet",
            "journalctl -u neonsan-node says what it waits for, or why it is started again and again",
        ),
        Some("inactive") if is_enabled => report.problem(
            "node",
            "the node of this machine is enabled, but does not run",
            "systemctl start neonsan-node",
        ),
        // What control.listen says it has instead is not known.
        Some("active" | "reloading") => report.warning(
            "node",
            format!("the node of this machine runs, but is not asked: it has no {DEFAULT_CONTROL_SOCKET}"),
            "neonsan --api ADDRESS node health asks it, at an address of its control.listen",
        ),
        Some(_) | None => {}
    }
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

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::users::tests::Machine;

    const WANTS: &str = "/etc/systemd/system/multi-user.target.wants";

    /// What is said of units and of the node where systemd has the one or the others in a state.
    fn said_of(which: &str, machine: &Machine, state: Option<&str>) -> String {
        let mut report = Report::default();
        let mut state_of =
            |unit: &str| state.filter(|_| unit.starts_with(which)).map(str::to_owned);
        look_at_units(&mut report, &machine.root(), &mut state_of);
        look_at_local_node(&mut report, &machine.root(), false, &mut state_of);
        let text = report.text();
        let lines = text.lines().filter(|line| !line.contains("is missing"));
        lines.collect::<Vec<_>>().join("\n")
    }

    fn said(machine: &Machine, state: Option<&str>) -> String {
        said_of("neonsan@", machine, state)
    }

    #[test]
    fn a_unit_that_has_not_attached_its_volume_is_not_well() {
        let machine = Machine::new();
        machine.write("/etc/neonsan/devices/x.conf", "NEONSAN_TARGET=p/v\n");
        machine.write(&format!("{WANTS}/neonsan@x.service"), "");
        for well in [Some("active"), None] {
            assert_eq!(
                said(&machine, well),
                "ok       units    neonsan@x is enabled"
            );
        }
        for (state, words, advice) in [
            (
                "activating",
                "warning  units    neonsan@x has not attached",
                "journalctl -u neonsan@x",
            ),
            (
                "inactive",
                "warning  units    neonsan@x is enabled, but not",
                "systemctl start neonsan@x",
            ),
            (
                "failed",
                "problem  units    neonsan@x has failed",
                "systemctl status neonsan@x",
            ),
            (
                "deactivating",
                "warning  units    neonsan@x is deactivating",
                "systemctl status",
            ),
        ] {
            let said = said(&machine, Some(state));
            assert!(said.starts_with(words) && said.contains(advice), "{said}");
        }
    }

    #[test]
    fn a_unit_that_a_file_system_requires_is_started_at_boot() {
        let machine = Machine::new();
        machine.write("/etc/neonsan/devices/x.conf", "NEONSAN_TARGET=p/v\n");
        let line = |name| {
            format!("UUID=1 /srv ext4 _netdev,nofail,x-systemd.requires=neonsan@{name}.service 0 2")
        };
        for other in [line("xx"), format!("#{}", line("x"))] {
            machine.write("/etc/fstab", &other);
            assert!(
                said(&machine, None).contains("nothing attaches it"),
                "{other}"
            );
        }
        machine.write("/etc/fstab", &format!("# all\n{}\n", line("x")));
        assert_eq!(
            said(&machine, None),
            "ok       units    neonsan@x is enabled"
        );
    }

    #[test]
    fn a_unit_whose_file_systemd_cannot_find_is_told_of() {
        let machine = Machine::new();
        machine.write("/etc/neonsan/devices/a\\x2db.conf", "NEONSAN_TARGET=p/v\n");
        machine.write(&format!("{WANTS}/neonsan@a\\x2db.service"), "");
        let text = said(&machine, None);
        assert!(
            text.contains("backslash") && text.contains("letters, digits"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1, "{text}");
    }

    #[test]
    fn a_node_that_is_to_run_and_does_not_is_told_of() {
        let machine = Machine::new();
        // Not every machine is a node.
        assert_eq!(said_of("neonsan-node", &machine, Some("inactive")), "");
        assert_eq!(said_of("neonsan-node", &machine, None), "");
        for (state, words) in [
            (
                "failed",
                "problem  node     the node of this machine has failed",
            ),
            (
                "activating",
                "problem  node     the node of this machine does not serve yet",
            ),
            (
                "active",
                "warning  node     the node of this machine runs, but is not asked",
            ),
        ] {
            let said = said_of("neonsan-node", &machine, Some(state));
            assert!(said.starts_with(words), "{said}");
        }
        machine.write(&format!("{WANTS}/neonsan-node.service"), "");
        let said = said_of("neonsan-node", &machine, Some("inactive"));
        assert!(
            said.starts_with("problem  node") && said.contains("systemctl start"),
            "{said}"
        );
    }
}
