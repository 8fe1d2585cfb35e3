// SPDX-License-Identifier: GPL-2.0 OR MIT

//! `neonsan doctor` at machines that a test makes of files: one where all is well, and each thing that can
//! be wrong with it.

#![allow(clippy::unwrap_used)]

mod lab;

use lab::Lab;
use predicates::prelude::PredicateBooleanExt as _;
use predicates::str::contains;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

/// A machine as it should be, whose config file names a node.
struct Machine(tempfile::TempDir);

const RELEASE: &str = "7.3.4+deb13-cloud-amd64";
const CONF: &str = "/etc/neonsan/devices/data.conf";
const MODULE: &str = "/lib/modules/7.3.4+deb13-cloud-amd64/updates/neonsan.ko";

impl Machine {
    fn new(node: SocketAddr) -> Self {
        let machine = Machine(tempfile::tempdir().unwrap());
        machine.write("/proc/sys/kernel/osrelease", &format!("{RELEASE}\n"));
        machine.write(
            "/proc/sys/kernel/random/boot_id",
            "6a2dd1a8-1a4e-4d77-8d5c-0f3a1c2b3d4e\n",
        );
        machine.write("/etc/machine-id", "0123456789abcdef0123456789abcdef\n");
        machine.write(&format!("/boot/config-{RELEASE}"), "CONFIG_RUST=y\n");
        machine.write("/sys/module/neonsan/initstate", "live\n");
        machine.write("/sys/module/neonsan/notes/.note.gnu.build-id", "GNU-0123");
        machine.write(MODULE, "ELF GNU-0123 and so on");
        machine.write(
            &format!("/lib/modules/{RELEASE}/modules.dep"),
            "updates/neonsan.ko:\n",
        );
        machine.write(
            "/usr/lib/udev/rules.d/60-neonsan.rules",
            "SUBSYSTEM==\"block\"\n",
        );
        machine.write("/run/udev/control", "");
        for unit in [
            "neonsan@.service",
            "neonsan-resolve.service",
            "neonsan-shutdown.service",
        ] {
            machine.write(&format!("/usr/lib/systemd/system/{unit}"), "[Unit]\n");
        }
        machine.write(CONF, &format!("NEONSAN_TARGET=neonsan://{node}/vm/data\n"));
        machine.write(
            "/etc/systemd/system/remote-fs.target.wants/neonsan@data.service",
            "",
        );
        machine.write(
            "/etc/neonsan/neonsan.toml",
            &format!("nodes = [\"{node}\"]\n"),
        );
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path.trim_start_matches('/'))
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn remove(&self, path: &str) {
        let path = self.path(path);
        match path.is_dir() {
            true => std::fs::remove_dir_all(path).unwrap(),
            false => std::fs::remove_file(path).unwrap(),
        }
    }

    fn doctor(&self, words: &[&str]) -> assert_cmd::Command {
        let mut command = assert_cmd::Command::cargo_bin("neonsan").unwrap();
        command.arg("doctor").arg("--root").arg(self.0.path());
        command.args(words);
        command
    }

    /// The lines of a level, each with its area.
    fn said(&self, level: &str) -> String {
        let output = self.doctor(&[]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let problems = text
            .lines()
            .filter(|line| line.starts_with("problem"))
            .count();
        let code = if problems > 0 { 1 } else { 0 };
        assert_eq!(output.status.code(), Some(code), "{text}");
        let lines = text.lines().filter(|line| line.starts_with(level));
        lines.collect::<Vec<_>>().join("\n")
    }
}

#[test]
fn a_machine_that_is_well_has_no_problems() {
    let lab = Lab::new();
    let machine = Machine::new(lab.data);
    assert_eq!(
        (machine.said("problem"), machine.said("warning")),
        Default::default()
    );
    let said = machine.said("ok");
    for line in [
        "kernel   Linux 7.3.4",
        "module   loaded",
        "udev     runs",
        "units    neonsan@data is enabled",
        "answers and lets this host in",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    let output = machine.doctor(&["--json"]).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&json["problems"], &json["warnings"]),
        (&0.into(), &0.into())
    );
    assert_eq!(json["findings"][0]["area"], "kernel");
    assert_eq!(json["findings"][0]["level"], "ok");
    assert!(json["findings"][0]["advice"].is_null());
    // The node of this machine, at its socket.
    std::fs::create_dir_all(machine.path("/run/neonsan")).unwrap();
    symlink(
        lab.path("run/control.sock"),
        machine.path("/run/neonsan/control.sock"),
    )
    .unwrap();
    assert!(machine
        .said("ok")
        .contains("the node of this machine is well"));
}

#[test]
fn a_newer_kernel_that_has_the_module_is_none_to_be_told_of() {
    let lab = Lab::new();
    let machine = Machine::new(lab.data);
    for release in [RELEASE, "7.3.10+deb13-cloud-amd64", "6.12.48+deb13-amd64"] {
        machine.write(&format!("/boot/vmlinuz-{release}"), "");
    }
    machine.write("/boot/vmlinuz-99-rescue-0123", "");
    let file = "/lib/modules/7.3.10+deb13-cloud-amd64/updates/dkms/neonsan.ko.xz";
    machine.write(file, "");
    assert_eq!(machine.said("warning"), "");
}

#[test]
fn a_pipe_as_configuration_is_told_of_and_not_waited_for() {
    let lab = Lab::new();
    let machine = Machine::new(lab.data);
    for file in [
        "/etc/neonsan/neonsan.toml",
        "/etc/neonsan/devices/data.conf",
    ] {
        let path = machine.path(file);
        let _ = std::fs::remove_file(&path);
        let made = std::process::Command::new("mkfifo").arg(&path).status();
        assert!(made.unwrap().success());
    }
    machine
        .doctor(&[])
        .timeout(Duration::from_secs(60))
        .assert()
        .code(1)
        .stdout(contains("it is no regular file").and(contains("no line NEONSAN_TARGET=")));
}

/// Changes a machine that is well.
type Spoil = fn(&Machine);

#[test]
fn each_thing_that_is_wrong_is_said_with_what_to_do() {
    let lab = Lab::new();
    let cases: [(Spoil, &str, &str, &str); 26] = [
        (
            |m| {
                m.write("/boot/vmlinuz-7.3.10+deb13-cloud-amd64", "");
                m.write("/boot/vmlinuz-7.3.3+deb13-cloud-amd64", "");
            },
            "warning",
            "7.3.10+deb13-cloud-amd64, has no module neonsan",
            "install neonsan-modules-7.3.10+deb13-cloud-amd64",
        ),
        (
            |m| {
                m.write("/lib/modules/7.4.1-generic/vmlinuz", "");
                m.write("/boot/config-7.4.1-generic", "# CONFIG_RUST is not set\n");
            },
            "warning",
            "7.4.1-generic, has no module neonsan",
            "grub-reboot",
        ),
        (
            |m| {
                m.remove("/sys/module/neonsan");
                m.write("/proc/sys/kernel/osrelease", "6.12.48+deb13-amd64\n");
            },
            "problem",
            "kernel   this is Linux 6.12.48",
            "trixie-backports",
        ),
        (
            |m| {
                m.remove("/sys/module/neonsan");
                m.write(&format!("/boot/config-{RELEASE}"), "# CONFIG_RUST is not set\n");
            },
            "problem",
            "built without Rust",
            "boot a kernel that has it",
        ),
        (
            |m| {
                m.remove("/sys/module/neonsan");
                m.remove(&format!("/boot/config-{RELEASE}"));
            },
            "warning",
            "whether it was built with Rust is not to be seen",
            "CONFIG_RUST=y",
        ),
        (
            |m| m.remove("/sys/module/neonsan"),
            "warning",
            "module   not loaded",
            "modprobe neonsan",
        ),
        (
            |m| {
                m.remove("/sys/module/neonsan");
                m.remove(MODULE);
                m.write("/lib/modules/7.3.5/updates/dkms/neonsan.ko.xz", "");
            },
            "problem",
            "there is no module neonsan for this kernel (7.3.4+deb13-cloud-amd64); there is for 7.3.5",
            "neonsan-dkms",
        ),
        (
            |m| {
                m.remove("/sys/module/neonsan");
                m.write(&format!("/lib/modules/{RELEASE}/modules.dep"), "");
            },
            "problem",
            "modprobe does not know of it",
            "depmod",
        ),
        (
            |m| {
                m.remove("/sys/module/neonsan");
                m.write("/sys/kernel/security/lockdown", "none [integrity] confidentiality\n");
            },
            "warning",
            "signed modules only",
            "mokutil",
        ),
        (
            |m| {
                m.remove("/sys/module/neonsan");
                m.write(MODULE, "ELF\0vermagic=7.3.1-other SMP\0");
            },
            "problem",
            "was built for the kernel 7.3.1-other",
            "make module KERNEL=7.3.4",
        ),
        (
            |m| {
                let socket = m.path("/run/neonsan/control.sock");
                std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
                // Of a node that has died.
                drop(std::os::unix::net::UnixListener::bind(socket).unwrap());
            },
            "problem",
            "node     cannot reach the node's control API",
            "check that neonsan-node runs there",
        ),
        (
            |m| m.write("/proc/sys/kernel/osrelease", ""),
            "warning",
            "which kernel runs is not to be seen",
            "mount proc",
        ),
        (
            |m| m.write(MODULE, "ELF GNU-4567 and so on"),
            "warning",
            "neonsan.ko is another one",
            "modprobe -r neonsan",
        ),
        (
            |m| m.remove(MODULE),
            "warning",
            "none for this kernel",
            "neonsan-dkms",
        ),
        (
            |m| m.write("/sys/module/neonsan/initstate", "going\n"),
            "problem",
            "being unloaded",
            "neonsan list",
        ),
        (
            |m| m.remove("/usr/lib/udev/rules.d/60-neonsan.rules"),
            "problem",
            "no udev rules",
            "install",
        ),
        (
            |m| m.write("/etc/udev/rules.d/60-neonsan.rules", ""),
            "problem",
            "turns the rules off",
            "remove it",
        ),
        (
            |m| m.remove("/run/udev/control"),
            "warning",
            "udev does not run",
            "systemctl start systemd-udevd",
        ),
        (
            |m| m.remove("/usr/lib/systemd/system/neonsan@.service"),
            "problem",
            "the unit neonsan@.service is missing",
            "install",
        ),
        (
            |m| m.remove("/etc/systemd/system/remote-fs.target.wants/neonsan@data.service"),
            "warning",
            "nothing attaches it at boot",
            "systemctl enable --now neonsan@data",
        ),
        (
            |m| m.remove(CONF),
            "problem",
            "neonsan@data is enabled, but /etc/neonsan/devices/data.conf cannot be read",
            "write it",
        ),
        (
            |m| m.write(CONF, "NEONSAN_OPTIONS=--index 3\n"),
            "problem",
            "no line NEONSAN_TARGET=",
            "correct the line",
        ),
        (
            |m| m.write(CONF, "NEONSAN_TARGET=\"neonsan://h/volume\"\n"),
            "problem",
            "the pool is missing",
            "correct the line",
        ),
        (
            |m| m.write("/etc/neonsan/neonsan.toml", "nodse = []\n"),
            "problem",
            "line 1: unknown key `nodse`",
            "correct or remove the line",
        ),
        (
            |m| m.write("/etc/machine-id", "uninitialized\n"),
            "problem",
            "names no machine",
            "systemd-machine-id-setup",
        ),
        (
            |m| {
                m.write("/sys/block/neonsan0/dev", "259:0\n");
                m.write("/dev/neonsan0", "a file that somebody wrote");
            },
            "problem",
            "/dev/neonsan0 is no block device",
            "findmnt /dev",
        ),
    ];
    for (spoil, level, message, advice) in cases {
        let machine = Machine::new(lab.data);
        spoil(&machine);
        let said = machine.said(level);
        let line = said.lines().find(|line| line.contains(message));
        let line = line.unwrap_or_else(|| panic!("{message} is not said: {said}"));
        assert!(line.contains(advice), "{line}");
    }
}

#[test]
fn the_links_of_a_device_are_looked_at() {
    let lab = Lab::new();
    let machine = Machine::new(lab.data);
    machine.write("/sys/block/neonsan0/dev", "7:99\n");
    machine.write("/sys/block/neonsan0/serial", "0123abcd\n");
    std::fs::create_dir_all(machine.path("/dev/disk/by-id")).unwrap();
    let mut mknod = std::process::Command::new("mknod");
    let made = mknod
        .arg(machine.path("/dev/neonsan0"))
        .args(["b", "7", "99"])
        .output();
    if !made.as_ref().is_ok_and(|made| made.status.success()) {
        eprintln!("skipped: no device node can be made here: {made:?}");
        return;
    }
    let said = machine.said("warning");
    assert!(
        said.contains("neonsan0 has no link /dev/disk/by-id/neonsan-0123abcd"),
        "{said}"
    );
    assert!(said.contains("udevadm trigger"), "{said}");
    symlink(
        "../../neonsan0",
        machine.path("/dev/disk/by-id/neonsan-0123abcd"),
    )
    .unwrap();
    assert_eq!(machine.said("warning"), "");
    assert!(machine.said("ok").contains("neonsan0, with its links"));
    // By its name, another one of the same name, or the right one.
    machine.write("/sys/block/neonsan0/volume", "vm/data\n");
    std::fs::create_dir_all(machine.path("/dev/neonsan/vm")).unwrap();
    let by_name = machine.path("/dev/neonsan/vm/data");
    symlink("../../null", &by_name).unwrap();
    let mut mknod = std::process::Command::new("mknod");
    mknod
        .arg(machine.path("/dev/neonsan1"))
        .args(["b", "7", "98"]);
    assert!(mknod.status().unwrap().success());
    assert_eq!(machine.said("warning"), "");
    std::fs::remove_file(&by_name).unwrap();
    symlink("../../neonsan1", &by_name).unwrap();
    let said = machine.said("warning");
    assert!(
        said.contains("/dev/neonsan/vm/data leads to neonsan1"),
        "{said}"
    );
    assert!(
        said.contains("use /dev/disk/by-id/neonsan-0123abcd"),
        "{said}"
    );
    std::fs::remove_file(&by_name).unwrap();
    symlink("../../neonsan0", &by_name).unwrap();
    assert_eq!(machine.said("warning"), "");
    // The device under the name of another.
    machine.write("/sys/block/neonsan0/dev", "259:0\n");
    assert!(machine.said("problem").contains("is another disk"));
}

#[test]
fn nodes_that_do_not_serve_this_host_are_told_apart() {
    let lab = Lab::new();
    let nobody = lab::free_address();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let web = TcpListener::bind("127.0.0.1:0").unwrap();
    let (silent_at, web_at) = (silent.local_addr().unwrap(), web.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in web.incoming() {
            let _ =
                stream.and_then(|mut stream| stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
        }
    });
    for (node, message, advice) in [
        (nobody.to_string(), "no connection", "data.listen"),
        (silent_at.to_string(), "does not answer in time", "firewall"),
        (
            web_at.to_string(),
            "no NeonSAN node answers",
            "check the port",
        ),
        ("no.such.name.invalid".into(), "cannot be resolved", "DNS"),
        ("host:port".into(), "the port 'port'", "host:port"),
    ] {
        let machine = Machine::new(lab.data);
        let output = machine.doctor(&["--node", &node]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        let line = text.lines().find(|line| line.contains(message));
        let line = line.unwrap_or_else(|| panic!("{message}: {text}"));
        assert!(
            line.starts_with("problem  network") && line.contains(advice),
            "{line}"
        );
        // The other node is looked at nevertheless.
        assert!(text.contains("answers and lets this host in"), "{text}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("1 problem found"), "{said}");
    }
}

#[test]
fn a_machine_of_which_nothing_is_known_is_no_reason_to_fall_over() {
    let machine = Machine(tempfile::tempdir().unwrap());
    let output = machine.doctor(&[]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("mount proc"), "{text}");
    assert!(text.contains("no node is named"), "{text}");
}
